"""The loop over batches: one is read, one attacked and one saved at the same time.

The 8-bit result that is measured is the image as read back from where it was saved.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import sharding
from deid_jax.errors import InputError
from deid_jax.evaluation.batch import BatchResult, PlacedProgram, measure_uint8
from deid_jax.evaluation.measuring import BatchMetrics
from deid_jax.evaluation.records import ImageRecord, records_of
from deid_jax.pixels import Pixels
from deid_jax.types import Batch

# (position in the data set, uint8[H, W, 3]) -> the image as it is read back from its file.
Keep: TypeAlias = Callable[[int, Pixels], Pixels]

# Threads that save images: compressing one takes longer than a small attack on it.
NUM_KEEPERS = 8


def as_it_is(index: int, image: Pixels) -> Pixels:
    """Saves nothing."""
    del index
    return image


def show_nothing(done: int, total: int) -> None:
    """Shows no progress."""


class Timing(NamedTuple):
    """Wall-clock seconds; those of reading and keeping are summed over threads.

    `compile_seconds` last until the weights are ready and the program is compiled, `seconds`
    are all that follow, and `attack_seconds` those of them in which the compiled program ran.
    """

    compile_seconds: float = 0.0
    seconds: float = 0.0
    attack_seconds: float = 0.0
    read_seconds: float = 0.0
    keep_seconds: float = 0.0


@dataclasses.dataclass
class BatchLoop:
    """The loop over parts of a data set, and its progress: see `Evaluation.over`."""

    placed: PlacedProgram
    dataset: FaceDataset
    spans: Sequence[range]
    finish: Callable[[int, list[ImageRecord]], object]
    keep: Keep
    progress: Callable[[int, int], object]
    # The first unfinished span, how many of its images are done, and their records.
    span: int = 0
    done: int = 0
    records: list[ImageRecord] = dataclasses.field(default_factory=list)
    timing: Timing = dataclasses.field(default_factory=Timing)

    def left(self) -> list[range]:
        """The positions still to be done."""
        left = list(self.spans[self.span :])
        return [left[0][self.done :], *left[1:]] if left else []

    def prepare_batches(self, size: int, memory: int | None) -> int | None:
        """Compiles for a batch size; returns a smaller one if it will not fit."""
        start = time.perf_counter()
        self.placed.compiled(size)
        spent = time.perf_counter() - start
        self.timing = self.timing._replace(compile_seconds=self.timing.compile_seconds + spent)
        return self.placed.smaller_to_fit(size, memory)

    def over_batches(self, size: int) -> None:
        """Attacks the remaining images, saving each batch while the next one is computed."""
        start = ready = time.perf_counter()
        attacking, reading, keeping = 0.0, loader.Stopwatch(), loader.Stopwatch()
        with contextlib.ExitStack() as stack:
            stack.callback(
                lambda: self._count(start, attacking, reading.seconds, keeping.seconds)
            )
            pool = stack.enter_context(ThreadPoolExecutor(NUM_KEEPERS))
            pending: _Pending | None = None
            left = self.left()
            positions = iter(loader.divided(left, size))
            batches = loader.in_order(self.dataset, size, spans=left, watch=reading)
            coming: Iterator[Batch | None] = itertools.chain(batches, [None])
            for batch in coming:
                following = self._dispatch(batch, next(positions), pool) if batch else None
                if pending:
                    begun = max(ready, pending.dispatched)
                    ready = pending.ready.result()
                    attacking += ready - begun
                    records = self._collect(pending, pool, keeping)
                    self._advance(len(pending.positions), records)
                pending = following

    def _count(self, start: float, attacking: float, reading: float, keeping: float) -> None:
        spent = (0.0, time.perf_counter() - start, attacking, reading, keeping)
        self.timing = Timing(*(old + new for old, new in zip(self.timing, spent, strict=True)))

    def _dispatch(self, batch: Batch, positions: range, pool: ThreadPoolExecutor) -> "_Pending":
        dispatched = time.perf_counter()
        result = self.placed(batch)

        def wait() -> float:
            jax.block_until_ready(result)
            return time.perf_counter()

        return _Pending(batch, positions, result, dispatched, pool.submit(wait))

    def _collect(
        self, pending: "_Pending", pool: ThreadPoolExecutor, keeping: loader.Stopwatch
    ) -> list[ImageRecord]:
        """Saves the images of a computed batch, measures what was saved, makes records."""
        batch, result = pending.batch, pending.result
        # One fetch; the float images stay on the device.
        written, measured = jax.device_get((result.uint8, result.metrics()))
        check_numbers(measured, self.dataset, batch)
        images = np.array(written)
        real = np.flatnonzero(batch.mask)

        def keep(index: int, image: Pixels) -> Pixels:
            with keeping:
                return self.keep(index, image)

        indices = [int(batch.position[i]) for i in real]
        kept = list(pool.map(keep, indices, [written[i] for i in real]))
        if kept:
            images[real] = kept
        program = self.placed.program
        if not np.array_equal(images, written):
            on_devices = sharding.place_batch((images, batch), self.placed.mesh)
            again = measure_uint8(self.placed.variables, *on_devices, model=program.model)
            measured = measured._replace(uint8_result=jax.device_get(again))
        return records_of(measured, self.dataset, batch, targeted=program.target != "none")

    def _advance(self, count: int, records: Sequence[ImageRecord]) -> None:
        """Counts images as done, and finishes their span if it is complete."""
        self.records += records
        self.done += count
        if self.done == len(self.spans[self.span]):
            self.finish(self.span, self.records)
            self.span, self.done, self.records = self.span + 1, 0, []
        before = sum(map(len, self.spans[: self.span]))
        self.progress(before + self.done, sum(map(len, self.spans)))


def check_numbers(measured: BatchMetrics, dataset: FaceDataset, batch: Batch) -> None:
    """Refuses NaN and infinities in what a recogniser predicts, padding aside.

    Entries are on the host, [B] or with further leading axes.

    Raises:
      InputError: a prediction is not finite; the message names the first such image.
    """
    broken = np.zeros(len(batch.mask), bool)
    results = (measured.clean, measured.float_result, measured.uint8_result)
    for leaf in jax.tree.leaves(results):
        values = np.asarray(leaf)
        broken |= ~np.isfinite(values).reshape(-1, len(broken)).all(axis=0)
    if np.any(broken & batch.mask):
        first = int(batch.position[np.flatnonzero(broken & batch.mask)[0]])
        raise InputError(
            f"the recogniser gives NaN or infinity for {dataset.image_name(first)}: its "
            "weights are damaged, or it cannot take this image"
        )


class _Pending(NamedTuple):
    """A batch in flight: when it was dispatched, and (a future) when it became ready."""

    batch: Batch
    positions: range
    result: BatchResult
    dispatched: float
    ready: Future[float]
