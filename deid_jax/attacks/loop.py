"""The one compiled loop that all attacks share.

An attack gives its update rule; `iterate` evaluates the objective and its gradient, applies
the rule and repeats, as a single `jax.lax.scan`: one gradient a step. `descend` is that for
rules that keep nothing between steps; `Nearest` and `keep_nearest` serve those that seek the
least change. Asked for several numbers of steps, a loop whose rule does not know where it
ends runs once to the largest and keeps what it passes on the way.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import fold_in_all, per_image, per_image_keys
from deid_jax.errors import InputError
from deid_jax.types import AttackResult, Objective

# (x̂ₙ, ∇l(x̂ₙ)) -> x̂ₙ₊₁ before clipping to [0, 1]; all float32[B, H, W, C].
UpdateRule = Callable[[jax.Array, jax.Array], jax.Array]


# Draws the start; far above the number of any step, which the objective's keys go by.
_START = 2**31 - 1


class Point(NamedTuple):
    """An iterate and what the objective says there.

    Attributes:
      images: float32[B, H, W, C], x̂ₙ.
      loss: float32[B], l(x̂ₙ).
      success: bool[B], whether x̂ₙ reaches the attack's goal.
      gradient: float32[B, H, W, C], ∇l(x̂ₙ).
    """

    images: jax.Array
    loss: jax.Array
    success: jax.Array
    gradient: jax.Array


# (what the objective says at x̂ₙ, the attack's state, n) -> (x̂ₙ₊₁ in [0, 1], the state).
Step = Callable[[Point, Any, jax.Array], tuple[jax.Array, Any]]
# (x, key[B]) -> how far x̂₀ lies from x, before clipping to [0, 1].
Draw = Callable[[jax.Array, jax.Array], jax.Array]
# (x̂_N, the state, key[B] of step N, N) -> what the attack returns.
Conclude = Callable[[jax.Array, Any, jax.Array, int | jax.Array], AttackResult]


def evaluate(objective: Objective, images: jax.Array, key: jax.Array) -> Point:
    """The objective and its gradient; the loss is summed, so every image gets its own."""

    def total_loss(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        loss, success = objective(images, key)
        return loss.sum(), (loss, success)

    gradient, (loss, success) = jax.grad(total_loss, has_aux=True)(images)
    return Point(images, loss, success, gradient)


class Nearest(NamedTuple):
    """The successful iterate nearest to the original so far.

    Attributes:
      images: float32[B, H, W, C]; the first iterate where none succeeded.
      distance: float32[B], ‖images − x‖₂; infinity where none succeeded.
    """

    images: jax.Array
    distance: jax.Array

    @property
    def found(self) -> jax.Array:
        """bool[B], whether any iterate succeeded."""
        return jnp.isfinite(self.distance)

    @classmethod
    def none(cls, start: jax.Array) -> "Nearest":
        """Before the first step."""
        return cls(start, jnp.full(len(start), jnp.inf, start.dtype))


def keep_nearest(
    nearest: Nearest, images: jax.Array, distance: jax.Array, success: jax.Array
) -> Nearest:
    """`images` in place of `nearest` where they succeed at a smaller distance [B]."""
    better = success & (distance < nearest.distance)
    return Nearest(
        jnp.where(per_image(better), images, nearest.images),
        jnp.where(better, distance, nearest.distance),
    )


def finish(
    objective: Objective,
    images: jax.Array,
    key: jax.Array,
    *,
    num_gradients: int | jax.Array,
    num_forwards: int | jax.Array = 0,
) -> AttackResult:
    """Judges the final pictures with one forward pass beside those spent before."""
    loss, success = objective(images, per_image_keys(key, len(images)))
    counts = jnp.zeros(len(images), jnp.int32)
    return AttackResult(
        images, loss, success, counts + num_gradients, counts + num_forwards + 1
    )


def first_iterate(images: jax.Array, initial: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The originals and x̂₀, checked.

    Args:
      images: float32[B, H, W, C] in [0, 1].
      initial: x̂₀, likewise; `images` if None.

    Raises:
      InputError: either is not a batch of pictures, or their shapes differ.
    """
    checks.images("images", images)
    images = jnp.asarray(images)
    if initial is None:
        return images, images
    checks.images("initial", initial)
    start = jnp.asarray(initial, images.dtype)
    if start.shape != images.shape:
        raise InputError(
            f"initial must have the images' shape {images.shape}, got {start.shape}"
        )
    return images, start


