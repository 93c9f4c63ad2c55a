"""An opponent who adapts: the recogniser trained further on protected photos.

He knows whose protected photos some are (from tags, say) and teaches his recogniser to know
people in spite of the change. `transfer.averaged` is the other one: he needs no training.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deid_jax.checks import count, finite_non_negative
from deid_jax.devices.sharding import placed_at_hand
from deid_jax.errors import InputError
from deid_jax.recognisers.embedders import Embedder, FunctionModule

# Logits are this times the cosines to the persons' directions, as ArcFace's.
_SCALE = 30.0


def fine_tune(
    embedder: Embedder,
    images: np.ndarray,
    labels: np.ndarray,
    directions: np.ndarray,
    *,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Embedder:
    """Trains all weights to name persons: cross-entropy of 30 cos(f(x), w_p), by Adam.

    Deng, Guo, Xue, Zafeiriou: "ArcFace", CVPR 2019, without a margin. The directions w_p are
    trained, too, and then dropped: what is returned compares embeddings, as before.

    Args:
      embedder: the recogniser; its weights are not changed.
      images: uint8[N, H, W, 3].
      labels: int[N], persons, 0 to P − 1.
      directions: float[P, D], where w_p starts: centroids of clean galleries.
      epochs: passes over the photos, in an order drawn by the seed, each mirrored or not.
      batch_size: photos a step; a remainder is left out of an epoch.
      learning_rate: Adam's.
      seed: decides order and mirroring.

    Raises:
      InputError: a recogniser without weights to train, no photos, or a bad number.
    """
    count("epochs", epochs, least=1)
    count("batch_size", batch_size, least=1)
    finite_non_negative("learning_rate", learning_rate)
    if isinstance(embedder.module, FunctionModule):
        raise InputError(
            f"recogniser {embedder.name} is a function: it has no weights to train"
        )
    if not len(images):
        raise InputError("images must be one photo or more, got none")
    batch_size = min(batch_size, len(images))
    state: Any = (placed_at_hand(embedder.variables), jnp.asarray(directions, jnp.float32))
    optimizer = optax.adam(learning_rate)
    moments = optimizer.init(state)
    generator = np.random.default_rng([seed, 3])
    for _ in range(epochs):
        order = generator.permutation(len(images))
        for first in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[first : first + batch_size]
            mirrored = generator.random(batch_size) < 0.5
            batch = np.where(
                mirrored[:, None, None, None], images[chosen][:, :, ::-1], images[chosen]
            )
            state, moments = _step(
                state, moments, batch, labels[chosen], embedder.module, learning_rate
            )
    return Embedder(f"{embedder.name} (fine-tuned)", embedder.module, state[0])


@functools.partial(jax.jit, static_argnames=("module", "learning_rate"))
def _step(
    state: Any,
    moments: Any,
    images: jax.Array,
    labels: jax.Array,
    module: Any,
    learning_rate: float,
) -> tuple[Any, Any]:
    def loss(state: Any) -> jax.Array:
        variables, directions = state
        embeddings = module.apply(variables, images.astype(jnp.float32) / 255)
        cosines = _unit(embeddings) @ _unit(directions).T
        losses = optax.softmax_cross_entropy_with_integer_labels(_SCALE * cosines, labels)
        return losses.mean()

    gradient = jax.grad(loss)(state)
    updates, moments = optax.adam(learning_rate).update(gradient, moments, state)
    return optax.apply_updates(state, updates), moments


def _unit(rows: jax.Array) -> jax.Array:
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
