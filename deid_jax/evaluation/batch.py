"""De-identifying and measuring one batch: how a method is run, and the compiled program.

Every image is measured twice: the attack's float32 result, and the 8-bit image that is saved.
This is the one place where attacks are compiled.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from deid_jax.arrays import fold_in_all, gaussian_noise
from deid_jax.attacks import METHODS
from deid_jax.attacks.quantizing import finish_on_grid
from deid_jax.devices import programs, sharding
from deid_jax.devices.precision import PRECISIONS, in_precision, products_in
from deid_jax.devices.sharding import BATCH, over_batch
from deid_jax.errors import InputError
from deid_jax.evaluation.measuring import (
    BatchMetrics,
    Effort,
    Measurements,
    Predictions,
    measure_both,
    measured,
    predictions_of,
)
from deid_jax.objectives import OBJECTIVES, LogitsFn
from deid_jax.pixels import LEVELS, on_grid, to_uint8
from deid_jax.types import AttackResult, Batch, Config, Model, PyTree, Variables

TARGETS = ("random", "least_likely", "runner_up", "none")
INITS = ("image", "noise")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a method is run, apart from its own settings.

    Attributes:
      target: which label an attack aims at: "random" (any but the true one, drawn per
        image), "least_likely" or "runner_up" (among the others, by the clean logits), or
        "none": untargeted.
      init: the first iterate: "image", or "noise", N(0.5, 0.25²) clipped to [0, 1].
      quantize: round to 8-bit images without losing success (`finish_on_grid`), so that the
        float and 8-bit metrics agree; None: the method's default.
      batch_size: images per compiled call; made smaller where that saves padding or the
        device lacks the memory. None: what suits the device.
      seed: decides targets and noise, per image: nothing depends on the batch size.
      precision: of an attack's gradients; see `deid_jax.devices.precision`.
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


def choose_targets(
    kind: str, logits: jax.Array, labels: jax.Array, key: jax.Array
) -> jax.Array:
    """The label int32[B] that each attack aims at; never the true one.

    Args:
      kind: of `TARGETS`, but not "none".
      logits: float32[B, K] on the originals.
      labels: int32[B], the true labels.
      key: key[B].
    """
    num_classes = logits.shape[-1]
    if kind == "random":
        draw = functools.partial(jax.random.randint, shape=(), minval=1, maxval=num_classes)
        return (labels + jax.vmap(draw)(key)) % num_classes
    true = jax.nn.one_hot(labels, num_classes, dtype=bool)
    if kind == "least_likely":
        return jnp.argmin(jnp.where(true, jnp.inf, logits), axis=-1).astype(jnp.int32)
    return jnp.argmax(jnp.where(true, -jnp.inf, logits), axis=-1).astype(jnp.int32)


class BatchResult(NamedTuple):
    """A de-identified batch and its metrics.

    `targets` are int32[B], the true labels where the attack is untargeted; `clean` holds the
    predictions on the originals, and `uint8` is round(255 x̂), uint8[B, H, W, C]. If the config
    asks for S numbers of steps, `result`, both metrics and `uint8` have a leading axis S.
    """

    result: AttackResult
    targets: jax.Array
    clean: Predictions
    float_result: Measurements
    uint8_result: Measurements
    uint8: jax.Array

    def metrics(self) -> BatchMetrics:
        """Everything but the images."""
        effort = Effort(*self.result[1:])
        return BatchMetrics(
            self.targets, self.clean, self.float_result, effort, self.uint8_result
        )


class BatchProgram(NamedTuple):
    """The static argument of `run_batch`: with the shapes, it decides the compiled program.

    Its settings are those of `Protocol`; a batch is divided over `mesh`.
    """

    model: Model
    method: str
    target: str
    init: str
    quantize: bool
    precision: str
    mesh: Mesh


def de_identify(
    variables: Variables, batch: Batch, config: Config, key: jax.Array, *, program: BatchProgram
) -> BatchResult:
    """De-identifies and measures one batch; `run_batch` and `run_batch_many` compile it.

    Args:
      variables: the recogniser's weights; an argument, so as not to become program constants.
      batch: the images.
      config: the method's settings; a new value of a leaf needs no recompilation.
      key: the run's key; image i uses fold_in(key, i).
      program: everything static.
    """
    each, several = PartitionSpec(BATCH), PartitionSpec(BATCH)
    if isinstance(getattr(config, "num_steps", None), tuple):
        several = PartitionSpec(None, BATCH)
    alone = functools.partial(_de_identify, program=program)
    # mypy expects arrays, but a tree of specs takes their place.
    results = BatchResult(several, each, each, several, several, several)  # type: ignore[arg-type]
    divided = over_batch(alone, program.mesh, (False, True, False, False), results)
    return divided(variables, batch, config, key)


def _de_identify(
    variables: Variables, batch: Batch, config: Config, key: jax.Array, *, program: BatchProgram
) -> BatchResult:
    """`de_identify` for the part of the batch on one device."""
    model, method, target, init, quantize, precision, _ = program
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch.position)
    target_key, init_key, attack_key, finish_key = (fold_in_all(keys, n) for n in range(4))
    # Results are measured in float32, whatever the attack's precision.
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

    # Entries are [B] or [S, B].
    several = result.images.ndim > batch.image.ndim
    result, (float_result, uint8_result) = (
        jax.lax.map(conclude, result) if several else conclude(result)
    )
    return BatchResult(
        result=result,
        targets=targets,
        clean=predictions_of(clean, batch.label),
        float_result=float_result,
        uint8_result=uint8_result,
        uint8=to_uint8(result.images),
    )


def _exactly(logits_fn: LogitsFn) -> LogitsFn:
    """The same function in true float32, which accelerators use only on request."""

    def exact(images: jax.Array) -> jax.Array:
        with products_in("float32"):
            return logits_fn(images)

    return exact


run_batch = jax.jit(de_identify, static_argnames="program")
# Results reuse the memory of the batch.
run_donated = jax.jit(de_identify, static_argnames="program", donate_argnames="batch")


@functools.partial(jax.jit, static_argnames="program")
def run_batch_many(
    variables: Variables,
    batch: Batch,
    configs: Config,
    key: jax.Array,
    *,
    program: BatchProgram,
) -> BatchMetrics:
    """Runs `de_identify` under `vmap` over C settings: metrics only, no images.

    `configs` is the method's config with leaves [C].

    Returns:
      Entries [C, B]; for results and effort [C, S, B] if the config asks for S numbers of
      steps.
    """

    def measure(config: Config) -> BatchMetrics:
        return de_identify(variables, batch, config, key, program=program).metrics()

    leaves = jax.tree.leaves(configs)
    return jax.vmap(measure, axis_size=len(leaves[0]) if leaves else 1)(configs)


@functools.partial(jax.jit, static_argnames="model")
def measure_float(
    variables: Variables, images: jax.Array, batch: Batch, *, model: Model
) -> Measurements:
    """Measures images float32[B, H, W, C] in [0, 1] by their logits in true float32."""
    return measured(images, _exactly(functools.partial(model.apply, variables))(images), batch)


@functools.partial(jax.jit, static_argnames="model")
def measure_uint8(
    variables: Variables, images: jax.Array, batch: Batch, *, model: Model
) -> Measurements:
    """`measure_float` for images uint8[B, H, W, C]."""
    return measure_float(variables, jnp.asarray(LEVELS)[images], batch, model=model)


@dataclasses.dataclass(frozen=True)
class PlacedProgram:
    """A compiled program and its arguments on the devices, except the batch.

    `jitted` is `run_batch`, `run_donated` or `run_batch_many`, for which `config` is a stack.
    """

    jitted: jax.stages.Wrapped
    program: BatchProgram
    variables: Variables
    config: Config
    key: jax.Array
    image_size: int

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.program.mesh

    def compiled(self, size: int) -> jax.stages.Compiled:
        """The program for `size` images; compiled once in this process."""
        batch = sharding.batch_layout(batch_shapes(size, self.image_size), self.mesh)
        return programs.compile_once(
            self.jitted, self.variables, batch, self.config, self.key, program=self.program
        )

    def at(self, config: Config) -> "PlacedProgram":
        """The same program with other settings, or another stack of them."""
        floats = jax.tree.map(jnp.float32, config)
        return dataclasses.replace(self, config=sharding.place_everywhere(floats, self.mesh))

    def smaller_to_fit(self, size: int, memory: int | None, *, settings: int = 1) -> int | None:
        """A smaller number of images that should fit into memory; None if `size` fits.

        The number of stacked settings multiplies the images on a device; without `memory`, in
        bytes, what is free decides. See `programs.smaller_to_fit`.
        """
        limit = programs.free_bytes() if memory is None else memory
        least = sharding.num_parts(self.mesh)
        compiled = self.compiled(size)
        return programs.smaller_to_fit(size * settings, compiled, limit, least=least)

    def __call__(self, batch: Batch) -> PyTree:
        """The result of `jitted` for a batch."""
        placed = sharding.place_batch(batch, self.mesh)
        return self.compiled(len(batch.label))(self.variables, placed, self.config, self.key)


def batch_shapes(size: int, image_size: int) -> Batch:
    """A batch of shapes and dtypes only, without data."""
    return jax.eval_shape(
        lambda: Batch(
            image=jnp.zeros((size, image_size, image_size, 3)),
            label=jnp.zeros(size, jnp.int32),
            position=jnp.zeros(size, jnp.int32),
            mask=jnp.zeros(size, bool),
        )
    )
