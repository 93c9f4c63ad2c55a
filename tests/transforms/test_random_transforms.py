"""The laws of all transformations, and each against Pillow, SciPy or its closed form."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deid_jax.arrays import fold_in_all
from deid_jax.errors import InputError
from deid_jax.pixels import LEVELS
from deid_jax.transforms import random_transforms
from deid_jax.transforms.random_transforms import TRANSFORMATIONS, compose, sometimes
from tests.helpers import random_images

KEYS = jax.random.split(jax.random.key(7), 5)
# Of other height than width, and odd.
NOISE = jax.random.uniform(jax.random.key(1), (5, 21, 16, 3))
# By default it leaves images as small as these as they are.
STRONG_BLUR = functools.partial(random_transforms.random_blur, largest_sigma=0.1)
ALL = TRANSFORMATIONS | {
    "blur": STRONG_BLUR,
    "composed": compose(random_transforms.crop_jitter, random_transforms.random_brightness),
    "perhaps": sometimes(0.5, STRONG_BLUR),
}
# Neither rounding nor clipping inside.
SMOOTH = [name for name in ALL if name not in ("jpeg", "processing")]
every = pytest.mark.parametrize("name", ALL)


@functools.cache
def compiled(name):
    return jax.jit(ALL[name])


def slope(transformation, images, cotangent, keys):
    return jax.vjp(lambda images: transformation(images, keys), images)[1](cotangent)[0]


@functools.cache
def compiled_slope(name):
    return jax.jit(functools.partial(slope, ALL[name]))


def many_keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def repeated(image, count):
    """The same image `count` times."""
    return jnp.asarray(np.repeat(np.asarray(image, np.float32)[None], count, axis=0))


def drawn(transformation, image, count):
    """What `count` draws make of one image: float64[count, H, W, 3]."""
    changed = jax.jit(transformation)(repeated(image, count), many_keys(count))
    return np.asarray(changed, np.float64)


@every
def test_stays_in_range_and_shape(name):
    for images in (NOISE, jnp.zeros_like(NOISE), jnp.ones_like(NOISE)):
        changed = compiled(name)(images, KEYS)
        assert changed.shape == images.shape and changed.dtype == images.dtype
        assert changed.min() >= 0 and changed.max() <= 1


@every
def test_depends_on_its_own_key_and_image_alone(name):
    """Another place among other images with other keys changes nothing, another key does."""
    batch = np.asarray(compiled(name)(NOISE, KEYS))
    others, other_keys = 1 - NOISE[::-1], many_keys(5, seed=1)
    for i in range(5):
        place = (i + 2) % 5
        images = np.array(others)
        images[place] = NOISE[i]
        keys = other_keys.at[place].set(KEYS[i])
        np.testing.assert_allclose(compiled(name)(images, keys)[place], batch[i], atol=1e-6)
    same_picture = compiled(name)(repeated(NOISE[0], 5), KEYS)
    assert np.asarray(same_picture).std(axis=0).max() > 1e-3


@pytest.mark.parametrize("name", ["flip", "brightness", "perhaps"])
def test_one_key_is_split(name):
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        compiled(name)(NOISE, key), compiled(name)(NOISE, jax.random.split(key, 5))
    )


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.slow
def test_compiled_equals_eager(name):
    np.testing.assert_allclose(ALL[name](NOISE, KEYS), compiled(name)(NOISE, KEYS), atol=1e-5)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_is_the_difference_quotient(name):
    """All but JPEG are linear where nothing is clipped."""
    images, directions, cotangents = 0.4 + 0.2 * NOISE, NOISE[::-1] - 0.5, NOISE[1] - 0.5
    cotangents = repeated(cotangents, 5)
    there, back = (compiled(name)(images + s * 0.1 * directions, KEYS) for s in (1, -1))
    expected = jnp.sum((there - back) / 0.2 * cotangents, axis=(1, 2, 3))
    slopes = compiled_slope(name)(images, cotangents, KEYS)
    np.testing.assert_allclose(
        jnp.sum(slopes * directions, axis=(1, 2, 3)), expected, rtol=1e-4, atol=1e-4
    )


@every
def test_runs_inside_a_compiled_loop(name):
    """Gradient steps on fresh draws, as an attack takes them, are what a loop outside does."""
    ones = jnp.ones_like(NOISE)

    def step(images, number):
        return images - 0.01 * slope(ALL[name], images, ones, fold_in_all(KEYS, number)), None

    inside = jax.jit(lambda images: jax.lax.scan(step, images, jnp.arange(2))[0])(NOISE)
    outside = NOISE
    for number in range(2):
        outside -= 0.01 * compiled_slope(name)(outside, ones, fold_in_all(KEYS, number))
    np.testing.assert_allclose(inside, outside, atol=1e-5)
    assert not np.allclose(inside, NOISE, atol=1e-3)


@every
def test_maps_over_draws(name):
    """An expectation's samples: vmap over keys is a loop over them."""
    draws = jnp.stack([KEYS, many_keys(5)])
    mapped = jax.jit(jax.vmap(ALL[name], in_axes=(None, 0)))(NOISE, draws)
    loop = jnp.stack([compiled(name)(NOISE, keys) for keys in draws])
    # A coefficient of JPEG may fall on either side of a tie.
    assert np.mean(np.abs(mapped - loop) > 1e-5) <= (0.01 if name == "jpeg" else 0)


