"""Trained recognisers: a model with its weights, from a checkpoint or trained now."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deid_jax.data import DataOptions, FaceDataset, load_dataset
from deid_jax.devices import sharding
from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.models import create_model
from deid_jax.recognisers import checkpointing, predicting, storage, training
from deid_jax.recognisers.checkpointing import CheckpointInfo
from deid_jax.recognisers.vggface_files import Pretrained

CHECKPOINTS = Path("checkpoints")


class Recogniser(NamedTuple):
    """A model that knows persons.

    Attributes:
      model: Flax module; `model.apply(variables, images)` gives logits.
      variables: its weights; NumPy arrays as `load` and `fit` give them.
      info: what it was made from.
    """

    model: Any
    variables: Any
    info: CheckpointInfo

    def describe(self) -> dict[str, Any]:
        """What it was made from, and the SHA-256 of its weights: JSON-able."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.variables):
            digest.update(np.asarray(leaf).tobytes())
        return {**self.info.summary(), "weights": digest.hexdigest()}


def default_path(model: str, dataset: str, options: DataOptions) -> Path:
    """Where the checkpoint of these settings is kept: one folder under `checkpoints/`."""
    parts = [model.replace(":", "."), dataset]
    if options.data_dir:
        parts.append(Path(options.data_dir).resolve().name)
    parts += [f"{options.image_size}px", f"seed{options.seed}"]
    if options.crop != DataOptions.crop:
        parts.append(options.crop)
    if options.split == "all":
        parts.append("all")
    return CHECKPOINTS / "-".join(parts)


def train_config(
    model: str,
    dataset: str,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> training.TrainConfig:
    """The recipe for a model and a data set, with what is given in place of its values."""
    given: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate}
    return dataclasses.replace(
        training.recipe(model, dataset),
        batch_size=batch_size,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )


def fit(
    model_name: str,
    dataset: FaceDataset,
    config: training.TrainConfig,
    path: Path,
    *,
    held_out: FaceDataset | None = None,
    pretrained: Pretrained | None = None,
    progress: training.Progress = training.no_progress,
    group: Group = ALONE,
    model_parallel: int = 1,
) -> tuple[Recogniser, list[training.EpochRecord]]:
    """Trains a recogniser and keeps it at `path`.

    While it trains, its state is kept beside `path`; a training that was stopped goes on
    from there and ends in the same weights.

    Args:
      model_name: a key of `deid_jax.models.MODELS`.
      dataset: the pictures to train on.
      config: how to train.
      path: the checkpoint to write.
      held_out: pictures to measure on that training never sees.
      pretrained: layers of the model to take from a file and leave as they are; the checkpoint
        holds them, and its provenance names the file and its SHA-256.
      progress: see `deid_jax.recognisers.training.train`.
      group: the processes that train together; all return once the checkpoint is there.
      model_parallel: see `deid_jax.recognisers.training.train`.

    Returns:
      The recogniser and the history of its training.

    Raises:
      InputError: the model cannot take these pictures, an unfinished training of other
        settings is in the way, or training diverged.
    """
    classes, size = len(dataset.persons), dataset.image_size
    model = create_model(model_name, num_classes=classes, image_size=size)
    state_dir = checkpointing.state_dir(path)
    variables, history = training.train(
        model,
        dataset,
        config,
        held_out=held_out,
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
    accuracy = {dataset.split: predicting.accuracy(model, variables, dataset, mesh=mesh)}
    if held_out:
        accuracy[held_out.split] = history[-1].test_accuracy
    info = _describe(model_name, dataset, config, accuracy)
    if pretrained:
        provenance = {**info.provenance, "pretrained": pretrained.source}
        info = dataclasses.replace(info, provenance=provenance)
    if group.is_first:
        checkpointing.save(path, variables, info)
        storage.remove(state_dir)
    group.wait()
    return Recogniser(model, variables, info), history


def _describe(
    model_name: str,
    dataset: FaceDataset,
    config: training.TrainConfig,
    accuracy: dict[str, float],
) -> CheckpointInfo:
    return CheckpointInfo(
        model=model_name,
        persons=dataset.persons,
        image_size=dataset.image_size,
        dataset=dataset.name,
        split=dataset.split,
        seed=config.seed,
        pictures=dataset.pictures,
        provenance=dict(dataset.provenance),
        training=dataclasses.asdict(config),
        accuracy=accuracy,
    )


def load_info(path: Path, model: str, dataset: str, image_size: int) -> CheckpointInfo:
    """Reads what a checkpoint was made from, before any picture or weight is read.

    Raises:
      InputError: it is missing, damaged, or made for another model, data set or image size.
    """
    info = checkpointing.load_info(path)
    checkpointing.check_made_for(
        path, info, model=model, dataset=dataset, image_size=image_size
    )
    return info


def load(path: Path, model_name: str, dataset: FaceDataset) -> Recogniser:
    """Reads a checkpoint that must fit a model's name and a data set.

    Raises:
      InputError: it is missing, broken, or made for something else.
    """
    info = load_info(path, model_name, dataset.name, dataset.image_size)
    checkpointing.check_fits(path, info, dataset)
    return Recogniser(info.create_model(), checkpointing.load_variables(path, info), info)


def load_recogniser(path: str | Path, dataset: FaceDataset) -> Recogniser:
    """Reads a checkpoint, whatever its model, that must fit a data set; weights on the device.

    Raises:
      InputError: it is missing, broken, or made for something else.
    """
    read = load(Path(path), checkpointing.load_info(Path(path)).model, dataset)
    return read._replace(variables=jax.device_put(read.variables))


def load_train_and_test(
    name: str, options: DataOptions, *, test: FaceDataset | None = None
) -> tuple[FaceDataset, FaceDataset | None]:
    """What to train on and what to hold out, by `options.split`.

    Args:
      name: a key of `deid_jax.data.DATASETS`.
      options: what to load, for training.
      test: the test split, if it is loaded already.

    Raises:
      InputError: the split is "test": training on it would leave nothing to test on.
    """
    if options.split == "test":
        raise InputError("split must be train or all for training, got test")
    dataset = load_dataset(name, options)
    if options.split == "all":
        return dataset, None
    return dataset, test or load_dataset(name, dataclasses.replace(options, split="test"))
