"""Aligned crops: equal to SciPy's, with gradients, and drawn as stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from deid_jax.transforms.alignments import Misalignment, cut

HEIGHT, WIDTH = 9, 7


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 12, 15, 2), np.float32)


@pytest.fixture(scope="module")
def maps():
    """Upright and inside, turned by 35 degrees, and partly outside."""
    angle = np.deg2rad(35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.stack(
        [
            np.column_stack([0.8 * np.eye(2), [-2.0, -1.5]]),
            np.column_stack([0.7 * turn, [1.0, -2.0]]),
            np.column_stack([1.3 * np.eye(2), [4.0, 3.0]]),
        ]
    ).astype(np.float32)


def scipys(image, affine):
    """The crop by SciPy: bilinear, black outside."""
    linear = np.linalg.inv(affine[:, :2].astype(float))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y = linear @ (np.stack([columns.ravel(), rows.ravel()]) - affine[:, 2:])
    planes = [
        ndimage.map_coordinates(plane, [y, x], order=1, mode="grid-constant")
        for plane in np.moveaxis(image, 2, 0)
    ]
    return np.stack(planes, axis=-1).reshape(HEIGHT, WIDTH, -1)


def test_crops_equal_scipys(images, maps):
    crops = cut(jnp.asarray(images), jnp.asarray(maps), HEIGHT, WIDTH)
    expected = np.stack([scipys(*pair) for pair in zip(images, maps, strict=True)])
    assert expected.std() > 0.1
    np.testing.assert_allclose(crops, expected, atol=2e-4)


def test_gradient_is_the_transposed_map(images, maps):
    crops, back = jax.vjp(lambda x: cut(x, jnp.asarray(maps), HEIGHT, WIDTH), images)
    weights = np.random.default_rng(1).random(crops.shape, np.float32)
    (gradient,) = back(jnp.asarray(weights))
    np.testing.assert_allclose(np.vdot(crops, weights), np.vdot(images, gradient), rtol=1e-5)


def test_mirrored_crop_is_the_crop_mirrored(images, maps):
    key = jax.random.split(jax.random.key(0), len(maps))
    mirrored = Misalignment(0, 0, 0, flips=1).drawn(jnp.asarray(maps), key, HEIGHT, WIDTH)
    same = Misalignment(0, 0, 0, flips=0).drawn(jnp.asarray(maps), key, HEIGHT, WIDTH)
    np.testing.assert_allclose(same, maps, atol=1e-6)
    crops, others = (cut(jnp.asarray(images), one, HEIGHT, WIDTH) for one in (same, mirrored))
    np.testing.assert_allclose(others, crops[:, :, ::-1], atol=2e-4)


def test_draws_have_the_stated_deviations(maps):
    count = 4000
    keys = jax.random.split(jax.random.key(1), count)
    exact = np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1))
    kind = Misalignment(rotation=4, scale=0.05, shift=0.1, flips=0)
    drawn = np.asarray(kind.drawn(jnp.asarray(exact), keys, HEIGHT, WIDTH))
    scale = np.sqrt(np.linalg.det(drawn[:, :, :2]))
    turn = np.rad2deg(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    centre = np.array([WIDTH - 1, HEIGHT - 1]) / 2
    shift = drawn[:, :, :2] @ centre + drawn[:, :, 2] - centre
    assert np.std(turn) == pytest.approx(4, rel=0.05)
    assert np.std(np.log(scale)) == pytest.approx(0.05, rel=0.05)
    np.testing.assert_allclose(shift.std(0), 0.1 * HEIGHT, rtol=0.05)
    np.testing.assert_allclose([turn.mean(), np.log(scale).mean()], 0, atol=0.2)
