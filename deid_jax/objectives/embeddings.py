"""Objectives on embeddings: away from a person's gallery, towards another's, or both.

Recognisers that compare faces give an embedding float[B, D] of each image; two images show
one person where the cosine of their embeddings is at least a threshold τ. Losses here are
margins: below zero exactly where the goal is reached, as `objectives.margin` is, so that least-
distortion attacks know where the boundary lies. Galleries are unit vectors float32[B, D], each
image's own: `verification.centroids` of several photos of a person.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from deid_jax.arrays import fold_in_all
from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.types import Objective

EmbedFn = Callable[[jax.Array], jax.Array]
# (images float32[B, H, W, C] in [0, 1], key[B]) -> likewise.
Transformation = Callable[[jax.Array, jax.Array], jax.Array]
Reduction = Literal["mean", "max", "smooth"]
# Of "smooth", in cosines: of two losses this far apart the higher counts e times as much.
_SOFTNESS = 0.1


def cosine(embeddings: jax.Array, gallery: ArrayLike) -> jax.Array:
    """⟨e, c⟩/‖e‖ of float[B, D] and unit vectors float[B, D]: float[B]; 0 where e is zero."""
    squares = jnp.sum(jnp.square(embeddings), axis=-1)
    size = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.sum(embeddings * gallery, axis=-1) / size


def dodge(embed_fn: EmbedFn, gallery: ArrayLike, threshold: ArrayLike) -> Objective:
    """l(x̂) = cos(f(x̂), c) − τ: not to be taken for the person; success is l < 0.

    Args:
      embed_fn: f, float32[B, H, W, C] in [0, 1] -> float32[B, D].
      gallery: c, float32[B, D], unit vectors of each image's own person.
      threshold: τ, one or [B].

    Returns:
      The objective; it ignores its key.
    """

    def objective(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        loss = cosine(embed_fn(images), gallery) - threshold
        return loss, loss < 0

    return objective


def ensemble(objectives: Sequence[Objective], reduction: Reduction = "max") -> Objective:
    """All goals at once: success where every objective succeeds.

    Serves several recognisers, and dodging and impersonating together.

    Args:
      objectives: one or more.
      reduction: "max", the hardest one's loss, which is below zero only where all are (for
        attacks that seek the least change); "mean", so that every gradient knows of all (for
        attacks of a given size); or "smooth", s log mean exp(l/s) with s = 0.1, which knows of
        all and of the hardest the most.

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
    """Expectation over transformations: l(x̂) = E_t l(t(x̂)), of `num_samples` draws a step.

    One evaluation costs `num_samples` forward passes. Draws are fresh at every step and each
    image's own. Success is that of all draws.
    Athalye, Engstrom, Ilyas, Kwok: "Synthesizing Robust Adversarial Examples", ICML 2018.

    Args:
      objective: what to judge a transformed image by.
      transformation: t, (images, key[B]) -> images, differentiable.
      num_samples: S ≥ 1.
      reduction: "mean", or "max", the worst draw; or "smooth", see `ensemble`.

    Raises:
      InputError: S below 1, or an unknown reduction.
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
