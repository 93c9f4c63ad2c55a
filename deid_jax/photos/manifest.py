"""The manifest of an output folder: one record per file, as JSON lines.

A line is appended as soon as its file is written, so that an interrupted run can resume. The
lines are sorted at the end, so that interrupted and uninterrupted runs give the same manifest.
With several processes, each but the first appends to its own file, which is merged at the end.
"""

import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.photos.file_records import FileRecord, read_record, write_record
from deid_jax.runs import UNFINISHED, locked, write_whole

NAME = "manifest.jsonl"
# Hidden files of the processes other than the first.
_PART = ".manifest-"


class Manifest:
    """The records of an output folder.

    `settings` is a digest of everything that determines the output; files recorded with others
    are done again.
    """

    def __init__(self, folder: Path, settings: str, group: Group = ALONE):
        self._folder = folder
        self._settings = settings
        self._group = group
        self._records: dict[str, FileRecord] = {}
        self._path = folder / NAME
        self._own = self._path if group.is_first else folder / f"{_PART}{group.index}.jsonl"
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def open(self) -> Iterator["Manifest"]:
        """Locks the folder, reads the records, and sorts the lines at the end.

        Raises:
          InputError: another run writes into the folder, or it holds other files.
        """
        if not self._group.is_first:
            self._group.check_shared(self._folder, f"output {self._folder}")
            self._records = self._read(self._path)
            yield self
            self._group.wait()
            return
        with locked("output", self._folder):
            self._refuse_other_files()
            for left in self._folder.rglob(f".*{UNFINISHED}"):
                left.unlink()
            self._records = self._read(self._path)
            self._join_parts()
            self._group.check_shared(self._folder, f"output {self._folder}")
            yield self
            self._group.wait()
            self._join_parts()

    def _join_parts(self) -> None:
        """Merges the lines of other processes, from this run or an interrupted one."""
        parts = sorted(self._folder.glob(f"{_PART}*.jsonl"))
        for part in parts:
            self._records |= self._read(part)
        self._write()
        for part in parts:
            part.unlink()

    def record(self, file: str) -> FileRecord:
        """The record of a file, which must exist."""
        return self._records[file]

    def _refuse_other_files(self) -> None:
        """Refuses files that no run wrote: they may be originals and are never overwritten."""
        if self._path.exists():
            return
        for path in self._folder.iterdir():
            if not path.name.startswith("."):
                raise InputError(
                    f"output {self._folder} holds {path.name}, and no {NAME} of an "
                    "earlier run: name a new folder"
                )

    def done(self, file: str, digest: str) -> FileRecord | None:
        """The record of a file that need not be done again, or None.

        The digest is SHA-256 of its content now; empty if it cannot be read, so that it is
        tried again.
        """
        record = self._records.get(file)
        if not digest or record is None:
            return None
        same = (record.settings, record.source_sha256) == (self._settings, digest)
        return record if same and (record.output is None or self._stands(record)) else None

    def _stands(self, record: FileRecord) -> bool:
        """Whether the record's output still exists, unchanged."""
        if record.output != record.file:
            return False
        path = self._folder / record.file
        return path.is_file() and sha256_of_file(path) == record.output_sha256

    def add(self, record: FileRecord) -> FileRecord:
        """Appends a record durably, and returns it with the settings.

        If nothing was written for the file this time, the output of an earlier run is removed,
        because it would be mistaken for the file's protected copy. If the cause may pass (the
        digest is empty), it stays, and so does its name in the record: it may be the only one.
        """
        record = dataclasses.replace(record, settings=self._settings)
        with self._turn:
            before = self._records.get(record.file)
            if record.output is None and before is not None and self._stands(before):
                if record.source_sha256:
                    (self._folder / record.file).unlink()
                else:
                    kept = before.output, before.output_sha256
                    record = dataclasses.replace(record, output=kept[0], output_sha256=kept[1])
            self._records[record.file] = record
            with self._own.open("a", encoding="utf-8") as file:
                file.write(write_record(record))
                file.flush()
                os.fsync(file.fileno())
        return record

    def keep(self, files: set[str]) -> None:
        """Drops the records of input files that no longer exist and have no output.

        If the original no longer exists, its output may be the only copy: it stays, with its
        record.
        """
        self._records = {
            name: record
            for name, record in self._records.items()
            if name in files or self._stands(record)
        }

    def _read(self, path: Path) -> dict[str, FileRecord]:
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        # A line that was cut off by an interruption is ignored.
        found = (read_record(line) for line in text.split("\n"))
        return {record.file: record for record in found if record is not None}

    def _write(self) -> None:
        lines = [write_record(self._records[name]) for name in sorted(self._records)]
        write_whole(self._path, "".join(lines).encode())


def outputs_of(folder: Path) -> set[str]:
    """SHA-256 of every file that a folder's manifest, if there is one, records as written."""
    try:
        lines = (folder / NAME).read_text("utf-8", errors="replace").split("\n")
    except OSError:
        return set()
    records = filter(None, map(read_record, lines))
    return {one.output_sha256 for one in records if one.output_sha256 is not None}


def sha256_of(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
