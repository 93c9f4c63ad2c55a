"""Runs a method over a data set and measures it.

What is measured of a picture beside the float32 result is the 8-bit picture as it reads back
from where it was kept.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import programs, sharding
from deid_jax.errors import InputError
from deid_jax.evaluation.batch import Outcome, Program, Protocol, measure_uint8, run_donated
from deid_jax.evaluation.measuring import BatchMetrics
from deid_jax.evaluation.records import ImageRecord, records_of
from deid_jax.models import prepare
from deid_jax.types import Batch

# (position in the data set, uint8[H, W, 3]) -> the picture as read back from its file.
Keep = Callable[[int, np.ndarray], np.ndarray]

# Threads that keep pictures: compressing one takes longer than a small attack on it.
NUM_KEEPERS = 8


class Timing(NamedTuple):
    """Seconds of the wall clock, and of threads.

    Attributes:
      compile_seconds: until the weights were ready and the program was compiled.
      seconds: attacking, measuring and keeping, compilation aside.
      attack_seconds: of those, the ones in which the compiled program ran.
      read_seconds: of all threads together, reading pictures.
      keep_seconds: of all threads together, in `keep`.
    """

    compile_seconds: float = 0.0
    seconds: float = 0.0
    attack_seconds: float = 0.0
    read_seconds: float = 0.0
    keep_seconds: float = 0.0


def default_batch_size(image_size: int, num_images: int) -> int:
    """Pictures per call and device that suit the device, memory permitting.

    Few keep the cores of a CPU busy and its caches small; accelerators want many, but in four
    batches, so that reading and writing have something to go on beside.
    """
    if jax.default_backend() != "cpu":
        return min(4096, max(64, -(-num_images // 4)))
    return max(16, min(64, 2**18 // image_size**2))


# Pictures × pixels × steps from which prepared kernels save about as much time as compiling
# their larger program takes, a few seconds: 512 steps of a picture of 64 px, say.
_MIN_WORK_TO_PREPARE = 2**21


def ready_variables(
    variables: Any, dataset: FaceDataset, num_steps: int, mesh: Mesh, num_settings: int = 1
) -> Any:
    """A recogniser's weights on the devices, prepared where there is enough to do.

    Args:
      variables: its weights, as loaded.
      dataset: the pictures.
      num_steps: gradients per picture.
      mesh: the devices.
      num_settings: how often the data set is attacked.
    """
    work = len(dataset) * dataset.image_size**2 * num_steps * num_settings
    prepared = prepare(variables) if work >= _MIN_WORK_TO_PREPARE else variables
    return sharding.place_variables(prepared, mesh)


def most_steps(config: Any) -> int:
    """How many steps a method's settings ask for at most; 0 for methods without."""
    steps = getattr(config, "num_steps", 0)
    return max(steps) if isinstance(steps, tuple) else steps