def iterate(
    step: Step,
    conclude: Conclude,
    objective: Objective,
    start: jax.Array,
    state: Any,
    key: jax.Array,
    *,
    num_steps: int | jax.Array | tuple[int, ...],
) -> AttackResult:
    """(x̂ₙ₊₁, stateₙ₊₁) = step(evaluate(x̂ₙ), stateₙ, n), `num_steps` times from x̂₀.

    Args:
      step: the method's rule.
      conclude: makes the result of the last iterate and state.
      objective: see `deid_jax.types.Objective`.
      start: float32[B, H, W, C] in [0, 1], x̂₀.
      state: what the rule carries from step to step, a pytree.
      key: one key or key[B]; step n hands the objective fold_in(key, n).
      num_steps: N ≥ 0; or S increasing numbers of steps, of which every one gets the result
        that it would get alone, along a leading axis S of the result's entries.
    """
    keys = per_image_keys(key, len(start))

    def one(carry: tuple[jax.Array, Any], number: jax.Array) -> tuple[jax.Array, Any]:
        images, state = carry
        point = evaluate(objective, images, fold_in_all(keys, number))
        return step(point, state, number)

    def end(carry: tuple[jax.Array, Any], steps_done: int | jax.Array) -> AttackResult:
        return conclude(*carry, fold_in_all(keys, steps_done), steps_done)

    def leg(
        carry: tuple[jax.Array, Any], ends: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, Any], AttackResult]:
        carry = between(*ends, carry)
        return carry, end(carry, ends[1])

    def between(first: jax.Array, last: jax.Array, carry: tuple[jax.Array, Any]) -> Any:
        return jax.lax.fori_loop(first, last, lambda n, before: one(before, n), carry)

    if isinstance(num_steps, tuple):
        ends = jnp.array((0, *num_steps), jnp.int32)
        return jax.lax.scan(leg, (start, state), (ends[:-1], ends[1:]))[1]
    if isinstance(num_steps, jax.Array):
        return end(between(jnp.zeros_like(num_steps), num_steps, (start, state)), num_steps)
    last, _ = jax.lax.scan(
        lambda carry, number: (one(carry, number), None), (start, state), jnp.arange(num_steps)
    )
    return end(last, num_steps)


def each_alone(
    run: Callable[[int | jax.Array], AttackResult], num_steps: int | tuple[int, ...]
) -> AttackResult:
    """`run` of one number of steps, or of each, stacked: for rules that know where they end."""
    if isinstance(num_steps, tuple):
        return jax.lax.map(run, jnp.array(num_steps, jnp.int32))
    return run(num_steps)


def descend(
    update: UpdateRule,
    objective: Objective,
    images: jax.Array,
    key: jax.Array,
    *,
    num_steps: int | tuple[int, ...],
    initial: jax.Array | None = None,
    draw: Draw | None = None,
) -> AttackResult:
    """x̂ₙ₊₁ = clip₀₁(update(x̂ₙ, ∇l(x̂ₙ))), `num_steps` times from x̂₀.

    Zero steps return `initial`, or the images, bit for bit.

    Args:
      update: the method's rule.
      objective: see `deid_jax.types.Objective`.
      images: float32[B, H, W, C] in [0, 1].
      key: see `iterate`.
      num_steps: see `iterate`.
      initial: x̂₀; if None, `images`, or clip₀₁(x + draw(x, key[B])).
      draw: a random start, of keys that no step has; None for none.

    Raises:
      InputError: `images` or `initial` is not a batch of pictures.
    """
    images, given = first_iterate(images, initial)
    start = given
    if draw is not None and initial is None:
        keys = fold_in_all(per_image_keys(key, len(images)), _START)
        start = jnp.clip(images + draw(images, keys), 0, 1)

    def step(point: Point, state: tuple[()], number: jax.Array) -> tuple[jax.Array, tuple[()]]:
        del number
        return jnp.clip(update(point.images, point.gradient), 0, 1), state

    def conclude(
        last: jax.Array, state: tuple[()], key: jax.Array, steps_done: int | jax.Array
    ) -> AttackResult:
        del state
        if draw is not None:
            last = jnp.where(steps_done == 0, given, last)
        return finish(objective, last, key, num_gradients=steps_done)

    return iterate(step, conclude, objective, start, (), key, num_steps=num_steps)
