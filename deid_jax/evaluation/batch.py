"""One batch, de-identified and measured: the protocol, and the program that compiles from it.

Every picture is measured twice: the attack's float32 result, and the 8-bit picture that is
kept. This is where attacks meet `jit`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from deid_jax.arrays import fold_in_all, gaussian_noise
from deid_jax.attacks import METHODS
from deid_jax.attacks.quantizing import finish_on_grid
from deid_jax.devices.precision import PRECISIONS, in_precision, products_in
from deid_jax.devices.sharding import BATCH, over_batch
from deid_jax.errors import InputError
from deid_jax.evaluation.measuring import (
    BatchMetrics,
    Effort,
    Measurements,
    Predictions,
    measure_both,
    measure_images,
    predict,
)
from deid_jax.objectives import OBJECTIVES, LogitsFn
from deid_jax.pixels import LEVELS, on_grid, to_uint8
from deid_jax.types import AttackResult, Batch

TARGETS = ("random", "least_likely", "runner_up", "none")
INITS = ("image", "noise")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a method is run, beside its own settings.

    Attributes:
      target: which label an attack aims at: "random" (any but the true one, drawn per
        picture), "least_likely" or "runner_up" (among the others, by the clean logits), or
        "none": untargeted.
      init: the first iterate: "image", or "noise", N(0.5, 0.25²) clipped to [0, 1].
      quantize: finish on the 8-bit grid with success kept (`finish_on_grid`), so that the
        float and 8-bit figures agree; None: where the method does so by itself.
      batch_size: pictures per compiled call; made smaller where that saves padding or the
        device lacks the memory. None: what suits the device.
      seed: decides targets and noise, per picture: no figure depends on the batch size.
      precision: what an attack's gradients are computed in; see `deid_jax.devices.precision`.
    """

    target: str = "random"
    init: str = "image"
    quantize: bool | None = None
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

    def program(self, model: Any, method: str, mesh: Mesh | None = None) -> "Program":
        """What decides the compiled program of a method against a model, on some devices."""
        quantize = METHODS[method].quantizes if self.quantize is None else self.quantize
        return Program(model, method, self.target, self.init, quantize, self.precision, mesh)


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

    Where the config asks for S numbers of steps, `result`, `float_result`,
    `uint8_result` and `uint8` have a leading axis S.

    Attributes:
      result: the attack's.
      targets: int32[B]; the true labels where the attack is untargeted.
      clean: predictions on the originals.
      float_result: measured of `result`.
      uint8_result: measured of `uint8`.
      uint8: uint8[B, H, W, C], round(255 x̂).
    """

    result: AttackResult
    targets: jax.Array
    clean: Predictions
    float_result: Measurements
    uint8_result: Measurements
    uint8: jax.Array

    def metrics(self) -> BatchMetrics:
        """All but the images."""
        effort = Effort(*self.result[1:])
        return BatchMetrics(
            self.targets, self.clean, self.float_result, effort, self.uint8_result
        )


class Program(NamedTuple):
    """What decides the compiled program, beside shapes: the static argument of `run_batch`.

    Attributes:
      model: the recogniser's module.
      method: a key of `METHODS`.
      target: see `Protocol`.
      init: see `Protocol`.
      quantize: whether results are finished on the 8-bit grid.
      precision: see `Protocol`.
      mesh: the devices over which a batch is divided; None: where its arrays are.
    """

    model: Any
    method: str
    target: str = "random"
    init: str = "image"
    quantize: bool = False
    precision: str = "float32"
    mesh: Mesh | None = None


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
    each, several = PartitionSpec(BATCH), PartitionSpec(BATCH)
    if isinstance(getattr(config, "num_steps", None), tuple):
        several = PartitionSpec(None, BATCH)
    results: Any = (several, each, each, several, several, several)
    alone = functools.partial(_de_identify, program=program)
    divided = over_batch(alone, program.mesh, (False, True, False, False), Outcome(*results))
    return divided(variables, batch, config, key)


def _de_identify(
    variables: Any, batch: Batch, config: Any, key: jax.Array, *, program: Program
) -> Outcome:
    """`de_identify` of what one device has of the batch."""
    model, method, target, init, quantize, precision, _ = program
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch.position)
    target_key, init_key, attack_key, finish_key = (fold_in_all(keys, n) for n in range(4))
    # Whatever the attack computes in, the recogniser that judges it is the one of float32.
    logits_fn = _exactly(functools.partial(model.apply, variables))
    clean = logits_fn(batch.image)
    targeted = target != "none"
    targets = batch.label
    if targeted:
        targets = choose_targets(target, clean, batch.label, target_key)
    attacked = functools.partial(in_precision(model, precision).apply, variables)
    loss_of = functools.partial(
        OBJECTIVES[METHODS[method].objective], labels=targets, targeted=targeted
    )
    initial = gaussian_noise(batch.image, init_key) if init == "noise" else None
    with products_in(precision):
        result = METHODS[method].function(
            loss_of(attacked),
            batch.image,
            METHODS[method].with_quantize(config, quantize),
            attack_key,
            initial=initial,
        )
    finish = functools.partial(finish_on_grid, loss_of(logits_fn), batch.image, key=finish_key)

    def conclude(
        result: AttackResult,
    ) -> tuple[AttackResult, tuple[Measurements, Measurements]]:
        result = finish(result) if quantize else result
        return result, measure_both(logits_fn, result.images, on_grid(result.images), batch)

    # Entries of [B], or for each of [S, B].
    several = result.images.ndim > batch.image.ndim
    result, (float_result, uint8_result) = (
        jax.lax.map(conclude, result) if several else conclude(result)
    )
    return Outcome(
        result=result,
        targets=targets,
        clean=predict(clean, batch.label),
        float_result=float_result,
        uint8_result=uint8_result,
        uint8=to_uint8(result.images),
    )


def _exactly(logits_fn: LogitsFn) -> LogitsFn:
    """The same in true float32, which accelerators do only when asked."""

    def exact(images: jax.Array) -> jax.Array:
        with products_in("float32"):
            return logits_fn(images)

    return exact


run_batch = jax.jit(de_identify, static_argnames="program")
# The results take the place of the pictures.
run_donated = jax.jit(de_identify, static_argnames="program", donate_argnames="batch")


@functools.partial(jax.jit, static_argnames="program")
def run_batch_many(
    variables: Any, batch: Batch, configs: Any, key: jax.Array, *, program: Program
) -> BatchMetrics:
    """`vmap` of `de_identify` over C settings: metrics only, no images.

    Args:
      variables: see `de_identify`.
      batch: see `de_identify`.
      configs: the method's config with leaves of [C].
      key: see `de_identify`.
      program: everything static.

    Returns:
      Entries of [C, B]; of results and effort [C, S, B] where the config asks for S numbers
      of steps.
    """

    def measure(config: Any) -> BatchMetrics:
        return de_identify(variables, batch, config, key, program=program).metrics()

    leaves = jax.tree.leaves(configs)
    return jax.vmap(measure, axis_size=len(leaves[0]) if leaves else 1)(configs)


@functools.partial(jax.jit, static_argnames="model")
def measure_float(
    variables: Any, images: jax.Array, batch: Batch, *, model: Any
) -> Measurements:
    """`measure_images` in true float32 for pictures float32[B, H, W, C] in [0, 1]."""
    return measure_images(_exactly(functools.partial(model.apply, variables)), images, batch)


@functools.partial(jax.jit, static_argnames="model")
def measure_uint8(
    variables: Any, images: jax.Array, batch: Batch, *, model: Any
) -> Measurements:
    """`measure_float` for pictures uint8[B, H, W, C]."""
    return measure_float(variables, jnp.asarray(LEVELS)[images], batch, model=model)
