"""Agreement of a classifier's predictions before and after de-identification."""

import dataclasses

import numpy as np

from deid_jax.metrics.statistics import wilson
from deid_jax.types import NumpyArray


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well the predictions of one attribute agree: columns of `attributes.csv`.

    `agreement` is the share of images with the same prediction before and after, `low` and
    `high` its Wilson interval, `kappa` the `cohen_kappa` of both predictions. Accuracies are
    shares of correct predictions, and `chance` is the share of the most common true class.
    """

    attribute: str
    num_images: int
    agreement: float
    low: float
    high: float
    kappa: float
    accuracy_before: float
    accuracy_after: float
    chance: float


def agreement_on(
    attribute: str,
    truth: NumpyArray,
    before: NumpyArray,
    after: NumpyArray,
    *,
    confidence: float = 0.95,
) -> Agreement:
    """Compares the predictions of one attribute, int32[N], before and after with the truth."""
    same = int(np.sum(before == after))
    low, high = wilson(same, len(before), confidence)
    return Agreement(
        attribute=attribute,
        num_images=len(before),
        agreement=same / len(before),
        low=low,
        high=high,
        kappa=cohen_kappa(before, after),
        accuracy_before=float(np.mean(before == truth)),
        accuracy_after=float(np.mean(after == truth)),
        chance=chance_of(truth),
    )


def chance_of(classes: NumpyArray) -> float:
    """The share of the most common class of int32[N]."""
    return float(np.unique(classes, return_counts=True)[1].max() / len(classes))


def cohen_kappa(first: NumpyArray, second: NumpyArray) -> float:
    """Cohen's κ: the agreement beyond chance of two classifications of the same N images.

    κ = (p₀ − pₑ) / (1 − pₑ), with p₀ the share of images classified alike and
    pₑ = Σ_c n₁(c) n₂(c) / N² the share expected if the two were independent. 1 is full
    agreement, 0 chance. If both assign the same single class to all images, so that pₑ = 1,
    κ is 1 by convention.

    Args:
      first: integers [N], N >= 1.
      second: integers [N].

    Source: Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.
    """
    classes = np.union1d(first, second)
    n_first = np.sum(first[:, None] == classes[None], axis=0)
    n_second = np.sum(second[:, None] == classes[None], axis=0)
    by_chance = int(n_first @ n_second)
    alike, square = int(np.sum(first == second)) * len(first), len(first) ** 2
    return 1.0 if by_chance == square else (alike - by_chance) / (square - by_chance)
