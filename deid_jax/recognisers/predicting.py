"""Logits and accuracy of a model on clean images."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import sharding
from deid_jax.types import Batch, Model, Variables


@functools.partial(jax.jit, static_argnames="model")
def predict(variables: Variables, images: jax.Array, *, model: Model) -> jax.Array:
    """Logits in inference mode: float32[B, K] for a recogniser."""
    return model.apply(variables, images)


def accuracy(
    model: Model,
    variables: Variables,
    dataset: FaceDataset,
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> float:
    """The share of a data set's labels that the model predicts correctly; NaN for no images.

    `batch_size` counts the images of all processes; without a mesh, one device of this process
    is used.
    """
    mesh = mesh or sharding.narrowed(sharding.local_mesh(), 1)
    variables = sharding.place_variables(variables, mesh)
    processes = len({device.process_index for device in mesh.devices.flat})
    size = sharding.whole_parts(mesh, loader.even_batch_size(max(1, len(dataset)), batch_size))
    share = size // processes
    spans = loader.divided([range(len(dataset))], size)
    # Every process reads its part of each batch; a process without one gets padding.
    first = jax.process_index() * share if processes > 1 else 0
    own = [span[first : first + share] for span in spans]
    right = labels = 0
    for batch in _padded_parts(dataset, own, share):
        placed = sharding.place_batch(batch, mesh)
        some, all_of = jax.device_get(num_right(variables, placed, model=model))
        right, labels = right + int(some), labels + int(all_of)
    return right / labels if labels else float("nan")


def _padded_parts(dataset: FaceDataset, parts: Sequence[range], size: int) -> Iterator[Batch]:
    """Batches in order, one for every part, including parts without images."""
    batches = loader.in_order(dataset, size, spans=[part for part in parts if len(part)])
    for part in parts:
        if len(part):
            yield next(batches)
        else:
            padding = next(loader.in_order(dataset, size, spans=[range(1)]))
            yield padding._replace(mask=padding.mask & False)


@functools.partial(jax.jit, static_argnames="model")
def num_right(
    variables: Variables, batch: Batch, *, model: Model
) -> tuple[jax.Array, jax.Array]:
    """How many of a batch's labels the model predicts correctly, and how many there are.

    Both are int32[]; labels are int32[B] or, for several heads, int32[B, ...].
    """
    named = jnp.argmax(model.apply(variables, batch.image), axis=-1)
    mask = batch.mask.reshape(-1, *[1] * (named.ndim - 1))
    counted = jnp.broadcast_to(mask, named.shape)
    return jnp.sum((named == batch.label) & counted), jnp.sum(counted)
