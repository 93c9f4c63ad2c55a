"""Penalties against NumPy: their values, their metrics, and SSIM's own derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from deid_jax.attacks.penalties import PENALTIES
from deid_jax.errors import InputError
from tests.helpers import random_images

QUADRATIC = [name for name in PENALTIES if name != "ssim"]
LUMA = np.array([0.299, 0.587, 0.114])


def _problem(size=20):
    images = 0.2 + 0.6 * random_images(3, size)
    change = 0.02 * jax.random.normal(jax.random.key(1), images.shape)
    return images, images + change, np.asarray(change, np.float64)


def _smooth(change, images):
    del images
    rough = np.sum(np.diff(change, axis=1) ** 2, axis=(1, 2, 3))
    rough += np.sum(np.diff(change, axis=2) ** 2, axis=(1, 2, 3))
    return np.sum(change**2, axis=(1, 2, 3)) + rough


def _luminance(change, images):
    del images
    luma = change @ (LUMA / np.linalg.norm(LUMA))
    return np.sum(change**2, axis=(1, 2, 3)) + 3 * np.sum(luma**2, axis=(1, 2))


def _texture(change, images):
    """Away from the border, where windows are cut off differently."""
    axes, settings = (1, 2), {"sigma": 1.5, "truncate": 5 / 1.5}
    mean = gaussian_filter(images, axes=axes, **settings)
    variance = gaussian_filter(images**2, axes=axes, **settings) - mean**2
    cost = 1 / (variance + 0.03**2)
    return np.sum(cost * change**2, axis=(1, 2, 3))


ORACLES = {
    "l2": lambda change, images: np.sum(change**2, axis=(1, 2, 3)),
    "smooth": _smooth,
    "luminance": _luminance,
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.slow
def test_value_is_the_root_of_the_quadratic_form(name):
    images, adversarial, change = _problem()
    value = PENALTIES[name](images).value(adversarial)
    np.testing.assert_allclose(value**2, ORACLES[name](change, images), rtol=1e-3)


@pytest.mark.slow
def test_texture_costs_by_the_inverse_of_the_local_variance():
    """Compared as a ratio of two changes inside the image: the mean cost drops out."""
    images = np.asarray(0.5 + 0.2 * (random_images(2, 24) - 0.5), np.float64)
    images[:, :, 12:] += 0.3 * (np.arange(24)[:, None, None] % 2)
    changes = np.zeros((2, *images.shape))
    changes[0, :, 8:16, 6:9], changes[1, :, 8:16, 15:18] = 0.01, 0.01
    terms = PENALTIES["texture"](jnp.asarray(images, jnp.float32))
    ours = [terms.value(jnp.asarray(images + c, jnp.float32)) ** 2 for c in changes]
    theirs = [_texture(c, images) for c in changes]
    assert np.all(ours[0] > 3 * ours[1])
    # The cheapest fifth of the mean is a floor.
    clear = theirs[1] * images[0].size / changes[1].astype(bool)[0].sum() > 0
    assert clear.all()
    np.testing.assert_allclose(ours[0] / ours[1], theirs[0] / theirs[1], rtol=0.3)


@pytest.mark.parametrize("name", QUADRATIC)
def test_direction_is_the_inverse_of_the_metric(name):
    """⟨M⁻¹g, M M⁻¹g⟩ = ⟨g, M⁻¹g⟩, with M taken from the value; and M⁻¹ is symmetric."""
    images, _, _ = _problem()
    terms = PENALTIES[name](images)
    one, two = (jax.random.normal(jax.random.key(k), images.shape) for k in (5, 6))
    scaled = 1e-2 * terms.direction(one)
    quadratic = terms.value(images + scaled) ** 2
    inner = jnp.sum(1e-2 * one * scaled, axis=(1, 2, 3))
    np.testing.assert_allclose(quadratic, inner, rtol=2e-3)
    there = jnp.sum(two * terms.direction(one), axis=(1, 2, 3))
    back = jnp.sum(one * terms.direction(two), axis=(1, 2, 3))
    np.testing.assert_allclose(there, back, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", QUADRATIC)
def test_pull_of_a_quadratic_is_the_change(name):
    images, adversarial, change = _problem()
    np.testing.assert_allclose(PENALTIES[name](images).pull(adversarial), change, atol=1e-6)


@pytest.mark.slow
def test_ssim_is_scikit_images_with_mirrored_rims():
    images, adversarial, _ = _problem(24)
    value = PENALTIES["ssim"](images).value(adversarial)
    for place in range(3):
        rims = ((5, 5), (5, 5), (0, 0))
        _, whole = structural_similarity(
            np.pad(np.asarray(images[place], np.float64), rims, mode="reflect"),
            np.pad(np.asarray(adversarial[place], np.float64), rims, mode="reflect"),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
            full=True,
        )
        np.testing.assert_allclose(
            value[place], 1 - whole[5:-5, 5:-5].mean(dtype=np.float64), atol=1e-5
        )


@pytest.mark.slow
def test_pull_of_ssim_lowers_it_and_never_overshoots():
    images, adversarial, _ = _problem(24)
    terms = PENALTIES["ssim"](images)
    pull = terms.pull(adversarial)
    values = [np.asarray(terms.value(adversarial - share * pull)) for share in (0, 0.3, 0.6, 1)]
    assert np.all(np.diff(values, axis=0) < 0)
    assert np.all(values[-1] < 0.3 * values[0])


@pytest.mark.parametrize("size", [8, 10])
def test_ssim_of_images_below_its_window_is_refused(size):
    with pytest.raises(InputError, match=f"at least 11 pixels each way, got {size}x{size}"):
        PENALTIES["ssim"](random_images(1, size))


@pytest.mark.slow
def test_nothing_changed_costs_nothing_and_pulls_nowhere():
    images, _, _ = _problem()
    for penalty in PENALTIES.values():
        terms = penalty(images)
        np.testing.assert_allclose(terms.value(images), 0, atol=1e-6)
        np.testing.assert_allclose(terms.pull(images), 0, atol=1e-4)
