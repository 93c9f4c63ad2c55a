"""Random, differentiable transformations of images.

An attack that minimises its objective in expectation over them finds images that survive such
processing. Athalye, Engstrom, Ilyas, Kwok: "Synthesizing Robust Adversarial Examples", 2018.

All share one signature: (images float[B, H, W, C] in [0, 1], key) -> the same shape and dtype,
in [0, 1]; `key` is one key or key[B]. Each result depends only on its image and that image's
key. Shapes are static and everything can be traced. Resampling is two matrix products, which
are fast on the CPU inside `lax.scan`, forward and backward. Lengths are fractions of the
image's height and width, so that a setting means the same at every size. All raise
`InputError` for an argument out of range.

Where a transformation leaves [0, 1], the result is clipped and the gradient is zero. Where only
rounding error leaves [0, 1], the gradient is kept.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import checks
from deid_jax.arrays import fold_in_all, normal, per_image, per_image_keys
from deid_jax.errors import InputError
from deid_jax.transforms.jpeg import jpeg

# (images float[B, H, W, C] in [0, 1], one key or key[B]) -> the transformed images, likewise.
Transformation = Callable[[jax.Array, jax.Array], jax.Array]


def resize_pad_flip(
    images: jax.Array, key: jax.Array, *, smallest: float = 0.9, flips: float = 0.5
) -> jax.Array:
    """Input diversity: shrinks an image, pads it with black at random, and may mirror it.

    Xie, Zhang, Zhou, Bai, Wang, Ren, Yuille: "Improving Transferability of Adversarial Examples
    with Input Diversity", 2019, with mirroring added. Their padded image is larger than the
    original (330 pixels for 299); here it keeps its size. The scale is uniform in
    [smallest, 1], rounded to whole pixels, and the position is uniform over whole pixels.
    Resampling is bilinear, with a filter that is widened when shrinking.

    `smallest`: the smallest scale of height and width, in (0, 1].
    `flips`: the probability of mirroring left to right.
    """
    checks.fraction("smallest", smallest)
    _check_probability("flips", flips)
    keys = _keys(images, key)
    share, top, left, coin = _uniform(keys, 4)
    matrices = []
    for size, place in zip(images.shape[1:3], (top, left), strict=True):
        small = _shrunk(size, share, smallest)
        start = jnp.floor(place * (size - small + 1))
        matrices.append(_zoom(size, small / size, start, black_outside=True))
    return _mirror(_resampled(images, *matrices), coin < flips)


def random_flip(images: jax.Array, key: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Mirrors left to right with a probability in [0, 1]."""
    _check_probability("probability", probability)
    (coin,) = _uniform(_keys(images, key), 1)
    return _mirror(images, coin < probability)


def random_resize(images: jax.Array, key: jax.Array, *, smallest: float = 0.5) -> jax.Array:
    """Shrinks by a scale uniform in [smallest, 1], then enlarges to the original size.

    Both steps are bilinear; shrinking widens the filter, so that every pixel counts.

    `smallest`: the smallest scale, in (0, 1]; sizes are rounded to whole pixels.
    """
    checks.fraction("smallest", smallest)
    (share,) = _uniform(_keys(images, key), 1)
    matrices = []
    for size in images.shape[1:3]:
        small = _shrunk(size, share, smallest)
        origin = jnp.zeros_like(small)
        down = _zoom(size, small / size, origin)
        up = _zoom(size, size / small, origin, used=small)
        matrices.append(jnp.matmul(up, down, precision="highest"))
    return _resampled(images, *matrices)


