"""Training of recognisers with optax: resumable, and the same weights however often stopped.

Every random choice hangs on the seed and on where training stands: the order of pictures on
the epoch, flips and dropout on the step.
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from deid_jax import checks
from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import sharding
from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.recognisers import predicting, storage
from deid_jax.recognisers.vggface_files import Pretrained
from deid_jax.runs import digest_of
from deid_jax.types import Batch

# The paper's L2 regulariser on the kernels of `model.regularised`: weight × Σ w².
L2_WEIGHT = 1e-3


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train: Adam, mean cross-entropy, L2 penalty, random horizontal flips.

    The learning rate is `learning_rate`, and falls linearly to zero in the last quarter.
    `flips` is off where labels tell left from right.

    Raises:
      InputError: an epoch or batch size below 1, or a learning rate that is negative or NaN.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 32
    seed: int = 0
    flips: bool = True

    def __post_init__(self) -> None:
        checks.count("epochs", self.epochs, least=1)
        checks.count("batch_size", self.batch_size, least=1)
        checks.finite_non_negative("learning_rate", self.learning_rate)


# What serves each model, and the data sets on which something else serves better.
RECIPES = {
    ("model_a", "any"): TrainConfig(epochs=24, learning_rate=1e-3),
    ("model_a", "synthetic"): TrainConfig(epochs=14, learning_rate=1e-3),
    ("vgg16", "any"): TrainConfig(epochs=40, learning_rate=1e-4),
}


def recipe(model: str, dataset: str) -> TrainConfig:
    """How to train a model on a data set, where nothing else is asked for."""
    return RECIPES.get((model, dataset), RECIPES[model, "any"])


class TrainState(NamedTuple):
    """Everything that training carries from step to step.

    Attributes:
      step: int32[], steps done.
      params: the weights that are trained: layer -> its parameters. Frozen layers are not
        among them.
      batch_stats: BatchNorm's running statistics.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    def variables(self, frozen: Mapping[str, Any]) -> dict[str, Any]:
        """The collections that `Module.apply` takes, frozen layers among them."""
        return {"params": {**self.params, **frozen}, "batch_stats": self.batch_stats}


