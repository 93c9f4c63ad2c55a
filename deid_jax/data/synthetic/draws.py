"""Random numbers used one after another, drawn in a single call, which compiles fast."""

import math

import jax
import jax.numpy as jnp

Bound = float | jax.Array


class Draws:
    """Draws `count` uniform numbers from a key, and hands them out in order."""

    def __init__(self, key: jax.Array, count: int) -> None:
        self._values = jax.random.uniform(key, (count,))
        self._next = 0

    def between(self, low: Bound, high: Bound, shape: tuple[int, ...] = ()) -> jax.Array:
        """Uniform draws in [low, high); the bounds are scalars."""
        start, self._next = self._next, self._next + math.prod(shape)
        assert self._next <= self._values.size, "count is too small"
        return low + (high - low) * self._values[start : self._next].reshape(shape)

    def several(self, *ranges: tuple[Bound, Bound]) -> list[jax.Array]:
        """One draw for each (low, high)."""
        return [self.between(low, high) for low, high in ranges]

    def bell(self, width: float) -> jax.Array:
        """A bell-shaped draw in (-1.5, 1.5) · width, of standard deviation width / 2."""
        return (jnp.sum(self.between(0.0, 1.0, (3,))) - 1.5) * width

    def chance(self, probability: Bound) -> jax.Array:
        """1.0 with the given probability, else 0.0."""
        return (self.between(0.0, 1.0) < probability).astype(jnp.float32)
