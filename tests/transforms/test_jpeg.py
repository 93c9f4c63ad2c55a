"""Differentiable JPEG against Pillow's forwards and PyTorch's gradients backwards."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from deid_jax.errors import InputError
from deid_jax.pixels import LEVELS
from deid_jax.transforms.jpeg import jpeg
from tests.helpers import random_images


def photo(height, width):
    """uint8[height, width, 3]: a real face, and sharp edges that reach all levels."""
    face = Image.fromarray(skimage.data.astronaut()[:280, 90:370])
    picture = np.array(face.resize((width, height), Image.Resampling.LANCZOS))
    picture[: height // 4, : width // 4] = (255, 0, 0)
    picture[-(height // 4) :, -(width // 4) :] = 255
    return picture


def by_pillow(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).astype(np.float64)


COMPILED = jax.jit(jpeg)


def test_every_quality_is_pillows():
    """One image at each quality, in one batch: tables, scaling and quality per image."""
    picture, qualities = photo(48, 64), np.arange(1, 101)
    batch = np.repeat(LEVELS[picture][None], len(qualities), axis=0)
    ours = 255 * np.asarray(COMPILED(batch, qualities), np.float64)
    theirs = np.stack([by_pillow(picture, int(quality)) for quality in qualities])
    for written, quality in zip(ours, qualities, strict=True):
        errors = np.abs(written - theirs).mean(axis=(1, 2, 3))
        assert errors[quality - 1] < 0.4, quality
        assert errors[quality - 1] == errors.min(), quality
    assert np.abs(theirs - picture).mean(axis=(1, 2, 3)).min() > 0.8


@pytest.mark.parametrize("height, width", [(112, 112), (37, 50), (50, 37), (24, 3), (1, 9)])
def test_every_size_is_pillows(height, width):
    """Sizes that fill no block, no pair, or nothing that libjpeg would filter."""
    picture, qualities = photo(height, width), np.array([50, 75, 95])
    batch = np.repeat(LEVELS[picture][None], len(qualities), axis=0)
    written = 255 * np.asarray(COMPILED(batch, qualities), np.float64)
    for ours, quality in zip(written, qualities, strict=True):
        assert np.abs(ours - by_pillow(picture, int(quality))).mean() < 0.3, quality


def test_images_come_back_on_the_grid_of_files():
    written = np.asarray(COMPILED(random_images(2), np.array([60, 90])))
    assert np.isin(written, LEVELS).all()


@jax.jit
def _backward(images, cotangent, quality=75):
    return jax.vjp(lambda images: jpeg(images, quality), images)[1](cotangent)[0]


def test_gradient_is_the_rest_without_rounding():
    """PyTorch's pooling and bilinear enlargement of chroma, in float64."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    matrix = torch.tensor(
        [
            [0.299, 0.587, 0.114],
            [-0.1687358916, -0.3312641084, 0.5],
            [0.5, -0.4186875892, -0.0813124108],
        ],
        dtype=torch.float64,
    )
    images, cotangent = random_images(2, size=22), random_images(2, size=22, seed=1) - 0.5
    x = torch.tensor(np.asarray(images, np.float64), requires_grad=True)
    planes = torch.einsum("yc,bhwc->byhw", matrix, x)
    chroma = functional.interpolate(
        functional.avg_pool2d(planes[:, 1:], 2),
        scale_factor=2,
        mode="bilinear",
        align_corners=False,
    )
    back = torch.einsum(
        "cy,byhw->bhwc", matrix.inverse(), torch.cat([planes[:, :1], chroma], 1)
    )
    back.backward(torch.tensor(np.asarray(cotangent, np.float64)))
    np.testing.assert_allclose(_backward(images, cotangent), x.grad.numpy(), atol=2e-6)


def test_gradient_does_not_depend_on_quality_and_none_flows_to_it():
    images, cotangent = random_images(2), random_images(2, seed=1)
    np.testing.assert_array_equal(
        _backward(images, cotangent, 20), _backward(images, cotangent, 95)
    )
    total = jax.jit(lambda quality: jpeg(images, quality).sum())
    slopes = jax.grad(total)(jnp.array([50.0, 70.0]))
    np.testing.assert_array_equal(slopes, [0, 0])


def test_derivative_of_luma_is_the_identity():
    """A change by greys passes as it is; one of chroma, checkered, halves to nothing."""
    images, grey = random_images(1), jnp.repeat(random_images(1, seed=1)[..., :1], 3, axis=3)
    checkers = jnp.asarray(np.indices((16, 16)).sum(axis=0) % 2 * 2.0 - 1)[None, :, :, None]
    # 0.299 R + 0.587 G + 0.114 B stays what it is.
    chroma = checkers * jnp.array([0.587, -0.299, 0])[None, None, None]
    forward = jax.jit(
        lambda change: jax.jvp(lambda images: jpeg(images, 75), (images,), (change,))[1]
    )
    np.testing.assert_allclose(forward(grey), grey, atol=1e-6)
    np.testing.assert_allclose(forward(chroma), jnp.zeros_like(chroma), atol=1e-6)


def test_dtype_is_kept():
    images = random_images(1).astype(jnp.float16)
    assert COMPILED(images, 75).dtype == jnp.float16 == _backward(images, images).dtype


@pytest.mark.parametrize("quality", [0, 101, float("nan"), np.array([50, 0])])
def test_bad_quality_is_named(quality):
    with pytest.raises(InputError, match="quality must be between 1 and 100, got"):
        jpeg(random_images(2), quality)


def test_grey_images_are_refused():
    with pytest.raises(InputError, match="images must have 3 channels, got 1"):
        jpeg(random_images(1)[..., :1], 75)
