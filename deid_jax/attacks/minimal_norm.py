"""What attacks that seek the least change share: schedules, bounds and how they end."""

from typing import Any

import jax
import jax.numpy as jnp

from deid_jax._validate import InputError
from deid_jax.attacks.loop import Nearest, finish, keep_nearest, norms, per_image
from deid_jax.types import AttackResult, Objective


def below_one(name: str, value: Any) -> None:
    """Refuses plain numbers of 1 and more; traced and stacked settings pass unseen."""
    if isinstance(value, int | float) and value >= 1:
        raise InputError(f"{name} must be < 1, got {value}")


def annealed(
    first: float | jax.Array,
    last: float | jax.Array,
    number: jax.Array,
    num_steps: int | jax.Array,
) -> jax.Array:
    """From `first` at step 0 towards `last` at step N, along half a cosine: a scalar."""
    share = number.astype(jnp.result_type(float)) / jnp.maximum(num_steps, 1)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2


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


def finish_nearest(
    objective: Objective,
    judge: Objective,
    images: jax.Array,
    last: jax.Array,
    nearest: Nearest,
    key: jax.Array,
    *,
    num_gradients: int | jax.Array,
) -> AttackResult:
    """The nearest success, the last iterate included; the last iterate where none succeeded.

    Two forward passes: one judges the last iterate, one what is returned.

    Args:
      objective: whose verdict the result holds.
      judge: who says whether the last iterate succeeds.
      images: float32[B, H, W, C], the originals x.
      last: likewise, x̂_N.
      nearest: the nearest success before x̂_N.
      key: key[B].
      num_gradients: see `AttackResult`.
    """
    _, success = judge(last, key)
    nearest = keep_nearest(nearest, last, norms(last - images), success)
    chosen = jnp.where(per_image(nearest.found), nearest.images, last)
    return finish(objective, chosen, key, num_gradients=num_gradients, num_forwards=1)