def evaluate(
    model: Any,
    variables: Any,
    dataset: FaceDataset,
    method: str,
    config: Any,
    protocol: Protocol,
    *,
    keep: Keep = lambda index, picture: picture,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    memory: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[list[ImageRecord], Timing]:
    """De-identifies a data set: `evaluate_spans` of all of it at once.

    Returns:
      One record per picture, in the data set's order, and the timing.
    """
    records: list[ImageRecord] = []
    timing = evaluate_spans(
        model,
        variables,
        dataset,
        method,
        config,
        protocol,
        [range(len(dataset))],
        lambda number, more: records.extend(more),
        keep=keep,
        progress=progress,
        memory=memory,
        mesh=mesh,
    )
    return records, timing


def evaluate_spans(
    model: Any,
    variables: Any,
    dataset: FaceDataset,
    method: str,
    config: Any,
    protocol: Protocol,
    spans: Sequence[range],
    finish: Callable[[int, list[ImageRecord]], Any],
    *,
    keep: Keep = lambda index, picture: picture,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    memory: int | None = None,
    mesh: Mesh | None = None,
    longest: int | None = None,
) -> Timing:
    """De-identifies parts of a data set, on all devices of this process.

    The next batch is read and attacked while the pictures of the last one are kept. The
    program is compiled once per shape and process; no more than two batches and the records of
    one span are held.

    Args:
      model: the recogniser's module.
      variables: its weights.
      dataset: the pictures.
      method: a key of `METHODS`.
      config: the method's settings.
      protocol: everything else that decides the result.
      spans: the positions, in order; no batch reaches from one span into the next.
      finish: called with a span's number and records, one per picture that could be read, once
        all its pictures are kept.
      keep: called with every 8-bit picture, in several threads; what it returns is measured.
      progress: called with (pictures done, pictures in all).
      memory: bytes that a batch may take on a device; what is free if None.
      mesh: the devices; None: all of this process.
      longest: pictures in the longest span of the whole work, of which this may be a part: it
        decides the batch size, and another one rounds differently. None: of `spans`.

    Raises:
      InputError: not even one picture fits into memory, one cannot be read (and the data set
        does not leave such out), or the recogniser gives no numbers.

    Warns:
      UserWarning: a batch did not fit, and smaller ones are taken.
    """
    start = time.perf_counter()
    mesh = mesh or sharding.local_mesh()
    run = _Run(
        model=model,
        variables=ready_variables(variables, dataset, most_steps(config), mesh),
        dataset=dataset,
        program=protocol.program(model, method, mesh),
        config=sharding.place_everywhere(jax.tree.map(jnp.float32, config), mesh),
        key=sharding.place_everywhere(jax.random.key(protocol.seed), mesh),
        mesh=mesh,
        spans=spans,
        finish=finish,
        keep=keep,
        progress=progress,
    )
    run.timing = Timing(compile_seconds=time.perf_counter() - start)
    longest = longest or max(map(len, spans), default=0)
    parts = sharding.num_parts(mesh)
    size = wanted_batch_size(dataset.image_size, longest, protocol, mesh)
    while run.left():
        size = batch_size_for(longest, max(parts, size // parts * parts), mesh)
        try:
            with programs.watching_memory():
                smaller = run.prepare_batches(size, memory)
                if smaller is None:
                    run.over_batches(size)
                else:
                    size = smaller
        except programs.OutOfMemoryError:
            size = programs.half_of(size, least=parts)
    return run.timing


def wanted_batch_size(image_size: int, num_images: int, protocol: Protocol, mesh: Mesh) -> int:
    """Pictures per call on all devices together, memory permitting."""
    size = protocol.batch_size
    if size is None:
        size = sharding.num_parts(mesh) * default_batch_size(image_size, num_images)
    return batch_size_for(num_images, sharding.whole_parts(mesh, size), mesh)


def batch_size_for(num_images: int, size: int, mesh: Mesh) -> int:
    """The batch size near `size` that wastes least on padding, in equal parts for devices."""
    return sharding.whole_parts(mesh, loader.even_batch_size(num_images, size))


@dataclasses.dataclass
class _Run:
    """One method over parts of a data set: what `evaluate_spans` does, and how far it is."""

    model: Any
    variables: Any
    dataset: FaceDataset
    program: Program
    config: Any
    key: jax.Array
    mesh: Mesh
    spans: Sequence[range]
    finish: Callable[[int, list[ImageRecord]], Any]
    keep: Keep
    progress: Callable[[int, int], Any]
    attack: Any = None
    # The first span that is not finished, how many of its pictures are done, and their records.
    span: int = 0
    done: int = 0
    records: list[ImageRecord] = dataclasses.field(default_factory=list)
    timing: Timing = dataclasses.field(default_factory=Timing)

    def left(self) -> list[range]:
        """The positions that are not done."""
        left = list(self.spans[self.span :])
        return [left[0][self.done :], *left[1:]] if left else []

    def prepare_batches(self, size: int, memory: int | None) -> int | None:
        """Compiles for a batch size; returns a smaller one if it will not fit."""
        start = time.perf_counter()
        batch = sharding.batch_layout(batch_shapes(size, self.dataset.image_size), self.mesh)
        self.attack = programs.compile_once(
            run_donated, self.variables, batch, self.config, self.key, program=self.program
        )
        spent = time.perf_counter() - start
        self.timing = self.timing._replace(compile_seconds=self.timing.compile_seconds + spent)
        limit = programs.free_bytes() if memory is None else memory
        least = sharding.num_parts(self.mesh)
        return programs.smaller_to_fit(size, self.attack, limit, least=least)

    def over_batches(self, size: int) -> None:
        """Attacks what is left, and keeps every batch while the next one is computed."""
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
            for batch in _and_none(batches):
                following = self._dispatch(batch, next(positions), pool) if batch else None
                if pending:
                    begun = max(ready, pending.dispatched)
                    ready = pending.ready.result()
                    attacking += ready - begun
                    records = self._collect(pending, pool.map, keeping)
                    self._advance(len(pending.positions), records)
                pending = following

    def _count(self, start: float, attacking: float, reading: float, keeping: float) -> None:
        spent = (0.0, time.perf_counter() - start, attacking, reading, keeping)
        self.timing = Timing(*(old + new for old, new in zip(self.timing, spent, strict=True)))

    def _dispatch(self, batch: Batch, positions: range, pool: ThreadPoolExecutor) -> "_Pending":
        dispatched = time.perf_counter()
        placed = sharding.place_batch(batch, self.mesh)
        outcome = self.attack(self.variables, placed, self.config, self.key)

        def wait() -> float:
            jax.block_until_ready(outcome)
            return time.perf_counter()

        return _Pending(batch, positions, outcome, dispatched, pool.submit(wait))

    def _collect(
        self, pending: "_Pending", run_all: Callable, keeping: loader.Stopwatch
    ) -> list[ImageRecord]:
        """Keeps the pictures of a computed batch, measures what was kept, makes records."""
        batch, outcome = pending.batch, pending.outcome
        # One fetch; the float pictures stay on the device.
        written, figures = jax.device_get((outcome.uint8, outcome.metrics()))
        check_numbers(figures, self.dataset, batch)
        pictures = np.array(written)
        real = np.flatnonzero(batch.mask)

        def keep(index: int, picture: np.ndarray) -> np.ndarray:
            with keeping:
                return self.keep(index, picture)

        indices = [int(batch.position[i]) for i in real]
        kept = list(run_all(keep, indices, [written[i] for i in real]))
        if kept:
            pictures[real] = kept
        if not np.array_equal(pictures, written):
            placed = sharding.place_batch((pictures, batch), self.mesh)
            judged = measure_uint8(self.variables, *placed, model=self.model)
            figures = figures._replace(uint8_result=jax.device_get(judged))
        targeted = self.program.target != "none"
        return records_of(figures, self.dataset, batch, targeted=targeted)

    def _advance(self, count: int, records: Sequence[ImageRecord]) -> None:
        """Counts pictures as done, and finishes their span if they were its last."""
        self.records += records
        self.done += count
        if self.done == len(self.spans[self.span]):
            self.finish(self.span, self.records)
            self.span, self.done, self.records = self.span + 1, 0, []
        before = sum(map(len, self.spans[: self.span]))
        self.progress(before + self.done, sum(map(len, self.spans)))


def check_numbers(figures: BatchMetrics, dataset: FaceDataset, batch: Batch) -> None:
    """Refuses NaN and infinities among what a recogniser said of the pictures.

    Args:
      figures: on the host; entries of [B], or with further axes before.
      dataset: the pictures.
      batch: which of them; padding may be whatever it is.

    Raises:
      InputError: names the first such picture.
    """
    judged = (figures.clean, figures.float_result, figures.uint8_result)
    broken = np.zeros(len(batch.mask), bool)
    for leaf in jax.tree.leaves(judged):
        values = np.asarray(leaf)
        broken |= ~np.isfinite(values).reshape(-1, len(broken)).all(axis=0)
    if np.any(broken & batch.mask):
        first = int(batch.position[np.flatnonzero(broken & batch.mask)[0]])
        raise InputError(
            f"the recogniser gives NaN or infinity for {dataset.picture(first)}: its weights "
            "are damaged, or it cannot take this picture"
        )


def batch_shapes(size: int, image_size: int) -> Batch:
    """A batch as far as the compiler is concerned."""
    return jax.eval_shape(
        lambda: Batch(
            image=jnp.zeros((size, image_size, image_size, 3)),
            label=jnp.zeros(size, jnp.int32),
            position=jnp.zeros(size, jnp.int32),
            mask=jnp.zeros(size, bool),
        )
    )


class _Pending(NamedTuple):
    """A batch under way: when it was dispatched, and when it will have been ready."""

    batch: Batch
    positions: range
    outcome: Outcome
    dispatched: float
    ready: Future[float]


def _and_none(batches: Iterator[Batch]) -> Iterator[Batch | None]:
    yield from batches
    yield None
