"""Arithmetic per image, one random key per image, and bisection.

Images are float[B, H, W, C]; a quantity of an image is [B].
"""

import dataclasses
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.types import NumpyArray

Array = TypeVar("Array", jax.Array, NumpyArray)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bracket(Generic[Array]):
    """The bracket of a bisection: two points between which a condition changes.

    Works with NumPy and JAX arrays, traced or not, of any shape.

    Attributes:
      holds: a point where the condition holds; infinite where none is known yet.
      fails: a point where it fails; infinite where none is known yet.
    """

    holds: Array
    fails: Array

    def middle(self, outwards: Array | None = None) -> Array:
        """The point to try next: halfway, or `outwards` where an end is infinite."""
        middle = (self.holds + self.fails) / 2
        return middle if outwards is None else _where(abs(middle) < np.inf, middle, outwards)

    def narrowed(self, point: Array, holds: Array) -> "Bracket[Array]":
        """The bracket with one end moved to `point`; `holds` (bool) says which end."""
        return Bracket(_where(holds, point, self.holds), _where(holds, self.fails, point))


def _where(condition: Array, one: Array, other: Array) -> Array:
    if isinstance(one, jax.Array):
        return jnp.where(condition, one, other)
    return np.where(condition, one, other)


def per_image_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key per image: `key` itself if it is key[B], otherwise `key` split B ways."""
    return key if key.ndim else jax.random.split(key, batch_size)


def fold_in_all(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    """Folds the same number into every key of key[B], as `jax.random.fold_in` does."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal(images: jax.Array, key: jax.Array) -> jax.Array:
    """N(0, 1) noise per pixel and channel, each image's from its own key.

    Args:
      images: float[B, H, W, C], read for shape and dtype only.
      key: one key or key[B].
    """

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, images.shape[1:], images.dtype)

    return jax.vmap(draw)(per_image_keys(key, len(images)))


def gaussian_noise(images: jax.Array, key: jax.Array) -> jax.Array:
    """A first iterate independent of the image: N(0.5, 0.25²) per pixel, clipped to [0, 1].

    Args:
      images: float[B, H, W, C], read for shape and dtype only.
      key: one key or key[B].
    """
    return jnp.clip(0.5 + 0.25 * normal(images, key), 0, 1)


def per_image(values: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, 1, 1], so that it broadcasts against images."""
    return values[:, None, None, None]


def norms(images: jax.Array) -> jax.Array:
    """‖·‖₂ of each image: [B, H, W, C] -> [B]."""
    return jnp.sqrt(jnp.sum(jnp.square(images), axis=(1, 2, 3)))


def unit(images: jax.Array) -> jax.Array:
    """Divides every image by its ‖·‖₂; zero stays zero."""
    size = norms(images)
    return images / per_image(jnp.where(size > 0, size, 1))


def largest_change(images: jax.Array) -> jax.Array:
    """‖·‖₂ of the largest perturbation that [0, 1] allows: [B, H, W, C] -> [B]."""
    return norms(jnp.maximum(images, 1 - images))


def scaled_to(perturbation: jax.Array, radius: jax.Array) -> jax.Array:
    """δ·r/‖δ‖₂, with r [B]; zero stays zero."""
    size = norms(perturbation)
    return perturbation * per_image(radius / jnp.where(size > 0, size, 1))


def projected(perturbation: jax.Array, radius: jax.Array) -> jax.Array:
    """δ·min(1, r/‖δ‖₂), with r [B] ≥ 0: the nearest point of the ball; zero stays zero."""
    return scaled_to(perturbation, jnp.minimum(norms(perturbation), radius))
