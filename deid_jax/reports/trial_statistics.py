"""Statistics of trials: one least-distortion attack on the images of a data set.

A trial is one distance per image, float64[N], from the result to the original: 0 if the
original already meets the goal, infinite if the attack failed. A failure therefore counts as
further away than any success.
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Distances: TypeAlias = npt.NDArray[np.float64]


class PairedTest(NamedTuple):
    """Wilcoxon's signed-rank test, two-sided, of two trials on the same images.

    `p_value` is 1 if the trials are equal. `median` is that of other − reference, positive if
    the reference is nearer; infinite if one of them fails on half of the images, NaN halfway
    between both infinities.
    """

    p_value: float
    median: float


def success_rate(distances: Distances) -> float:
    """The share of images on which the attack succeeds."""
    return float(np.mean(np.isfinite(distances)))


def mean_and_median(distances: Distances) -> tuple[float, float]:
    """Mean and median distance of the successes; NaN if there are none."""
    reached = distances[np.isfinite(distances)]
    if not reached.size:
        return math.nan, math.nan
    return float(np.mean(reached)), float(np.median(reached))


def largest_success(distances: Distances) -> float:
    """The largest distance of a success; 0 if there are none."""
    return float(np.max(distances, where=np.isfinite(distances), initial=0.0))


def auc(distances: Distances, limit: float) -> float:
    """Normalised area under the curve of success against distortion: 1 is best.

    (1/D) ∫₀^D s(d) dd, s(d) the share of images with success at a distance <= d and D the
    limit, finite and the same for all trials that are compared. A success at distance dᵢ <= D
    adds (D − dᵢ)/(N·D), so that the integral is exact. For D = 0 it is s(0).
    """
    if limit == 0:
        return float(np.mean(distances == 0))
    return float(np.mean(np.clip(limit - distances, 0, None)) / limit)


def success_curve(distances: Distances, limit: float) -> tuple[list[float], list[float]]:
    """Distances and the success rate up to each: the corners of a step function on [0, limit].

    The share holds from its distance to the next one, as matplotlib's `steps-post` draws it.
    """
    reached = np.sort(distances[distances <= limit])
    at, last = np.unique(reached, return_index=True)
    shares = np.append(last[1:], len(reached)) / len(distances) if len(reached) else reached
    first = [] if len(at) and at[0] == 0 else [0.0]
    heights = [*first, *shares.tolist()]
    return [*first, *at.tolist(), limit], [*heights, heights[-1]]


def compare_pairs(reference: Distances, other: Distances) -> PairedTest:
    """Wilcoxon's signed-rank test of two trials on the same images, as SciPy computes it.

    If one trial fails on an image, the difference counts as larger than any between successes:
    a failure is set to twice the largest success of both trials. If both fail, they are equal.
    Images without a difference are left out, as in Wilcoxon's original test.
    """
    from scipy import stats

    failure = 2 * max(largest_success(reference), largest_success(other)) or 1.0
    finite = [np.where(np.isfinite(trial), trial, failure) for trial in (reference, other)]
    differences = finite[1] - finite[0]
    equal = not differences.any()
    p_value = 1.0 if equal else float(stats.wilcoxon(differences[differences != 0]).pvalue)
    with np.errstate(invalid="ignore"):
        both_fail = np.isinf(reference) & np.isinf(other)
        exact = np.where(both_fail, 0.0, other - reference)
        return PairedTest(p_value, float(np.median(exact)))
