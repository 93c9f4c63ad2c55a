"""What became of every file of a folder, as JSON lines: a record, and where to go on.

A line is added as soon as its photo is written, so that a run which was killed goes on where it
stopped; at the end the lines are sorted, so that it does not show. Of several processes each
but the first adds lines to a file of its own, whose lines join the others in the end.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.photos.files import UNFINISHED, write_whole

NAME = "manifest.jsonl"
# Hidden files of the processes beside the first.
_PART = ".manifest-"

Record = dict[str, Any]


class Manifest:
    """The lines of an output folder.

    Args:
      folder: where protected photos are written.
      settings: a digest of everything that decides how; other lines do not count as done.
      group: the processes that write into the folder together.
    """

    def __init__(self, folder: Path, settings: str, group: Group = ALONE):
        self._folder = folder
        self._settings = settings
        self._group = group
        self._records: dict[str, Record] = {}
        self._path = folder / NAME
        self._own = self._path if group.is_first else folder / f"{_PART}{group.index}.jsonl"
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def open(self) -> Iterator["Manifest"]:
        """Locks the folder, reads what is done, and sorts the lines at the end.

        Raises:
          InputError: another run writes into the folder, or it holds files of others.
        """
        if not self._group.is_first:
            self._group.check_shared(self._folder, f"output {self._folder}")
            self._records = {record["file"]: record for record in self._read(self._path)}
            yield self
            self._group.wait()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"output {self._folder} is being written by another run"
                ) from None
            self._refuse_of_others()
            for left in self._folder.rglob(f".*{UNFINISHED}"):
                left.unlink()
            self._records = {record["file"]: record for record in self._read(self._path)}
            self._join_parts()
            self._group.check_shared(self._folder, f"output {self._folder}")
            yield self
            self._group.wait()
            self._join_parts()
        finally:
            os.close(lock)

    def _join_parts(self) -> None:
        """Takes in the lines of the other processes, of this run or one that was killed."""
        parts = sorted(self._folder.glob(f"{_PART}*.jsonl"))
        for part in parts:
            self._records |= {record["file"]: record for record in self._read(part)}
        self._write()
        for part in parts:
            part.unlink()

    def record(self, file: str) -> Record:
        """The line of a file that has one."""
        return self._records[file]

    def _refuse_of_others(self) -> None:
        """What no run wrote is not to be overwritten: it may be originals."""
        if self._path.exists():
            return
        for path in self._folder.iterdir():
            if not path.name.startswith("."):
                raise InputError(
                    f"output {self._folder} holds {path.name}, and no {NAME} of an "
                    "earlier run: name a new folder"
                )

    def done(self, file: str, digest: str) -> Record | None:
        """The record of a file that need not be done again, or None.

        Args:
          file: its name below the input folder.
          digest: SHA-256 of its content now; empty of what cannot be read, which is looked at
            anew.
        """
        record = self._records.get(file)
        if not digest or record is None or record["settings"] != self._settings:
            return None
        if record["source_sha256"] != digest:
            return None
        if record["output"] is not None and not self._stands(record):
            return None
        return record

    def _stands(self, record: Record) -> bool:
        """Whether its output is there as it was written."""
        if record["output"] != record["file"]:
            return False
        path = self._folder / record["file"]
        return path.is_file() and digest_of_file(path) == record["output_sha256"]

    def add(self, record: Record) -> Record:
        """Adds a line, at once and for good, and returns it.

        Where nothing was written what an earlier run wrote for the file is removed: it would
        pass for the file's protected photo.
        """
        record = record | {"settings": self._settings}
        with self._turn:
            before = self._records.get(record["file"])
            if record["output"] is None and before is not None and self._stands(before):
                (self._folder / record["file"]).unlink()
            self._records[record["file"]] = record
            with self._own.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        return record

    def keep(self, files: set[str]) -> None:
        """Drops the lines of files that are no longer there, and left nothing.

        A protected photo whose original is gone may be the last there is: it stays, and so
        does its line.
        """
        self._records = {
            name: record
            for name, record in self._records.items()
            if name in files or self._stands(record)
        }

    def _read(self, path: Path) -> list[Record]:
        if not path.exists():
            return []
        records = []
        for line in path.read_text("utf-8", errors="replace").split("\n"):
            # A line that was being written when the run was killed is none.
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if _whole(record):
                    records.append(record)
        return records

    def _write(self) -> None:
        lines = [_line(self._records[name]) for name in sorted(self._records)]
        write_whole(self._path, "".join(lines).encode())


# What every line has, whatever became of the file.
FIELDS = {
    "file",
    "status",
    "reason",
    "output",
    "source_sha256",
    "output_sha256",
    "faces",
    "settings",
}


def _whole(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and record.keys() >= FIELDS
        and isinstance(record["file"], str)
        and isinstance(record["faces"], list)
    )


def digest_of(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(record: Record) -> str:
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    # Names of files may be no text at all; JSON's own escapes tell them apart.
    if any("\ud800" <= letter <= "\udfff" for letter in line):
        line = json.dumps(record, allow_nan=False)
    return line + "\n"
