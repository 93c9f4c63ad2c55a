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

from deid_jax import programs
from deid_jax.batch import Outcome, Program, Protocol, judge_uint8, run_batch, run_donated
from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.judging import Naming
from deid_jax.models import prepare
from deid_jax.records import records_of
from deid_jax.types import Batch

# (position in the data set, uint8[H, W, 3]) -> the picture as read back from its file.
Keep = Callable[[int, np.ndarray], np.ndarray]


class Timing(NamedTuple):
    """Seconds of the wall clock.

    Attributes:
      compile_seconds: until the weights were ready and the program was compiled.
      seconds: attacking, measuring and keeping, compilation aside.
      attack_seconds: of those, the ones in which the compiled program ran.
    """

    compile_seconds: float
    seconds: float
    attack_seconds: float


def default_batch_size(image_size: int, num_images: int) -> int:
    """Pictures per call that suit the device, memory permitting.

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
    variables: Any, dataset: FaceDataset, num_steps: int, num_settings: int = 1
) -> Any:
    """A recogniser's weights on the device, prepared where there is enough to do.

    Args:
      variables: its weights, as loaded.
      dataset: the pictures.
      num_steps: gradients per picture.
      num_settings: how often the data set is attacked.
    """
    work = len(dataset) * dataset.image_size**2 * num_steps * num_settings
    return jax.device_put(prepare(variables) if work >= _MIN_WORK_TO_PREPARE else variables)


def _most_steps(config: Any) -> int:
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
) -> tuple[list[dict[str, Any]], Timing]:
    """De-identifies a data set.

    The next batch is read and attacked while the pictures of the last one are written. The
    program is compiled once per shape and process.

    Args:
      model: the recogniser's module.
      variables: its weights.
      dataset: the pictures.
      method: a key of `METHODS`.
      config: the method's settings.
      protocol: everything else that decides the result.
      keep: called with every 8-bit picture, in several threads; what it returns is measured.
      progress: called with (pictures done, pictures in all).
      memory: bytes that a batch may take; what is free if None.

    Returns:
      One record per picture, in the data set's order, and the timing.

    Raises:
      InputError: not even one picture fits into memory.

    Warns:
      UserWarning: a batch did not fit, and smaller ones are taken.
    """
    start = time.perf_counter()
    run = _Run(
        model=model,
        variables=ready_variables(variables, dataset, _most_steps(config)),
        dataset=dataset,
        program=protocol.program(model, method),
        config=jax.tree.map(jnp.float32, config),
        key=jax.random.key(protocol.seed),
        keep=keep,
        progress=progress,
    )
    run.timing = Timing(time.perf_counter() - start, 0.0, 0.0)
    size = protocol.batch_size or default_batch_size(dataset.image_size, len(dataset))
    while len(run.records) < len(dataset):
        size = loader.even_batch_size(len(dataset) - len(run.records), size)
        try:
            with programs.watching_memory():
                smaller = run.prepare_batches(size, memory)
                if smaller is None:
                    run.over_batches(size)
                else:
                    size = smaller
        except programs.OutOfMemoryError:
            size = programs.half_of(size)
    return run.records, run.timing


@dataclasses.dataclass
class _Run:
    """One method over one data set: what `evaluate` does, and how far it is."""

    model: Any
    variables: Any
    dataset: FaceDataset
    program: Program
    config: Any
    key: jax.Array
    keep: Keep
    progress: Callable[[int, int], Any]
    attack: Any = None
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    timing: Timing = dataclasses.field(default_factory=lambda: Timing(0.0, 0.0, 0.0))

    def prepare_batches(self, size: int, memory: int | None) -> int | None:
        """Compiles for a batch size; returns a smaller one if it will not fit."""
        start = time.perf_counter()
        batch = batch_shapes(size, self.dataset.image_size)
        self.attack = programs.compile_once(
            run_donated, self.variables, batch, self.config, self.key, program=self.program
        )
        spent = time.perf_counter() - start
        self.timing = self.timing._replace(compile_seconds=self.timing.compile_seconds + spent)
        limit = programs.free_bytes() if memory is None else memory
        return programs.smaller_to_fit(size, self.attack, limit)

    def over_batches(self, size: int) -> None:
        """Attacks what is left, and keeps every batch while the next one is computed."""
        start = ready = time.perf_counter()
        attacking = 0.0
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self._count(time.perf_counter() - start, attacking))
            pool = stack.enter_context(ThreadPoolExecutor())
            pending: _Pending | None = None
            batches = loader.in_order(self.dataset, size, first=len(self.records))
            for batch in _and_none(batches):
                following = self._dispatch(batch, pool) if batch else None
                if pending:
                    begun = max(ready, pending.dispatched)
                    ready = pending.ready.result()
                    attacking += ready - begun
                    self.records += self._collect(pending, pool.map)
                    self.progress(len(self.records), len(self.dataset))
                pending = following

    def _count(self, seconds: float, attack_seconds: float) -> None:
        self.timing = self.timing._replace(
            seconds=self.timing.seconds + seconds,
            attack_seconds=self.timing.attack_seconds + attack_seconds,
        )

    def _dispatch(self, batch: Batch, pool: ThreadPoolExecutor) -> "_Pending":
        dispatched = time.perf_counter()
        outcome = self.attack(self.variables, batch, self.config, self.key)

        def wait() -> float:
            jax.block_until_ready(outcome)
            return time.perf_counter()

        return _Pending(batch, outcome, dispatched, pool.submit(wait))

    def _collect(self, pending: "_Pending", run_all: Callable) -> list[dict[str, Any]]:
        """Keeps the pictures of a computed batch, measures what was kept, makes records."""
        batch, outcome = pending.batch, pending.outcome
        # One fetch; the float pictures stay on the device.
        written, figures = jax.device_get((outcome.uint8, outcome.figures()))
        pictures = np.array(written)
        real = np.flatnonzero(batch.mask)
        indices = [int(batch.position[i]) for i in real]
        pictures[real] = list(run_all(self.keep, indices, [written[i] for i in real]))
        if not np.array_equal(pictures, written):
            kept = judge_uint8(self.variables, pictures, batch, model=self.model)
            figures = figures._replace(kept=jax.device_get(kept))
        targeted = self.program.target != "none"
        return records_of(figures, self.dataset, batch, targeted=targeted)


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
    outcome: Outcome
    dispatched: float
    ready: Future[float]


class Examples(NamedTuple):
    """Some pictures of a run; where S numbers of steps were asked for, P becomes S, P.

    Attributes:
      pictures: uint8[P, H, W, 3].
      naming: whom the recogniser names in them; entries of [P].
      clean: whom it names on the originals; entries of [P] in any case.
    """

    pictures: np.ndarray
    naming: Naming
    clean: Naming


def run_examples(
    model: Any,
    variables: Any,
    dataset: FaceDataset,
    method: str,
    config: Any,
    protocol: Protocol,
    indices: Sequence[int],
) -> Examples:
    """What becomes of some pictures, as in `evaluate`, without the others.

    Args:
      model: the recogniser's module.
      variables: its weights.
      dataset: the pictures.
      method: a key of `METHODS`.
      config: its settings; `num_steps` may hold several numbers of steps.
      protocol: everything else that decides the result.
      indices: which P pictures.
    """
    few = dataset.take(indices)
    variables = ready_variables(variables, few, _most_steps(config))
    examples = [dataset[index] for index in indices]
    image, label, position = (
        jnp.stack([example[name] for example in examples])
        for name in ("image", "label", "position")
    )
    batch = Batch(image, label, position, jnp.ones(len(indices), bool))
    program = protocol.program(model, method)
    key = jax.random.key(protocol.seed)
    config = jax.tree.map(jnp.float32, config)
    outcome = run_batch(variables, batch, config, key, program=program)

    pictures = (outcome.uint8, outcome.kept.naming, outcome.clean)
    return Examples(*jax.device_get(pictures))


def _and_none(batches: Iterator[Batch]) -> Iterator[Batch | None]:
    yield from batches
    yield None
