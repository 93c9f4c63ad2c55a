"""Small pieces of procedural painting: soft edges, colour mixing, value noise.

Colours are linear RGB with the channels first: [3, N] on N points, or [3] for a constant.
"""

import math

import jax
import jax.numpy as jnp


def cover(distance: jax.Array, softness: jax.Array | float) -> jax.Array:
    """Coverage in [0, 1] of a shape: 1 where distance < 0, with a smooth edge."""
    t = jnp.clip(0.5 - distance / softness, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def gaussian(offset: jax.Array, width: jax.Array | float) -> jax.Array:
    """The bell exp(-(offset / width)²)."""
    return jnp.exp(-((offset / width) ** 2))


def tone(colour: jax.Array) -> jax.Array:
    """A constant colour [3] as [3, 1], to be combined with [3, N]."""
    return colour[:, None]


def mix(below: jax.Array, above: jax.Array, weight: jax.Array) -> jax.Array:
    """Paints the colour `above` over `below` with weight [N]."""
    return below + (above - below) * weight[None]


def _hash(i: jax.Array, j: jax.Array) -> jax.Array:
    """Integer lattice point -> uniform in [0, 1), by integer mixing (exact on any device)."""
    h = i.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + j.astype(jnp.uint32) * jnp.uint32(
        0x85EBCA77
    )
    h = (h ^ (h >> 15)) * jnp.uint32(0x2C1B3C6D)
    h = (h ^ (h >> 13)) * jnp.uint32(0x297A2D39)
    return (h >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def value_noise(u: jax.Array, v: jax.Array) -> jax.Array:
    """Smooth noise in [0, 1] with features of size 1."""
    low_u, low_v = jnp.floor(u), jnp.floor(v)
    s, t = u - low_u, v - low_v
    s, t = s * s * (3.0 - 2.0 * s), t * t * (3.0 - 2.0 * t)
    i, j = low_u.astype(jnp.int32), low_v.astype(jnp.int32)
    bottom = _hash(i, j) * (1 - s) + _hash(i + 1, j) * s
    top = _hash(i, j + 1) * (1 - s) + _hash(i + 1, j + 1) * s
    return bottom * (1 - t) + top * t


def white_noise(seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bell-shaped noise, mean 0 and deviation 1, independent everywhere: three hashes."""
    place = jnp.arange(math.prod(shape), dtype=jnp.int32)
    draws = [_hash(place, jnp.int32(i) + 3 * seed.astype(jnp.int32)) for i in range(3)]
    return (2.0 * (draws[0] + draws[1] + draws[2]) - 3.0).reshape(shape)
