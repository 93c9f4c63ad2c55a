"""Budgets against scikit-image's PSNR and float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from deid_jax.attacks import budgets
from deid_jax.pixels import LEVELS, on_grid

RANDOM = np.random.default_rng(0)
SHAPE = (16, 12, 3)
CLEAN = LEVELS[RANDOM.integers(256, size=(6, *SHAPE))]
NUM_VALUES = CLEAN[0].size
at_budget = jax.jit(budgets.at_budget)


def _lengths(changed, clean=CLEAN):
    """‖x̂ − x‖₂ of each image in float64."""
    away = np.asarray(changed, np.float64) - np.asarray(clean, np.float64)
    return np.sqrt(np.sum(away**2, axis=(1, 2, 3)))


def _changes(kind):
    """Changes of several looks, as long as 25 dB allow or so."""
    noise = RANDOM.normal(size=CLEAN.shape)
    change = {
        "noise": 0.06 * noise,
        "signs": 0.06 * np.sign(noise),
        "local": np.where(np.arange(16)[:, None, None] < 4, 0.3 * noise, 0),
        "smooth": 0.06 * np.sin(np.arange(12) / 3)[:, None] + 0.02,
    }[kind]
    return np.clip(CLEAN + change, 0, 1).astype(np.float32)


@pytest.mark.parametrize("stddev", [0.003, 0.05, 0.4])
def test_lengths_and_ratios_are_scikit_images(stddev):
    changed = np.clip(CLEAN + stddev * RANDOM.normal(size=CLEAN.shape), 0, 1).astype(np.float32)
    expected = [
        peak_signal_noise_ratio(np.float64(a), np.float64(b), data_range=1)
        for a, b in zip(CLEAN, changed, strict=True)
    ]
    lengths = _lengths(changed)
    ratios = budgets.psnr_of_l2(jnp.float32(lengths), NUM_VALUES)
    np.testing.assert_allclose(ratios, expected, rtol=1e-5)
    back = budgets.l2_of_psnr(jnp.float32(expected), NUM_VALUES)
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back, lengths, rtol=1e-5)
    one = budgets.l2_of_psnr(float(expected[0]), NUM_VALUES)
    assert one.shape == ()
    np.testing.assert_allclose(one, lengths[0], rtol=1e-5)


def test_no_change_has_an_infinite_ratio():
    assert budgets.psnr_of_l2(jnp.zeros(2), NUM_VALUES).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("kind", ["noise", "signs", "local", "smooth"])
@pytest.mark.parametrize("psnr", [25.0, 30.0, 36.0])
def test_changes_are_as_long_as_they_may_be_and_8_bit(kind, psnr):
    changed, size = _changes(kind), budgets.l2_of_psnr(psnr, NUM_VALUES)
    # Signs and rounding move many values at once, so that the length jumps.
    slack = {"noise": 0.004, "local": 0.004, "smooth": 0.12, "signs": 0.3}[kind]
    size = jnp.minimum(size, 1.5 * jnp.float32(_lengths(changed).min()))
    found = np.asarray(at_budget(CLEAN, changed, size))
    np.testing.assert_array_equal(found, on_grid(found))
    lengths = _lengths(found)
    assert np.all(lengths <= float(size) * (1 + 1e-6))
    assert np.all(lengths >= float(size) * (1 - slack))


@pytest.mark.parametrize("kind", ["noise", "local"])
def test_ratio_is_the_one_asked_for(kind):
    """In dB, by scikit-image, of 8-bit images."""
    found = np.asarray(at_budget(CLEAN, _changes(kind), budgets.l2_of_psnr(31, NUM_VALUES)))
    for before, after in zip(
        *(np.uint8(np.round(255 * p)) for p in (CLEAN, found)), strict=True
    ):
        assert 31 - 1e-4 <= peak_signal_noise_ratio(before, after) < 31.03


def test_direction_is_kept():
    """The result lies within half a level of a point of the line through x and x̂."""
    clean = np.asarray(on_grid(0.2 + 0.6 * jnp.asarray(CLEAN)))
    changed = clean + RANDOM.uniform(-0.05, 0.05, CLEAN.shape).astype(np.float32)
    found = np.asarray(at_budget(clean, changed, jnp.float32(0.6)), np.float64)
    along = np.float64(changed) - clean
    share = np.sum((found - clean) * along, axis=(1, 2, 3)) / np.sum(along**2, axis=(1, 2, 3))
    away = found - clean - share[:, None, None, None] * along
    assert np.all(share > 0)
    assert np.abs(away).max() < 0.55 / 255


def test_short_changes_grow_up_to_twice_and_no_more():
    changed = np.float32(CLEAN + 10 / 255 * np.where(CLEAN < 0.5, 1, -1))
    far = np.asarray(at_budget(CLEAN, changed, jnp.float32(1e3)))
    np.testing.assert_allclose(far - CLEAN, 2 * (changed - CLEAN), atol=1e-6)
    size = jnp.float32(1.5 * _lengths(changed)[0])
    lengths = _lengths(at_budget(CLEAN, changed, size))
    assert np.all(lengths > 1.39 * _lengths(changed))
    assert np.all(lengths <= float(size) * (1 + 1e-6))


@pytest.mark.parametrize("size", [0.0, 0.3])
def test_no_change_and_no_budget_leave_the_image_bit_for_bit(size):
    changed = CLEAN if size else _changes("noise")
    np.testing.assert_array_equal(at_budget(CLEAN, changed, jnp.float32(size)), CLEAN)


def test_each_image_has_its_own_budget_and_is_alone():
    changed = _changes("noise")
    sizes = jnp.linspace(0.2, 1.2, len(CLEAN), dtype=jnp.float32)
    together = np.asarray(at_budget(CLEAN, changed, sizes))
    np.testing.assert_allclose(_lengths(together), sizes, rtol=0.01)
    for row in range(len(CLEAN)):
        rows = slice(row, row + 1)
        alone = at_budget(CLEAN[rows], changed[rows], sizes[rows])
        # Lengths are sums, which other shapes may round otherwise: the last halving may differ.
        assert np.mean(np.asarray(alone) != together[rows]) < 0.01
        order = np.r_[row, :row, row + 1 : len(CLEAN)]
        moved = at_budget(CLEAN[order], changed[order], sizes[order])
        np.testing.assert_array_equal(np.asarray(moved)[:1], together[rows])
