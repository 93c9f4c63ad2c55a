"""The ad-hoc methods of early de-identification: blur, pixelation, masks and noise.

They share the attacks' signature, so that one command and one table serve both, but use no
recogniser and no gradients. Lengths are fractions of the image's height and width, so that a
setting means the same at every size. They have no first iterate: `initial` must be None.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import checks
from deid_jax.arrays import fold_in_all, normal, per_image_keys
from deid_jax.attacks.loop import finish
from deid_jax.attacks.methods import MethodConfig, Setting, at_least_one, static
from deid_jax.errors import InputError
from deid_jax.types import AttackResult, NumpyArray, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlurConfig(MethodConfig):
    """Settings of `blur`: σ of the Gaussian as a fraction of the image's height, > 0."""

    blur_sigma: float = static(0.05, checks.fraction)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelateConfig(MethodConfig):
    """Settings of `pixelate`: the number of blocks across and down the image, ≥ 1."""

    num_blocks: int = static(10, at_least_one)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskConfig(MethodConfig):
    """Settings of `mask`: height and width of the mask as a fraction of the image's."""

    mask_size: float = static(0.5, checks.fraction)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseConfig(MethodConfig):
    """Settings of `noise`: the standard deviation σ ≥ 0, pixels in [0, 1]."""

    noise_stddev: Setting = 0.1


def blur(
    objective: Objective,
    images: jax.Array,
    config: BlurConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """Gaussian blur with standard deviation σ·H pixels, cut off at 4 σ, edges reflected."""
    import dm_pix

    images = _checked(images, initial)
    sigma = config.blur_sigma * images.shape[1]
    # Reflection cannot reach beyond the opposite edge.
    radius = max(1, min(round(4 * sigma), images.shape[1] - 1, images.shape[2] - 1))
    edges = ((0, 0), (radius, radius), (radius, radius), (0, 0))
    padded = jnp.pad(images, edges, mode="reflect")
    blurred = dm_pix.gaussian_blur(padded, sigma, 2 * radius + 1, padding="VALID")
    return finish(objective, jnp.clip(blurred, 0, 1), key, num_gradients=0)


def pixelate(
    objective: Objective,
    images: jax.Array,
    config: PixelateConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """Replaces each of n×n blocks with its mean colour, n = min(num_blocks, H, W)."""
    images = _checked(images, initial)
    rows = _block_of_each(images.shape[1], config.num_blocks)
    columns = _block_of_each(images.shape[2], config.num_blocks)
    means = jnp.einsum(
        "rh,bhwc,kw->brkc", _averaging(rows), images, _averaging(columns), precision="highest"
    )
    blocks = jnp.clip(means, 0, 1)[:, rows][:, :, columns]
    return finish(objective, blocks, key, num_gradients=0)


def mask(
    objective: Objective,
    images: jax.Array,
    config: MaskConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """Covers the centre with a black rectangle, `mask_size` of the image's height and width."""
    images = _checked(images, initial)
    inside = [
        jnp.abs(jnp.arange(size) - (size - 1) / 2) < config.mask_size * size / 2
        for size in images.shape[1:3]
    ]
    hidden = inside[0][:, None, None] & inside[1][None, :, None]
    return finish(objective, jnp.where(hidden, 0, images), key, num_gradients=0)


def noise(
    objective: Objective,
    images: jax.Array,
    config: NoiseConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """clip₀₁(x + n) with n ~ N(0, σ²), drawn for every pixel and channel."""
    images = _checked(images, initial)
    noisy = jnp.clip(images + config.noise_stddev * normal(images, key), 0, 1)
    judge_key = fold_in_all(per_image_keys(key, len(images)), 1)
    return finish(objective, noisy, judge_key, num_gradients=0)


def _checked(images: jax.Array, initial: jax.Array | None) -> jax.Array:
    if initial is not None:
        raise InputError("initial must be None: ad-hoc methods do not iterate")
    return checks.as_images("images", images)


def _block_of_each(size: int, num_blocks: int) -> NumpyArray:
    """The block that each row (or column) falls into: int[size]."""
    return np.arange(size) * min(num_blocks, size) // size


def _averaging(blocks: NumpyArray) -> NumpyArray:
    """The matrix that averages rows within their blocks: float32[n, size]."""
    members = blocks[None, :] == np.unique(blocks)[:, None]
    return (members / members.sum(axis=1, keepdims=True)).astype(np.float32)
