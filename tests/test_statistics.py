import math

import numpy as np
import pytest

from deid_jax import statistics
from deid_jax._validate import InputError
from deid_jax.statistics import bootstrap_gain, bootstrap_mean, gain, wilson

# Normal quantiles at (1 + confidence)/2, from a printed table.
QUANTILES = {0.9: 1.644853626951, 0.95: 1.959963984540, 0.99: 2.575829303549}


def closed_form(k, n, z):
    p = k / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@pytest.mark.parametrize("confidence", QUANTILES)
@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 150), (150, 150), (7, 10), (896, 900), (1, 12345)]
)
def test_wilson_is_its_closed_form(k, n, confidence):
    expected = closed_form(k, n, QUANTILES[confidence])
    np.testing.assert_allclose(wilson(k, n, confidence), expected, rtol=1e-9, atol=1e-15)


def test_wilson_stays_within_0_and_1_and_is_never_a_point():
    assert wilson(0, 20)[0] == 0
    assert wilson(20, 20)[1] == 1
    for n in (1, 20, 900):
        for k in (0, n):
            low, high = wilson(k, n)
            assert 0 <= low < high <= 1


@pytest.mark.parametrize(
    ("k", "n", "confidence", "message"),
    [
        (-1, 10, 0.95, "successes must be an integer >= 0, got -1"),
        (11, 10, 0.95, "successes must be at most 10, got 11"),
        (0.5, 10, 0.95, "successes must be an integer"),
        (0, 0, 0.95, "n must be an integer >= 1, got 0"),
        (5, 10, 1.0, "confidence must be a number > 0 and < 1, got 1.0"),
        (5, 10, 0.0, "confidence must be a number > 0 and < 1, got 0.0"),
        (5, 10, math.nan, "confidence must be a number > 0 and < 1, got nan"),
    ],
)
def test_wilson_refuses_what_is_no_rate(k, n, confidence, message):
    with pytest.raises(InputError, match=message):
        wilson(k, n, confidence)


@pytest.mark.parametrize("confidence", QUANTILES)
def test_bootstrap_of_many_values_is_the_normal_approximation(confidence):
    values = np.random.default_rng(0).gamma(4, size=5000)
    half = QUANTILES[confidence] * values.std() / math.sqrt(len(values))
    low, high = bootstrap_mean(values, confidence=confidence)
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.normal(3, 1, (400, 60))
    intervals = [bootstrap_mean(s, confidence=0.9, resamples=400) for s in samples]
    share = np.mean([low <= 3 <= high for low, high in intervals])
    # 0.9 ± three standard deviations of a share of 400.
    assert 0.855 <= share <= 0.945


def test_bootstrap_is_decided_by_its_seed():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_batches_bound_the_memory_and_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, resamples=300)
    monkeypatch.setattr(statistics, "_VALUES_PER_BATCH", 7 * 50)
    assert bootstrap_mean(values, resamples=300) == whole


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_equal_values_leave_no_doubt(value):
    expected = (pytest.approx(value, abs=1e-15),) * 2
    assert bootstrap_mean([value] * 7) == expected


def test_one_value_says_nothing_of_the_spread():
    assert np.isnan(bootstrap_mean([2.0])).all()
    assert np.isnan(bootstrap_gain([1.0], [2.0], lower_is_better=True)).all()


def test_gain_by_the_papers_formulas():
    assert gain(3.38, 5.31, lower_is_better=True) == pytest.approx((5.31 - 3.38) / 5.31)
    assert gain(0.986, 0.963, lower_is_better=False) == pytest.approx(0.023 / 0.963)


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_interval_of_a_gain_is_the_delta_methods(lower_is_better):
    generator = np.random.default_rng(2)
    other = generator.gamma(9, size=4000)
    ours = 0.6 * other + generator.normal(0, 0.3, 4000)
    low, high = bootstrap_gain(ours, other, lower_is_better=lower_is_better)
    ratio = ours.mean() / other.mean()
    half = QUANTILES[0.95] * np.std(ours - ratio * other) / other.mean() / math.sqrt(4000)
    middle = 1 - ratio if lower_is_better else ratio - 1
    assert low == pytest.approx(middle - half, abs=0.05 * half)
    assert high == pytest.approx(middle + half, abs=0.05 * half)


def test_pairs_stay_pairs():
    """Half of each picture's value is a gain of exactly 50 %, whatever is drawn."""
    other = np.random.default_rng(0).gamma(2, size=40)
    interval = bootstrap_gain(other / 2, other, lower_is_better=True)
    np.testing.assert_allclose(interval, (0.5, 0.5), rtol=1e-12)
    low, high = bootstrap_gain(other[::-1] / 2, other, lower_is_better=True)
    assert high - low > 0.1


@pytest.mark.parametrize("other", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
def test_gain_over_nothing_has_no_interval(other):
    assert np.isnan(bootstrap_gain([1.0, 2.0, 3.0], other, lower_is_better=True)).all()


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_bootstrap_refuses_what_is_no_sample(values):
    with pytest.raises(InputError, match="values must be finite numbers"):
        bootstrap_mean(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1.5}, "confidence must be"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"resamples": 0}, "resamples must be an integer >= 1, got 0"),
    ],
)
def test_bootstrap_refuses_parameters_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        bootstrap_mean([1.0, 2.0], **options)
    with pytest.raises(InputError, match=message):
        bootstrap_gain([1.0, 2.0], [1.0, 3.0], lower_is_better=True, **options)


def test_gain_needs_as_many_values_of_both():
    with pytest.raises(InputError, match="as many values, got 2 and 3"):
        bootstrap_gain([1.0, 2.0], [1.0, 2.0, 3.0], lower_is_better=True)
