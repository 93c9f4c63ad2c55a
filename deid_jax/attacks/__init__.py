"""Attacks by name. A new one is one file here and one line in `ATTACKS`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from deid_jax.arrays import gaussian_noise
from deid_jax.attacks.apfgvm import APFGVMConfig, apfgvm
from deid_jax.attacks.carlini_wagner import CarliniWagnerConfig, carlini_wagner
from deid_jax.attacks.ddn import DDNConfig, ddn
from deid_jax.attacks.fmn import FMNConfig, fmn
from deid_jax.attacks.ifgsm import IFGSMConfig, ifgsm
from deid_jax.attacks.ifgvm import IFGVMConfig, ifgvm
from deid_jax.attacks.mifgsm import MIFGSMConfig, mifgsm
from deid_jax.attacks.mifgvm import MIFGVMConfig, mifgvm
from deid_jax.attacks.pfgvm import PFGVMConfig, pfgvm
from deid_jax.attacks.pgd import PGDConfig, PGDL2Config, pgd, pgd_l2
from deid_jax.types import Attack


class Method(NamedTuple):
    """A de-identification method.

    Attributes:
      function: the method itself.
      config: the class of its settings.
      grid: the setting that trades visibility for protection, and values from hardly visible
        to hardly resisted: what a sweep tries where nothing else is asked for. Of methods
        that seek the least change it is how long they seek.
      objective: what it minimises, a name of `objectives.OBJECTIVES`.
      title: its name for people, where that is not its key.
    """

    function: Attack
    config: Any
    grid: Mapping[str, tuple[float, ...]]
    objective: str = "cross_entropy"
    title: str = ""

    def settings(self) -> tuple[str, ...]:
        """Names of the method's settings."""
        return tuple(field.name for field in dataclasses.fields(self.config))

    @property
    def quantizes(self) -> bool:
        """Whether it ends on the 8-bit grid unless told not to."""
        return any(
            field.name == "quantize" and field.default is True
            for field in dataclasses.fields(self.config)
        )


_GRID_OF_EPSILON = {"epsilon": (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)}
_GRID_OF_L2 = {"epsilon": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)}
_GRID_OF_STEPS = {"num_steps": (10, 20, 50, 100, 200)}

ATTACKS = {
    "pfgvm": Method(
        pfgvm,
        PFGVMConfig,
        {"penalty_weight": (2.0, 1.4, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)},
        title="P-FGVM",
    ),
    "apfgvm": Method(apfgvm, APFGVMConfig, _GRID_OF_STEPS, "margin", "A-PFGVM"),
    "ifgvm": Method(
        ifgvm,
        IFGVMConfig,
        {"epsilon": (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1)},
        title="I-FGVM",
    ),
    "ifgsm": Method(ifgsm, IFGSMConfig, _GRID_OF_EPSILON, title="I-FGSM"),
    "mifgsm": Method(mifgsm, MIFGSMConfig, _GRID_OF_EPSILON, title="MI-FGSM"),
    "mifgvm": Method(
        mifgvm,
        MIFGVMConfig,
        _GRID_OF_L2,
        title="MI-FGVM",
    ),
    "pgd": Method(pgd, PGDConfig, _GRID_OF_EPSILON, title="PGD"),
    "pgd_l2": Method(
        pgd_l2,
        PGDL2Config,
        _GRID_OF_L2,
        title="PGD (L2)",
    ),
    "ddn": Method(ddn, DDNConfig, _GRID_OF_STEPS, title="DDN"),
    "fmn": Method(fmn, FMNConfig, _GRID_OF_STEPS, "margin", "FMN"),
    "cw": Method(
        carlini_wagner,
        CarliniWagnerConfig,
        {"num_steps": (50, 100, 200, 500, 1000)},
        "margin",
        "C&W",
    ),
}

__all__ = [
    "ATTACKS",
    "APFGVMConfig",
    "CarliniWagnerConfig",
    "DDNConfig",
    "FMNConfig",
    "IFGSMConfig",
    "IFGVMConfig",
    "MIFGSMConfig",
    "MIFGVMConfig",
    "Method",
    "PFGVMConfig",
    "PGDConfig",
    "PGDL2Config",
    "apfgvm",
    "carlini_wagner",
    "ddn",
    "fmn",
    "gaussian_noise",
    "ifgsm",
    "ifgvm",
    "mifgsm",
    "mifgvm",
    "pfgvm",
    "pgd",
    "pgd_l2",
]
