"""A wrapper that keeps the successful iterate nearest to the original, for any rule."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.arrays import per_image
from deid_jax.attacks.loop import Ending, Iterate, Rule
from deid_jax.types import AttackResult, Objective, PyTree


class Nearest(NamedTuple):
    """The nearest success so far.

    Attributes:
      images: float32[B, H, W, C]; the first iterate where none has succeeded.
      distance: float32[B], of `images` from x; infinity where none has succeeded.
    """

    images: jax.Array
    distance: jax.Array

    def kept(self, images: jax.Array, distance: jax.Array, success: jax.Array) -> "Nearest":
        """Replaces images by `images` where these succeed at a smaller distance [B]."""
        better = success & (distance < self.distance)
        return Nearest(
            jnp.where(per_image(better), images, self.images),
            jnp.where(better, distance, self.distance),
        )


def best_so_far(
    rule: Rule,
    objective: Objective,
    start: jax.Array,
    distance: Callable[[jax.Array], jax.Array],
) -> Rule:
    """The same rule, concluded with the nearest success of all iterates, counting the last.

    Where none succeeded, it is concluded with the last iterate. Costs one forward pass, which
    judges the last iterate.

    Args:
      rule: any rule; it does not see the iterates kept.
      objective: decides whether the last iterate succeeds.
      start: float32[B, H, W, C], x̂₀.
      distance: of iterates from the originals: [B, H, W, C] -> [B].
    """

    def step(
        here: Iterate, carried: tuple[Nearest, PyTree], number: jax.Array
    ) -> tuple[jax.Array, tuple[Nearest, PyTree]]:
        nearest, state = carried
        nearest = nearest.kept(here.images, distance(here.images), here.success)
        images, state = rule.step(here, state, number)
        return images, (nearest, state)

    def conclude(end: Ending) -> AttackResult:
        nearest, state = end.state
        _, success = objective(rule.seen(end.images), end.key)
        nearest = nearest.kept(end.images, distance(end.images), success)
        found = jnp.isfinite(nearest.distance)
        images = jnp.where(per_image(found), nearest.images, end.images)
        result = rule.conclude(end._replace(images=images, state=state, succeeds=found))
        return result._replace(num_forwards=result.num_forwards + 1)

    none = Nearest(start, jnp.full(len(start), jnp.inf, start.dtype))
    return Rule(step, conclude, (none, rule.state), rule.seen)
