"""Checkpoints of trained recognisers: weights, and what is needed to use them rightly.

A checkpoint is a folder written by Orbax with two items: `variables`, the Flax collections,
and `info`, a `CheckpointInfo` as JSON. `checksums.json` in it tells whether its files are as
they were written: Orbax meets damaged ones with pages of messages, or not at all.
"""

import dataclasses
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from deid_jax import _validate
from deid_jax._validate import InputError
from deid_jax.data.dataset import FaceDataset
from deid_jax.models import create_model
from deid_jax.training import STATE_FILE

_CHECKSUMS = "checksums.json"
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


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuses a path at which no checkpoint may be written; changes nothing.

    Raises:
      InputError: something is there that is no checkpoint, or a checkpoint and `overwrite` is
        off, or no folder can be made there.
    """
    if os.path.lexists(path):
        if not _is_checkpoint(path):
            raise InputError(f"checkpoint {path} exists and is no checkpoint: it is kept")
        if not overwrite:
            raise InputError(f"checkpoint {path} exists already; --overwrite trains it anew")
    state = state_dir(path)
    if os.path.lexists(state):
        foreign = not state.is_dir() or any(
            not entry.name.startswith(Path(STATE_FILE).stem) for entry in state.iterdir()
        )
        if foreign:
            raise InputError(f"{state} is in the way of checkpoint {path}: move it elsewhere")
    _validate.folder_to_write("checkpoint", path)


def save(path: Path, variables: Any, info: CheckpointInfo) -> None:
    """Writes a checkpoint, whole or not at all; an older one at `path` is replaced.

    Raises:
      InputError: it cannot be written (the disk is full, say).
    """
    fresh = path.with_name(path.name + ".new")
    items = ocp.args.Composite(
        variables=ocp.args.PyTreeSave(variables),
        info=ocp.args.JsonSave(dataclasses.asdict(info)),
    )
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(fresh.absolute(), items, force=True)
        checksums = {
            path.relative_to(fresh).as_posix(): _checksum(path)
            for path in sorted(fresh.rglob("*"))
            if path.is_file()
        }
        (fresh / _CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")
        remove(path)
        fresh.rename(path)
    except Exception as error:  # Orbax and TensorStore raise all sorts.
        raise InputError(f"checkpoint {path} cannot be written: {_reason(error)}") from error
    finally:
        for left in path.parent.glob(glob.escape(fresh.name) + "*"):
            remove(left)


def load_info(path: Path) -> CheckpointInfo:
    """Reads what a checkpoint was made from, without its weights.

    Raises:
      InputError: there is no checkpoint at `path`, or it cannot be read.
    """
    if not os.path.lexists(path):
        raise InputError(f"checkpoint {path} does not exist")
    if not _is_checkpoint(path):
        raise InputError(f"checkpoint {path} is no checkpoint")
    _check_files(path, "info")
    try:
        with _checkpointer() as checkpointer:
            items = checkpointer.restore(
                path.absolute(), ocp.args.Composite(info=ocp.args.JsonRestore())
            )
        info = CheckpointInfo(**items["info"])
        return dataclasses.replace(
            info, persons=tuple(info.persons), pictures=tuple(info.pictures)
        )
    except Exception as error:  # Orbax raises all sorts.
        raise InputError(
            f"checkpoint {path} cannot be read: its description is of another kind"
        ) from error


def load_variables(path: Path, info: CheckpointInfo) -> Any:
    """Reads a checkpoint's weights: the collections that `Module.apply` takes.

    Raises:
      InputError: the weights are damaged, or not those that `info` describes.
    """
    _check_files(path, "variables")
    example = jax.ShapeDtypeStruct((1, info.image_size, info.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(info.create_model().init, jax.random.key(0), example)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes
    )
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    items = ocp.args.Composite(
        variables=ocp.args.PyTreeRestore(item=target, restore_args=arguments)
    )
    with _checkpointer() as checkpointer:
        # Looked at before: Orbax meets other shapes with pages of messages.
        stored = checkpointer.metadata(path.absolute()).item_metadata["variables"].tree
        if _shapes(stored) != _shapes(shapes):
            raise InputError(
                f"checkpoint {path} does not fit: its weights are not those of {info.model} "
                f"for {len(info.persons)} classes and {info.image_size} pixels"
            )
        return checkpointer.restore(path.absolute(), items)["variables"]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of a tree of arrays or of descriptions of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


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


def remove(path: Path) -> None:
    """Deletes a checkpoint or training state, if there is one."""
    shutil.rmtree(path, ignore_errors=True)


def _is_checkpoint(path: Path) -> bool:
    return (path / "_CHECKPOINT_METADATA").is_file()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(path: Path, item: str) -> None:
    """Refuses a checkpoint of which files of an item are not as they were written."""
    try:
        checksums = json.loads((path / _CHECKSUMS).read_text())
        files = {name: text for name, text in checksums.items() if name.startswith(item + "/")}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} is damaged: {_CHECKSUMS} cannot be read"
        ) from error
    for name, expected in files.items():
        if not (path / name).is_file() or _checksum(path / name) != expected:
            raise InputError(f"checkpoint {path} is damaged: {name} is not as it was written")


def _checkpointer() -> ocp.Checkpointer:
    # Without OCDBT: merging its files fails silently below a folder with "[" in its name.
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            variables=ocp.PyTreeCheckpointHandler(use_ocdbt=False),
            info=ocp.JsonCheckpointHandler(),
        )
    )


def _reason(error: Exception) -> str:
    """The last part of TensorStore's long chains, or the first line of anything else."""
    full = re.search(r"\[OS error \d+: [A-Z]+ ([^\]]+)\]", str(error))
    return full[1] if full else str(error).strip().partition("\n")[0] or type(error).__name__
