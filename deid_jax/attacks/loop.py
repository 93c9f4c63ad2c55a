"""The compiled loop that all attacks share.

An attack supplies its `Rule`; `iterate` evaluates the objective and its gradient, applies the
rule and repeats, as a single `jax.lax.scan` with one gradient per step. `descend` does this
for rules without state; `nearest.best_so_far` wraps rules that minimise the perturbation.

Images are float32[B, H, W, C] in [0, 1]; x is the original, x̂ₙ the iterate of step n.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import fold_in_all, per_image_keys
from deid_jax.attacks.methods import NumSteps
from deid_jax.errors import InputError
from deid_jax.types import AttackResult, Objective, PyTree

# Folded into the key that draws the start; far above any step number, which gives the
# objective's keys.
_START = 2**31 - 1


class Iterate(NamedTuple):
    """An iterate and the objective's values at it.

    Attributes:
      images: float32[B, H, W, C], x̂ₙ.
      loss: float32[B], l(x̂ₙ).
      success: bool[B].
      gradient: float32[B, H, W, C], ∇l(x̂ₙ).
    """

    images: jax.Array
    loss: jax.Array
    success: jax.Array
    gradient: jax.Array


class Ending(NamedTuple):
    """The end of a run of the loop.

    Attributes:
      images: float32[B, H, W, C], x̂_N, or a better iterate.
      state: the rule's state after N steps.
      key: key[B], of step N.
      steps_done: N.
      succeeds: bool[B], whether `images` are known to succeed; False where not checked.
    """

    images: jax.Array
    state: PyTree
    key: jax.Array
    steps_done: int | jax.Array
    succeeds: jax.Array | bool = False


# (x̂ₙ, state, n) -> (x̂ₙ₊₁ in [0, 1], state).
Step: TypeAlias = Callable[[Iterate, PyTree, jax.Array], tuple[jax.Array, PyTree]]
Conclude: TypeAlias = Callable[[Ending], AttackResult]
# (x, x̂ₙ, ∇l(x̂ₙ)) -> x̂ₙ₊₁ before clipping to [0, 1].
UpdateRule: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# (x, key[B]) -> x̂₀ − x, before clipping to [0, 1].
Draw: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class Rule(NamedTuple):
    """A method, as the loop sees it.

    Attributes:
      step: computes the next iterate.
      conclude: computes the result.
      state: the initial state, which is carried from step to step.
      seen: maps an iterate to the version that the objective sees.
    """

    step: Step
    conclude: Conclude
    state: PyTree = ()
    seen: Callable[[jax.Array], jax.Array] = lambda images: images


# (x, x̂₀, N) -> the rule for one batch. N is 0 for rules that do not use it (see `iterate`).
MakeRule: TypeAlias = Callable[[jax.Array, jax.Array, int | jax.Array], Rule]

_Carry: TypeAlias = tuple[jax.Array, PyTree]


def differentiate(objective: Objective, images: jax.Array, key: jax.Array) -> Iterate:
    """The objective and its gradient; the loss is summed, so every image gets its own."""

    def total_loss(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        loss, success = objective(images, key)
        return loss.sum(), (loss, success)

    gradient, (loss, success) = jax.grad(total_loss, has_aux=True)(images)
    return Iterate(images, loss, success, gradient)


def finish(
    objective: Objective,
    images: jax.Array,
    key: jax.Array,
    *,
    num_gradients: int | jax.Array,
    num_forwards: int | jax.Array = 0,
) -> AttackResult:
    """Judges the final images with one further forward pass."""
    loss, success = objective(images, per_image_keys(key, len(images)))
    counts = jnp.zeros(len(images), jnp.int32)
    return AttackResult(
        images, loss, success, counts + num_gradients, counts + num_forwards + 1
    )


def finished_by(objective: Objective) -> Conclude:
    """Ends a run with one more forward pass."""
    return lambda end: finish(objective, end.images, end.key, num_gradients=end.steps_done)


def iterate(
    make_rule: MakeRule,
    objective: Objective,
    images: jax.Array,
    key: jax.Array,
    *,
    num_steps: NumSteps,
    initial: jax.Array | None = None,
    draw: Draw | None = None,
    knows_end: bool = True,
) -> AttackResult:
    """(x̂ₙ₊₁, stateₙ₊₁) = step(differentiate(x̂ₙ), stateₙ, n), `num_steps` times from x̂₀.

    Args:
      make_rule: the method.
      objective: see `deid_jax.types.Objective`.
      images: float32[B, H, W, C] in [0, 1].
      key: one key or key[B]; step n hands the objective fold_in(key, n).
      num_steps: N ≥ 0; or S increasing numbers of steps, each of which gives the result that
        it would give alone, along a leading axis S of the result's entries.
      initial: x̂₀; if None, `images`, or clip₀₁(x + draw(x, key[B])).
      draw: draws a random start, with keys that no step uses; None for no random start.
      knows_end: whether the rule depends on N. If not, one run to the largest of several
        numbers of steps gives the results for all.

    Raises:
      InputError: `images` or `initial` is not a batch of images, or their shapes differ.
    """
    start = images = checks.as_images("images", images)
    keys = per_image_keys(key, len(images))
    if initial is not None:
        start = checks.as_images("initial", initial).astype(images.dtype)
        if start.shape != images.shape:
            raise InputError(
                f"initial must have the images' shape {images.shape}, got {start.shape}"
            )
    elif draw is not None:
        start = jnp.clip(images + draw(images, fold_in_all(keys, _START)), 0, 1)

    def run(num_steps: jax.Array | NumSteps) -> AttackResult:
        end = 0 if isinstance(num_steps, tuple) else num_steps
        rule = make_rule(images, start, end)
        return _run(rule, objective, start, keys, num_steps)

    if knows_end and isinstance(num_steps, tuple):
        return jax.lax.map(run, jnp.array(num_steps, jnp.int32))
    return run(num_steps)


def _run(
    rule: Rule,
    objective: Objective,
    start: jax.Array,
    keys: jax.Array,
    num_steps: jax.Array | NumSteps,
) -> AttackResult:
    def one(carry: _Carry, number: jax.Array) -> _Carry:
        images, state = carry
        here = differentiate(objective, rule.seen(images), fold_in_all(keys, number))
        return rule.step(here._replace(images=images), state, number)

    def between(first: jax.Array, last: jax.Array, carry: _Carry) -> _Carry:
        return jax.lax.fori_loop(first, last, lambda n, before: one(before, n), carry)

    def end(carry: _Carry, steps_done: int | jax.Array) -> AttackResult:
        return rule.conclude(Ending(*carry, fold_in_all(keys, steps_done), steps_done))

    def leg(carry: _Carry, ends: tuple[jax.Array, jax.Array]) -> tuple[_Carry, AttackResult]:
        carry = between(*ends, carry)
        return carry, end(carry, ends[1])

    first = (start, rule.state)
    if isinstance(num_steps, tuple):
        ends = jnp.array((0, *num_steps), jnp.int32)
        return jax.lax.scan(leg, first, (ends[:-1], ends[1:]))[1]
    if isinstance(num_steps, jax.Array):
        return end(between(jnp.zeros_like(num_steps), num_steps, first), num_steps)
    last, _ = jax.lax.scan(lambda carry, n: (one(carry, n), None), first, jnp.arange(num_steps))
    return end(last, num_steps)


def descend(
    update: UpdateRule,
    objective: Objective,
    images: jax.Array,
    key: jax.Array,
    *,
    num_steps: NumSteps,
    initial: jax.Array | None = None,
    draw: Draw | None = None,
) -> AttackResult:
    """x̂ₙ₊₁ = clip₀₁(update(x, x̂ₙ, ∇l(x̂ₙ))), `num_steps` times from x̂₀.

    Zero steps return `initial`, or the images, bit for bit. For arguments and errors see
    `iterate`.
    """

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        given = images if initial is None else start

        def step(here: Iterate, state: PyTree, number: jax.Array) -> tuple[jax.Array, PyTree]:
            return jnp.clip(update(images, here.images, here.gradient), 0, 1), state

        def conclude(end: Ending) -> AttackResult:
            if draw is not None:
                end = end._replace(images=jnp.where(end.steps_done == 0, given, end.images))
            return finished_by(objective)(end)

        return Rule(step, conclude)

    return iterate(
        rule,
        objective,
        images,
        key,
        num_steps=num_steps,
        initial=initial,
        draw=draw,
        knows_end=False,
    )


def annealed(
    first: float | jax.Array,
    last: float | jax.Array,
    number: jax.Array,
    num_steps: int | jax.Array,
) -> jax.Array:
    """Cosine annealing from `first` at step 0 to `last` at step N: a scalar."""
    share = number.astype(jnp.result_type(float)) / jnp.maximum(num_steps, 1)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2
