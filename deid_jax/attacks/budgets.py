"""Perturbations within a budget: PSNR, the L2 it allows, and 8-bit images that respect it.

PSNR = −10 log₁₀( mean((x̂ − x)²) ) in dB, for pixels in [0, 1], over all values of an image.
"""

import functools
import math

import jax
import jax.numpy as jnp

from deid_jax.arrays import Bracket, norms, per_image
from deid_jax.pixels import on_grid

_HALVINGS = 16


def l2_of_psnr(psnr: float | jax.Array, num_values: int) -> jax.Array:
    """‖x̂ − x‖₂ at a given PSNR: √n · 10^(−PSNR/20), float32.

    Args:
      psnr: in dB.
      num_values: n = H · W · C.
    """
    return jnp.float32(math.sqrt(num_values)) * jnp.float32(10) ** (
        -jnp.asarray(psnr, jnp.float32) / 20
    )


def psnr_of_l2(l2: jax.Array, num_values: int) -> jax.Array:
    """The inverse of `l2_of_psnr`: float32[B] of float32[B]; infinite for 0."""
    return -20 * jnp.log10(l2 / math.sqrt(num_values))


def at_budget(
    images: jax.Array,
    changed: jax.Array,
    size: jax.Array,
    *,
    dither_key: jax.Array | None = None,
) -> jax.Array:
    """round(x + t (x̂ − x)) on the 8-bit grid, with the largest t ≤ 2 within the budget.

    t is found by bisection; t = 0 is always within the budget. Rounding adds about a twelfth
    of a squared level per value, so projecting onto the ball alone would miss the budget.

    Args:
      images: float32[B, H, W, C] on the 8-bit grid, x.
      changed: float32[B, H, W, C], x̂.
      size: float32[] or [B], the largest ‖x̂ − x‖₂.
      dither_key: key[B]; rounds v to ⌊v + u⌋ with one draw u in [0, 1) per value. Without
        dithering, perturbations of one size everywhere, such as sign steps, would all change
        level at once and miss the budget by up to half a level.

    Returns:
      float32[B, H, W, C] on the grid.
    """
    shift = jnp.zeros((), images.dtype)
    if dither_key is not None:
        draw = functools.partial(jax.random.uniform, shape=images.shape[1:], dtype=images.dtype)
        shift = (jax.vmap(draw)(dither_key) - 0.5) / 255

    def at(share: jax.Array) -> jax.Array:
        change = per_image(share) * (changed - images)
        # Unperturbed values are not dithered.
        moved = images + change + jnp.where(change == 0, 0, shift)
        return on_grid(jnp.clip(moved, 0, 1)).astype(images.dtype)

    def narrow(bracket: Bracket, _: None) -> tuple[Bracket, None]:
        share = bracket.middle()
        return bracket.narrowed(share, norms(at(share) - images) <= size), None

    zeros = jnp.zeros(len(images), images.dtype)
    bracket, _ = jax.lax.scan(narrow, Bracket(zeros, zeros + 2), None, length=_HALVINGS)
    return at(bracket.holds)