class EpochRecord(NamedTuple):
    """One line of the training history; losses and accuracies are means over the epoch.

    Attributes:
      epoch: 1, 2, ...
      loss: cross-entropy plus L2 penalty.
      train_accuracy: share named rightly while training, dropout and flips on.
      test_accuracy: share named rightly of the held-out pictures after the epoch; NaN
        without such pictures.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float


# (steps done, steps in all, records of the epochs that are over).
Progress = Callable[[int, int, Sequence[EpochRecord]], None]


def no_progress(done: int, total: int, history: Sequence[EpochRecord]) -> None:
    """Reports nothing."""


def initial_state(
    model: Any,
    image_size: int,
    config: TrainConfig,
    frozen: Mapping[str, Any],
    mesh: Mesh | None = None,
) -> TrainState:
    """Weights drawn from the seed for all layers but the frozen ones, and a fresh optimiser.

    On a mesh every device draws what it is to hold, so that none needs room for all.
    """

    def draw(key_data: jax.Array) -> TrainState:
        example = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        variables = model.init(jax.random.wrap_key_data(key_data), example)
        params = {name: p for name, p in variables["params"].items() if name not in frozen}
        opt_state = optimiser(config.learning_rate, 1).init(params)
        return TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), opt_state)

    # Of the host: arrays of one device cannot be given to the devices of several processes.
    key_data = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    if mesh is None:
        return jax.jit(draw)(key_data)
    layouts = sharding.layouts(jax.eval_shape(draw, key_data), mesh)
    return jax.jit(draw, out_shardings=layouts)(key_data)


def l2_penalty(model: Any, params: Any) -> jax.Array:
    """1e-3 · Σ w² over the kernels that the model regularises."""
    kernels = [params[name]["kernel"] for name in model.regularised]
    return L2_WEIGHT * jnp.sum(jnp.stack([jnp.sum(jnp.square(k)) for k in kernels]))


def optimiser(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Adam, its learning rate falling linearly to zero in the last quarter of the steps."""
    falling = max(1, num_steps // 4)
    schedule = optax.linear_schedule(learning_rate, 0, falling, num_steps - falling)
    return optax.adam(schedule)


@functools.partial(
    jax.jit,
    static_argnames=("model", "learning_rate", "num_steps", "flips"),
    donate_argnums=0,
)
def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    frozen: Mapping[str, Any],
    *,
    model: Any,
    learning_rate: float,
    num_steps: int,
    flips: bool = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One of `num_steps` optimiser steps; returns the batch's mean loss and accuracy.

    `frozen` layers take part and stay as they are: no gradient is computed for them, nor for
    what lies before the first layer that is trained.
    """
    flip_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = batch.image
    if flips:
        flip = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        variables = state._replace(params=params).variables(frozen)
        logits, updated = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        penalty = l2_penalty(model, variables["params"])
        return losses.mean() + penalty, (updated["batch_stats"], logits)

    (loss, (batch_stats, logits)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    adam = optimiser(learning_rate, num_steps)
    updates, opt_state = adam.update(gradients, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.label)
    state = TrainState(state.step + 1, params, batch_stats, opt_state)
    return state, {"loss": loss, "accuracy": accuracy}


def train(
    model: Any,
    dataset: FaceDataset,
    config: TrainConfig,
    *,
    held_out: FaceDataset | None = None,
    pretrained: Pretrained | None = None,
    state_dir: Path | None = None,
    progress: Progress = no_progress,
    group: Group = ALONE,
    model_parallel: int = 1,
) -> tuple[dict[str, Any], list[EpochRecord]]:
    """Trains a recogniser, or whatever model's logits float32[B, ..., K] meet int32[B, ...].

    Every step's batch is divided over the devices of all processes, or over as many as divide
    it; the statistics of BatchNorm are the whole batch's.

    Args:
      model: a Flax module of `deid_jax.models`.
      dataset: what to train on; its examples' "label" may be an array, a label per head.
      config: how.
      held_out: pictures to measure on after every epoch.
      pretrained: layers to take from a file and leave as they are, bit for bit; the others are
        drawn from the seed and trained. None trains all.
      state_dir: where to keep the state between epochs; if one is there already, training
        goes on from it and ends in the weights of an uninterrupted run.
      progress: called after every step.
      group: the processes that train together; the first one keeps the state.
      model_parallel: over how many devices dense layers are divided.

    Returns:
      The trained collections as NumPy arrays, and the history with one record an epoch.

    Raises:
      InputError: `state_dir` holds the state of a training with other settings, or a
        damaged one, or cannot be written; or the batch size is no multiple of the devices of
        several processes.
    """
    mesh = _mesh(min(config.batch_size, len(dataset)), group, model_parallel)
    frozen = dict(pretrained.layers) if pretrained else {}
    keeper = None
    if state_dir:
        facts = _facts(model, dataset, config)
        facts["SHA-256 of pretrained weights"] = pretrained.sha256 if pretrained else None
        # Before the first program of all: with other settings it would be another one.
        group.check_same(digest_of(facts), "settings or pictures")
        keeper = _StateKeeper(state_dir, facts, group)
    state = initial_state(model, dataset.image_size, config, frozen, mesh)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    history: list[EpochRecord] = []
    if keeper:
        state, history = keeper.restore(state)
    state = sharding.place_variables(state, mesh)
    frozen = sharding.place_variables(frozen, mesh)
    key = sharding.place_everywhere(key, mesh)
    per_epoch = loader.num_full_batches(len(dataset), config.batch_size)
    num_steps = config.epochs * per_epoch
    step = functools.partial(
        train_step,
        model=model,
        learning_rate=config.learning_rate,
        num_steps=num_steps,
        flips=config.flips,
    )
    for epoch in range(len(history), config.epochs):
        steps = []
        for batch in _epoch(dataset, config, epoch, group):
            state, values = step(state, sharding.place_batch(batch, mesh), key, frozen)
            steps.append(values)
            progress(epoch * per_epoch + len(steps), num_steps, history)
        means = jax.tree.map(lambda *values: float(np.mean(jax.device_get(values))), *steps)
        variables = state.variables(frozen)
        held = (
            predicting.accuracy(model, variables, held_out, mesh=mesh)
            if held_out
            else float("nan")
        )
        history.append(EpochRecord(epoch + 1, means["loss"], means["accuracy"], held))
        if keeper:
            keeper.save(state, history)
    return sharding.to_host(state.variables(frozen)), history


def _epoch(
    dataset: FaceDataset, config: TrainConfig, epoch: int, group: Group
) -> Iterator[Batch]:
    """This process's part of every batch of an epoch."""
    order = int(np.random.default_rng([config.seed, epoch]).integers(2**31))
    part = (group.index, group.count)
    return loader.shuffled(dataset, config.batch_size, seed=order, part=part)


def _mesh(batch_size: int, group: Group, model_parallel: int) -> Mesh:
    """As many devices of every process as have equal parts of a batch."""
    if batch_size % group.count:
        raise InputError(
            f"batch_size must be a multiple of the {group.count} processes that train, got "
            f"{batch_size}: train with another number of processes, or another batch size"
        )
    own = sharding.narrowed(sharding.local_mesh(model_parallel), batch_size // group.count)
    return sharding.global_mesh(model_parallel, parts=sharding.num_parts(own))


def _facts(model: Any, dataset: FaceDataset, config: TrainConfig) -> dict[str, Any]:
    """What must be the same for a training to go on where it stopped."""
    return {
        "model": type(model).__name__,
        "classes": model.num_classes,
        "data set": dataset.name,
        "image size": dataset.image_size,
        "split": dataset.split,
        "crop": dataset.provenance.get("crop"),
        "checksum of picture names": zlib.crc32("\n".join(dataset.pictures).encode()),
        "checksum of the first picture": zlib.crc32(dataset.read(0).tobytes()),
        **dataclasses.asdict(config),
    }


class _StateKeeper:
    """Training state on disk: that of the last whole epoch, or of one not long ago.

    Keeping it takes at most a tenth of the time, so that not every epoch's is kept. All
    processes read it, and the first one writes.
    """

    # Times as long as keeping took, no epoch is kept.
    PAUSE = 9.0

    def __init__(self, path: Path, facts: Mapping[str, Any], group: Group):
        self._path = path
        self._facts = dict(facts)
        self._group = group
        self._not_before = 0.0

    def restore(self, state: TrainState) -> tuple[TrainState, list[EpochRecord]]:
        """The kept state and history, or `state` and none."""
        if not self._group.agree(storage.exists(self._path)):
            return state, []
        info = storage.load_info(self._path)
        theirs = info.get("facts", {})
        other = [
            f"{name} {theirs.get(name)}, not {value}"
            for name, value in self._facts.items()
            if theirs.get(name) != value
        ]
        if other:
            raise InputError(
                f"{self._path} holds an unfinished training with other settings "
                f"({'; '.join(other)}); finish it with these or delete it"
            )
        kept = storage.load_arrays(self._path, state)
        if kept is None:
            raise InputError(
                f"{self._path} holds an unfinished training of another architecture: delete it"
            )
        return kept, [EpochRecord(*record) for record in info["history"]]

    def save(self, state: TrainState, history: list[EpochRecord]) -> None:
        """Keeps the state after an epoch, if it is time to."""
        start = time.monotonic()
        if self._group.is_first and start >= self._not_before:
            info = {"facts": self._facts, "history": history}
            storage.save(self._path, sharding.to_host(state), info)
            end = time.monotonic()
            self._not_before = end + self.PAUSE * (end - start)
