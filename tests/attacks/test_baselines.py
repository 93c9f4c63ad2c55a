"""The ad-hoc methods against NumPy and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from deid_jax.attacks import BASELINES
from deid_jax.errors import InputError
from tests.helpers import random_images

KEY = jax.random.key(0)


def _objective(images, key):
    return jnp.zeros(len(images)), jnp.zeros(len(images), bool)


def _apply(name, images, **settings):
    method = BASELINES[name]
    return np.asarray(
        method.function(_objective, images, method.config(**settings), KEY).images
    )


@pytest.mark.parametrize("fraction", [0.03, 0.1])
def test_blur_equals_scipy(fraction):
    images = np.asarray(random_images(2, size=40))
    expected = [
        gaussian_filter(image, (fraction * 40, fraction * 40, 0), mode="mirror", truncate=4)
        for image in images.astype(np.float64)
    ]
    np.testing.assert_allclose(_apply("blur", images, blur_sigma=fraction), expected, atol=1e-4)


@pytest.mark.parametrize("size, blocks", [(16, 4), (17, 5), (9, 100), (8, 1)])
def test_pixelate_gives_every_block_its_mean(size, blocks):
    images = np.asarray(random_images(2, size=size))
    expected = np.empty_like(images)
    edges = [-(-size * n // min(blocks, size)) for n in range(min(blocks, size) + 1)]
    for top, bottom in itertools.pairwise(edges):
        for left, right in itertools.pairwise(edges):
            block = images[:, top:bottom, left:right]
            expected[:, top:bottom, left:right] = block.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(
        _apply("pixelate", images, num_blocks=blocks), expected, atol=1e-5
    )


@pytest.mark.parametrize("size, fraction, hidden", [(16, 0.5, 8), (15, 0.2, 3), (10, 1.0, 10)])
def test_mask_blackens_the_centre_and_nothing_else(size, fraction, hidden):
    images = 0.5 + 0.5 * np.asarray(random_images(1, size=size))
    masked = _apply("mask", images, mask_size=fraction)
    start = (size - hidden) // 2
    expected = images.copy()
    expected[:, start : start + hidden, start : start + hidden] = 0
    np.testing.assert_array_equal(masked, expected)


def test_noise_has_the_stated_deviation_and_other_pixels_other_noise():
    images = np.full((2, 64, 64, 3), 0.5, np.float32)
    noise = _apply("noise", images, noise_stddev=0.05) - images
    assert abs(noise.std() - 0.05) < 1e-3
    assert abs(noise.mean()) < 1e-3
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("blur", "blur_sigma", 0.0),
        ("blur", "blur_sigma", 1.5),
        ("blur", "blur_sigma", float("nan")),
        ("pixelate", "num_blocks", 0),
        ("mask", "mask_size", -0.5),
        ("noise", "noise_stddev", -0.1),
        ("noise", "noise_stddev", float("inf")),
    ],
)
def test_bad_settings_are_named(name, setting, value):
    with pytest.raises(InputError, match=f"{setting} must be .*, got {value}"):
        BASELINES[name].config(**{setting: value})


@pytest.mark.parametrize("name", BASELINES)
def test_a_first_iterate_is_refused(name):
    method, images = BASELINES[name], random_images(1)
    with pytest.raises(InputError, match="initial must be None"):
        method.function(_objective, images, method.config(), KEY, initial=images)
