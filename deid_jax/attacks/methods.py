"""The kinds of methods: what a method is told of its perturbation's size, as types."""

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
      grid: the setting that trades visibility for protection, and values from hardly visible
        to hardly resisted: what a sweep tries by default. Of methods that seek the least
        perturbation it is how long they seek.
      title: its name in tables and figures; its key if empty.
      objective: what it minimises, a name of `objectives.OBJECTIVES`.
    """

    function: Attack
    config: type[PyTree]
    grid: Mapping[str, tuple[float, ...]]
    title: str = ""
    objective: str = "cross_entropy"

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

    @property
    def bounds_pixels(self) -> bool:
        """Whether its ε bounds the perturbation of each pixel."""
        return False

    def with_quantize(self, config: PyTree, quantize: bool) -> PyTree:
        """The method's settings, told whether to stay on the 8-bit grid if it can be told."""
        if "quantize" in self.settings():
            return dataclasses.replace(config, quantize=quantize)
        return config


class FixedSteps(Method):
    """An attack whose steps alone say how far it goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSize(Method):
    """An attack whose setting `epsilon` bounds the perturbation.

    Attributes:
      norm: what ε bounds: "linf", the perturbation of each pixel, or "l2", that of an image.
      unit_steps: whether the gradient decides only where steps lead, not how long they are.
    """

    norm: Literal["linf", "l2"]
    unit_steps: bool = True

    @property
    def bounds_pixels(self) -> bool:
        """Whether its ε bounds the perturbation of each pixel."""
        return self.norm == "linf"


class LeastPerturbation(Method):
    """An attack that seeks the least perturbation that succeeds; it has no size."""


class Baseline(Method):
    """An ad-hoc method that looks at no recogniser and takes no steps."""


def of_kind(methods: Mapping[str, Method], *kinds: type[Method]) -> tuple[str, ...]:
    """Names of the methods of some kinds, in the table's order."""
    return tuple(name for name, method in methods.items() if isinstance(method, kinds))
