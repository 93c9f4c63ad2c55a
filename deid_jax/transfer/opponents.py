"""Opponents who adapt to protected images: one averages embeddings, one fine-tunes.

The first has several protected images of one person. The second knows who is shown in some
protected images (from tags, for example) and fine-tunes a recogniser on them, so that it
recognises people in spite of the perturbation.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from deid_jax.checks import count, finite_non_negative
from deid_jax.devices.sharding import placed_on_devices
from deid_jax.errors import InputError
from deid_jax.metrics import verification
from deid_jax.metrics.verification import Distance
from deid_jax.objectives.embeddings import similarity
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from deid_jax.transfer.judges import GALLERY, GalleryJudge, JudgedImages
from deid_jax.types import Model, NumpyArray, Variables

# Logits are similarities with the persons' centroids, times ArcFace's scale.
_SCALE = 30.0
# The network's weights, and the persons' centroids.
_State: TypeAlias = tuple[Variables, jax.Array]


def averaged(judge: GalleryJudge, judged: JudgedImages, size: int) -> JudgedImages | None:
    """Judges averages: an opponent averages embeddings of several images of one person.

    Each probe is the centroid of `size` consecutive images of one person; a remainder is left
    out.

    Returns:
      The averages, judged only against the gallery and without ranks; None if no person has
      `size` images.

    Raises:
      InputError: `size` is below 1, or embeddings have no direction.
    """
    count("size", size, least=1)
    groups, persons = [], []
    for label in np.unique(judged.labels):
        positions = np.flatnonzero(judged.labels == label)
        for first in range(0, len(positions) - size + 1, size):
            groups.append(positions[first : first + size])
            persons.append(label)
    if not groups:
        return None
    distance, labels = judge.embedder.distance, np.array(persons)
    means = verification.centroids(judged.outputs, groups, distance)
    similarities = verification.similarities(means, judge.galleries, distance)
    scores = {GALLERY: verification.genuine_scores(similarities, labels)}
    return judge.by_scores(means, labels, scores)


def fine_tune(
    embedder: Embedder,
    images: NDArray[np.uint8],
    labels: NumpyArray,
    galleries: NumpyArray,
    *,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 3e-4,
    seed: int = 0,
) -> Embedder:
    """Fine-tunes all weights to classify persons: cross-entropy of 30 s(f(x), w_p), by Adam.

    s is the recogniser's similarity. Deng, Guo, Xue, Zafeiriou: "ArcFace", CVPR 2019, without a
    margin. The centroids w_p are trained as well and then dropped; the result is an embedder,
    as before.

    Images are uint8[N, H, W, 3] of persons int[N], 0 to P − 1; `galleries`, float[P, D], are
    initial values of w_p: centroids of clean images. The seed decides order and mirroring in
    each epoch, which leaves out a remainder of the batch size.

    Raises:
      InputError: a recogniser without weights to train, no images, or a bad number.
    """
    count("epochs", epochs, least=1)
    count("batch_size", batch_size, least=1)
    finite_non_negative("learning_rate", learning_rate)
    if isinstance(embedder.module, FunctionModule):
        raise InputError(
            f"recogniser {embedder.name} is a function: it has no weights to train"
        )
    if not len(images):
        raise InputError("images must be one or more, got none")
    batch_size = min(batch_size, len(images))
    state: _State = placed_on_devices(embedder.variables), jnp.asarray(galleries, jnp.float32)
    moments = optax.adam(learning_rate).init(state)
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
                state,
                moments,
                batch,
                labels[chosen],
                embedder.module,
                embedder.distance,
                learning_rate,
            )
    return embedder._replace(name=f"{embedder.name} (fine-tuned)", variables=state[0])


@functools.partial(jax.jit, static_argnames=("module", "distance", "learning_rate"))
def _step(
    state: _State,
    moments: optax.OptState,
    images: jax.Array,
    labels: jax.Array,
    module: Model,
    distance: Distance,
    learning_rate: float,
) -> tuple[_State, optax.OptState]:
    def loss(state: _State) -> jax.Array:
        variables, galleries = state
        embeddings = module.apply(variables, images.astype(jnp.float32) / 255)
        if distance is Distance.COSINE:
            galleries = galleries / jnp.linalg.norm(galleries, axis=-1, keepdims=True)
        found = similarity(embeddings[:, None], galleries[None], distance)
        losses = optax.softmax_cross_entropy_with_integer_labels(_SCALE * found, labels)
        return losses.mean()

    gradient = jax.grad(loss)(state)
    updates, moments = optax.adam(learning_rate).update(gradient, moments, state)
    return optax.apply_updates(state, updates), moments
