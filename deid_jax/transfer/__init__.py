"""Transfer: does protection carry over to recognisers that were not attacked?

Protocol, surrogates, judges and opponents who adapt. Imports `reports` and what is below.
"""

from deid_jax.transfer.protocol import (
    COMPARED,
    Faces,
    Judge,
    Verdict,
    averaged,
    figures,
    make_judge,
)
from deid_jax.transfer.surrogates import SurrogateAttack, Surrogates, perturb_on_grid

__all__ = [
    "COMPARED",
    "Faces",
    "Judge",
    "SurrogateAttack",
    "Surrogates",
    "Verdict",
    "averaged",
    "figures",
    "make_judge",
    "perturb_on_grid",
]
