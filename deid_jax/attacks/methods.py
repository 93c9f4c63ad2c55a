"""The kinds of methods, as types: how each determines the size of its perturbation."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from deid_jax.types import Attack, PyTree


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
