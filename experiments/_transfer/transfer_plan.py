"""What `experiments.transfer` is to run: every method, budget and choice to fit on."""

import dataclasses
from typing import Any, NamedTuple

from deid_jax.attacks import METHODS, Baseline, FixedSize, FixedSteps, LeastChange

Row = dict[str, Any]

# P-FGVM has no size, and I-FGVM's steps have no length that a size could set.
OFFERED = tuple(
    name
    for name, method in METHODS.items()
    if not isinstance(method, FixedSteps)
    and not (isinstance(method, FixedSize) and not method.unit_steps)
)


class Budget(NamedTuple):
    """How large a change may be: a PSNR in dB, a pixel's change of a range of 1, or neither."""

    psnr: float | None = None
    epsilon: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      fits: which recognisers each attack knows, by name.
      tests: which recognisers judge.
      methods: keys of `METHODS`.
      psnrs: budgets in dB, of all methods; those of least change run without one, too.
      epsilons: further budgets of sign methods.
      transformations: what each attack foresees: keys of `TRANSFORMATIONS`, none or more.
      processing: keys of `PROCESSING`.
      fars: false accept rates; least changes go below the first one's threshold.
      num_steps: gradient steps.
      num_samples: draws of transformations a step.
      margin: how far below the threshold least changes without a budget go, in cosine.
      average: an opponent averages so many protected photos; 0 or 1: none does.
      fine_tune: whether an opponent trains on protected photos.
      seed: decides every random choice.
    """

    fits: tuple[tuple[str, ...], ...]
    tests: tuple[str, ...]
    methods: tuple[str, ...]
    psnrs: tuple[float, ...]
    epsilons: tuple[float, ...]
    transformations: tuple[tuple[str, ...], ...]
    processing: tuple[str, ...]
    fars: tuple[float, ...]
    num_steps: int
    num_samples: int
    margin: float
    average: int
    fine_tune: bool
    seed: int

    def runs(self) -> list["Run"]:
        """Every way in which the photos are protected, once each."""
        found = []
        for method in self.methods:
            kind = METHODS[method]
            if isinstance(kind, Baseline):
                found += [Run((), method, (), Budget(psnr)) for psnr in self.psnrs]
                continue
            budgets = [Budget(psnr) for psnr in self.psnrs]
            if isinstance(kind, LeastChange):
                budgets = [Budget(), *budgets]
            elif kind.bounds_pixels:
                budgets += [Budget(epsilon=epsilon) for epsilon in self.epsilons]
            found += [
                Run(fit, method, foreseen, budget)
                for fit in self.fits
                for foreseen in self.transformations
                for budget in budgets
            ]
        return found


class Run(NamedTuple):
    """One way to protect: what it is fitted on, how, what it foresees, and how large."""

    fit: tuple[str, ...]
    method: str
    foreseen: tuple[str, ...]
    budget: Budget

    def describe(self) -> Row:
        """The columns that name it."""
        return {
            "fit": "+".join(self.fit),
            "method": self.method,
            "foreseen": "+".join(self.foreseen),
            "psnr": "" if self.budget.psnr is None else self.budget.psnr,
            "epsilon": "" if self.budget.epsilon is None else self.budget.epsilon,
        }
