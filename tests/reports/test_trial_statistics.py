"""Statistics of distances, held to closed forms, sums and SciPy."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from deid_jax.reports import trial_statistics

INF = math.inf


def _draw(seed, n=40, failures=6):
    generator = np.random.default_rng(seed)
    values = generator.gamma(3.0, 0.5, n)
    values[generator.choice(n, failures, replace=False)] = INF
    return values


def _compare(ours, other):
    return trial_statistics.compare_pairs(np.array(ours), np.array(other))


def test_summaries_are_over_the_successes():
    values, failed = np.array([1.0, INF, 2.0, 6.0]), np.array([INF])
    assert trial_statistics.success_rate(values) == 0.75
    assert trial_statistics.mean_and_median(values) == (3, 2)
    assert trial_statistics.largest_success(values) == 6
    assert all(map(math.isnan, trial_statistics.mean_and_median(failed)))
    assert trial_statistics.largest_success(failed) == 0


@pytest.mark.parametrize(
    ("values", "limit", "area"),
    [
        ([0, 0], 2, 1),
        ([INF, INF], 2, 0),
        ([0, 1, 2, INF], 2, (1 + 0.5) / 4),
        ([0, 3], 2, 0.5),  # Beyond the limit.
        ([0, 0, 1, INF], 0, 0.5),
    ],
)
def test_area_in_closed_form(values, limit, area):
    assert trial_statistics.auc(np.array(values), limit) == pytest.approx(area, abs=1e-15)


def test_area_is_the_integral_of_the_curve():
    values = _draw(0)
    limit = trial_statistics.largest_success(values)
    area = trial_statistics.auc(values, limit)
    places = np.linspace(0, limit, 2001)
    shares = (values[None] <= places[:, None]).mean(1)
    assert area == pytest.approx(integrate.trapezoid(shares, places) / limit, abs=1e-3)
    x, y = trial_statistics.success_curve(values, limit)
    assert area == pytest.approx(np.sum(np.diff(x) * y[:-1]) / limit)
    # The step function itself, right at, below and above each corner.
    for place in (*x, *(np.array(x[:-1]) + 1e-9)):
        height = y[np.searchsorted(x[:-1], place, side="right") - 1]
        assert height == pytest.approx((values <= place).mean())


def test_curves_start_at_zero_and_end_at_the_limit():
    def curve(*values):
        return trial_statistics.success_curve(np.array(values), 2)

    assert curve(1.0, 1.0, INF, 0.0) == ([0, 1, 2], [0.25, 0.75, 0.75])
    assert curve(1.0, INF) == ([0, 1, 2], [0, 0.5, 0.5])
    assert curve(INF) == ([0, 2], [0, 0])


def test_pairs_without_failures_are_scipys():
    ours, other = _draw(1, failures=0), _draw(2, failures=0)
    found, swapped = _compare(ours, other), _compare(other, ours)
    assert found.p_value == pytest.approx(stats.wilcoxon(ours, other).pvalue)
    assert found.median == pytest.approx(np.median(other - ours))
    assert swapped.p_value == pytest.approx(found.p_value)
    assert swapped.median == pytest.approx(-found.median)


def test_small_samples_are_exact():
    """Of 2⁵ signs two are as extreme."""
    assert _compare([1.0, 1, 1, 1, 1], [2.0, 3, 4, 5, 6]) == (pytest.approx(2 / 32), 3)


def test_failures_outrank_every_difference_of_successes():
    """Five small gains, and one failure that has the highest rank: statistic 6 of 21."""
    ours, other = [1.0, 1, 1, 1, 1, INF], [1.1, 1.2, 1.3, 1.4, 1.5, 1.0]
    found = _compare(ours, other)
    expected = stats.wilcoxon([1, 2, 3, 4, 5, -6]).pvalue
    assert found.p_value == pytest.approx(expected)
    assert found.median == pytest.approx(0.25)
    # The scale of the successes does not matter.
    far = _compare(*(1000 * np.array(values) for values in (ours, other)))
    assert far.p_value == pytest.approx(expected)


def test_equal_trials_are_no_evidence():
    values = _draw(3)
    assert _compare(values, values) == (1, 0)
    assert _compare([0.0, INF], [0.0, INF]) == (1, 0)


def test_failing_on_half_of_the_images_is_infinitely_further():
    assert _compare([1.0, 1, 1], [INF, INF, 1]).median == INF
    assert _compare([INF, INF, 1], [1.0, 1, 1]).median == -INF
    assert math.isnan(_compare([INF, 1.0], [1.0, INF]).median)
