"""Checkpoints of trained recognisers: weights, and what is needed to use them rightly.

A checkpoint is a folder of `deid_jax.recognisers.storage`: its arrays are the Flax collections, its
description a `CheckpointInfo`.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.errors import InputError
from deid_jax.models import create_model
from deid_jax.recognisers import storage
from deid_jax.recognisers.training import TrainConfig

# Facts of a data set's provenance that decide what a class or a picture is.
_IDENTIFYING = ("persons_seed", "crop")


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint was made from.

    Attributes:
      model: name in `deid_jax.models.MODELS`.
      persons: class names, in the order of the logits.
      image_size: height and width in pixels.
      dataset: name in `deid_jax.data.DATASETS`.
      split: what it was trained on, "train" or "all".
      seed: the seed of split, initialisation and training.
      pictures: "person/name" of every picture it was trained on.
      provenance: facts of the data set (crop, selection, ...).
      training: epochs, learning rate, batch size.
      accuracy: split -> share of pictures named rightly when training ended.
    """

    model: str
    persons: tuple[str, ...]
    image_size: int
    dataset: str
    split: str
    seed: int
    pictures: tuple[str, ...]
    provenance: Mapping[str, Any]
    training: Mapping[str, Any]
    accuracy: Mapping[str, float]

    def create_model(self) -> Any:
        """The Flax module that the weights belong to."""
        return create_model(
            self.model, num_classes=len(self.persons), image_size=self.image_size
        )

    def summary(self) -> dict[str, Any]:
        """All of it but the long list of pictures."""
        facts = dataclasses.asdict(self)
        del facts["pictures"]
        return facts


def state_dir(path: Path) -> Path:
    """Where the state of an unfinished training of the checkpoint at `path` is kept."""
    return path.with_name(path.name + ".unfinished")


def is_same_training(
    path: Path, model: str, dataset: str, options: DataOptions, config: TrainConfig
) -> bool:
    """Whether a checkpoint at `path` came of these very settings: training repeats it."""
    if not storage.exists(path):
        return False
    info = load_info(path)
    return (info.model, info.dataset, info.image_size, info.split, info.training) == (
        model,
        dataset,
        options.image_size,
        options.split,
        dataclasses.asdict(config),
    )


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses a path at which no checkpoint may be written; changes nothing.

    Raises:
      InputError: something is there that is no checkpoint, or a checkpoint and `overwrite` is
        off, or no folder can be made there.
    """
    for target in (path, state_dir(path)):
        if os.path.lexists(target) and not storage.exists(target):
            raise InputError(f"checkpoint {target} exists and is no checkpoint: it is kept")
    if storage.exists(path) and not overwrite:
        raise InputError(f"checkpoint {path} exists already; --overwrite trains it anew")
    checks.folder_to_write("checkpoint", path)


def save(path: Path, variables: Any, info: CheckpointInfo) -> None:
    """Writes a checkpoint, whole or not at all; an older one at `path` is replaced.

    Raises:
      InputError: it cannot be written (the disk is full, say).
    """
    storage.save(path, variables, dataclasses.asdict(info))


def load_info(path: Path) -> CheckpointInfo:
    """Reads what a checkpoint was made from, without its weights.

    Raises:
      InputError: there is no checkpoint at `path`, or it cannot be read.
    """
    facts = storage.load_info(path)
    try:
        info = CheckpointInfo(**facts)
        return dataclasses.replace(
            info, persons=tuple(info.persons), pictures=tuple(info.pictures)
        )
    except TypeError as error:
        raise InputError(
            f"checkpoint {path} cannot be read: its description is of another kind"
        ) from error


def load_variables(path: Path, info: CheckpointInfo) -> Any:
    """Reads a checkpoint's weights, NumPy arrays: the collections that `Module.apply` takes.

    Raises:
      InputError: the weights are damaged, or not those that `info` describes.
    """
    example = jax.ShapeDtypeStruct((1, info.image_size, info.image_size, 3), jnp.float32)
    expected = jax.eval_shape(info.create_model().init, jax.random.key(0), example)
    variables = storage.load_arrays(path, expected)
    if variables is None:
        raise InputError(
            f"checkpoint {path} does not fit: its weights are not those of {info.model} "
            f"for {len(info.persons)} classes and {info.image_size} pixels"
        )
    return variables


def check_made_for(
    path: Path, info: CheckpointInfo, *, model: str, dataset: str, image_size: int
) -> None:
    """Refuses a checkpoint of another kind: what can be told before pictures are read.

    Raises:
      InputError: another model, data set or image size.
    """
    for what, theirs, ours in (
        ("the model", info.model, model),
        ("the data set", info.dataset, dataset),
        ("pictures of size", info.image_size, image_size),
    ):
        _check_same(path, what, theirs, ours)


def _check_same(path: Path, what: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise InputError(
            f"checkpoint {path} does not fit: it was made for {what} {theirs}, not {ours}"
        )


def check_fits(path: Path, info: CheckpointInfo, dataset: FaceDataset) -> None:
    """Refuses a checkpoint that was made for other persons or pictures.

    Raises:
      InputError: another number of classes, other persons or another crop; or the test split
        holds pictures that the checkpoint was trained on.
    """
    for fact in _IDENTIFYING:
        ours = dataset.provenance.get(fact)
        _check_same(path, fact.replace("_", " "), info.provenance.get(fact), ours)
    classes = len(dataset.persons)
    _check_same(path, "this number of classes:", len(info.persons), classes)
    if info.persons != dataset.persons:
        strangers = sorted(set(dataset.persons) - set(info.persons))
        raise InputError(
            f"checkpoint {path} does not fit: it knows other persons "
            f"({', '.join(strangers[:3]) or 'in another order'})"
        )
    if dataset.split == "test":
        seen = set(info.pictures).intersection(dataset.pictures)
        if seen:
            raise InputError(
                f"checkpoint {path} does not fit: it was trained on {len(seen)} of the "
                f"{len(dataset)} pictures of the test split (its split is {info.split}, its "
                f"seed {info.seed})"
            )
