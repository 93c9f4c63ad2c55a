"""What a run leaves behind: its folder, its tables, which pictures to show."""

import contextlib
import csv
import dataclasses
import fcntl
import importlib.metadata
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from deid_jax import _validate

# The description that makes a folder of files a run: written last, it lists them.
DESCRIPTION = "config.json"


class RunFolder:
    """An output folder that holds either the last whole run or the new one, never a mixture.

    Files are written into a hidden folder beside their final place; leaving the `with` block
    without an error moves them there, replacing what an earlier run of ours had left. Other
    things in the folder stay as they are.

    Args:
      path: the folder; made if missing.
      contents: names of the files and folders that the run may write, beside `DESCRIPTION`;
        what an earlier run left of one that this run does not write is deleted.

    Raises:
      InputError: `path` is a file, cannot be written, is being written by another run, holds
        the run of another command, or holds one of the names and no run.
    """

    def __init__(self, path: Path, contents: Sequence[str]):
        self.path = path
        self._contents = (*contents, DESCRIPTION)
        self._staging = path / f".{contents[0]}.unfinished"

    def check(self) -> None:
        """Refuses a path that cannot become the run's folder; changes nothing."""
        _validate.folder_to_write("output_dir", self.path)
        # A run that was killed while its files moved into place leaves the hidden folder.
        if self._staging.exists():
            return
        ours = self._contents_of_runs()
        others = sorted(set(ours) - set(self._contents))
        if others:
            raise _validate.InputError(
                f"output_dir {self.path} holds the run of another command "
                f"({', '.join(others)}): name another folder"
            )
        for name in self._contents:
            if name not in ours and (self.path / name).exists():
                raise _validate.InputError(
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
        self.check()
        self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        for left in self._staging.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    def _locked(self) -> int:
        """Locks the hidden folder; the lock goes with the process, however that ends."""
        lock = os.open(self._staging, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise _validate.InputError(
                f"output_dir {self.path} is being written by another run: name another folder"
            ) from None
        return lock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._complete_description()
            for name in self._contents:
                new, final = self._staging / name, self.path / name
                if final.is_dir():
                    shutil.rmtree(final)
                if new.exists():
                    new.replace(final)
                else:
                    final.unlink(missing_ok=True)
        shutil.rmtree(self._staging, ignore_errors=True)
        os.close(self._lock)
        if kind is not None:
            for folder in self._made:
                with contextlib.suppress(OSError):  # Others write there, too.
                    folder.rmdir()

    def _complete_description(self) -> None:
        staged = self._staging / DESCRIPTION
        description = json.loads(staged.read_text()) if staged.exists() else describe()
        written = {name for name in self._contents if (self._staging / name).exists()}
        contents = sorted(written | {DESCRIPTION})
        self.write_json(DESCRIPTION, description | {"contents": contents})

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file."""
        (self._staging / name).write_text(text, encoding="utf-8")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes one binary file."""
        (self._staging / name).write_bytes(content)

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file; infinities and NaN, which JSON lacks, as strings."""
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
        self.write_text(name, text + "\n")

    def write_csv(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes records as CSV, a column per entry; the first record names the columns."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        self.write_text(name, text.getvalue())

    def write_png(self, name: str, picture: np.ndarray) -> np.ndarray:
        """Writes uint8[H, W, 3] as PNG; returns what the file reads back as."""
        path = self._staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, format="PNG", compress_level=4)
        with Image.open(path) as image:
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


def metrics_table(figures: Mapping[str, Any]) -> Any:
    """A run's figures as a table for the terminal: float result beside 8-bit file."""
    from rich.table import Table

    table = Table()
    table.add_column("")
    table.add_column("float", justify="right")
    table.add_column("8-bit file", justify="right")
    for name, label, form in (
        ("l2", "L2", "{:.3f}"),
        ("linf", "L∞", "{:.4f}"),
        ("mssim", "MSSIM", "{:.4f}"),
        ("mr", "misclassified (MR)", "{:.1%}"),
        ("target_rate", "named as the target", "{:.1%}"),
    ):
        cells = [figures[name], figures[name + "_uint8"]]
        table.add_row(label, *("–" if cell is None else form.format(cell) for cell in cells))
    table.add_row("clean error", f"{figures['clean_error']:.1%}", "")
    return table


def spread(labels: Iterable[int], count: int) -> list[int]:
    """Positions of up to `count` pictures, of as many persons as possible, in order."""
    turns: dict[int, int] = {}
    ranked = []
    for position, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], position))
    return sorted(position for _, position in sorted(ranked)[:count])
