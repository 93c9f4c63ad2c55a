"""Runs a method over a data set and measures it: the one jit boundary of attacks.

Every picture is measured twice: the attack's float32 result, and the 8-bit picture that is
kept, as it reads back from where it was kept.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax._validate import InputError
from deid_jax.attacks import ATTACKS, Method, gaussian_noise
from deid_jax.attacks.loop import fold_in_all
from deid_jax.baselines import BASELINES
from deid_jax.data import loader
from deid_jax.data.dataset import LEVELS, FaceDataset
from deid_jax.judging import Figures, Naming, Verdict, judge, name_faces
from deid_jax.objectives import LogitsFn, cross_entropy
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
      batch_size: pictures per compiled call; made smaller where that saves padding.
      seed: decides targets and noise, per picture: no figure depends on the batch size.
    """

    target: str = "random"
    init: str = "image"
    quantize: bool = False
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("target", self.target, TARGETS),
            ("init", self.init, INITS),
        ):
            if value not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def targeted(self) -> bool:
        """Whether an attack aims at a label."""
        return self.target != "none"

    def program(self, model: Any, method: str) -> "Program":
        """What decides the compiled program of a method against a model."""
        return Program(model, method, self.target, self.init, self.quantize)


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

    Where the config asks for S numbers of steps, `result`, `verdict` and `uint8` have a
    leading axis S.

    Attributes:
      result: the attack's.
      targets: int32[B]; the true labels where the attack is untargeted.
      clean: whom the recogniser names on the originals.
      verdict: the verdict on the result.
      uint8: uint8[B, H, W, C], round(255 x̂).
    """

    result: AttackResult
    targets: jax.Array
    clean: Naming
    verdict: Verdict
    uint8: jax.Array


class Program(NamedTuple):
    """What decides the compiled program, beside shapes: the static argument of `run_batch`.

    Attributes:
      model: the recogniser's module.
      method: a key of `METHODS`.
      target: see `Protocol`.
      init: see `Protocol`.
      quantize: see `Protocol`.
    """

    model: Any
    method: str
    target: str = "random"
    init: str = "image"
    quantize: bool = False


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
    model, method, target, init, quantize = program
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch.position)
    target_key, init_key, attack_key = (fold_in_all(keys, use) for use in range(3))
    logits_fn = functools.partial(model.apply, variables)
    clean = logits_fn(batch.image)
    targeted = target != "none"
    targets = batch.label
    if targeted:
        targets = choose_targets(target, clean, batch.label, target_key)
    objective = cross_entropy(logits_fn, targets, targeted=targeted)
    initial = gaussian_noise(batch.image, init_key) if init == "noise" else None
    result = METHODS[method].function(
        objective, batch.image, config, attack_key, initial=initial
    )
    uint8 = jnp.round(255 * result.images).astype(jnp.uint8)
    if quantize:
        result = result._replace(images=jnp.asarray(LEVELS)[uint8])
    return Outcome(
        result=result,
        targets=targets,
        clean=name_faces(clean, batch.label),
        verdict=_judge_each(logits_fn, result.images, batch),
        uint8=uint8,
    )


def _judge_each(logits_fn: LogitsFn, images: jax.Array, batch: Batch) -> Verdict:
    """`judge` for [B, H, W, C], or for each of [S, B, H, W, C]."""
    if images.ndim == batch.image.ndim:
        return judge(logits_fn, images, batch)
    return jax.lax.map(lambda images: judge(logits_fn, images, batch), images)


run_batch = jax.jit(de_identify, static_argnames="program")


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
    logits_fn = functools.partial(program.model.apply, variables)

    def measure(config: Any) -> Figures:
        outcome = de_identify(variables, batch, config, key, program=program)
        return Figures(
            targets=outcome.targets,
            clean=outcome.clean,
            verdict=outcome.verdict,
            spent=outcome.result[1:],
            kept=_judge_each(logits_fn, jnp.asarray(LEVELS)[outcome.uint8], batch),
        )

    leaves = jax.tree.leaves(configs)
    return jax.vmap(measure, axis_size=len(leaves[0]) if leaves else 1)(configs)


@functools.partial(jax.jit, static_argnames="model")
def judge_uint8(variables: Any, images: jax.Array, batch: Batch, *, model: Any) -> Verdict:
    """`judge` for pictures uint8[B, H, W, C]."""
    logits_fn = functools.partial(model.apply, variables)
    return judge(logits_fn, jnp.asarray(LEVELS)[images], batch)


class Timing(NamedTuple):
    """Seconds of the wall clock.

    Attributes:
      compile_seconds: until the program was compiled.
      seconds: attacking, measuring and keeping, compilation aside.
    """

    compile_seconds: float
    seconds: float


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
) -> tuple[list[dict[str, Any]], Timing]:
    """De-identifies a data set.

    Args:
      model: the recogniser's module.
      variables: its weights.
      dataset: the pictures.
      method: a key of `METHODS`.
      config: the method's settings.
      protocol: everything else that decides the result.
      keep: called with every 8-bit picture, in several threads; what it returns is measured.
      progress: called with (pictures done, pictures in all).

    Returns:
      One record per picture, in the data set's order, and the timing.
    """
    size = loader.even_batch_size(len(dataset), protocol.batch_size)
    program = protocol.program(model, method)
    collect = functools.partial(_collect, model, variables, dataset, keep=keep)
    key = jax.random.key(protocol.seed)
    start = time.perf_counter()
    first = next(loader.in_order(dataset, size))
    config = jax.tree.map(jnp.float32, config)
    attack = run_batch.lower(variables, first, config, key, program=program).compile()
    compiled = time.perf_counter()
    records: list[dict[str, Any]] = []
    with ThreadPoolExecutor() as pool:
        # The next batch computes while the pictures of the last one are written.
        pending: tuple[Batch, Outcome] | None = None
        for batch in _and_none(loader.in_order(dataset, size)):
            following = (batch, attack(variables, batch, config, key)) if batch else None
            if pending:
                records += collect(pending, pool.map, targeted=protocol.targeted)
                progress(len(records), len(dataset))
            pending = following
    return records, Timing(compiled - start, time.perf_counter() - compiled)


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

    def named(pictures: jax.Array) -> Naming:
        return judge_uint8(variables, pictures, batch, model=model).naming

    if outcome.uint8.ndim == image.ndim:
        naming = named(outcome.uint8)
    else:
        moments = [named(pictures) for pictures in outcome.uint8]
        naming = jax.tree.map(lambda *each: jnp.stack(each), *moments)
    return Examples(*jax.device_get((outcome.uint8, naming, outcome.clean)))


def _and_none(batches: Iterator[Batch]) -> Iterator[Batch | None]:
    yield from batches
    yield None


def _collect(
    model: Any,
    variables: Any,
    dataset: FaceDataset,
    pending: tuple[Batch, Outcome],
    run_all: Callable,
    *,
    keep: Keep,
    targeted: bool,
) -> list[dict[str, Any]]:
    """Keeps the pictures of a computed batch, measures what was kept, and makes records."""
    batch, outcome = pending
    pictures = np.array(outcome.uint8)
    real = np.flatnonzero(batch.mask)
    indices = [int(batch.position[i]) for i in real]
    pictures[real] = list(run_all(keep, indices, [pictures[i] for i in real]))
    kept = judge_uint8(variables, pictures, batch, model=model)
    # The pictures stay on the device: only figures are fetched.
    figures = jax.device_get(
        Figures(outcome.targets, outcome.clean, outcome.verdict, outcome.result[1:], kept)
    )
    return records_of(figures, dataset, batch, targeted=targeted)
