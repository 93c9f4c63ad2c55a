"""Attacks: one file per method, their tables by name, and the loop that they share.

An attack takes an objective, images, settings and a key. This package imports neither data
nor models. To add a method, add a file here, import it below, and add one line to `ATTACKS`
or `BASELINES`.
"""

from deid_jax.attacks.apfgvm import APFGVMConfig, apfgvm
from deid_jax.attacks.baselines import (
    BlurConfig,
    MaskConfig,
    NoiseConfig,
    PixelateConfig,
    blur,
    mask,
    noise,
    pixelate,
)
from deid_jax.attacks.carlini_wagner import CarliniWagnerConfig, carlini_wagner
from deid_jax.attacks.ddn import DDNConfig, ddn
from deid_jax.attacks.fmn import FMNConfig, fmn
from deid_jax.attacks.ifgsm import IFGSMConfig, ifgsm
from deid_jax.attacks.ifgvm import IFGVMConfig, ifgvm
from deid_jax.attacks.methods import (
    Baseline,
    FixedSize,
    FixedSteps,
    LeastPerturbation,
    Method,
)
from deid_jax.attacks.methods import (
    of_kind as of_kind,
)
from deid_jax.attacks.mifgsm import MIFGSMConfig, mifgsm
from deid_jax.attacks.mifgvm import MIFGVMConfig, mifgvm
from deid_jax.attacks.pfgvm import PFGVMConfig, pfgvm
from deid_jax.attacks.pgd import PGDConfig, PGDL2Config, pgd, pgd_l2

_PENALTIES = {"penalty_weight": (2.0, 1.4, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)}
_PIXEL = {"epsilon": (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)}
_PIXEL_FAR = {"epsilon": (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1)}
_L2 = {"epsilon": (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)}
_STEPS = {"num_steps": (10, 20, 50, 100, 200)}
_STEPS_FAR = {"num_steps": (50, 100, 200, 500, 1000)}

ATTACKS: dict[str, Method] = {
    "pfgvm": FixedSteps(pfgvm, PFGVMConfig, _PENALTIES, "P-FGVM"),
    "apfgvm": LeastPerturbation(apfgvm, APFGVMConfig, _STEPS, "A-PFGVM", "margin"),
    "ifgvm": FixedSize(ifgvm, IFGVMConfig, _PIXEL_FAR, "I-FGVM", norm="linf", unit_steps=False),
    "ifgsm": FixedSize(ifgsm, IFGSMConfig, _PIXEL, "I-FGSM", norm="linf"),
    "mifgsm": FixedSize(mifgsm, MIFGSMConfig, _PIXEL, "MI-FGSM", norm="linf"),
    "mifgvm": FixedSize(mifgvm, MIFGVMConfig, _L2, "MI-FGVM", norm="l2"),
    "pgd": FixedSize(pgd, PGDConfig, _PIXEL, "PGD", norm="linf"),
    "pgd_l2": FixedSize(pgd_l2, PGDL2Config, _L2, "PGD (L2)", norm="l2"),
    "ddn": LeastPerturbation(ddn, DDNConfig, _STEPS, "DDN"),
    "fmn": LeastPerturbation(fmn, FMNConfig, _STEPS, "FMN", "margin"),
    "cw": LeastPerturbation(carlini_wagner, CarliniWagnerConfig, _STEPS_FAR, "C&W", "margin"),
}
BASELINES: dict[str, Method] = {
    "blur": Baseline(blur, BlurConfig, {"blur_sigma": (0.01, 0.02, 0.05, 0.1, 0.2)}),
    "pixelate": Baseline(pixelate, PixelateConfig, {"num_blocks": (32, 20, 14, 10, 6, 4)}),
    "mask": Baseline(mask, MaskConfig, {"mask_size": (0.2, 0.35, 0.5, 0.7, 1.0)}),
    "noise": Baseline(noise, NoiseConfig, {"noise_stddev": (0.02, 0.05, 0.1, 0.2, 0.4)}),
}
METHODS = ATTACKS | BASELINES
