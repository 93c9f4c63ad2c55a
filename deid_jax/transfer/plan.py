"""The runs of a transfer evaluation: every method, budget and choice of surrogates."""

import dataclasses

from deid_jax.attacks import METHODS, Baseline, FixedSize, FixedSteps, LeastPerturbation

# P-FGVM has no size, and I-FGVM's steps have no length that a size could set.
OFFERED = tuple(
    name
    for name, method in METHODS.items()
    if not isinstance(method, FixedSteps)
    and not (isinstance(method, FixedSize) and not method.unit_steps)
)


@dataclasses.dataclass(frozen=True)
class PerturbationBudget:
    """The largest perturbation: a PSNR in dB, a pixel's bound of a range of 1, or neither."""

    psnr: float | None = None
    epsilon: float | None = None

    def __str__(self) -> str:
        if self.psnr is not None:
            return f"{self.psnr:g} dB"
        if self.epsilon is not None:
            return f"ε = {255 * self.epsilon:.3g}/255"
        return "least change"


@dataclasses.dataclass(frozen=True)
class TransferRun:
    """One way to protect all images.

    Attributes:
      fit: names of the surrogates.
      method: a key of `METHODS`, or "none".
      foreseen: the transformations that the attack foresees.
      budget: the largest perturbation.
    """

    fit: tuple[str, ...] = ()
    method: str = "none"
    foreseen: tuple[str, ...] = ()
    budget: PerturbationBudget = PerturbationBudget()

    def columns(self) -> dict[str, str | float | None]:
        """The columns of a table that name the run."""
        return {
            "fit": "+".join(self.fit),
            "method": self.method,
            "foreseen": "+".join(self.foreseen),
            "psnr": self.budget.psnr,
            "epsilon": self.budget.epsilon,
        }


@dataclasses.dataclass(frozen=True)
class TransferPlan:
    """All that a transfer evaluation runs.

    Attributes:
      fits: the surrogates of each attack, by name.
      judges: the recognisers that judge, by name.
      methods: keys of `METHODS`.
      psnrs: budgets in dB, for all methods; those of least change run without one, too.
      epsilons: further budgets of methods that bound pixels.
      transformations: what each attack foresees: keys of `TRANSFORMATIONS`, none or more.
      processing: keys of `PROCESSING`.
      fars: false accept rates; attacks go by the first one's threshold.
      num_steps: gradient steps.
      num_samples: draws of transformations per step.
      margin: how far below the threshold least changes without a budget go, in cosine.
      average: an opponent averages this many protected images; 0 or 1: none does.
      fine_tune: whether an opponent trains on protected images.
      seed: decides every random choice.
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
        """Every way in which the images are protected, once each."""
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
