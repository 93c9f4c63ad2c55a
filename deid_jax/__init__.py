"""Adversarial face de-identification in JAX.

Images are float32[B, H, W, 3] in [0, 1]; attacks are pure functions of (objective, images,
config, key), ready for `jit`, `vmap` and sharding. Recognisers and data sets load when used.
"""

import typing

from deid_jax import metrics
from deid_jax.attacks import (
    ATTACKS,
    APFGVMConfig,
    CarliniWagnerConfig,
    DDNConfig,
    FMNConfig,
    IFGSMConfig,
    IFGVMConfig,
    MIFGSMConfig,
    PFGVMConfig,
    PGDConfig,
    PGDL2Config,
    apfgvm,
    baselines,
    carlini_wagner,
    ddn,
    fmn,
    gaussian_noise,
    ifgsm,
    ifgvm,
    mifgsm,
    pfgvm,
    pgd,
    pgd_l2,
)
from deid_jax.data import DATASETS, DataOptions, FaceDataset, load_dataset
from deid_jax.errors import InputError
from deid_jax.models import MODELS, create_model, prepare
from deid_jax.objectives import cross_entropy, margin
from deid_jax.types import Attack, AttackResult, Batch, Objective


def load_recogniser(path: str, dataset: FaceDataset) -> typing.Any:
    """A trained recogniser from its checkpoint: (model, variables, info).

    Logits are `model.apply(variables, images)`. See `deid_jax.recognisers.load_recogniser`,
    which this imports when called, as it brings Flax and Orbax.

    Raises:
      InputError: the checkpoint is missing, broken, or made for something else.
    """
    from deid_jax import recognisers

    return recognisers.load_recogniser(path, dataset)


__all__ = [
    "ATTACKS",
    "DATASETS",
    "MODELS",
    "APFGVMConfig",
    "Attack",
    "AttackResult",
    "Batch",
    "CarliniWagnerConfig",
    "DDNConfig",
    "DataOptions",
    "FMNConfig",
    "FaceDataset",
    "IFGSMConfig",
    "IFGVMConfig",
    "InputError",
    "MIFGSMConfig",
    "Objective",
    "PFGVMConfig",
    "PGDConfig",
    "PGDL2Config",
    "apfgvm",
    "baselines",
    "carlini_wagner",
    "create_model",
    "cross_entropy",
    "ddn",
    "fmn",
    "gaussian_noise",
    "ifgsm",
    "ifgvm",
    "load_dataset",
    "load_recogniser",
    "margin",
    "metrics",
    "mifgsm",
    "pfgvm",
    "pgd",
    "pgd_l2",
    "prepare",
]
