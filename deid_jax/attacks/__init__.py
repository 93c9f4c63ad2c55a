"""Attacks by name. A new one is one file here and one line in `ATTACKS`."""

import dataclasses
from typing import Any, NamedTuple

from deid_jax.attacks.ifgsm import IFGSMConfig, ifgsm
from deid_jax.attacks.ifgvm import IFGVMConfig, ifgvm
from deid_jax.attacks.loop import gaussian_noise
from deid_jax.attacks.pfgvm import PFGVMConfig, pfgvm
from deid_jax.types import Attack


class Method(NamedTuple):
    """A de-identification method and the class of its settings."""

    function: Attack
    config: Any

    def settings(self) -> tuple[str, ...]:
        """Names of the method's settings."""
        return tuple(field.name for field in dataclasses.fields(self.config))


ATTACKS = {
    "pfgvm": Method(pfgvm, PFGVMConfig),
    "ifgvm": Method(ifgvm, IFGVMConfig),
    "ifgsm": Method(ifgsm, IFGSMConfig),
}

__all__ = [
    "ATTACKS",
    "IFGSMConfig",
    "IFGVMConfig",
    "Method",
    "PFGVMConfig",
    "gaussian_noise",
    "ifgsm",
    "ifgvm",
    "pfgvm",
]
