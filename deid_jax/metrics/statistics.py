"""Confidence intervals of means and rates over images.

Rates get Wilson intervals. Means, and gains of one mean over another, get percentile bootstrap
intervals over images, which need no special case where values repeat. The intervals account
for the choice of images, not for another recogniser or another draw of targets. If images come
in groups, such as several per person, `bootstrap_groups` accounts for the choice of groups.

Everywhere `confidence` lies between 0 and 1, `resamples` is at least 1, and `seed` alone
decides the resamples; `InputError` is raised for other values.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from deid_jax import checks
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

Interval = tuple[float, float]
Number = TypeVar("Number", float, NumpyArray)

# With this many, the intervals of two seeds differ by about a fiftieth of their half width.
RESAMPLES = 9999
# Cheaper, for tables of thousands of rates; intervals then differ by about a twentieth.
GROUP_RESAMPLES = 2000
# Values drawn at a time; limits memory to 8 MB per array.
_VALUES_PER_BATCH = 2**20


def check_confidence(confidence: float) -> None:
    """Refuses anything but a number strictly between 0 and 1.

    Raises:
      InputError: see above.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be a number > 0 and < 1, got {confidence}")


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate p = k/n, as SciPy computes it.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z the normal quantile at
    (1 + confidence)/2. It lies in [0, 1], and its width is positive even for k = 0 and k = n.

    Args:
      successes: k, 0 to n.
      n: number of trials, at least 1.
      confidence: between 0 and 1.

    Raises:
      InputError: a value out of range.
    """
    from scipy import stats

    checks.count("n", n, least=1)
    checks.count("successes", successes, most=n)
    check_confidence(confidence)
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(
    values: Sequence[float] | NumpyArray,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap interval of a mean.

    `values`: finite numbers, [N].

    Returns:
      (low, high); (NaN, NaN) for N = 1, since one value says nothing about the spread.

    Raises:
      InputError: no values, or values that are not finite.
    """
    return _bootstrap([_finite("values", values)], np.mean, confidence, seed, resamples)


def bootstrap_gain(
    ours: Sequence[float] | NumpyArray,
    other: Sequence[float] | NumpyArray,
    *,
    lower_is_better: bool,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap interval of the `gain` between two methods' means, paired by image.

    A resample draws images and takes both methods' values for each, so that what makes an
    image hard for both methods cancels.

    `ours`: finite numbers, [N].
    `other`: the other method's values for the same images in the same order.
    `lower_is_better`: see `gain`.

    Returns:
      (low, high), fractions; (NaN, NaN) for N = 1, or where a resample of `other` has mean 0.

    Raises:
      InputError: no values, other numbers of them, or values that are not finite.
    """
    pair = [_finite("ours", ours), _finite("other", other)]
    if len(pair[0]) != len(pair[1]):
        raise InputError(
            f"ours and other must be as many values, got {len(pair[0])} and {len(pair[1])}"
        )

    def statistic(ours: NumpyArray, other: NumpyArray, axis: int) -> NumpyArray:
        means = np.mean(ours, axis=axis), np.mean(other, axis=axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            return gain(*means, lower_is_better=lower_is_better)

    low, high = _bootstrap(pair, statistic, confidence, seed, resamples)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (math.nan, math.nan)


def bootstrap_groups(
    values: Sequence[float] | NumpyArray,
    groups: Sequence[int] | NumpyArray,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = GROUP_RESAMPLES,
) -> Interval:
    """Percentile bootstrap interval of a mean over groups of values, such as a person's images.

    A resample draws as many groups as there are, with replacement, and takes all values of
    each, so that values of one group may depend on each other in any way. With few groups the
    interval is too narrow; with equal values it is a single point.

    `values`: finite numbers, or booleans for a rate, [N].
    `groups`: int[N], the group of each value.

    Returns:
      (low, high); (NaN, NaN) for one group, which says nothing about the spread of groups.

    Raises:
      InputError: no values, other numbers of them, or values that are not finite.
    """
    array, names = _finite("values", values), np.asarray(groups)
    if names.shape != array.shape:
        raise InputError(f"groups must be [{len(array)}] as values, got {[*names.shape]}")
    check_confidence(confidence)
    _, places, sizes = np.unique(names, return_inverse=True, return_counts=True)
    sums, n = np.bincount(places, weights=array), len(sizes)
    means = [
        sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        for drawn in group_draws(n, seed=seed, resamples=resamples)
    ]
    if n == 1:
        return math.nan, math.nan
    return percentiles(np.concatenate(means), confidence)


def group_draws(
    num_groups: int, *, seed: int = 0, resamples: int = GROUP_RESAMPLES
) -> Iterator[NumpyArray]:
    """The groups that each resample draws, int[B, G] for B resamples at a time, of G groups.

    Raises:
      InputError: see the module.
    """
    checks.count("seed", seed)
    checks.count("resamples", resamples, least=1)
    generator = np.random.default_rng(seed)
    batch = max(1, _VALUES_PER_BATCH // num_groups)
    for first in range(0, resamples, batch):
        yield generator.integers(num_groups, size=(min(batch, resamples - first), num_groups))


def percentiles(values: NumpyArray, confidence: float = 0.95) -> Interval:
    """The interval that leaves (1 − confidence)/2 of resampled values, [R], on either side."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def gain(ours: Number, other: Number, *, lower_is_better: bool) -> Number:
    """Relative gain: (other − ours)/other if lower is better, else (ours − other)/other.

    Args:
      ours: our metric.
      other: the metric that it is compared with, not 0.
      lower_is_better: true for distances, false for similarities and rates.
    """
    return ((other - ours) if lower_is_better else (ours - other)) / other


def _finite(name: str, values: Sequence[float] | NumpyArray) -> NumpyArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.all(np.isfinite(array)):
        raise InputError(f"{name} must be finite numbers, one or more, in one row")
    return array


def _bootstrap(
    samples: list[NumpyArray],
    statistic: Callable,
    confidence: float,
    seed: int,
    resamples: int,
) -> Interval:
    from scipy import stats

    check_confidence(confidence)
    checks.count("seed", seed)
    checks.count("resamples", resamples, least=1)
    n = len(samples[0])
    if n == 1:
        return math.nan, math.nan
    # Infinite gains are kept up to the quantiles, where they become NaN.
    with np.errstate(invalid="ignore"):
        result = stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, _VALUES_PER_BATCH // n),
            vectorized=True,
            paired=len(samples) > 1,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)
