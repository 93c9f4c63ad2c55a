"""What attacks that seek the least change share: schedules, bounds and how they end."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.arrays import norms, per_image
from deid_jax.attacks.loop import Conclude, Nearest, finish, keep_nearest
from deid_jax.types import AttackResult, Objective


class State(NamedTuple):
    """The nearest success so far, and ε, float32[B]: the norm that iterates may have."""

    nearest: Nearest
    epsilon: jax.Array


def annealed(
    first: float | jax.Array,
    last: float | jax.Array,
    number: jax.Array,
    num_steps: int | jax.Array,
) -> jax.Array:
    """From `first` at step 0 towards `last` at step N, along half a cosine: a scalar."""
    share = number.astype(jnp.result_type(float)) / jnp.maximum(num_steps, 1)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


def conclude_nearest(objective: Objective, judge: Objective, images: jax.Array) -> Conclude:
    """Ends with the nearest success, the last iterate included; where none is, with the last.

    Two forward passes: one judges the last iterate, one what is returned.

    Args:
      objective: whose verdict the result holds.
      judge: who says whether the last iterate succeeds.
      images: float32[B, H, W, C], the originals x.

    Returns:
      For `loop.iterate`, of states with a `nearest`.
    """

    def conclude(
        last: jax.Array, state: Any, key: jax.Array, steps_done: int | jax.Array
    ) -> AttackResult:
        _, success = judge(last, key)
        nearest = keep_nearest(state.nearest, last, norms(last - images), success)
        chosen = jnp.where(per_image(nearest.found), nearest.images, last)
        return finish(objective, chosen, key, num_gradients=steps_done, num_forwards=1)

    return conclude
