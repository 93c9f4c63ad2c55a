"""Least changes within a budget: each photo's own margin, against a rule that is known."""

import numpy as np
import pytest

from deid_jax.transfer import Surrogates, fitting
from deid_jax.transfer.fitting import ImageBatch, widest_within

SIDE = 8
NUMBER = 4
# What it costs each photo to be a cosine farther below the threshold, in levels of one value.
COSTS = np.array([50.0, 100.0, 200.0, 5000.0])


@pytest.fixture
def rule(monkeypatch):
    """The first value of photo b changes by COSTS[b] times the margin; what was asked."""
    asked = []

    def least(surrogates, images, config, psnr, keys, *, attack):
        del config, keys, attack
        margins = 0.3 - np.asarray(surrogates.thresholds[0], np.float64)
        asked.append((margins, None if psnr is None else float(psnr)))
        pictures = images.copy()
        size = np.rint(COSTS * margins)
        if psnr is not None:
            size = np.minimum(size, 255 * SIDE * 3**0.5 * 10 ** (-float(psnr) / 20))
        pictures[:, 0, 0, 0] = np.minimum(size, 255)
        return pictures, margins < 0.5

    monkeypatch.setattr(fitting, "perturb_on_grid", least)
    return asked


def batch():
    images = np.zeros((NUMBER, SIDE, SIDE, 3), np.uint8)
    return ImageBatch(images, None, Surrogates((), (), (), (), ()), [0.3], None, None)


def test_the_widest_margin_that_a_budget_allows_is_found(rule):
    psnr = 54.0
    longest = 255 * np.sqrt(SIDE * SIDE * 3) * 10 ** (-psnr / 20)
    found = widest_within(batch(), psnr)[:, 0, 0, 0].astype(float)
    assert np.all(found <= longest)
    # Of the margin that an exact search finds, no less than the last halving leaves open; not
    # beyond 0.5, where the rule fails.
    exact = np.minimum(longest / COSTS, 0.5)
    reached = found / COSTS
    last = 0.6 / 2**4
    assert np.all(reached[:2] >= exact[:2] - last - 0.5 / COSTS[:2])
    assert exact[0] < 0.5 and exact[1] < exact[0]


def test_what_fits_with_no_margin_is_scaled(rule):
    found = widest_within(batch(), 60.0)
    longest = 255 * np.sqrt(SIDE * SIDE * 3) * 10 ** (-60.0 / 20)
    assert 0 < found[3, 0, 0, 0] <= longest
    margins, psnr = rule[-1]
    assert psnr == 60.0
    assert margins[3] == pytest.approx(0.6 / 2**4, abs=1e-6)
    assert [one[1] for one in rule[:-1]] == [None] * 4


def test_a_failure_is_no_fit_however_near(rule):
    """Margins of 0.5 and more fail: none is kept, though the budget has room."""
    found = widest_within(batch(), 10.0)[:, 0, 0, 0]
    np.testing.assert_array_equal(found[:3], np.rint(COSTS[:3] * 0.4875))
