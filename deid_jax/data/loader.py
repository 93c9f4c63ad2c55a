"""Batches of a data set, read ahead by Grain while the device computes."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from deid_jax.data.dataset import FaceDataset
from deid_jax.types import Batch

# Pictures held in memory cost nothing to read; decoding files keeps a few threads busy.
_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)


def num_batches(num_images: int, batch_size: int) -> int:
    """How many batches hold `num_images` pictures."""
    return -(-num_images // batch_size)


def num_full_batches(num_images: int, batch_size: int) -> int:
    """How many batches `shuffled` gives."""
    return num_images // min(batch_size, num_images)


def even_batch_size(num_images: int, batch_size: int) -> int:
    """The smallest batch size that needs no more batches than `batch_size` does.

    150 pictures at a batch size of 64 become 3 × 50, not 64 + 64 + 22 and 42 of padding.
    """
    return -(-num_images // num_batches(num_images, batch_size))


def in_order(dataset: FaceDataset, batch_size: int, *, first: int = 0) -> Iterator[Batch]:
    """The pictures from `first` on, in order; the last batch is padded with its last one."""
    source = grain.MapDataset.source(dataset).slice(slice(first, None))
    pictures = source.to_iter_dataset(read_options=_READ)
    for examples in pictures.batch(batch_size, batch_fn=_stack):
        yield _pad(examples, batch_size)


def shuffled(dataset: FaceDataset, batch_size: int, *, seed: int) -> Iterator[Batch]:
    """All pictures in an order that `seed` decides, less what does not fill a batch."""
    pictures = grain.MapDataset.source(dataset).shuffle(seed=seed)
    batches = pictures.to_iter_dataset(read_options=_READ).batch(
        min(batch_size, len(dataset)), drop_remainder=True, batch_fn=_stack
    )
    for examples in batches:
        yield _pad(examples, len(examples["label"]))


def _stack(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _pad(examples: dict[str, np.ndarray], batch_size: int) -> Batch:
    count = len(examples["label"])
    repeated = np.minimum(np.arange(batch_size), count - 1)
    fields: list[Any] = [examples[name][repeated] for name in ("image", "label", "position")]
    fields.append(np.arange(batch_size) < count)
    return Batch(*fields)
