"""Transfer: does protection carry over to recognisers that were not attacked?

Attacks fitted on surrogates, judges with clean galleries, opponents who adapt, and the tables
of an evaluation. Imports `reports` and the packages below it.
"""

from deid_jax.transfer.judges import ClassifierJudge, Faces, GalleryJudge, JudgedImages
from deid_jax.transfer.opponents import averaged, fine_tune
from deid_jax.transfer.plan import PerturbationBudget, TransferPlan, TransferRun
from deid_jax.transfer.surrogates import SurrogateAttack, Surrogates, perturb_on_grid
from deid_jax.transfer.transfer_tables import TransferEvaluation, TransferTables

__all__ = [
    "ClassifierJudge",
    "Faces",
    "GalleryJudge",
    "JudgedImages",
    "PerturbationBudget",
    "SurrogateAttack",
    "Surrogates",
    "TransferEvaluation",
    "TransferPlan",
    "TransferRun",
    "TransferTables",
    "averaged",
    "fine_tune",
    "perturb_on_grid",
]
