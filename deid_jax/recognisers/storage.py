"""A tree of arrays and its description, in one folder that is written whole or not at all.

Orbax writes the two items: `arrays`, and `info` as JSON. `checksums.json` beside them tells
whether the files are as they were written: Orbax meets damaged ones with pages of messages, or
not at all.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from deid_jax.errors import InputError

_CHECKSUMS = "checksums.json"
# What is kept beside the arrays takes so much at most, but for the names of many pictures.
_DESCRIPTION_BYTES = 2**20


def exists(path: Path) -> bool:
    """Whether something of ours is kept at `path`; after a crash, the older of two."""
    old = _beside(path, "old")
    if not os.path.lexists(path) and _is_ours(old):
        with contextlib.suppress(FileNotFoundError):  # Another process has done so.
            old.rename(path)
    return _is_ours(path)


def save(path: Path, arrays: Any, info: Any) -> None:
    """Writes arrays and description; what was kept at `path` before is replaced.

    Args:
      path: the folder.
      arrays: a pytree of arrays.
      info: JSON-able.

    Raises:
      InputError: it cannot be written (the disk is full, say); what was there stays.
    """
    fresh, old = _beside(path, "new"), _beside(path, "old")
    items = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), info=ocp.args.JsonSave(info))
    try:
        _check_room(path, arrays)
        with _quiet(), _checkpointer() as checkpointer:
            checkpointer.save(fresh.absolute(), items, force=True)
        files = sorted(file for file in fresh.rglob("*") if file.is_file())
        checksums = {file.relative_to(fresh).as_posix(): _checksum(file) for file in files}
        (fresh / _CHECKSUMS).write_text(json.dumps(checksums, indent=2) + "\n")
        remove(old)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except Exception as error:  # Orbax and TensorStore raise all sorts.
        raise InputError(f"checkpoint {path} cannot be written: {_reason(error)}") from error
    finally:
        for left in path.parent.glob(glob.escape(fresh.name) + "*"):
            remove(left)
    remove(old)


def _check_room(path: Path, arrays: Any) -> None:
    """Refuses a disk without room: Orbax, in the middle, leaves threads that fail at length."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + _DESCRIPTION_BYTES
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def load_info(path: Path) -> Any:
    """Reads the description.

    Raises:
      InputError: nothing is kept at `path`, or it is damaged.
    """
    if not exists(path):
        state = "is no checkpoint" if os.path.lexists(path) else "does not exist"
        raise InputError(f"checkpoint {path} {state}")
    _check_files(path, "info")
    items = ocp.args.Composite(info=ocp.args.JsonRestore())
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(path.absolute(), items)["info"]
    except Exception as error:  # Orbax raises all sorts.
        raise InputError(f"checkpoint {path} cannot be read: {_reason(error)}") from error


def load_arrays(path: Path, like: Any) -> Any:
    """Reads the arrays into the host's memory: a device may have no room for all of them.

    Args:
      path: the folder, whose description has been read.
      like: a pytree of arrays or `jax.ShapeDtypeStruct`: the structure and shapes expected.

    Returns:
      A pytree like `like` of NumPy arrays; None if the arrays kept have another structure or
      other shapes.

    Raises:
      InputError: they are damaged.
    """
    _check_files(path, "arrays")
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    arguments = jax.tree.map(
        lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), target
    )
    items = ocp.args.Composite(
        arrays=ocp.args.PyTreeRestore(item=target, restore_args=arguments)
    )
    with _checkpointer() as checkpointer:
        # Looked at before: Orbax meets other shapes with pages of messages.
        stored = checkpointer.metadata(path.absolute()).item_metadata["arrays"].tree
        if _shapes(stored) != _shapes(like):
            return None
        return checkpointer.restore(path.absolute(), items)["arrays"]


def remove(path: Path) -> None:
    """Deletes what is kept at `path`, if anything is; killed, it leaves nothing there."""
    going = _beside(path, "gone")
    if going.exists():
        shutil.rmtree(going, ignore_errors=True)
    if os.path.lexists(path):
        with contextlib.suppress(OSError):
            path.rename(going)
        shutil.rmtree(going, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax from telling at every save how it does so, and of failures at length."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _is_ours(path: Path) -> bool:
    return (path / "_CHECKPOINT_METADATA").is_file()


def _shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Sorted (path, shape) of a tree of arrays or of descriptions of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    named = ((jax.tree_util.keystr(path, simple=True), leaf) for path, leaf in leaves)
    return sorted((name, tuple(leaf.shape)) for name, leaf in named)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(path: Path, item: str) -> None:
    """Refuses a folder in which files of an item are not as they were written."""
    try:
        checksums = json.loads((path / _CHECKSUMS).read_text())
        files = {
            name: text
            for name, text in checksums.items()
            if name.startswith(item + "/") or "/" not in name
        }
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"checkpoint {path} is damaged: {_CHECKSUMS} cannot be read"
        ) from error
    for name, expected in files.items():
        if not (path / name).is_file() or _checksum(path / name) != expected:
            raise InputError(f"checkpoint {path} is damaged: {name} is not as it was written")


def _checkpointer() -> ocp.Checkpointer:
    # One process alone writes or reads, whatever others there are.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"{index}"
    )
    # Without OCDBT: merging its files fails silently below a folder with "[" in its name.
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            arrays=ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=alone),
            info=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        ),
        multiprocessing_options=alone,
    )


def _reason(error: Exception) -> str:
    """The last part of TensorStore's long chains, or the first line of anything else."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(int(number[1]))
    full = re.search(r"\[OS error \d+: [A-Z]+ ([^\]]+)\]", str(error))
    return full[1] if full else str(error).strip().partition("\n")[0] or type(error).__name__
