"""What became of every file of a folder, as JSON lines: a record, and where to go on.

A line is added as soon as its photo is written, so that a run which was killed goes on where it
stopped; at the end the lines are sorted, so that it does not show.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deid_jax._validate import InputError
from deid_jax.photos.files import UNFINISHED, write_whole

NAME = "manifest.jsonl"

Record = dict[str, Any]


class Manifest:
    """The lines of an output folder.

    Args:
      folder: where protected photos are written.
      settings: a digest of everything that decides how; other lines do not count as done.
    """

    def __init__(self, folder: Path, settings: str):
        self._folder = folder
        self._settings = settings
        self._records: dict[str, Record] = {}
        self._path = folder / NAME

    @contextlib.contextmanager
    def open(self) -> Iterator["Manifest"]:
        """Locks the folder, reads what is done, and sorts the lines at the end.

        Raises:
          InputError: another run writes into the folder.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"output {self._folder} is being written by another run"
                ) from None
            for left in self._folder.rglob(f".*{UNFINISHED}"):
                left.unlink()
            self._records = {record["file"]: record for record in self._read()}
            self._write()
            yield self
            self._write()
        finally:
            os.close(lock)

    def done(self, file: str, digest: str) -> Record | None:
        """The record of a file that need not be done again, or None.

        Args:
          file: its name below the input folder.
          digest: SHA-256 of its content now.
        """
        record = self._records.get(file)
        if record is None or record["settings"] != self._settings:
            return None
        if record["source_sha256"] != digest:
            return None
        if record["output"] is not None:
            path = self._folder / record["output"]
            if not path.is_file() or digest_of(path.read_bytes()) != record["output_sha256"]:
                return None
        return record

    def add(self, record: Record) -> None:
        """Adds a line, at once and for good."""
        record = record | {"settings": self._settings}
        self._records[record["file"]] = record
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, files: set[str]) -> None:
        """Drops the lines of files that are no longer there."""
        self._records = {name: r for name, r in self._records.items() if name in files}

    def _read(self) -> list[Record]:
        if not self._path.exists():
            return []
        records = []
        for line in self._path.read_text("utf-8", errors="replace").splitlines():
            # A line that was being written when the run was killed is none.
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and record.keys() >= _FIELDS:
                    records.append(record)
        return records

    def _write(self) -> None:
        lines = [_line(self._records[name]) for name in sorted(self._records)]
        write_whole(self._path, "".join(lines).encode())


_FIELDS = {"file", "output", "settings", "source_sha256", "output_sha256"}


def digest_of(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
