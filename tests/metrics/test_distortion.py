"""Metrics against NumPy and scikit-image."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from deid_jax import metrics


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    originals = random.uniform(size=(4, 33, 24, 3)).astype(np.float32)
    noise = (
        random.normal(size=originals.shape) * np.array([0, 0.01, 0.1, 1])[:, None, None, None]
    )
    return np.clip(originals + noise, 0, 1).astype(np.float32), originals


def test_l2_and_linf_equal_numpy(pair):
    images, originals = pair
    change = (images.astype(np.float64) - originals).reshape(4, -1)
    np.testing.assert_allclose(
        metrics.l2(images, originals), np.linalg.norm(change, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics.linf(images, originals), np.abs(change).max(axis=1), rtol=1e-6
    )


def test_mssim_equals_scikit_image(pair):
    images, originals = pair
    expected = [
        structural_similarity(
            image.astype(np.float64),
            original.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        for image, original in zip(images, originals, strict=True)
    ]
    assert expected[0] == 1 and expected[3] < 0.3
    np.testing.assert_allclose(metrics.mssim(images, originals), expected, atol=1e-5)


def test_misclassified():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    np.testing.assert_array_equal(
        metrics.misclassified(logits, jnp.array([1, 1])), [False, True]
    )
