"""Rounding of results to 8-bit images without losing success.

A minimal perturbation ends just beyond the recogniser's boundary, and rounding to the 256
levels of a file moves many images back across it. Images are float32[B, H, W, C] in [0, 1];
the levels are `deid_jax.pixels.LEVELS`, bit for bit what is read back from a file.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.arrays import Bracket, norms, per_image, per_image_keys, unit
from deid_jax.attacks.loop import differentiate, finish
from deid_jax.pixels import on_grid
from deid_jax.types import AttackResult, Objective

# The search looks outwards at 1.01, 1.02, 1.04, … times the perturbation, up to 20 times or
# more; where it succeeds, it halves the interval this many times.
_FIRST_GROWTH, _FARTHEST, _NUM_HALVINGS = 0.01, 20.0, 6
# Steps downhill where nothing succeeds outwards: the length of the first is 2 % of the
# perturbation plus a quarter of a level, and each one is a quarter longer than the last.
_NUM_STEPS, _FIRST_STEP, _STEP_GROWTH = 20, 0.02, 1.25
_QUARTER_LEVEL = 0.25 / 255


class _OutwardSearch(NamedTuple):
    """The result so far, the factors between which success begins, their number of halvings."""

    found: AttackResult
    factors: Bracket
    num_halvings: jax.Array

    @property
    def halves(self) -> jax.Array:
        """bool[B], whether a factor succeeded."""
        return jnp.isfinite(self.factors.holds)

    @property
    def is_open(self) -> jax.Array:
        """bool[B], whether another factor is to be tried."""
        seeks = self.factors.fails < _FARTHEST
        return jnp.where(self.halves, self.num_halvings < _NUM_HALVINGS, seeks)


class _Descent(NamedTuple):
    """The result so far, the images before rounding, the next step's length and number."""

    found: AttackResult
    images: jax.Array
    length: jax.Array
    number: jax.Array


def finish_on_grid(
    objective: Objective, images: jax.Array, result: AttackResult, key: jax.Array
) -> AttackResult:
    """Puts a result on the 8-bit grid: q = round(255 x̂)/255, or a farther one that succeeds.

    Where the result succeeded and q does not, other roundings are tried. The first go outwards:
    q(t) = round(255 (x + t(x̂ − x)))/255 with the smallest t > 1 that succeeds. For a minimal
    perturbation, x̂ − x = −μ∇l, q(t) minimises ‖q − x‖² + 2tμ⟨∇l, q⟩ over the grid: no cheaper
    rounding lowers the linearised loss as much. Where no t succeeds, gradient steps of
    increasing length follow from x̂, up to 20; each gradient is taken at an image on the grid
    and also judges it. Where these fail too, q is returned with success False.

    Evaluations are counted per image: one forward pass for q, plus one per t and one gradient
    per step where these are tried. If no image of the batch needs them, only q's forward pass
    is computed; an image's result never depends on another image.

    Args:
      objective: judges the images on the grid, with the same keys throughout.
      images: float32[B, H, W, C] in [0, 1], the originals x.
      result: an attack's result for one number of steps.
      key: one key or key[B].

    Returns:
      The result on the grid with the objective's loss and success there; evaluations are
      added to those of `result`.
    """
    keys = per_image_keys(key, len(images))
    rounded = finish(
        objective,
        on_grid(result.images),
        keys,
        num_gradients=result.num_gradients,
        num_forwards=result.num_forwards,
    )
    change = result.images - images
    lost = result.success & ~rounded.success
    found = _search_outwards(objective, images, change, rounded, lost, keys)
    lost &= ~found.success
    return _step_downhill(objective, result.images, norms(change), found, lost, keys)


def _search_outwards(
    objective: Objective,
    images: jax.Array,
    change: jax.Array,
    rounded: AttackResult,
    lost: jax.Array,
    keys: jax.Array,
) -> AttackResult:
    """Rounded x + tδ at the smallest t > 1 that succeeds; `rounded` where none does."""

    def step(at: _OutwardSearch) -> _OutwardSearch:
        active = lost & at.is_open
        farther = jnp.maximum(1 + 2 * (at.factors.fails - 1), 1 + _FIRST_GROWTH)
        factor = at.factors.middle(outwards=farther)
        trial = on_grid(jnp.clip(images + per_image(factor) * change, 0, 1))
        loss, success = objective(trial, keys)
        spent = at.found._replace(num_forwards=at.found.num_forwards + active)
        factors = jax.tree.map(
            functools.partial(jnp.where, active),
            at.factors.narrowed(factor, success),
            at.factors,
        )
        return _OutwardSearch(
            _replaced(spent, trial, loss, active & success),
            factors,
            at.num_halvings + (active & at.halves),
        )

    ones = jnp.ones(len(images), images.dtype)
    nothing_tried = Bracket(ones * jnp.inf, ones)
    start = _OutwardSearch(rounded, nothing_tried, jnp.zeros(len(images), jnp.int32))
    return jax.lax.while_loop(lambda at: jnp.any(lost & at.is_open), step, start).found


def _step_downhill(
    objective: Objective,
    images: jax.Array,
    distance: jax.Array,
    rounded: AttackResult,
    lost: jax.Array,
    keys: jax.Array,
) -> AttackResult:
    """Steps z ← clip₀₁(z − sₙ ∇l/‖∇l‖₂) from x̂, ∇l taken at z rounded, until that succeeds."""

    def active(at: _Descent) -> jax.Array:
        return lost & ~at.found.success & (at.number < _NUM_STEPS)

    def step(at: _Descent) -> _Descent:
        trial = on_grid(at.images)
        point = differentiate(objective, trial, keys)
        here = active(at)
        spent = at.found._replace(num_gradients=at.found.num_gradients + here)
        return _Descent(
            _replaced(spent, trial, point.loss, here & point.success),
            jnp.clip(at.images - per_image(at.length) * unit(point.gradient), 0, 1),
            at.length * _STEP_GROWTH,
            at.number + 1,
        )

    first = _FIRST_STEP * distance + _QUARTER_LEVEL
    start = _Descent(rounded, images, first, jnp.int32(0))
    return jax.lax.while_loop(lambda at: jnp.any(active(at)), step, start).found


def _replaced(
    found: AttackResult, images: jax.Array, loss: jax.Array, succeeds: jax.Array
) -> AttackResult:
    """The result, replaced by a trial's where the trial succeeds."""
    return found._replace(
        images=jnp.where(per_image(succeeds), images, found.images),
        loss=jnp.where(succeeds, loss, found.loss),
        success=found.success | succeeds,
    )
