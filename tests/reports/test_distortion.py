"""Statistics of distances, held to closed forms, sums and SciPy."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from deid_jax.errors import InputError
from deid_jax.reports import distortion

INF = math.inf


def _draw(seed, n=40, failures=6):
    generator = np.random.default_rng(seed)
    values = generator.gamma(3.0, 0.5, n)
    values[generator.choice(n, failures, replace=False)] = INF
    return values


def test_failures_are_infinitely_far():
    np.testing.assert_array_equal(
        distortion.distances([1, 2, 0], [True, False, True]), [1, INF, 0]
    )
    # Whatever a failure's own distance is.
    assert distortion.distances([math.nan], [False]) == [INF]


def test_summaries_are_over_the_successes():
    values = [1.0, INF, 2.0, 6.0]
    assert distortion.success_rate(values) == 0.75
    assert distortion.mean_and_median(values) == (3, 2)
    assert distortion.largest(values) == 6
    assert all(map(math.isnan, distortion.mean_and_median([INF])))
    assert distortion.largest([INF]) == 0


@pytest.mark.parametrize(
    ("values", "limit", "area"),
    [
        ([0, 0], 2, 1),
        ([INF, INF], 2, 0),
        ([1], 2, 0.5),
        ([0, 1, 2, INF], 2, (1 + 0.5) / 4),
        ([0, 3], 2, 0.5),  # Beyond the limit.
        ([0, 0, 1, INF], 0, 0.5),
    ],
)
def test_area_in_closed_form(values, limit, area):
    assert distortion.auc(values, limit) == pytest.approx(area, abs=1e-15)


def test_area_is_the_integral_of_the_curve():
    values = _draw(0)
    limit = distortion.largest(values)
    places = np.linspace(0, limit, 200_001)
    shares = (values[None] <= places[::100, None]).mean(1)
    area = integrate.trapezoid(shares, places[::100]) / limit
    assert distortion.auc(values, limit) == pytest.approx(area, abs=1e-3)
    x, y = distortion.curve(values, limit)
    assert distortion.auc(values, limit) == pytest.approx(np.sum(np.diff(x) * y[:-1]) / limit)
    # The step function itself, right at, below and above each corner.
    for place in (*x, *(np.array(x[:-1]) + 1e-9)):
        height = y[np.searchsorted(x[:-1], place, side="right") - 1]
        assert height == pytest.approx((values <= place).mean())


def test_curves_start_at_zero_and_end_at_the_limit():
    assert distortion.curve([1.0, 1.0, INF, 0.0], 2) == ([0, 1, 2], [0.25, 0.75, 0.75])
    assert distortion.curve([1.0, INF], 2) == ([0, 1, 2], [0, 0.5, 0.5])
    assert distortion.curve([INF], 2) == ([0, 2], [0, 0])


def test_pairs_without_failures_are_scipys():
    ours, other = _draw(1, failures=0), _draw(2, failures=0)
    found = distortion.compare_pairs(ours, other)
    assert found.p_value == pytest.approx(stats.wilcoxon(ours, other).pvalue)
    assert found.median == pytest.approx(np.median(other - ours))
    swapped = distortion.compare_pairs(other, ours)
    assert swapped.p_value == pytest.approx(found.p_value)
    assert swapped.median == pytest.approx(-found.median)


def test_small_samples_are_exact():
    """Of 2⁵ signs two are as far apart."""
    found = distortion.compare_pairs([1.0, 1, 1, 1, 1], [2.0, 3, 4, 5, 6])
    assert found == (pytest.approx(2 / 32), 3)


def test_failures_outrank_every_difference_of_successes():
    """Five small gains, and one failure that has the highest rank: statistic 6 of 21."""
    ours, other = [1.0, 1, 1, 1, 1, INF], [1.1, 1.2, 1.3, 1.4, 1.5, 1.0]
    found = distortion.compare_pairs(ours, other)
    expected = stats.wilcoxon([1, 2, 3, 4, 5, -6]).pvalue
    assert found.p_value == pytest.approx(expected)
    assert found.median == pytest.approx(0.25)
    # Neither would it matter how far the successes are.
    far = [1000.0 * value for value in ours], [1000.0 * value for value in other]
    assert distortion.compare_pairs(*far).p_value == pytest.approx(expected)


def test_equal_runs_are_no_evidence():
    values = _draw(3)
    assert distortion.compare_pairs(values, values) == (1, 0)
    assert distortion.compare_pairs([0.0, INF], [0.0, INF]) == (1, 0)
    assert distortion.compare_pairs([0.0], [0.0]) == (1, 0)


def test_failing_on_half_of_the_pictures_is_infinitely_further():
    assert distortion.compare_pairs([1.0, 1, 1], [INF, INF, 1]).median == INF
    assert distortion.compare_pairs([INF, INF, 1], [1.0, 1, 1]).median == -INF
    assert math.isnan(distortion.compare_pairs([INF, 1.0], [1.0, INF]).median)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distortion.distances([1.0], [True, False]), "as many, got 1 and 2"),
        (lambda: distortion.distances([math.nan], [True]), "l2 must be distances >= 0"),
        (lambda: distortion.distances([], []), "one or more"),
        (lambda: distortion.success_rate([-1.0]), "values must be distances >= 0"),
        (lambda: distortion.auc([1.0], INF), "limit must be a finite number >= 0, got inf"),
        (lambda: distortion.auc([1.0], -1), "limit must be a finite number >= 0, got -1"),
        (lambda: distortion.compare_pairs([1.0], [1.0, 2]), "as many, got 1 and 2"),
        (lambda: distortion.compare_pairs([[1.0]], [1.0]), "in one row"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