def crop_jitter(
    images: jax.Array, key: jax.Array, *, shift: float = 0.03, scale: float = 0.05
) -> jax.Array:
    """Shifts and scales slightly, like the crop of another face detector.

    x'(p) = x(c + (p − c − t)/s), c the centre; t uniform within ±shift of height and width,
    s uniform within 1 ± scale. Bilinear at sub-pixel positions; edges are repeated outwards.

    `shift`: the largest shift, a fraction in [0, 1) of height and width.
    `scale`: the largest change of scale, in [0, 1).
    """
    for name, value in (("shift", shift), ("scale", scale)):
        checks.below_one(name, value)
    zoom, *moves = _uniform(_keys(images, key), 3)
    factor = 1 + scale * (2 * zoom - 1)
    matrices = []
    for size, move in zip(images.shape[1:3], moves, strict=True):
        start = size * ((1 - factor) / 2 + shift * (2 * move - 1))
        matrices.append(_zoom(size, factor, start))
    return _resampled(images, *matrices)


def random_blur(images: jax.Array, key: jax.Array, *, largest_sigma: float = 0.01) -> jax.Array:
    """Gaussian blur with σ uniform in [0, largest_sigma] of the height.

    Near an edge the weights inside the image are scaled to sum to one.

    `largest_sigma`: a fraction of the height, at least 0 and finite.
    """
    checks.finite_non_negative("largest_sigma", largest_sigma)
    (share,) = _uniform(_keys(images, key), 1)
    # A σ of a thousandth of a pixel leaves every image unchanged.
    sigma = jnp.maximum(largest_sigma * images.shape[1] * share, 1e-3)[:, None, None]
    matrices = []
    for size in images.shape[1:3]:
        distance = np.subtract.outer(np.arange(size), np.arange(size))
        weights = jnp.exp(-0.5 * jnp.square(jnp.asarray(distance, sigma.dtype)[None] / sigma))
        matrices.append(weights / weights.sum(axis=2, keepdims=True))
    return _resampled(images, *matrices)


def random_brightness(
    images: jax.Array, key: jax.Array, *, offset: float = 0.1, contrast: float = 0.2
) -> jax.Array:
    """clip₀₁(½ + g (x − ½) + b): b uniform within ±offset, g within 1 ± contrast.

    `offset`: the largest change of brightness, at least 0 and finite; pixels in [0, 1].
    `contrast`: the largest change of contrast, in [0, 1).
    """
    checks.finite_non_negative("offset", offset)
    checks.below_one("contrast", contrast)
    gain, shift = (2 * draw - 1 for draw in _uniform(_keys(images, key), 2))
    gain, shift = (per_image(d) for d in (1 + contrast * gain, offset * shift))
    moved = 0.5 + gain * (images - 0.5) + shift
    return jnp.clip(moved, 0, 1).astype(images.dtype)


def random_noise(images: jax.Array, key: jax.Array, *, stddev: float = 0.02) -> jax.Array:
    """clip₀₁(x + n) with n from N(0, σ²) for every pixel and channel.

    `stddev`: σ, at least 0 and finite; pixels in [0, 1].
    """
    checks.finite_non_negative("stddev", stddev)
    return jnp.clip(images + stddev * normal(images, _keys(images, key)), 0, 1)


def random_jpeg(
    images: jax.Array, key: jax.Array, *, lowest: int = 50, highest: int = 95
) -> jax.Array:
    """JPEG at a quality uniform over the integers in [lowest, highest]; see `transforms.jpeg`.

    `lowest`: the lowest quality, 1 to 100.
    `highest`: the highest quality, at least `lowest` and at most 100.
    """
    checks.count("highest", highest, least=1, most=100)
    checks.count("lowest", lowest, least=1, most=highest)
    (draw,) = _uniform(_keys(images, key), 1)
    return jpeg(images, jnp.floor(lowest + draw * (highest - lowest + 1)))


def compose(*functions: Transformation) -> Transformation:
    """Applies transformations in order, each with its own keys; none gives the identity."""

    def composed(images: jax.Array, key: jax.Array) -> jax.Array:
        keys = _keys(images, key)
        for number, function in enumerate(functions):
            images = function(images, fold_in_all(keys, number))
        return images

    return composed


