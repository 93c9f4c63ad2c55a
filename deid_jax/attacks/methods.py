"""The kinds of methods, as types: how each determines the size of its perturbation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, TypeVar

import jax

from deid_jax import checks
from deid_jax.errors import InputError
from deid_jax.types import Attack, PyTree

T = TypeVar("T")
# A setting that is a pytree leaf: one number, or one for each entry of a sweep.
Setting: TypeAlias = float | jax.Array
# N; or increasing ones, each of which gives the result that it would give alone.
NumSteps: TypeAlias = int | tuple[int, ...]
# (name, value): raises `InputError` for a bad value.
Check: TypeAlias = Callable[[str, object], None]

at_least_one = functools.partial(checks.count, least=1)


def checked(check: Check, default: T) -> T:
    """A setting with a check of its own."""
    return dataclasses.field(default=default, metadata={"check": check})


def static(default: T, check: Check | None = None, choices: tuple[str, ...] = ()) -> T:
    """A setting that changes the compiled program."""
    metadata = {"static": True, "check": check, "choices": choices or None}
    return dataclasses.field(default=default, metadata=metadata)


def steps(default: int) -> NumSteps:
    """A number of gradient steps."""
    return static(default, checks.step_counts)


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Settings of a method: finite numbers ≥ 0, unless they have a check of their own.

    Traced values pass unchecked.

    Raises:
      InputError: a setting is out of its range.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            check = field.metadata.get("check", checks.finite_non_negative)
            if check:
                check(field.name, value)
            choices = field.metadata.get("choices")
            if choices and value not in choices:
                known = ", ".join(choices)
                raise InputError(f"{field.name} must be one of {known}, got {value}")


@dataclasses.dataclass(frozen=True)
class Method:
    """A de-identification method: an entry of `attacks.METHODS`, always of one of the kinds.

    Attributes:
      function: the method itself.
      config: the class of its settings.
      grid: the setting that trades visibility for protection, with values from barely visible
        to almost always successful: the default of a sweep. For methods that minimise the
        perturbation it is the number of steps.
      title: its name in tables and figures; its key if empty.
      objective: what it minimises, a key of `objectives.OBJECTIVES`.
    """

    function: Attack
    config: type[PyTree]
    grid: Mapping[str, tuple[float, ...]]
    title: str = ""
    objective: str = "cross_entropy"

    def settings(self) -> tuple[str, ...]:
        """The names of the method's settings."""
        return tuple(field.name for field in dataclasses.fields(self.config))

    @property
    def quantizes(self) -> bool:
        """Whether its result is on the 8-bit grid by default."""
        return any(
            field.name == "quantize" and field.default is True
            for field in dataclasses.fields(self.config)
        )

    @property
    def bounds_pixels(self) -> bool:
        """Whether its ε bounds the perturbation of each pixel."""
        return False

    def with_quantize(self, config: PyTree, quantize: bool) -> PyTree:
        """The settings with `quantize` set, if the method has that setting."""
        if "quantize" in self.settings():
            return dataclasses.replace(config, quantize=quantize)
        return config


class FixedSteps(Method):
    """An attack whose perturbation is limited only by its steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSize(Method):
    """An attack whose setting `epsilon` bounds the perturbation.

    Attributes:
      norm: what ε bounds: "linf", the perturbation of each pixel, or "l2", that of an image.
      unit_steps: whether the gradient decides only the direction of a step, not its length.
    """

    norm: Literal["linf", "l2"]
    unit_steps: bool = True

    @property
    def bounds_pixels(self) -> bool:
        """Whether its ε bounds the perturbation of each pixel."""
        return self.norm == "linf"


class LeastPerturbation(Method):
    """An attack that seeks the smallest perturbation that succeeds; it has no budget."""


class Baseline(Method):
    """An ad-hoc method that uses no recogniser and takes no steps."""


def of_kind(methods: Mapping[str, Method], *kinds: type[Method]) -> tuple[str, ...]:
    """The names of the methods of the given kinds, in the table's order."""
    return tuple(name for name, method in methods.items() if isinstance(method, kinds))
