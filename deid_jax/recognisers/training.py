"""Training of recognisers with optax; resuming after interruptions gives the same weights.

Every random choice depends only on the seed and the progress: the order of images on the epoch,
flips and dropout on the step.
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from deid_jax.data import FaceDataset, loader
from deid_jax.devices import sharding
from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.models import Network, create_model
from deid_jax.recognisers import checkpoints, predicting, storage
from deid_jax.recognisers.checkpoints import CheckpointInfo, Recogniser
from deid_jax.recognisers.recipes import TrainConfig, TrainingData
from deid_jax.recognisers.vggface_files import Pretrained
from deid_jax.runs import digest_of
from deid_jax.types import Batch, Json, PyTree, Variables

# The paper's L2 regulariser on the kernels of `model.regularised`: weight × Σ w².
L2_WEIGHT = 1e-3


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One line of the training history; epochs count from 1.

    Loss (cross-entropy plus L2 penalty) and training accuracy are means over the epoch, with
    dropout and flips; the test accuracy, after it, is NaN without held-out images.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float


# (steps done, steps in all, records of the finished epochs).
TrainingProgress = Callable[[int, int, Sequence[EpochRecord]], None]


class TrainState(NamedTuple):
    """What training carries from step to step; `params` are without the frozen layers."""

    step: jax.Array
    params: Variables
    batch_stats: Variables
    opt_state: PyTree

    def variables(self, frozen: Variables) -> dict[str, Variables]:
        """The collections for `Module.apply`, including frozen layers."""
        return {"params": {**self.params, **frozen}, "batch_stats": self.batch_stats}


def fit(
    model_name: str,
    data: TrainingData,
    config: TrainConfig,
    path: Path,
    *,
    pretrained: Pretrained | None = None,
    progress: TrainingProgress | None = None,
    group: Group = ALONE,
    model_parallel: int = 1,
) -> tuple[Recogniser, list[EpochRecord]]:
    """Trains a recogniser, saves it at `path`, and returns it with the history.

    During training, its state is kept next to `path`; an interrupted training resumes from
    there and ends with the same weights.

    The other arguments are those of `train`. The checkpoint includes pretrained layers, and its
    provenance names their file. All processes return once it is written.

    Raises:
      InputError: as for `create_model` and `train`, or training diverged.
    """
    faces, held_out, size = data.train, data.held_out, data.train.image_size
    model = create_model(model_name, num_classes=len(faces.persons), image_size=size)
    state_dir = checkpoints.state_dir(path)
    variables, history = train(
        model,
        data,
        config,
        pretrained=pretrained,
        state_dir=state_dir,
        progress=progress,
        group=group,
        model_parallel=model_parallel,
    )
    if not np.isfinite(history[-1].loss):
        if group.is_first:
            storage.remove(state_dir)
        raise InputError(
            f"training diverged: the loss is {history[-1].loss}; learning_rate must be less "
            f"than {config.learning_rate:g}"
        )
    mesh = sharding.global_mesh(model_parallel)
    accuracy = {faces.split: predicting.accuracy(model, variables, faces, mesh=mesh)}
    if held_out:
        accuracy[held_out.split] = history[-1].test_accuracy
    source: dict[str, Json] = {"pretrained": {**pretrained.source}} if pretrained else {}
    info = CheckpointInfo(
        model=model_name,
        persons=faces.persons,
        image_size=size,
        dataset=faces.name,
        split=faces.split,
        seed=config.seed,
        pictures=faces.image_names,
        provenance={**faces.provenance, **source},
        training=dataclasses.asdict(config),
        accuracy=accuracy,
    )
    recogniser = Recogniser(model, variables, info)
    if group.is_first:
        recogniser.save(path)
        storage.remove(state_dir)
    group.wait()
    return recogniser, history


def train(
    model: Network,
    data: TrainingData,
    config: TrainConfig,
    *,
    pretrained: Pretrained | None = None,
    state_dir: Path | None = None,
    progress: TrainingProgress | None = None,
    group: Group = ALONE,
    model_parallel: int = 1,
) -> tuple[dict[str, Variables], list[EpochRecord]]:
    """Trains a network whose logits float32[B, ..., K] match labels int32[B, ...].

    Every step's batch is divided over the devices of all processes, or over as many as divide
    it evenly; the statistics of BatchNorm are those of the whole batch.

    Args:
      model: the network.
      data: the images; held-out ones are never trained on. A "label" may be an array, one per
        head.
      config: how to train.
      pretrained: layers to take from a file and freeze, bit for bit; the others are
        initialised from the seed and trained. None trains all.
      state_dir: where to keep the state between epochs; an interrupted training resumes from
        it.
      progress: called after every step.
      group: the processes that train together; the first one keeps the state.
      model_parallel: the number of devices over which dense layers are divided.

    Returns:
      The trained collections as NumPy arrays, and the history with one record per epoch.

    Raises:
      InputError: `state_dir` has a damaged state or one from other settings, or cannot be
        written; or the batch size is not a multiple of the number of processes.
    """
    faces, held_out = data.train, data.held_out
    mesh = _mesh(min(config.batch_size, len(faces)), group, model_parallel)
    frozen = dict(pretrained.layers) if pretrained else {}
    keeper = None
    if state_dir:
        facts = _facts(model, faces, config)
        facts["SHA-256 of pretrained weights"] = pretrained.sha256 if pretrained else None
        # Before anything is compiled: other settings would give another program.
        group.check_same(digest_of(facts), "settings or images")
        keeper = _StateKeeper(state_dir, facts, group)
    state = initial_state(model, faces.image_size, config, frozen, mesh)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    history: list[EpochRecord] = []
    if keeper:
        state, history = keeper.restore(state)
    state = sharding.place_variables(state, mesh)
    frozen = sharding.place_variables(frozen, mesh)
    key = sharding.place_everywhere(key, mesh)
    per_epoch = loader.num_full_batches(len(faces), config.batch_size)
    num_steps = config.epochs * per_epoch
    step = functools.partial(
        train_step,
        model=model,
        learning_rate=config.learning_rate,
        num_steps=num_steps,
        flips=config.flips,
    )
    part = (group.index, group.count)
    for epoch in range(len(history), config.epochs):
        steps = []
        order = int(np.random.default_rng([config.seed, epoch]).integers(2**31))
        for batch in loader.shuffled(faces, config.batch_size, seed=order, part=part):
            state, values = step(state, sharding.place_batch(batch, mesh), key, frozen)
            steps.append(values)
            if progress:
                progress(epoch * per_epoch + len(steps), num_steps, history)
        means = jax.tree.map(lambda *values: float(np.mean(jax.device_get(values))), *steps)
        held = float("nan")
        if held_out:
            held = predicting.accuracy(model, state.variables(frozen), held_out, mesh=mesh)
        history.append(EpochRecord(epoch + 1, means["loss"], means["accuracy"], held))
        if keeper:
            keeper.save(state, history)
    return sharding.to_host(state.variables(frozen)), history


def initial_state(
    model: Network,
    image_size: int,
    config: TrainConfig,
    frozen: Variables,
    mesh: Mesh | None = None,
) -> TrainState:
    """The initial state: random weights for all layers that are not frozen, a new optimiser.

    The weights are drawn from the seed. On a mesh, every device draws only its own part.
    """

    def draw(key_data: jax.Array) -> TrainState:
        example = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        variables = model.init(jax.random.wrap_key_data(key_data), example)
        params = {name: p for name, p in variables["params"].items() if name not in frozen}
        opt_state = optimiser(config.learning_rate, 1).init(params)
        return TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), opt_state)

    # On the host: arrays on one device cannot be passed to the devices of several processes.
    key_data = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    if mesh is None:
        return jax.jit(draw)(key_data)
    layouts = sharding.layouts(jax.eval_shape(draw, key_data), mesh)
    return jax.jit(draw, out_shardings=layouts)(key_data)


def kernel_penalty(model: Network, params: Variables) -> jax.Array:
    """The L2 penalty, 1e-3 · Σ w² over the kernels that the model regularises."""
    kernels = [params[name]["kernel"] for name in model.regularised]
    return L2_WEIGHT * jnp.sum(jnp.stack([jnp.sum(jnp.square(k)) for k in kernels]))


def optimiser(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Adam; the learning rate falls linearly to zero in the last quarter of the steps."""
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
    frozen: Variables,
    *,
    model: Network,
    learning_rate: float,
    num_steps: int,
    flips: bool = True,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one of `num_steps` optimiser steps; returns the batch's mean loss and accuracy.

    No gradient is computed for `frozen` layers, nor for anything before the first layer that
    is trained.
    """
    flip_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = batch.image
    if flips:
        flip = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)

    def loss_fn(params: Variables) -> tuple[jax.Array, tuple[Variables, jax.Array]]:
        variables = state._replace(params=params).variables(frozen)
        logits, updated = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        penalty = kernel_penalty(model, variables["params"])
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


def _mesh(batch_size: int, group: Group, model_parallel: int) -> Mesh:
    """As many devices of every process as can have equal parts of a batch."""
    if batch_size % group.count:
        raise InputError(
            f"batch_size must be a multiple of the {group.count} processes that train, got "
            f"{batch_size}: train with another number of processes, or another batch size"
        )
    own = sharding.narrowed(sharding.local_mesh(model_parallel), batch_size // group.count)
    return sharding.global_mesh(model_parallel, parts=sharding.num_parts(own))


def _facts(model: Network, faces: FaceDataset, config: TrainConfig) -> dict[str, Json]:
    """Everything that must be the same for an interrupted training to resume."""
    return {
        "model": type(model).__name__,
        "classes": model.num_classes,
        "data set": faces.name,
        "image size": faces.image_size,
        "split": faces.split,
        "crop": faces.provenance.get("crop"),
        "checksum of image names": zlib.crc32("\n".join(faces.image_names).encode()),
        "checksum of the first image": zlib.crc32(faces.read(0).tobytes()),
        **dataclasses.asdict(config),
    }


class _StateKeeper:
    """Training state on disk: that of the last complete epoch, or of a recent one.

    Saving takes at most a tenth of the time. All processes read it; the first one writes it.
    """

    # The pause after saving, as a multiple of the time that it took.
    PAUSE = 9.0

    def __init__(self, path: Path, facts: Mapping[str, Json], group: Group):
        self._path = path
        self._facts = dict(facts)
        self._group = group
        self._not_before = 0.0

    def restore(self, state: TrainState) -> tuple[TrainState, list[EpochRecord]]:
        """The saved state and history; `state` and an empty history if there is none."""
        if not self._group.agree(storage.exists(self._path)):
            return state, []
        info = storage.load_description(self._path)
        theirs = info["facts"]
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
        return kept, [EpochRecord(**record) for record in info["history"]]

    def save(self, state: TrainState, history: Sequence[EpochRecord]) -> None:
        """Saves the state after an epoch, if the pause is over."""
        start = time.monotonic()
        if self._group.is_first and start >= self._not_before:
            records: list[Json] = [dataclasses.asdict(record) for record in history]
            info: dict[str, Json] = {"facts": self._facts, "history": records}
            storage.save(self._path, sharding.to_host(state), info)
            end = time.monotonic()
            self._not_before = end + self.PAUSE * (end - start)
