"""The runs of a transfer evaluation: every method, budget and choice of surrogates."""

import dataclasses

from deid_jax.attacks import METHODS, Baseline, FixedSize, FixedSteps, LeastPerturbation

# P-FGVM has no fixed size, and a budget cannot set the length of I-FGVM's steps.
OFFERED = tuple(
    name
    for name, method in METHODS.items()
    if not isinstance(method, FixedSteps)
    and not (isinstance(method, FixedSize) and not method.unit_steps)
)


@dataclasses.dataclass(frozen=True)
class PerturbationBudget:
    """The largest perturbation: a PSNR in dB, a bound ε per pixel in [0, 1], or neither."""

    psnr: float | None = None
    epsilon: float | None = None

    def __str__(self) -> str:
        if self.psnr is not None:
            return f"{self.psnr:g} dB"
        if self.epsilon is not None:
            return f"ε = {255 * self.epsilon:.3g}/255"
        return "least perturbation"


@dataclasses.dataclass(frozen=True)
class TransferRun:
    """One way to protect all images: surrogates, method, foreseen transformations, budget."""

    fit: tuple[str, ...] = ()
    method: str = "none"
    foreseen: tuple[str, ...] = ()
    budget: PerturbationBudget = PerturbationBudget()

    def columns(self) -> dict[str, str | float | None]:
        """The table columns that identify the run."""
        return {
            "fit": "+".join(self.fit),
            "method": self.method,
            "foreseen": "+".join(self.foreseen),
            "psnr": self.budget.psnr,
            "epsilon": self.budget.epsilon,
        }


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """Everything that a transfer evaluation runs.

    Attributes:
      fits: the surrogates of each attack, by name.
      judges: the recognisers that judge, by name.
      psnrs: budgets in dB for all methods; least-perturbation attacks also run without one.
      epsilons: further budgets, for methods that bound each pixel.
      transformations: those that each attack anticipates: any number of keys of
        `TRANSFORMATIONS`.
      fars: false accept rates; attacks use the threshold of the first one.
      num_samples: draws of transformations per step.
      margin: how far below the threshold least-perturbation attacks without a budget go, as a
        cosine.
      average: number of protected images that an opponent averages; 0 or 1: no such opponent.
      fine_tune: whether an opponent fine-tunes on protected images.
    """

    fits: tuple[tuple[str, ...], ...]
    judges: tuple[str, ...]
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

    def runs(self) -> list[TransferRun]:
        """All runs, each one once."""
        found = []
        by_psnr = [PerturbationBudget(psnr) for psnr in self.psnrs]
        for name in self.methods:
            method, budgets = METHODS[name], by_psnr
            if isinstance(method, Baseline):
                found += [TransferRun(method=name, budget=budget) for budget in budgets]
                continue
            if isinstance(method, LeastPerturbation):
                budgets = [PerturbationBudget(), *by_psnr]
            elif method.bounds_pixels:
                by_pixel = [PerturbationBudget(epsilon=epsilon) for epsilon in self.epsilons]
                budgets = [*by_psnr, *by_pixel]
            found += [
                TransferRun(fit, name, foreseen, budget)
                for fit in self.fits
                for foreseen in self.transformations
                for budget in budgets
            ]
        return found