def sometimes(probability: float, function: Transformation) -> Transformation:
    """Applies `function` to each image with a probability in [0, 1]."""
    _check_probability("probability", probability)

    def perhaps(images: jax.Array, key: jax.Array) -> jax.Array:
        keys = _keys(images, key)
        (coin,) = _uniform(fold_in_all(keys, 0), 1)
        changed = function(images, fold_in_all(keys, 1))
        return jnp.where(per_image(coin < probability), changed, images)

    return perhaps


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} must be a number >= 0 and <= 1, got {value}")


def _keys(images: jax.Array, key: jax.Array) -> jax.Array:
    return per_image_keys(key, len(checks.as_images("images", images)))


def _uniform(keys: jax.Array, count: int) -> jax.Array:
    """float32[count, B], uniform in [0, 1), each column from its own key."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(keys)
    return draws.T


def _mirror(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    return jnp.where(per_image(mirrored), images[:, :, ::-1], images)


def _shrunk(size: int, draw: jax.Array, smallest: float) -> jax.Array:
    """A size scaled uniformly in [smallest, 1], in whole pixels, at least one: float32[B]."""
    return jnp.maximum(jnp.round(size * (smallest + (1 - smallest) * draw)), 1)


def _zoom(
    size: int,
    scale: jax.Array,
    start: jax.Array,
    *,
    used: jax.Array | None = None,
    black_outside: bool = False,
) -> jax.Array:
    """The matrices that scale a line of pixels and place it at `start` on an equal line.

    Target pixel i lies over the source at (i + ½ − start)/scale − ½. Its weights form a
    triangle around that position, as wide as two source pixels, or as two target pixels if
    those are larger, and sum to one. Beyond the line's ends the last pixel is repeated.

    Args:
      size: of both lines, in pixels.
      scale: float32[B], target pixels per source pixel.
      start: float32[B], the position of the source's first edge, in target pixels.
      used: float32[B], the number of source pixels that are used; all if None.
      black_outside: whether weights are zero beyond the ends, instead of repeating.

    Returns:
      float32[B, size, size]: a row per target pixel.
    """
    pixels = jnp.arange(size, dtype=jnp.float32)
    end = jnp.full_like(scale, size) if used is None else used
    place = (pixels[None] + 0.5 - start[:, None]) / scale[:, None]
    inside = (place >= 0) & (place <= end[:, None])
    centre = jnp.clip(place, 0, end[:, None]) - 0.5
    distance = jnp.abs(centre[:, :, None] - pixels[None, None])
    reach = jnp.maximum(1 / scale, 1)[:, None, None]
    weights = jnp.maximum(1 - distance / reach, 0) * (pixels[None] < end[:, None])[:, None]
    weights /= weights.sum(axis=2, keepdims=True)
    return jnp.where(inside[:, :, None], weights, 0) if black_outside else weights


def _resampled(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Each image as rows @ image @ columnsᵀ; float32[B, H, H] and float32[B, W, W]."""
    once = jnp.einsum("bih,bhwc->biwc", rows, images, precision="highest")
    twice = jnp.einsum("bjw,biwc->bijc", columns, once, precision="highest")
    return _back_in_range(twice).astype(images.dtype)


@jax.custom_jvp
def _back_in_range(images: jax.Array) -> jax.Array:
    """Clips rounding errors outside [0, 1] without stopping the gradient."""
    return jnp.clip(images, 0, 1)


_back_in_range.defjvps(lambda change, result, images: change)


# Name -> transformation at its default strength.
TRANSFORMATIONS: dict[str, Transformation] = {
    "resize_pad_flip": resize_pad_flip,
    "flip": random_flip,
    "resize": random_resize,
    "crop_jitter": crop_jitter,
    "blur": random_blur,
    "brightness": random_brightness,
    "noise": random_noise,
    "jpeg": random_jpeg,
    # Typical processing of photos, each kind in half of the draws.
    "processing": compose(sometimes(0.5, random_jpeg), sometimes(0.5, random_resize)),
}
