"""Arithmetic per image, and one random key per image.

Images are float[B, H, W, C]; whatever is of an image is [B].
"""

import jax
import jax.numpy as jnp


def per_image_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key per image: `key` itself if it is key[B], else key split B ways."""
    return key if key.ndim else jax.random.split(key, batch_size)


def fold_in_all(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    """`jax.random.fold_in` of the same number into every key of key[B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal(images: jax.Array, key: jax.Array) -> jax.Array:
    """N(0, 1) per pixel and channel, each picture's from its own key.

    Args:
      images: float[B, H, W, C], read for shape and dtype only.
      key: one key or key[B].
    """

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, images.shape[1:], images.dtype)

    return jax.vmap(draw)(per_image_keys(key, len(images)))


def gaussian_noise(images: jax.Array, key: jax.Array) -> jax.Array:
    """A first iterate without any of the picture: N(0.5, 0.25²) per pixel, clipped to [0, 1].

    Args:
      images: float[B, H, W, C], read for shape and dtype only.
      key: one key or key[B].
    """
    return jnp.clip(0.5 + 0.25 * normal(images, key), 0, 1)


def per_image(values: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1, 1], to go with pictures."""
    return values[:, None, None, None]


def norms(images: jax.Array) -> jax.Array:
    """‖·‖₂ of each picture: [B, H, W, C] -> [B]."""
    return jnp.sqrt(jnp.sum(jnp.square(images), axis=(1, 2, 3)))


def unit(images: jax.Array) -> jax.Array:
    """Every picture over its ‖·‖₂; zero stays zero."""
    size = norms(images)
    return images / per_image(jnp.where(size > 0, size, 1))


def largest_change(images: jax.Array) -> jax.Array:
    """‖·‖₂ of the largest change that keeps a picture in [0, 1]: [B, H, W, C] -> [B]."""
    return norms(jnp.maximum(images, 1 - images))


def scaled_to(change: jax.Array, radius: jax.Array) -> jax.Array:
    """δ·r/‖δ‖₂, with r [B]; zero stays zero."""
    size = norms(change)
    return change * per_image(radius / jnp.where(size > 0, size, 1))


def projected(change: jax.Array, radius: jax.Array) -> jax.Array:
    """δ·min(1, r/‖δ‖₂), with r [B] ≥ 0: the nearest change of the ball; zero stays zero."""
    return scaled_to(change, jnp.minimum(norms(change), radius))
