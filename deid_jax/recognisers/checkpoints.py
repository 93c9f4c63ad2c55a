"""Checkpoints of trained recognisers: weights, and the facts needed to use them."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import checks
from deid_jax.data import DataOptions, FaceDataset
from deid_jax.errors import InputError
from deid_jax.models import Network, create_model
from deid_jax.recognisers import storage
from deid_jax.recognisers.recipes import TrainConfig
from deid_jax.types import Json, Model, Variables

CHECKPOINTS = Path("checkpoints")
# Facts in a data set's provenance that define its classes and images.
_IDENTIFYING = ("persons_seed", "crop")


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Data, settings and accuracy of a trained recogniser.

    Attributes:
      persons: class names, in the order of the logits.
      split: what it was trained on, "train" or "all".
      seed: the seed of split, initialisation and training.
      pictures: "person/name" of every image it was trained on.
      provenance: facts of the data set (crop, selection, ...).
      training: a `TrainConfig` as a dict.
      accuracy: split -> accuracy when training ended.
    """

    model: str
    persons: tuple[str, ...]
    image_size: int
    dataset: str
    split: str
    seed: int
    pictures: tuple[str, ...]
    provenance: Mapping[str, object]
    training: Mapping[str, Json]
    accuracy: Mapping[str, float]

    def create_model(self) -> Network:
        """The Flax module that the weights belong to."""
        return create_model(
            self.model, num_classes=len(self.persons), image_size=self.image_size
        )

    def summary(self) -> dict[str, Json]:
        """Everything but the long list of images."""
        facts = dataclasses.asdict(self)
        del facts["pictures"]
        return facts


class Recogniser(NamedTuple):
    """A trained classifier of persons.

    Attributes:
      model: `model.apply(variables, images)` gives logits.
      variables: its weights; NumPy arrays if from `load` or `training.fit`.
      info: data and settings of its training.
    """

    model: Model
    variables: Variables
    info: CheckpointInfo

    def describe(self) -> dict[str, Json]:
        """Data and settings of its training, and the SHA-256 of its weights."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.variables):
            digest.update(np.asarray(leaf).tobytes())
        return {**self.info.summary(), "weights": digest.hexdigest()}

    def save(self, path: Path) -> None:
        """Writes a checkpoint atomically; an older one at `path` is replaced.

        Raises:
          InputError: it cannot be written (the disk is full, say).
        """
        storage.save(path, self.variables, dataclasses.asdict(self.info))


def default_path(model: str, dataset: str, options: DataOptions) -> Path:
    """The default path of the checkpoint for these settings: a folder in `checkpoints/`."""
    parts = [model.replace(":", "."), dataset]
    if options.data_dir:
        parts.append(Path(options.data_dir).resolve().name)
    parts += [f"{options.image_size}px", f"seed{options.seed}"]
    if options.crop != DataOptions.crop:
        parts.append(options.crop)
    if options.split == "all":
        parts.append("all")
    return CHECKPOINTS / "-".join(parts)


def state_dir(path: Path) -> Path:
    """The folder with the state of an unfinished training of the checkpoint at `path`."""
    return path.with_name(path.name + ".unfinished")


def is_same_training(
    path: Path,
    model: str,
    dataset: str,
    options: DataOptions,
    config: TrainConfig,
    pretrained: str | None,
) -> bool:
    """Whether training with these settings would reproduce the checkpoint at `path`.

    `pretrained` is the SHA-256 of the file that its frozen layers come from, if any.
    """
    if not storage.exists(path):
        return False
    info = load_info(path)
    source = info.provenance.get("pretrained")
    sha256 = source["sha256"] if isinstance(source, dict) else None
    theirs = (info.model, info.dataset, info.image_size, info.split, info.training, sha256)
    ours = (model, dataset, options.image_size, options.split)
    return theirs == (*ours, dataclasses.asdict(config), pretrained)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses a path at which no checkpoint may be written; writes nothing.

    Raises:
      InputError: `path` holds something other than a checkpoint, or a checkpoint and
        `overwrite` is off, or no folder can be created there.
    """
    for target in (path, state_dir(path)):
        if os.path.lexists(target) and not storage.exists(target):
            raise InputError(f"checkpoint {target} exists and is no checkpoint: it is kept")
    if storage.exists(path) and not overwrite:
        raise InputError(f"checkpoint {path} exists already; --overwrite trains it anew")
    checks.folder_to_write("checkpoint", path)


def load_info(path: Path) -> CheckpointInfo:
    """Reads a checkpoint's description, without its weights.

    Raises:
      InputError: there is no checkpoint at `path`, or it cannot be read.
    """
    facts = storage.load_description(path)
    try:
        info = CheckpointInfo(**facts)
        return dataclasses.replace(
            info, persons=tuple(info.persons), pictures=tuple(info.pictures)
        )
    except TypeError as error:
        raise InputError(
            f"checkpoint {path} cannot be read: its description is of another kind"
        ) from error


def load_matching(path: Path, model: str, dataset: str, image_size: int) -> CheckpointInfo:
    """Reads a checkpoint's description, and checks that it fits the settings.

    No image is read for this.

    Raises:
      InputError: as for `load_info`; or the model, data set or image size differs.
    """
    info = load_info(path)
    _check_same(path, "the model", info.model, model)
    _check_same(path, "the data set", info.dataset, dataset)
    _check_same(path, "images of size", info.image_size, image_size)
    return info


def load(path: Path, dataset: FaceDataset, *, model: str | None = None) -> Recogniser:
    """Loads a checkpoint, and checks that it fits a data set.

    Raises:
      InputError: it is missing, damaged, or made for another model (None accepts any) or
        other data: see `check_fits`.
    """
    model = model or load_info(path).model
    info = load_matching(path, model, dataset.name, dataset.image_size)
    check_fits(path, info, dataset)
    return Recogniser(info.create_model(), load_variables(path, info), info)


def load_recogniser(path: str | Path, dataset: FaceDataset) -> Recogniser:
    """Loads a trained recogniser from its checkpoint and puts its weights on the device.

    Logits are `model.apply(variables, images)`.

    Raises:
      InputError: the checkpoint is missing, damaged, or made for something else.
    """
    read = load(Path(path), dataset)
    return read._replace(variables=jax.device_put(read.variables))


def load_variables(path: Path, info: CheckpointInfo) -> Variables:
    """Reads a checkpoint's weights as NumPy arrays: the collections for `Module.apply`.

    Raises:
      InputError: the weights are damaged, or do not match `info`.
    """
    example = jax.ShapeDtypeStruct((1, info.image_size, info.image_size, 3), jnp.float32)
    expected = jax.eval_shape(info.create_model().init, jax.random.key(0), example)
    return storage.load_arrays(path, expected)


def check_fits(path: Path, info: CheckpointInfo, dataset: FaceDataset) -> None:
    """Refuses a checkpoint that was made for other persons or images.

    Raises:
      InputError: the number of classes, the persons or the crop differ, or the test split
        contains images that the checkpoint was trained on.
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
        seen = set(info.pictures).intersection(dataset.image_names)
        if seen:
            raise InputError(
                f"checkpoint {path} does not fit: it was trained on {len(seen)} of the "
                f"{len(dataset)} images of the test split (its split is {info.split}, its "
                f"seed {info.seed})"
            )


def _check_same(path: Path, what: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise InputError(
            f"checkpoint {path} does not fit: it was made for {what} {theirs}, not {ours}"
        )
