"""Objectives on embeddings: away from a person's gallery, towards another's, or both.

Embedders map images to embeddings float[B, D]; two images match if the similarity of their
embeddings, a cosine or minus a distance, is at least a threshold τ. Like `objectives.margin`,
the losses here are margins, below zero exactly where the goal is reached, so that
least-distortion attacks can find the boundary. A gallery is float32[B, D], one row per image:
the `verification.centroids` of several photos of a person, which are unit vectors for cosines.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from deid_jax.arrays import fold_in_all
from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.types import Objective

EmbedFn = Callable[[jax.Array], jax.Array]
# (images float32[B, H, W, C] in [0, 1], key[B]) -> images of the same shape and range.
Transformation = Callable[[jax.Array, jax.Array], jax.Array]
Reduction = Literal["mean", "max", "smooth"]
# The temperature s of "smooth", as a similarity: of two losses that differ by s, the higher one
# weighs e times as much.
_SOFTNESS = 0.1


def similarity(
    embeddings: jax.Array, gallery: ArrayLike, distance: Distance = Distance.COSINE
) -> jax.Array:
    """⟨e, c⟩/‖e‖ with unit vectors c, 0 where e is zero; or −‖e − c‖: float[...] of [..., D].

    Gradients are finite everywhere, and 0 where the distance is 0.
    """
    if distance is Distance.EUCLIDEAN:
        return -_length(embeddings - gallery)
    size = _length(embeddings)
    return jnp.sum(embeddings * gallery, axis=-1) / jnp.where(size > 0, size, 1)


def _length(rows: jax.Array) -> jax.Array:
    squares = jnp.sum(jnp.square(rows), axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def dodge(
    embed_fn: EmbedFn,
    gallery: ArrayLike,
    threshold: ArrayLike,
    distance: Distance = Distance.COSINE,
) -> Objective:
    """l(x̂) = s(f(x̂), c) − τ: moves away from the person; success is l < 0.

    f maps float32[B, H, W, C] in [0, 1] to float32[B, D]; s is the `similarity`; c,
    float32[B, D], is each image's own person; τ is one or [B]. The objective ignores its key.
    """

    def objective(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        loss = similarity(embed_fn(images), gallery, distance) - threshold
        return loss, loss < 0

    return objective


def ensemble(objectives: Sequence[Objective], reduction: Reduction = "max") -> Objective:
    """Combines several objectives; success where every one of them succeeds.

    Args:
      objectives: one or more.
      reduction: "max", the largest loss, which is below zero only where all are (for attacks
        that seek the least perturbation); "mean", whose gradient depends on every objective
        (for attacks of a fixed size); or "smooth", s log mean exp(l/s) with s = 0.1, whose
        gradient depends on all of them, and most on the largest.

    Raises:
      InputError: no objectives, or an unknown reduction.
    """
    if not objectives:
        raise InputError("objectives must be one or more, got none")
    reduce = _reduction(reduction)

    def objective(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, successes = zip(*(one(images, key) for one in objectives), strict=True)
        return reduce(jnp.stack(losses), axis=0), jnp.all(jnp.stack(successes), axis=0)

    return objective


def expectation(
    objective: Objective,
    transformation: Transformation,
    num_samples: int,
    reduction: Reduction = "mean",
) -> Objective:
    """Expectation over transformations: l(x̂) = E_t l(t(x̂)), with `num_samples` draws a step.

    One evaluation costs `num_samples` forward passes. Every step and every image gets fresh
    draws. An image succeeds if all of its draws do.
    Athalye, Engstrom, Ilyas, Kwok: "Synthesizing Robust Adversarial Examples", ICML 2018.

    The transformation t is differentiable. The reduction is over the draws: "mean"; "max", the
    worst draw; or "smooth", see `ensemble`.

    Raises:
      InputError: `num_samples` below 1, or an unknown reduction.
    """
    count("num_samples", num_samples, least=1)
    reduce = _reduction(reduction)

    def expected(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = fold_in_all(key, number)
            return objective(transformation(images, fold_in_all(own, 0)), fold_in_all(own, 1))

        losses, successes = jax.lax.map(one, jnp.arange(num_samples))
        return reduce(losses, axis=0), jnp.all(successes, axis=0)

    return expected


class _Reduce(Protocol):
    def __call__(self, losses: jax.Array, /, axis: int) -> jax.Array: ...


def _smooth_maximum(losses: jax.Array, /, axis: int) -> jax.Array:
    sums = jax.nn.logsumexp(losses / _SOFTNESS, axis=axis)
    return _SOFTNESS * (sums - jnp.log(losses.shape[axis]))


def _reduction(name: Reduction) -> _Reduce:
    reductions: dict[str, _Reduce] = {
        "mean": jnp.mean,
        "max": jnp.max,
        "smooth": _smooth_maximum,
    }
    if name not in reductions:
        raise InputError(f"reduction must be one of {', '.join(reductions)}, got {name}")
    return reductions[name]