@pytest.mark.parametrize("name", ["resize_pad_flip", "flip", "resize", "crop_jitter", "blur"])
def test_white_has_its_whole_gradient(name):
    """Rounding above 1 must not stop it: every pixel of white weighs on the result."""
    white = jnp.ones_like(NOISE)
    slopes = compiled_slope(name)(white, white, KEYS)
    total = compiled(name)(white, KEYS).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(slopes.sum(axis=(1, 2, 3)), total, rtol=1e-5)


def pillow_resized(image, height, width):
    """float64[height, width, C], by Pillow's bilinear filter in floating point."""
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR)
        for channel in np.moveaxis(np.asarray(image, np.float32), -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def test_resize_pad_flip_equals_pillow():
    """A frame of black around the resized image, at every size, everywhere, mirrored."""
    # No pixel of it is black.
    image = 0.5 + 0.5 * np.asarray(jax.random.uniform(jax.random.key(2), (20, 30, 3)))
    seen = []
    for picture in drawn(
        functools.partial(random_transforms.resize_pad_flip, smallest=0.7), image, 200
    ):
        rows, columns = (np.flatnonzero(picture.any(axis=axes)) for axes in ((1, 2), (0, 2)))
        inner = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        small = pillow_resized(image, *inner.shape[:2])
        mirrored = np.abs(inner - small).max() > 1e-5
        np.testing.assert_allclose(inner, small[:, ::-1] if mirrored else small, atol=1e-5)
        assert abs(len(rows) / 20 - len(columns) / 30) <= 0.5 / 20 + 0.5 / 30 + 1e-9
        seen.append((mirrored, len(rows), rows[0], columns[0]))
    flips, heights, tops, lefts = (np.array(values) for values in zip(*seen, strict=True))
    assert 70 < flips.sum() < 130
    assert set(heights) == set(range(14, 21))
    assert set(tops) == set(range(7)) and set(range(9)) <= set(lefts) <= set(range(10))
    for height in range(14, 19):
        assert {0, 20 - height} <= set(tops[heights == height])


def test_flip_mirrors_half_of_them():
    image = np.asarray(NOISE[0])
    changed = drawn(random_transforms.random_flip, image, 200)
    mirrored = (changed == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (changed[~mirrored] == image).all()
    assert 70 < mirrored.sum() < 130


def test_resize_equals_pillow_there_and_back():
    image = np.asarray(jax.random.uniform(jax.random.key(2), (12, 18, 3)))
    changed = drawn(random_transforms.random_resize, image, 60)
    # Shares that round to the same height may differ in width.
    sizes = [(h, w) for h in range(6, 13) for w in range(9, 19) if abs(h / 12 - w / 18) < 0.07]
    candidates = [pillow_resized(pillow_resized(image, *size), 12, 18) for size in sizes]
    errors = np.abs(changed[:, None] - np.stack(candidates)[None]).max(axis=(2, 3, 4))
    assert errors.min(axis=1).max() < 1e-5
    assert {sizes[best][0] for best in errors.argmin(axis=1)} == set(range(6, 13))


def test_crop_jitter_shifts_as_scipy():
    """Two ramps tell the shift; SciPy's linear interpolation does the rest."""
    shift = functools.partial(random_transforms.crop_jitter, shift=0.1, scale=0)
    i, j = np.mgrid[:20, :30]
    texture = np.asarray(random_images(1, size=30)[0, :20, :, 0])
    image = np.stack([i / 20, j / 30, texture], axis=-1)
    changed = drawn(shift, image, 40)
    moves = np.array([[10 / 20, 15 / 30]]) - changed[:, 10, 15, :2]
    for picture, (down, right) in zip(changed, moves, strict=True):
        expected = ndimage.shift(texture, (20 * down, 30 * right), order=1, mode="nearest")
        np.testing.assert_allclose(picture[..., 2], expected, atol=1e-4)
    assert np.abs(moves).max() <= 0.1 + 1e-6
    assert (moves.max(axis=0) > 0.08).all() and (moves.min(axis=0) < -0.08).all()


def test_crop_jitter_scales_about_the_centre():
    scale = functools.partial(random_transforms.crop_jitter, shift=0, scale=0.2)
    i, j = np.mgrid[:40, :60]
    image = np.stack([i / 40, j / 60, 0 * i], axis=-1)
    changed = drawn(scale, image, 40)
    np.testing.assert_allclose(changed[:, 19:21, :, 0].mean(axis=(1, 2)), 19.5 / 40, atol=1e-3)
    np.testing.assert_allclose(changed[:, :, 29:31, 1].mean(axis=(1, 2)), 29.5 / 60, atol=1e-3)
    rows = 20 / 40 / (changed[:, 30, 0, 0] - changed[:, 10, 0, 0])
    columns = 20 / 60 / (changed[:, 0, 40, 1] - changed[:, 0, 20, 1])
    np.testing.assert_allclose(rows, columns, rtol=0.01)
    assert 0.79 < rows.min() < 0.84 and 1.16 < rows.max() < 1.21


def test_blur_equals_scipy():
    """The image's third channel is a point, whose image tells σ."""
    strong = functools.partial(random_transforms.random_blur, largest_sigma=0.06)
    image = np.asarray(random_images(1, size=40)[0]).astype(np.float64)
    image[..., 2] = 0
    image[20, 20, 2] = 1
    changed = drawn(strong, image, 20)
    decay = changed[:, 20, 21, 2] / changed[:, 20, 20, 2]
    sigmas = np.sqrt(-0.5 / np.log(np.maximum(decay, 1e-30)))
    for picture, sigma in zip(changed, sigmas, strict=True):

        def gaussian(values, sigma=sigma):
            return ndimage.gaussian_filter(
                values, (sigma, sigma, 0), mode="constant", truncate=8
            )

        expected = gaussian(image) / gaussian(np.ones_like(image))
        np.testing.assert_allclose(picture, expected, atol=1e-4)
    assert sigmas.max() <= 0.06 * 40 and sigmas.max() > 2 and sigmas.min() < 0.6


def test_brightness_is_its_formula():
    """One pixel tells the offset, another the contrast; all others follow."""
    image = np.asarray(random_images(1)[0]).astype(np.float64)
    image[0, 0], image[0, 1] = 0.5, 0.6
    changed = drawn(random_transforms.random_brightness, image, 60)
    offset = changed[:, 0, 0, 0] - 0.5
    gain = (changed[:, 0, 1, 0] - changed[:, 0, 0, 0]) / 0.1
    expected = 0.5 + np.multiply.outer(gain, image - 0.5) + offset[:, None, None, None]
    np.testing.assert_allclose(changed, np.clip(expected, 0, 1), atol=1e-5)
    assert -0.1 <= offset.min() < -0.08 and 0.08 < offset.max() <= 0.1
    assert 0.8 - 1e-5 <= gain.min() < 0.84 and 1.16 < gain.max() <= 1.2 + 1e-5
    assert abs(np.corrcoef(offset, gain)[0, 1]) < 0.4


def test_noise_has_its_deviation_and_no_pixel_anothers():
    added = drawn(random_transforms.random_noise, np.full((32, 32, 3), 0.5), 4) - 0.5
    assert abs(added.std() / 0.02 - 1) < 0.03 and abs(added.mean()) < 1e-3
    correlations = np.corrcoef(added.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlations).max() < 0.08
    channels = np.corrcoef(added.reshape(-1, 3).T) - np.eye(3)
    assert np.abs(channels).max() < 0.08


def test_jpeg_has_every_quality_of_its_range():
    pixels = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    function = functools.partial(random_transforms.random_jpeg, lowest=60, highest=64)
    changed = 255 * drawn(function, LEVELS[pixels], 60)

    def by_pillow(quality):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).astype(np.float64)

    expected = np.stack([by_pillow(quality) for quality in range(58, 67)])
    errors = np.abs(changed[:, None] - expected[None]).mean(axis=(2, 3, 4))
    assert errors.min(axis=1).max() < 0.5
    assert set(58 + errors.argmin(axis=1)) == {60, 61, 62, 63, 64}


def test_compose_runs_in_order_with_keys_of_its_own():
    def darken(images, key):
        return images / 2

    def invert(images, key):
        return 1 - images

    images = 0.25 + 0.5 * random_images(5, size=32)
    np.testing.assert_allclose(compose(darken, invert)(images, KEYS), 1 - images / 2)
    np.testing.assert_allclose(compose(invert, darken)(images, KEYS), (1 - images) / 2)
    np.testing.assert_array_equal(compose()(images, KEYS), images)
    # The same noise twice would have twice the deviation.
    twice = (
        compose(random_transforms.random_noise, random_transforms.random_noise)(images, KEYS)
        - images
    )
    assert abs(float(twice.std()) / (0.02 * 2**0.5) - 1) < 0.03


def test_sometimes_is_as_often_as_it_says():
    def invert(images, key):
        return 1 - images

    images = repeated(np.full((2, 2, 3), 0.25), 400)
    changed = sometimes(0.3, invert)(images, many_keys(400))
    inverted = np.asarray(changed[:, 0, 0, 0]) == 0.75
    np.testing.assert_array_equal(changed[~inverted], images[~inverted])
    assert 0.22 < inverted.mean() < 0.38
    np.testing.assert_array_equal(sometimes(0, invert)(images, many_keys(400)), images)
    np.testing.assert_array_equal(sometimes(1, invert)(images, many_keys(400)), 1 - images)


def test_sometimes_draws_apart_from_what_it_guards():
    """Among mirrored images of flips that happen sometimes, none is favoured."""
    image = np.asarray(NOISE[0])
    flips = sometimes(0.5, random_transforms.random_flip)
    changed = drawn(flips, image, 400)
    assert 0.18 < (changed == image[:, ::-1]).all(axis=(1, 2, 3)).mean() < 0.32


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("resize_pad_flip", "smallest", 0.0),
        ("resize_pad_flip", "smallest", 1.5),
        ("resize_pad_flip", "flips", -0.1),
        ("flip", "probability", 1.1),
        ("resize", "smallest", float("nan")),
        ("crop_jitter", "shift", -0.1),
        ("crop_jitter", "scale", 1.0),
        ("blur", "largest_sigma", float("inf")),
        ("brightness", "offset", -1),
        ("brightness", "contrast", 1.0),
        ("noise", "stddev", -0.1),
        ("jpeg", "lowest", 0),
        ("jpeg", "highest", 101),
    ],
)
def test_bad_settings_are_named(name, setting, value):
    with pytest.raises(InputError, match=f"{setting} must be .*{value}"):
        TRANSFORMATIONS[name](random_images(1), jax.random.key(0), **{setting: value})


def test_bad_probabilities_and_images_are_named():
    with pytest.raises(InputError, match=r"probability must be .*, got 2"):
        sometimes(2, random_transforms.random_flip)
    for name in ALL:
        with pytest.raises(InputError, match=r"images must be \[B, H, W, C\]"):
            ALL[name](jnp.zeros((4, 4, 3)), jax.random.key(0))
