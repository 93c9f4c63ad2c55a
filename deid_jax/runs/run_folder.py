"""What a run leaves behind: its folder, its tables, which pictures to show."""

import contextlib
import csv
import dataclasses
import fcntl
import importlib.metadata
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from deid_jax import checks
from deid_jax.devices.processes import ALONE
from deid_jax.devices.processes import GOES_ON
from deid_jax.devices.processes import Group
from deid_jax.runs.resuming import Store
from deid_jax.runs.resuming import digest_of
from deid_jax.errors import InputError

# The description that makes a folder of files a run: written last, it lists them.
DESCRIPTION = "config.json"
# Inside the hidden folder, where the files of a run lie that is whole or has left nothing.
_AT_ONCE = "at_once"
# Also there: the run before this one while that takes its place, and the note that it is out.
_EARLIER, _MOVED_OUT = "earlier", ".moved_out"


class RunFolder:
    """An output folder that holds either the last whole run or the new one, never a mixture.

    Files are written into a hidden folder beside their final place; leaving the `with` block
    without an error moves them there, replacing what an earlier run of ours had left. Other
    things in the folder stay as they are.

    Args:
      path: the folder; made if missing.
      contents: names of the files and folders that the run may write, beside `DESCRIPTION`;
        what an earlier run left of one that this run does not write is deleted.
      group: the processes of the run, which share the folder. The first one locks it and
        writes what is written once; `write_png` and the store are for all.

    Raises:
      InputError: `path` is a file, cannot be written, is being written by another run, holds
        the run of another command, or holds one of the names and no run.
    """

    def __init__(self, path: Path, contents: Sequence[str], group: Group = ALONE):
        self.path = path
        self._contents = (*contents, DESCRIPTION)
        self._staging = path / f".{contents[0]}.unfinished"
        self._group = group
        self._resumable = False
        self._work = self._staging / _AT_ONCE
        # Whether other processes write here, too.
        self._shared = False

    def going_on(self, facts: Mapping[str, Any]) -> "RunFolder":
        """The same for a run of many pieces: what `store` has outlives a failure.

        Args:
          facts: JSON-able, all that decides what the run writes. Runs of other facts do not
            see its pieces; they stay until a run into the folder is whole.
        """
        digest = digest_of(facts)
        self._group.check_same(digest, "settings, pictures, weights or versions")
        self._resumable = True
        self._work = self._staging / digest
        return self

    @property
    def store(self) -> Store:
        """The pieces that are finished."""
        return Store(self._work / "pieces")

    def check(self) -> None:
        """Refuses a path that cannot become the run's folder; changes nothing."""
        checks.folder_to_write("output_dir", self.path)
        # A run that was killed while its files moved into place: they are moved back.
        if (self._staging / _EARLIER).exists():
            return
        ours = self._contents_of_runs()
        others = sorted(set(ours) - set(self._contents))
        if others:
            raise InputError(
                f"output_dir {self.path} holds the run of another command "
                f"({', '.join(others)}): name another folder"
            )
        for name in self._contents:
            if name not in ours and (self.path / name).exists():
                raise InputError(
                    f"output_dir {self.path} holds {name}, and no run of ours wrote it: "
                    "name another folder"
                )

    def _contents_of_runs(self) -> list[str]:
        """What an earlier run, of whatever binary, wrote here."""
        try:
            return list(json.loads((self.path / DESCRIPTION).read_text())["contents"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def __enter__(self) -> "RunFolder":
        if self._group.is_first:
            self.check()
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self._staging.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            for probe in self.path.glob(".probe-*"):
                with contextlib.suppress(OSError):  # Another run has it, and removes it.
                    probe.rmdir()
            self._move_back()
            for left in self._staging.iterdir():
                # Pieces of other runs may still be gone on from.
                if not (left / "pieces").is_dir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._work.mkdir(exist_ok=True)
        try:
            self._group.check_shared(self._work, f"output_dir {self.path}")
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        self._shared = self._resumable and self._group.count > 1
        return self

    def _locked(self) -> int:
        """Locks the folder; the lock goes with the process, however that ends."""
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(
                f"output_dir {self.path} is being written by another run: name another folder"
            ) from None
        return lock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._group.is_first:
            return
        try:
            if kind is None:
                self._complete_description()
                self._take_the_place()
                shutil.rmtree(self._staging, ignore_errors=True)
            else:
                assert error is not None
                self._clean_up_after(error)
        finally:
            os.close(self._lock)

    def _clean_up_after(self, error: BaseException) -> None:
        """Deletes what a failed run has written, but for finished pieces."""
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(self.path)  # Of a full disk the system names no file.
        # Other processes may be about to finish a piece.
        if self._shared or (self._resumable and len(self.store)):
            error.add_note(GOES_ON)
        else:
            shutil.rmtree(self._work, ignore_errors=True)
            with contextlib.suppress(OSError):  # Pieces of other runs are there.
                self._staging.rmdir()
        for folder in self._made:
            with contextlib.suppress(OSError):  # Others write there, too.
                folder.rmdir()

    def _take_the_place(self) -> None:
        """Moves the earlier run out, and then this one in, its description last."""
        earlier = self._staging / _EARLIER
        earlier.mkdir()
        self._move(self.path, earlier)
        (earlier / _MOVED_OUT).write_text(self._work.name)
        self._move(self._work, self.path)
        # From here on nothing is to be undone.
        earlier.rename(earlier.with_name("replaced"))

    def _move_back(self) -> None:
        """Undoes what of `_take_the_place` a run did that was killed in it."""
        earlier = self._staging / _EARLIER
        if (earlier / _MOVED_OUT).exists():
            work = self._staging / (earlier / _MOVED_OUT).read_text()
            work.mkdir(exist_ok=True)
            self._move(self.path, work)
        if earlier.exists():
            self._move(earlier, self.path)

    def _move(self, source: Path, target: Path) -> None:
        """Moves what a run writes; the description goes last."""
        for name in self._contents:
            if os.path.lexists(source / name):
                (source / name).replace(target / name)

    def _complete_description(self) -> None:
        staged = self._work / DESCRIPTION
        description = json.loads(staged.read_text()) if staged.exists() else describe()
        written = {name for name in self._contents if (self._work / name).exists()}
        contents = sorted(written | {DESCRIPTION})
        self.write_json(DESCRIPTION, description | {"contents": contents})

    def work_path(self, name: str) -> Path:
        """Where a file of the run lies until the run is whole."""
        return self._work / name

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Name -> bytes, of the files among these that the run has written."""
        paths = {name: self._work / name for name in names}
        return {name: path.stat().st_size for name, path in paths.items() if path.exists()}

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file."""
        (self._work / name).write_text(text, encoding="utf-8")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes one binary file."""
        (self._work / name).write_bytes(content)

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file; infinities and NaN, which JSON lacks, as strings."""
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_text(name, text + "\n")

    def write_csv(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records as CSV, a column per entry; the first record names the columns."""
        coming = iter(records)
        first = next(coming)
        with (self._work / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(first), lineterminator="\n")
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(coming)

    def write_png(self, name: str, picture: np.ndarray) -> np.ndarray:
        """Writes uint8[H, W, 3] as PNG; returns what the file reads back as."""
        path, unfinished = self._work / name, self._work / f".{secrets.token_hex(8)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(unfinished, format="PNG", compress_level=4)
        with Image.open(unfinished) as image:
            kept = np.asarray(image.convert("RGB"))
        unfinished.replace(path)
        return kept

    def read_png(self, name: str) -> np.ndarray:
        """Reads what `write_png` wrote: uint8[H, W, 3]."""
        with Image.open(self._work / name) as image:
            return np.asarray(image.convert("RGB"))


def describe(settings: Any = None, **more: Any) -> dict[str, Any]:
    """What `DESCRIPTION` holds: all that is needed to run the same again.

    Args:
      settings: the binary's settings dataclass.
      more: facts on what the settings led to.
    """
    packages = ("deid_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    given = {} if settings is None else {"settings": dataclasses.asdict(settings)}
    return {**given, **more, "versions": versions}


def _finite(value: Any) -> Any:
    """A JSON-able value without infinities and NaN."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value




