"""Runs a method over a data set and measures it: the one jit boundary of attacks.

Every picture is measured twice: the attack's float32 result, and the 8-bit picture that is
kept, as it reads back from where it was kept.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import programs
from deid_jax._validate import InputError
from deid_jax.attacks import ATTACKS, Method, gaussian_noise
from deid_jax.attacks.loop import fold_in_all
from deid_jax.baselines import BASELINES
from deid_jax.data import loader
from deid_jax.data.dataset import LEVELS, FaceDataset
from deid_jax.judging import Figures, Naming, Verdict, judge, judge_both, name_faces
from deid_jax.models import prepare
from deid_jax.objectives import LogitsFn, cross_entropy
from deid_jax.precision import PRECISIONS, in_precision, products_in
from deid_jax.records import records_of
from deid_jax.types import AttackResult, Batch

METHODS: dict[str, Method] = ATTACKS | BASELINES
TARGETS = ("random", "least_likely", "runner_up", "none")
INITS = ("image", "noise")

# (position in the data set, uint8[H, W, 3]) -> the picture as read back from its file.
Keep = Callable[[int, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a method is run, beside its own settings.

    Attributes:
      target: which label an attack aims at: "random" (any but the true one, drawn per
        picture), "least_likely" or "runner_up" (among the others, by the clean logits), or
        "none": untargeted.
      init: the first iterate: "image", or "noise", N(0.5, 0.25²) clipped to [0, 1].
      quantize: round the result to the 8-bit grid, so that the float and 8-bit figures agree.
      batch_size: pictures per compiled call; made smaller where that saves padding or the
        device lacks the memory. None: what suits the device.
      seed: decides targets and noise, per picture: no figure depends on the batch size.
      precision: what an attack's gradients are computed in; see `deid_jax.precision`.
    """

    target: str = "random"
    init: str = "image"
    quantize: bool = False
    batch_size: int | None = None
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("target", self.target, TARGETS),
            ("init", self.init, INITS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value}")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def targeted(self) -> bool:
        """Whether an attack aims at a label."""
        return self.target != "none"

    def program(self, model: Any, method: str) -> "Program":
        """What decides the compiled program of a method against a model."""
        return Program(model, method, self.target, self.init, self.quantize, self.precision)


def choose_targets(
    kind: str, logits: jax.Array, labels: jax.Array, key: jax.Array
) -> jax.Array:
    """The label each attack aims at; never the true one.

    Args:
      kind: "random", "least_likely" or "runner_up".
      logits: float32[B, K] on the originals.
      labels: int32[B], the true labels.
      key: key[B].

    Returns:
      int32[B].
    """
    num_classes = logits.shape[-1]
    if kind == "random":
        draw = functools.partial(jax.random.randint, shape=(), minval=1, maxval=num_classes)
        return (labels + jax.vmap(draw)(key)) % num_classes
    true = jax.nn.one_hot(labels, num_classes, dtype=bool)
    if kind == "least_likely":
        return jnp.argmin(jnp.where(true, jnp.inf, logits), axis=-1).astype(jnp.int32)
    return jnp.argmax(jnp.where(true, -jnp.inf, logits), axis=-1).astype(jnp.int32)


class Outcome(NamedTuple):
    """What de-identifying a batch gives.

    Where the config asks for S numbers of steps, `result`, `verdict`, `kept` and
    `uint8` have a leading axis S.

    Attributes:
      result: the attack's.
      targets: int32[B]; the true labels where the attack is untargeted.
      clean: whom the recogniser names on the originals.
      verdict: the verdict on the result.
      kept: the verdict on the 8-bit picture.
      uint8: uint8[B, H, W, C], round(255 x̂).
    """

    result: AttackResult
    targets: jax.Array
    clean: Naming
    verdict: Verdict
    kept: Verdict
    uint8: jax.Array

    def figures(self) -> Figures:
        """All but the pictures."""
        return Figures(self.targets, self.clean, self.verdict, self.result[1:], self.kept)


