"""Crops that recognisers cut out of images aligned for others."""

import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.models.templates import ARCFACE, ARCFACE_NARROW, DLIB, Alignment
from deid_jax.recognisers.cutting import in_frame, resampling_matrix
from deid_jax.recognisers.embedders import Embedder, FunctionModule


class Showing:
    """Gives its images as they come."""

    def apply(self, variables, images):
        return images


def shown(alignment, frame, images):
    embedder = Embedder("showing", Showing(), {}, alignment)
    moved = in_frame(embedder, frame)
    assert moved.alignment == frame
    return np.asarray(moved.module.apply({}, jnp.asarray(images)))


def test_the_middle_columns_are_cut_exactly():
    images = np.random.default_rng(0).random((2, 112, 112, 3), np.float32)
    np.testing.assert_allclose(
        shown(ARCFACE_NARROW, ARCFACE, images), images[:, :, 8:104], atol=1e-6
    )


def test_landmarks_get_to_the_template_and_the_outside_is_black():
    """A ramp in x and one in y tell where each pixel comes from."""
    y, x = np.mgrid[:112, :112].astype(np.float32)
    ramps = np.stack([x, y, np.ones_like(x)], axis=-1)[None]
    found = shown(DLIB, ARCFACE, ramps)[0]
    assert found.shape == (150, 150, 3)
    places, wanted = DLIB.points.round().astype(int), ARCFACE.points
    seen = found[places[:, 1], places[:, 0]]
    np.testing.assert_allclose(seen[:, 2], 1, atol=1e-5)
    # The best fit of all five leaves each some pixels off (the nose most), and their mean none.
    assert np.abs(seen[:, :2] - wanted).max() < 4.5
    np.testing.assert_allclose(seen[:, :2].mean(0), wanted.mean(0), atol=0.4)
    assert not found[-10:].any()


def test_reducing_averages():
    whole, half = Alignment(ARCFACE.template, 112, 112), ARCFACE.scaled(56)
    noise = np.random.default_rng(0).random((1, 112, 112, 3), np.float32)
    found = shown(half, whole, noise)[0, 1:-1, 1:-1]
    # The triangle of two pixels on either side: weights 1, 3, 3, 1 of 8 along each axis.
    weights = np.array([1, 3, 3, 1]) / 8
    lines = sum(w * noise[0, 1 + n : 1 + n + 108 : 2] for n, w in enumerate(weights))
    wanted = sum(w * lines[:, 1 + n : 1 + n + 108 : 2] for n, w in enumerate(weights))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("scale, offset", [(0.4, 3.0), (1.0, 0.0), (2.5, -7.3)])
def test_flat_lines_stay_flat(scale, offset):
    matrix = resampling_matrix(scale, offset, 40, 400)
    inside = (np.arange(40) - offset) / scale
    inside = (inside > 3) & (inside < 396)
    np.testing.assert_allclose(matrix[inside].sum(axis=1), 1, atol=1e-6)


def test_functions_and_the_same_alignment_take_images_as_they_are():
    function = Embedder("mean", FunctionModule(lambda images: images.mean((1, 2))), {})
    assert in_frame(function, ARCFACE.scaled(64)) is function
    network = Embedder("showing", Showing(), {}, DLIB)
    assert in_frame(network, DLIB) is network
