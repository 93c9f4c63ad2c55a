"""What a run leaves behind: its folder, its tables and its sheet of pictures."""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from deid_jax._validate import InputError

# Every file or folder that a run may leave in its output folder.
_CONFIG = "config.json"


class RunFolder:
    """An output folder that holds either the last whole run or the new one, never a mixture.

    Files are written into a hidden folder beside their final place; leaving the `with` block
    without an error moves them there, replacing what an earlier run of ours had left.

    Raises:
      InputError: `path` is a file, cannot be written, or holds things that are not a run's.
    """

    def __init__(self, path: Path):
        self.path = path
        self._staging = path / ".unfinished"

    def check(self) -> None:
        """Refuses a path that cannot become the run's folder; changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output_dir {self.path} is a file")
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise InputError(f"output_dir {self.path} lies below a file, {existing}")
        if not os.access(existing, os.W_OK):
            raise InputError(f"output_dir {self.path} cannot be written")
        if (self.path / "images").exists() and not (self.path / _CONFIG).exists():
            raise InputError(f"output_dir {self.path} holds images/ of something else")

    def __enter__(self) -> "RunFolder":
        self.check()
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            # The description goes last: with it in place the run is whole.
            for entry in sorted(self._staging.iterdir(), key=lambda p: p.name == _CONFIG):
                final = self.path / entry.name
                if final.is_dir():
                    shutil.rmtree(final)
                entry.replace(final)
        shutil.rmtree(self._staging, ignore_errors=True)
        if kind is not None and not any(self.path.iterdir()):
            self.path.rmdir()

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file."""
        (self._staging / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

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


def metrics_table(figures: Mapping[str, Any], title: str) -> Any:
    """A run's figures as a table for the terminal: float result beside 8-bit file."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
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
