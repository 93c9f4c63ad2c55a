"""Objectives: what an attack minimises, per image.

Logits are float32[B, K] over K persons. An objective is built inside the compiled program,
from a function that already holds the model's (traced) weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deid_jax.types import Objective

LogitsFn = Callable[[jax.Array], jax.Array]


def cross_entropy(logits_fn: LogitsFn, labels: jax.Array, *, targeted: bool) -> Objective:
    """Cross-entropy with a label, per image and never averaged over the batch.

    Targeted: l(x̂) = −log softmax(f(x̂))[ŷ] with the target ŷ; success is argmax f(x̂) = ŷ.
    Untargeted: l(x̂) = +log softmax(f(x̂))[y] with the true y; success is argmax f(x̂) ≠ y.

    Args:
      logits_fn: float32[B, H, W, C] in [0, 1] -> logits float32[B, K].
      labels: int32[B], targets ŷ or true labels y.
      targeted: which of the two.

    Returns:
      The objective; it ignores its key.
    """

    def objective(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        logits = logits_fn(images)
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
        named = jnp.argmax(logits, axis=-1) == labels
        return (loss, named) if targeted else (-loss, ~named)

    return objective


def margin(logits_fn: LogitsFn, labels: jax.Array, *, targeted: bool) -> Objective:
    """Logit margin, per image: below zero exactly where the attack succeeds.

    Targeted: l(x̂) = max over k ≠ ŷ of f(x̂)[k], minus f(x̂)[ŷ]; success is argmax f(x̂) = ŷ.
    Untargeted: l(x̂) = f(x̂)[y] minus the max over k ≠ y of f(x̂)[k]; success is
    argmax f(x̂) ≠ y. Unlike the cross-entropy's, its gradient does not vanish when the
    recogniser is confident, and its value tells how far the decision boundary is. Carlini,
    Wagner: "Towards Evaluating the Robustness of Neural Networks", 2017 (their f₆, before the
    max with −κ).

    Args:
      logits_fn: float32[B, H, W, C] in [0, 1] -> logits float32[B, K], K ≥ 2.
      labels: int32[B], targets ŷ or true labels y.
      targeted: which of the two.

    Returns:
      The objective; it ignores its key.
    """

    def objective(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key
        logits = logits_fn(images)
        is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        of_label = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
        of_others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
        named = jnp.argmax(logits, axis=-1) == labels
        if targeted:
            return of_others - of_label, named
        return of_label - of_others, ~named

    return objective


# What attacks minimise, by name.
OBJECTIVES = {"cross_entropy": cross_entropy, "margin": margin}
