"""What `experiments.transfer` is to run: every method, budget and choice to fit on."""

import dataclasses
from typing import Any, NamedTuple

Row = dict[str, Any]

# Methods by what bounds their change: L2, a pixel's, or neither (ad-hoc ones are scaled).
BY_L2 = ("mifgvm", "pgd_l2")
BY_PIXEL = ("mifgsm", "ifgsm", "pgd")
AD_HOC = ("blur", "pixelate", "noise", "mask")
# Methods that seek the least change that suffices. Within a budget they go as far beyond as it
# lets them, each photo by its own margin.
LEAST = ("apfgvm", "ddn", "fmn", "cw")


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
            if method in AD_HOC:
                found += [Run((), method, (), Budget(psnr)) for psnr in self.psnrs]
                continue
            budgets = [Budget(psnr) for psnr in self.psnrs]
            if method in LEAST:
                budgets = [Budget(), *budgets]
            elif method in BY_PIXEL:
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