class Program(NamedTuple):
    """What decides the compiled program, beside shapes: the static argument of `run_batch`.

    Attributes:
      model: the recogniser's module.
      method: a key of `METHODS`.
      target: see `Protocol`.
      init: see `Protocol`.
      quantize: see `Protocol`.
      precision: see `Protocol`.
    """

    model: Any
    method: str
    target: str = "random"
    init: str = "image"
    quantize: bool = False
    precision: str = "float32"


def de_identify(
    variables: Any, batch: Batch, config: Any, key: jax.Array, *, program: Program
) -> Outcome:
    """De-identifies and measures one batch: what `run_batch` and `run_batch_many` compile.

    Args:
      variables: the recogniser's weights, arguments so that they are no program constants.
      batch: the pictures.
      config: the method's settings; another value of a leaf needs no compilation.
      key: the run's key; picture i uses fold_in(key, i).
      program: everything static.
    """
    model, method, target, init, quantize, precision = program
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch.position)
    target_key, init_key, attack_key = (fold_in_all(keys, use) for use in range(3))
    # Whatever the attack computes in, the recogniser that judges it is the one of float32.
    logits_fn = _exactly(functools.partial(model.apply, variables))
    clean = logits_fn(batch.image)
    targeted = target != "none"
    targets = batch.label
    if targeted:
        targets = choose_targets(target, clean, batch.label, target_key)
    attacked = functools.partial(in_precision(model, precision).apply, variables)
    objective = cross_entropy(attacked, targets, targeted=targeted)
    initial = gaussian_noise(batch.image, init_key) if init == "noise" else None
    with products_in(precision):
        result = METHODS[method].function(
            objective, batch.image, config, attack_key, initial=initial
        )
    uint8 = jnp.round(255 * result.images).astype(jnp.uint8)
    kept = jnp.asarray(LEVELS)[uint8]
    if quantize:
        result = result._replace(images=kept)

    def both(images: tuple[jax.Array, jax.Array]) -> tuple[Verdict, Verdict]:
        return judge_both(logits_fn, *images, batch)

    # [B, H, W, C], or for each of [S, B, H, W, C].
    several = kept.ndim > batch.image.ndim
    judged = (
        jax.lax.map(both, (result.images, kept)) if several else both((result.images, kept))
    )
    return Outcome(
        result=result,
        targets=targets,
        clean=name_faces(clean, batch.label),
        verdict=judged[0],
        kept=judged[1],
        uint8=uint8,
    )


def _exactly(logits_fn: LogitsFn) -> LogitsFn:
    """The same in true float32, which accelerators do only when asked."""

    def exact(images: jax.Array) -> jax.Array:
        with products_in("float32"):
            return logits_fn(images)

    return exact


run_batch = jax.jit(de_identify, static_argnames="program")
# The results take the place of the pictures.
_run_donated = jax.jit(de_identify, static_argnames="program", donate_argnames="batch")


@functools.partial(jax.jit, static_argnames="program")
def run_batch_many(
    variables: Any, batch: Batch, configs: Any, key: jax.Array, *, program: Program
) -> Figures:
    """`vmap` of `de_identify` over C settings: figures only, no pictures.

    Args:
      variables: see `de_identify`.
      batch: see `de_identify`.
      configs: the method's config with leaves of [C].
      key: see `de_identify`.
      program: everything static.

    Returns:
      Entries of [C, B]; [C, S, B] in `verdict`, `spent` and `kept` where the config asks for
      S numbers of steps.
    """

    def measure(config: Any) -> Figures:
        return de_identify(variables, batch, config, key, program=program).figures()

    leaves = jax.tree.leaves(configs)
    return jax.vmap(measure, axis_size=len(leaves[0]) if leaves else 1)(configs)


@functools.partial(jax.jit, static_argnames="model")
def judge_uint8(variables: Any, images: jax.Array, batch: Batch, *, model: Any) -> Verdict:
    """`judge` for pictures uint8[B, H, W, C]."""
    logits_fn = _exactly(functools.partial(model.apply, variables))
    return judge(logits_fn, jnp.asarray(LEVELS)[images], batch)


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
            _run_donated, self.variables, batch, self.config, self.key, program=self.program
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
