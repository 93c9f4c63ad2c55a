"""Settings of methods: flags shared by several methods, and those of single methods."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.devices.precision import PRECISIONS
from deid_jax.errors import InputError
from deid_jax.evaluation import INITS, TARGETS, Protocol, Settings
from deid_jax.types import Config
from experiments._common.data_settings import EvaluationSettings
from experiments._common.flags import Flag, setting, settings_of_others

# The help text of each setting.
MEANINGS = {
    "step_size": "α, the size of one step.",
    "shrink": "β₀, the share of the perturbation that the first penalty step removes.",
    "max_step": "The longest step, in L2.",
    "penalty": "The quantity that is kept small together with the loss.",
    "penalty_weight": "λ, the weight of the 'realism' term; α·λ >= 2 diverges.",
    "num_steps": "Number of gradient steps.",
    "epsilon": "ε, the largest perturbation of a pixel, of a range of 1; in pgd_l2 and mifgvm "
    "of an image.",
    "momentum": "μ, the share of the previous direction that a step keeps.",
    "reach": "Length of all steps together along one line, in ε.",
    "init_epsilon": "ε₀, the size in L2 of the first perturbation.",
    "gamma": "γ, the share by which the allowed size grows or shrinks, below 1.",
    "initial_const": "c of the first search: the weight of success against the perturbation.",
    "kappa": "κ, the margin beyond the decision boundary, in logits.",
    "binary_search_steps": "Number of searches for c, which share num_steps.",
    "blur_sigma": "Standard deviation of the blur, a fraction of the image's height.",
    "num_blocks": "Number of blocks across and down the image.",
    "mask_size": "Height and width of the mask, a fraction of the image's.",
    "noise_stddev": "Standard deviation of the noise, for pixels in a range of 1.",
}


def method_flags() -> dict[str, Flag]:
    """One flag per setting of any method; without it the method's default applies."""
    fields: dict[str, dict[str, dataclasses.Field[Config]]] = {}
    for name, method in METHODS.items():
        for field in dataclasses.fields(method.config):
            if field.name != "quantize":  # A flag that all methods share.
                fields.setdefault(field.name, {})[name] = field
    return {name: _flag(name, own) for name, own in fields.items()}


def _flag(name: str, fields: Mapping[str, "dataclasses.Field[Config]"]) -> Flag:
    """A setting's flag: the commonest default comes first, then the methods that differ."""
    defaults = {method: number_or_name(field.default) for method, field in fields.items()}
    common = statistics.mode(defaults.values())
    differing = [f"{method} {value}" for method, value in defaults.items() if value != common]
    agreeing = [method for method, value in defaults.items() if value == common]
    usual = common if len(defaults) == len(ATTACKS) else f"{common} ({', '.join(agreeing)})"
    text = f"{MEANINGS.get(name, '')} Default: {'; '.join([usual, *differing])}.".strip()
    field = next(iter(fields.values()))
    return Flag(type(field.default), None, text, field.metadata.get("choices"))


def number_or_name(value: object) -> str:
    """A setting's value as text: 0.1, 50, l2, True."""
    return f"{value:g}" if type(value) in (int, float) else str(value)


def settings_text(settings: Mapping[str, object]) -> str:
    """Settings on one line: step_size 0.1, num_steps 50."""
    return ", ".join(f"{name} {number_or_name(value)}" for name, value in settings.items())


def _quantizing_methods() -> str:
    """The methods that quantize by default, as text."""
    names = [name for name, method in METHODS.items() if method.quantizes]
    return f"on for {', '.join(names)}, off for the others" if names else "off"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings(EvaluationSettings):
    """How methods are run; `method_settings` holds the settings of single methods."""

    target: str | None = setting(
        None, "Label that an attack aims at; none = untargeted. Default: random.", TARGETS
    )
    init: str | None = setting(None, "First iterate of an attack. Default: image.", INITS)
    quantize: bool | None = setting(
        None,
        "Finish on the 8-bit grid and keep success: roundings that undo it are "
        f"corrected. Default: {_quantizing_methods()}.",
    )
    precision: str | None = setting(
        None,
        "Precision of the attack; results are measured in float32. On CPUs tf32 is float32. "
        "Default: float32.",
        choices=PRECISIONS,
    )
    method_settings: Mapping[str, float | str] = settings_of_others(method_flags())

    def check_methods(self, methods: Sequence[str]) -> None:
        """Refuses flags that no chosen method uses."""
        asked = f"--method={','.join(methods)}"
        if not any(name in ATTACKS for name in methods):
            for flag in ("target", "init", "precision"):
                value = getattr(self, flag)
                if value is not None:
                    raise InputError(f"--{flag}={value} does not apply to {asked}")
        known = dict.fromkeys(own for name in methods for own in METHODS[name].settings())
        for flag, value in self.method_settings.items():
            if flag not in known:
                raise InputError(
                    f"--{flag}={value} does not apply to {asked}, which takes "
                    + ", ".join(f"--{own}" for own in known)
                )

    def config(self, method: str) -> Config:
        """A method's config: the given settings, and defaults for the others."""
        return METHODS[method].config(**self.settings_of(method))

    def settings_of(self, method: str) -> Settings:
        """The settings given for a method, including `quantize`."""
        known = METHODS[method].settings()
        given = {**self.method_settings, "quantize": self.quantizes(method)}
        return {name: value for name, value in given.items() if name in known}

    def quantizes(self, method: str) -> bool:
        """Whether a method finishes on the 8-bit grid."""
        return METHODS[method].quantizes if self.quantize is None else self.quantize

    def protocol(self, method: str) -> Protocol:
        """How a method is run; baselines have neither target nor first iterate."""
        aims = method in ATTACKS
        return Protocol(
            target=(self.target or "random") if aims else "none",
            init=(self.init or "image") if aims else "image",
            quantize=self.quantizes(method),
            batch_size=self.batch_size,
            seed=self.seed,
            precision=self.precision or "float32",
        )
