"""Batches of a data set, prefetched by Grain while the device computes."""

import functools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import cast

import grain
import jax
import numpy as np

from deid_jax.data.dataset import Example, FaceDataset
from deid_jax.errors import InputError
from deid_jax.types import Batch

# Images in memory cost nothing to read; decoding files keeps a few threads busy.
NUM_THREADS = 4
_READ = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=64)


def num_full_batches(num_images: int, batch_size: int) -> int:
    """The number of batches that `shuffled` gives."""
    return num_images // min(batch_size, num_images)


def even_batch_size(num_images: int, batch_size: int) -> int:
    """The smallest batch size that needs no more batches than `batch_size` does.

    150 images at a batch size of 64 become 3 × 50, not 64 + 64 + 22 with 42 of padding.
    """
    return -(-num_images // -(-num_images // batch_size))


class Stopwatch:
    """Measures the seconds spent in its `with` blocks, summed over threads."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._local = threading.local()

    def __enter__(self) -> "Stopwatch":
        self._local.start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        spent = time.perf_counter() - self._local.start
        with self._lock:
            self.seconds += spent


def divided(spans: Sequence[range], batch_size: int) -> list[range]:
    """The positions of every batch; no batch crosses from one span into the next."""
    return [
        span[start : start + batch_size]
        for span in spans
        for start in range(0, len(span), batch_size)
    ]


def in_order(
    dataset: FaceDataset,
    batch_size: int,
    *,
    spans: Sequence[range] | None = None,
    watch: Stopwatch | None = None,
) -> Iterator[Batch]:
    """Images in order, one batch for every entry of `divided`.

    A batch that is not full is padded with its last image. If the data set skips unreadable
    images, they are masked like padding, at their own position.

    Without spans, these are all images; `watch` measures the time spent on reading.

    Raises:
      InputError: an image cannot be read.
    """
    batches = divided([range(len(dataset))] if spans is None else spans, batch_size)
    source = _Places(dataset, batches, batch_size, watch or Stopwatch())
    images = grain.MapDataset.source(source).to_iter_dataset(read_options=_READ)
    yield from _plainly(images.batch(batch_size, batch_fn=functools.partial(_stack, dataset)))


class _Places:
    """The slots of padded batches, one after the other: Grain's random-access source."""

    def __init__(
        self,
        dataset: FaceDataset,
        batches: Sequence[range],
        batch_size: int,
        watch: Stopwatch,
    ):
        self._dataset = dataset
        self._batches = batches
        self._size = batch_size
        self._watch = watch

    def __len__(self) -> int:
        return len(self._batches) * self._size

    def __getitem__(self, place: int) -> Example:
        """An example; only the position for padding and unreadable images."""
        number, place = divmod(int(place), self._size)
        positions = self._batches[number]
        position = positions[min(place, len(positions) - 1)]
        unread = {"position": np.int32(position)}
        if place >= len(positions):
            return unread
        try:
            with self._watch:
                return self._dataset[position]
        except InputError:
            if not self._dataset.skip_unreadable:
                raise
            return unread


def shuffled(
    dataset: FaceDataset, batch_size: int, *, seed: int, part: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All images in an order that `seed` decides, without the last partial batch.

    With `part` (i, n), only the i-th of n equal parts of every batch, for one of n processes;
    `batch_size` counts the images of all of them.

    Raises:
      InputError: the batches cannot be divided into n equal parts.
    """
    size = min(batch_size, len(dataset))
    index, count = part
    if size % count:
        raise InputError(f"batch_size must be a multiple of {count} processes, got {size}")
    share = size // count
    whole = len(dataset) // size * size
    images = grain.MapDataset.source(dataset).shuffle(seed=seed)[:whole]
    stack = functools.partial(_stack, dataset)
    own = images.batch(share, batch_fn=stack)[index::count]
    read = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=max(1, 64 // share))
    yield from _plainly(own.to_iter_dataset(read_options=read))


def _plainly(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; errors in images are reported in one line, without Grain's text."""
    try:
        yield from batches
    except InputError as error:
        text = str(error).partition("\n")[0]
        raise InputError(f"{text}; --skip_unreadable leaves such images out") from error


def _stack(dataset: FaceDataset, examples: Sequence[Example]) -> Batch:
    mask = np.array(["image" in example for example in examples])
    size = dataset.image_size
    filling: Example = {
        "image": np.full((size, size, 3), 0.5, np.float32),
        "label": dataset.labels[0],
    }
    if mask.any():
        filling = examples[int(np.flatnonzero(mask)[-1])]
    whole = [{**filling, **example} for example in examples]
    fields = [np.stack([e[n] for e in whole]) for n in ("image", "label", "position")]
    # NumPy arrays, until they are placed on devices.
    return Batch(*cast(list[jax.Array], [*fields, mask]))
