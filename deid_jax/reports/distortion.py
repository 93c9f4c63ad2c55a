"""Success against distortion: what a least-distortion attack buys, as numbers.

A run is one distance per picture, float64[N]: how far the result lies from the original, 0
where the original meets the goal by itself, infinite where the attack failed. So a failure is
further than any success in whatever is computed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deid_jax.errors import InputError


class Paired(NamedTuple):
    """Two runs on the same pictures.

    Attributes:
      p_value: of Wilcoxon's signed-rank test, two-sided; 1 where the runs are equal.
      median: the median of other − reference, positive where the reference is nearer; infinite
        where one of them fails on half of the pictures, NaN halfway between both infinities.
    """

    p_value: float
    median: float


def distances(
    l2: Sequence[float] | np.ndarray, success: Sequence[bool] | np.ndarray
) -> np.ndarray:
    """Distances float64[N] of results: their L2 where they succeed, else infinity.

    Args:
      l2: [N].
      success: [N].

    Raises:
      InputError: other numbers of them, or none; a success at no finite distance >= 0.
    """
    lengths, reached = np.asarray(l2, np.float64), np.asarray(success, bool)
    if lengths.shape != reached.shape:
        raise InputError(
            f"l2 and success must be as many, got {lengths.size} and {reached.size}"
        )
    return _checked("l2", np.where(reached, lengths, np.inf))


def success_rate(values: Sequence[float] | np.ndarray) -> float:
    """The share of pictures at a finite distance."""
    return float(np.mean(np.isfinite(_checked("values", values))))


def mean_and_median(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and median of the distances of the successes; NaN where there are none."""
    checked = _checked("values", values)
    reached = checked[np.isfinite(checked)]
    if not reached.size:
        return math.nan, math.nan
    return float(np.mean(reached)), float(np.median(reached))


def largest(values: Sequence[float] | np.ndarray) -> float:
    """The largest distance of a success; 0 where there are none."""
    checked = _checked("values", values)
    return float(np.max(checked, where=np.isfinite(checked), initial=0.0))


def auc(values: Sequence[float] | np.ndarray, limit: float) -> float:
    """Area under success against distortion, as a share of the whole: 1 is best.

    (1/D) ∫₀^D s(d) dd, s(d) the share of pictures with success at a distance <= d. A success at
    distance dᵢ <= D adds (D − dᵢ)/(N·D), so that the integral is exact. For D = 0 it is s(0).

    Args:
      values: distances, [N].
      limit: D, the same for all runs that are compared.

    Raises:
      InputError: no distances or bad ones, or a limit that is no finite number >= 0.
    """
    checked = _checked("values", values)
    if not 0 <= limit < math.inf:
        raise InputError(f"limit must be a finite number >= 0, got {limit}")
    if limit == 0:
        return float(np.mean(checked == 0))
    return float(np.mean(np.clip(limit - checked, 0, None)) / limit)


def curve(
    values: Sequence[float] | np.ndarray, limit: float
) -> tuple[list[float], list[float]]:
    """Distances and the share of successes up to each: corners of a step function on [0, D].

    The share holds from its distance to the next one, as matplotlib's `steps-post` draws it.

    Args:
      values: distances, [N].
      limit: D, where the curve ends.
    """
    checked = np.sort(_checked("values", values))
    reached = checked[checked <= limit]
    at, last = np.unique(reached, return_index=True)
    shares = np.append(last[1:], len(reached)) / len(checked) if len(reached) else reached
    first = [] if len(at) and at[0] == 0 else [0.0]
    heights = [*first, *shares.tolist()]
    return [*first, *at.tolist(), limit], [*heights, heights[-1]]


def compare_pairs(
    reference: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray
) -> Paired:
    """Wilcoxon's signed-rank test of two runs on the same pictures, as SciPy computes it.

    A picture on which one run fails counts as a difference above all between successes, by
    putting failures at twice the largest success of the two; where both fail they are equal.
    Pictures without a difference are left out, as Wilcoxon did.

    Args:
      reference: distances, [N].
      other: the other run's, of the same pictures in the same order.

    Raises:
      InputError: no distances, bad ones, or other numbers of them.
    """
    from scipy import stats

    ours, theirs = _checked("reference", reference), _checked("other", other)
    if len(ours) != len(theirs):
        raise InputError(
            f"reference and other must be as many, got {len(ours)} and {len(theirs)}"
        )
    failure = 2 * max(largest(ours), largest(theirs)) or 1.0
    finite = [np.where(np.isfinite(values), values, failure) for values in (ours, theirs)]
    differences = finite[1] - finite[0]
    equal = not differences.any()
    p_value = 1.0 if equal else float(stats.wilcoxon(differences[differences != 0]).pvalue)
    with np.errstate(invalid="ignore"):
        exact = np.where(np.isinf(ours) & np.isinf(theirs), 0.0, theirs - ours)
        return Paired(p_value, float(np.median(exact)))


def _checked(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size or not np.all(array >= 0):
        raise InputError(f"{name} must be distances >= 0, one or more, in one row")
    return array
