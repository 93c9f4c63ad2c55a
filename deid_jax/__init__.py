"""Adversarial face de-identification in JAX.

Images are float32[B, H, W, 3] in [0, 1]; attacks are pure functions of (objective, images,
config, key), ready for `jit`, `vmap` and sharding. Recognisers and data sets load when used.
"""

import typing

from deid_jax import metrics
from deid_jax.arrays import gaussian_noise
from deid_jax.attacks import (
    ATTACKS,
    BASELINES,
    METHODS,
    APFGVMConfig,
    CarliniWagnerConfig,
    DDNConfig,
    FMNConfig,
    IFGSMConfig,
    IFGVMConfig,
    MIFGSMConfig,
    MIFGVMConfig,
    PFGVMConfig,
    PGDConfig,
    PGDL2Config,
    apfgvm,
    baselines,
    carlini_wagner,
    ddn,
    fmn,
    ifgsm,
    ifgvm,
    mifgsm,
    mifgvm,
    pfgvm,
    pgd,
    pgd_l2,
)
from deid_jax.data import DATASETS, DataOptions, FaceDataset, load_dataset
from deid_jax.errors import InputError
from deid_jax.models import MODELS, create_model, prepare
from deid_jax.objectives import cross_entropy, margin
from deid_jax.types import Attack, AttackResult, Batch, Objective

if typing.TYPE_CHECKING:
    from deid_jax.recognisers import load_recogniser


def __getattr__(name: str) -> object:
    """Loads `load_recogniser` on first use, because it imports Flax and Orbax."""
    if name == "load_recogniser":
        from deid_jax import recognisers

        return recognisers.load_recogniser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ATTACKS",
    "BASELINES",
    "DATASETS",
    "METHODS",
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
    "MIFGVMConfig",
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
    "mifgvm",
    "pfgvm",
    "pgd",
    "pgd_l2",
    "prepare",
]
