"""Photos made unlike their persons for recognisers that compare embeddings.

The objective is a person's gallery to be dodged, for one recogniser or several at once, with
random transformations in each step if asked for. A method either stops at a change of given
size (a PSNR), or seeks the least change that suffices; what leaves is 8-bit.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.arrays import fold_in_all
from deid_jax.attacks.budgets import at_budget, l2_of_psnr
from deid_jax.attacks.quantizing import finish_on_grid
from deid_jax.evaluation.batch import METHODS, with_quantize
from deid_jax.objectives.embeddings import Reduction, dodge, ensemble, expectation
from deid_jax.pixels import LEVELS, on_grid, to_uint8
from deid_jax.transforms.transformations import TRANSFORMATIONS, compose

BATCH_SIZE = 30
# Methods whose ε bounds the change of a pixel: nothing may go beyond it.
BY_PIXEL = ("mifgsm", "ifgsm", "pgd", "ifgvm")


class Program(NamedTuple):
    """What decides the compiled program, beside shapes: static.

    Attributes:
      modules: the recognisers that it is fitted on.
      method: a key of `METHODS`.
      reduction: see `embedding_objectives.ensemble`.
      transformations: keys of `TRANSFORMATIONS`, one after the other; none: the picture as is.
      num_samples: draws of them a step.
      dithered: whether the change is dithered where it is brought to a PSNR: for sign steps.
    """

    modules: tuple[Any, ...]
    method: str
    reduction: Reduction = "mean"
    transformations: tuple[str, ...] = ()
    num_samples: int = 1
    dithered: bool = False


def protect_batch(
    variables: Sequence[Any],
    images: jax.Array,
    galleries: Sequence[jax.Array],
    thresholds: Sequence[jax.Array],
    config: Any,
    psnr: jax.Array | None,
    key: jax.Array,
    *,
    program: Program,
) -> tuple[jax.Array, jax.Array]:
    """Protects one batch: what `run_protect` compiles.

    Args:
      variables: the recognisers' weights.
      images: uint8[B, H, W, 3].
      galleries: float32[B, D] for each recogniser, unit vectors of each picture's person.
      thresholds: float32[] or [B] for each, τ.
      config: the method's settings.
      psnr: float32[] in dB: the change is brought to it, whatever its size. None: the method's
        own size on the 8-bit grid: within ε of `BY_PIXEL`, else with success kept.
      key: key[B].
      program: everything static.

    Returns:
      uint8[B, H, W, 3], and bool[B]: whether all of the recognisers are dodged.
    """
    clean = jnp.asarray(LEVELS)[images]
    goals = [
        dodge(functools.partial(module.apply, weights), gallery, threshold)
        for module, weights, gallery, threshold in zip(
            program.modules, variables, galleries, thresholds, strict=True
        )
    ]
    # Ad-hoc methods know no recogniser.
    judged = ensemble(goals, program.reduction) if goals else _nothing
    fitted = judged
    if program.transformations:
        transformation = compose(*(TRANSFORMATIONS[name] for name in program.transformations))
        fitted = expectation(judged, transformation, program.num_samples, program.reduction)
    attack_key, finish_key = fold_in_all(key, 0), fold_in_all(key, 1)
    quantize = psnr is None
    config = with_quantize(program.method, config, quantize)
    result = METHODS[program.method].function(fitted, clean, config, attack_key)
    if psnr is None and program.method in BY_PIXEL:
        pictures = _within(clean, result.images, config.epsilon)
        return to_uint8(pictures), judged(pictures, finish_key)[1]
    if psnr is None:
        result = finish_on_grid(judged, clean, result, key=finish_key)
        return to_uint8(result.images), result.success
    pictures = at_budget(
        clean,
        result.images,
        l2_of_psnr(psnr, clean[0].size),
        dither_key=fold_in_all(key, 2) if program.dithered else None,
    )
    return to_uint8(pictures), judged(pictures, finish_key)[1]


def _within(images: jax.Array, changed: jax.Array, epsilon: float | jax.Array) -> jax.Array:
    """Rounded to the 8-bit grid, no pixel farther from `images` than whole levels of ε."""
    most = jnp.floor(255 * jnp.asarray(epsilon, images.dtype) + 1e-3)
    change = jnp.clip(jnp.round(255 * (changed - images)), -most, most)
    return on_grid(jnp.clip(images + change / 255, 0, 1)).astype(images.dtype)


def _nothing(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The objective without recognisers: always reached."""
    del key
    return jnp.zeros(len(images), images.dtype), jnp.ones(len(images), bool)


run_protect = jax.jit(protect_batch, static_argnames="program")
