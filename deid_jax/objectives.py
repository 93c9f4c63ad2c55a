"""Objectives: what an attack minimises, per image.

Logits are float32[B, K] over K identities. An objective is built inside the compiled
program, from a function that already holds the model's (traced) weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deid_jax.types import Objective

LogitsFn = Callable[[jax.Array], jax.Array]


def cross_entropy(logits_fn: LogitsFn, labels: jax.Array, *, targeted: bool) -> Objective:
    """Cross-entropy to a label, per image and never averaged over the batch.

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
