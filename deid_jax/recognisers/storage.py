"""A tree of arrays and its description in one folder, written atomically.

Orbax writes two items: `arrays`, and `info`, the description as JSON. Next to them, `sha256` is
the hash of their files, checked on every read: TensorStore does not detect every flipped bit,
and reports others with pages of messages.
"""

import contextlib
import glob
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from deid_jax.errors import InputError, one_line
from deid_jax.types import Json, PyTree

_HASH = "sha256"


def exists(path: Path) -> bool:
    """Whether a checkpoint is at `path`; after a crash, puts the previous one back first."""
    old = _beside(path, "old")
    if not os.path.lexists(path) and _is_ours(old):
        with contextlib.suppress(FileNotFoundError):  # Another process has done it.
            old.rename(path)
    return _is_ours(path)


def save(path: Path, arrays: PyTree, info: Mapping[str, Json]) -> None:
    """Writes arrays (on the host) and description, replacing what was at `path` before.

    Raises:
      InputError: it cannot be written (the disk is full, say); the previous content stays.
    """
    fresh, old = _beside(path, "new"), _beside(path, "old")
    items = ocp.args.Composite(
        arrays=ocp.args.PyTreeSave(arrays), info=ocp.args.JsonSave({**info})
    )
    try:
        with _quiet(), _checkpointer() as checkpointer:
            checkpointer.save(fresh.absolute(), items, force=True)
        (fresh / _HASH).write_text(_digest(fresh))
        remove(old)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except Exception as error:  # Orbax and TensorStore raise all kinds of exceptions.
        raise InputError(f"checkpoint {path} cannot be written: {one_line(error)}") from error
    finally:
        for left in path.parent.glob(glob.escape(fresh.name) + "*"):
            remove(left)
    remove(old)


def load_description(path: Path) -> dict[str, PyTree]:
    """Reads the description.

    Raises:
      InputError: no checkpoint is at `path`, it is damaged, or an earlier version wrote it.
    """
    _check(path)
    items = ocp.args.Composite(info=ocp.args.JsonRestore())
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), items)["info"]


def load_arrays(path: Path, like: PyTree) -> PyTree:
    """Reads the arrays into host memory, since a device may not have room for all of them.

    `like` is a tree of arrays or `jax.ShapeDtypeStruct`: the structure and shapes expected.

    Raises:
      InputError: the arrays have another structure or other shapes, or as for
        `load_description`.
    """
    _check(path)
    arguments = jax.tree.map(
        lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), like
    )
    items = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(item=like, restore_args=arguments))
    with _checkpointer() as checkpointer:
        # Checked first: Orbax reports wrong shapes with pages of messages.
        found = checkpointer.metadata(path.absolute()).item_metadata["arrays"].tree
        if _shapes(found) != _shapes(like):
            raise InputError(
                f"checkpoint {path} does not fit: its weights are of another network"
            )
        return checkpointer.restore(path.absolute(), items)["arrays"]


def remove(path: Path) -> None:
    """Deletes what is at `path`, if anything; if killed, it leaves nothing there."""
    going = _beside(path, "gone")
    shutil.rmtree(going, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _check(path: Path) -> None:
    """Refuses what is not a checkpoint, or has been modified since it was written."""
    if not exists(path):
        state = "is no checkpoint" if os.path.lexists(path) else "does not exist"
        raise InputError(f"checkpoint {path} {state}")
    try:
        expected = (path / _HASH).read_bytes()
        is_whole = _digest(path).encode() == expected
    except FileNotFoundError as error:
        raise InputError(
            f"checkpoint {path} is damaged or of an earlier version: delete it to train anew"
        ) from error
    if not is_whole:
        raise InputError(f"checkpoint {path} is damaged: its files have changed")


def _digest(path: Path) -> str:
    """The SHA-256 of a folder's files and their names, except the file with the hash."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _HASH:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{found} {file.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Stops Orbax from logging every step, and TensorStore from printing failures at length.

    When a save fails, TensorStore's other writes continue. They would make the folder again,
    so they are waited for. Some report their failures even later, so they stay silenced.
    """
    verbosity, hook = absl_logging.get_verbosity(), sys.unraisablehook
    futures = logging.getLogger("asyncio")
    level = futures.level

    def report(failure: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(failure.exc_value):
            hook(failure)

    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = report
    futures.setLevel(logging.CRITICAL)
    try:
        yield
        sys.unraisablehook = hook
        futures.setLevel(level)
    except Exception:
        time.sleep(1)
        raise
    finally:
        absl_logging.set_verbosity(verbosity)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _is_ours(path: Path) -> bool:
    return (path / "_CHECKPOINT_METADATA").is_file()


def _shapes(tree: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    """Sorted (path, shape) of a tree of arrays or of descriptions of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    named = ((jax.tree_util.keystr(path, simple=True), leaf) for path, leaf in leaves)
    return sorted((name, tuple(leaf.shape)) for name, leaf in named)


def _checkpointer() -> ocp.Checkpointer:
    # A single process writes or reads, even if there are others.
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
