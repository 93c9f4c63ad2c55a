"""The output folder of a run, which contains a complete run at any time."""

import contextlib
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from PIL import Image

from deid_jax import checks
from deid_jax.devices.processes import ALONE, GOES_ON, Group
from deid_jax.errors import InputError
from deid_jax.pixels import Pixels
from deid_jax.runs.locking import locked
from deid_jax.runs.run_files import DESCRIPTION, describe, finite, read_png
from deid_jax.runs.stores import PIECES, FolderStore, digest_of
from deid_jax.runs.whole_files import UNFINISHED, replacing

# Inside the hidden folder: the files of a run that does not resume an earlier one.
_AT_ONCE = "at_once"
# Also there: the previous run while this one replaces it, and the marker that it is moved out.
_EARLIER, _MOVED_OUT = "earlier", ".moved_out"


class RunFolder:
    """An output folder that contains either the previous run or the new one, never a mixture.

    Files are written into a hidden folder inside; leaving the `with` block without an error
    moves them to their final place, where they replace the previous run of the same command.
    Other files in the folder stay.

    Args:
      path: the folder; created if missing.
      contents: names of the files and folders that the run may write, besides `DESCRIPTION`;
        those of the previous run that this run does not write are deleted.
      group: the processes of the run, which share the folder. The first one locks it and
        writes what is written once; `write_png` and the store are for all.

    Raises:
      InputError: `path` is a file, cannot be written, is being written by another run, has the
        run of another command, or has one of the names without being a run.
    """

    def __init__(self, path: Path, contents: Sequence[str], group: Group = ALONE):
        self._staging = path / f".{contents[0]}{UNFINISHED}"
        self._work = self._staging / _AT_ONCE
        self.path = path
        self._contents = (*contents, DESCRIPTION)
        self._group = group
        self._resumable = False
        # Whether other processes also write here.
        self._shared = False
        self._lock = contextlib.ExitStack()

    def going_on(self, facts: Mapping[str, object]) -> "RunFolder":
        """The same folder for a run in pieces, whose finished pieces survive a failure.

        Args:
          facts: JSON-able; everything that decides what the run writes. Pieces with other
            facts are not used; they stay until a run in the folder is complete.
        """
        digest = digest_of(facts)
        self._group.check_same(digest, "settings, images, weights or versions")
        self._resumable = True
        self._work = self._staging / digest
        return self

    def work_path(self, name: str) -> Path:
        """The path of a file of the run until the run is complete."""
        return self._work / name

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file."""
        (self._work / name).write_text(text, encoding="utf-8")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes one binary file, and makes the folders that it is in."""
        path = self._work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def write_json(self, name: str, value: object) -> None:
        """Writes one JSON file, with infinities and NaN, which JSON lacks, as strings."""
        text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_text(name, text + "\n")

    def write_csv(self, name: str, records: Iterable[Mapping[str, object]]) -> None:
        """Writes records as CSV, one column per entry; the first record gives the columns."""
        coming = iter(records)
        first = next(coming)
        with (self._work / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(first), lineterminator="\n")
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(coming)

    def write_png(self, name: str, image: Pixels) -> Pixels:
        """Writes uint8[H, W, 3] as PNG; returns the image as read back from the file."""
        # Not in the same folder: a file left by a killed run would become part of the next.
        with replacing(self._work / name, by_way_of=self._work) as unfinished:
            Image.fromarray(image).save(unfinished, format="PNG", compress_level=4)
            return read_png(unfinished)

    def read_png(self, name: str) -> Pixels:
        """Reads what `write_png` wrote: uint8[H, W, 3]."""
        return read_png(self._work / name)

    @property
    def store(self) -> FolderStore:
        """The finished pieces."""
        return FolderStore(self._work)

    def check(self) -> None:
        """Refuses a path that cannot become the run's folder; writes nothing."""
        checks.folder_to_write("output_dir", self.path)
        if (self._staging / _EARLIER).exists():  # The previous run will be moved back.
            return
        ours = self._previous_contents()
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

    def _previous_contents(self) -> list[str]:
        """The names that the previous run, of any command, wrote here."""
        try:
            return list(json.loads((self.path / DESCRIPTION).read_text())["contents"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def __enter__(self) -> "RunFolder":
        if self._group.is_first:
            self.check()
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self._lock.enter_context(locked("output_dir", self.path))
            self._staging.mkdir(exist_ok=True)
            self._move_back()
            self._clear_leftovers()
            self._work.mkdir(exist_ok=True)
        try:
            self._group.check_shared(self._work, f"output_dir {self.path}")
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        self._shared = self._group.count > 1
        return self

    def _clear_leftovers(self) -> None:
        """Deletes what killed runs left behind, except finished pieces."""
        for probe in self.path.glob(".probe-*"):
            with contextlib.suppress(OSError):  # Another run is using it, and removes it.
                probe.rmdir()
        for left in self._staging.iterdir():
            if not (left / PIECES).is_dir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._group.is_first:
            return
        with self._lock:
            if error is None:
                self._complete_description()
                self._take_the_place()
                shutil.rmtree(self._staging, ignore_errors=True)
            else:
                self._clean_up_after(error)

    def _clean_up_after(self, error: BaseException) -> None:
        """Deletes what a failed run has written, except finished pieces."""
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(self.path)  # If the disk is full, the system gives no file.
        # Other processes may be about to finish a piece.
        if self._resumable and (self._shared or len(self.store)):
            error.add_note(GOES_ON)
        else:
            shutil.rmtree(self._work, ignore_errors=True)
            with contextlib.suppress(OSError):  # It still has pieces of other runs.
                self._staging.rmdir()
        for folder in self._made:
            with contextlib.suppress(OSError):  # It is not empty.
                folder.rmdir()

    def _complete_description(self) -> None:
        """Adds the list of files that the run has written."""
        staged = self._work / DESCRIPTION
        description = json.loads(staged.read_text()) if staged.exists() else describe()
        written = {name for name in self._contents if (self._work / name).exists()}
        contents = sorted(written | {DESCRIPTION})
        self.write_json(DESCRIPTION, description | {"contents": contents})

    def _take_the_place(self) -> None:
        """Moves the previous run out and this one in, its description last."""
        earlier = self._staging / _EARLIER
        earlier.mkdir()
        self._move(self.path, earlier)
        (earlier / _MOVED_OUT).write_text(self._work.name)
        self._move(self._work, self.path)
        # From here on nothing needs to be undone.
        earlier.rename(earlier.with_name("replaced"))

    def _move_back(self) -> None:
        """Undoes a `_take_the_place` in which a run was killed."""
        earlier = self._staging / _EARLIER
        if (earlier / _MOVED_OUT).exists():
            work = self._staging / (earlier / _MOVED_OUT).read_text()
            work.mkdir(exist_ok=True)
            self._move(self.path, work)
        if earlier.exists():
            self._move(earlier, self.path)

    def _move(self, source: Path, target: Path) -> None:
        """Moves a run's files, its description last."""
        for name in self._contents:
            if os.path.lexists(source / name):
                (source / name).replace(target / name)
