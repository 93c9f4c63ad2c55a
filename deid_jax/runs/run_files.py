"""The files of a run, in JSON, CSV and PNG, and the run's description."""

import csv
import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deid_jax.pixels import Pixels
from deid_jax.runs.whole_files import replacing
from deid_jax.types import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The description that makes a folder of files a run; it lists the files and is written last.
DESCRIPTION = "config.json"


class RunFiles:
    """Writes and reads the files in a folder."""

    def __init__(self, root: Path):
        self._work = root

    def work_path(self, name: str) -> Path:
        """The path of a file of the run until the run is complete."""
        return self._work / name

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file."""
        (self._work / name).write_text(text, encoding="utf-8")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes one binary file."""
        (self._work / name).write_bytes(content)

    def write_json(self, name: str, value: object) -> None:
        """Writes one JSON file, with infinities and NaN, which JSON lacks, as strings."""
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
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
            return _read_png(unfinished)

    def read_png(self, name: str) -> Pixels:
        """Reads what `write_png` wrote: uint8[H, W, 3]."""
        return _read_png(self._work / name)


def describe(settings: "DataclassInstance | None" = None, **more: object) -> dict[str, object]:
    """The content of `DESCRIPTION`: everything needed to repeat the run, and what it led to."""
    given = {} if settings is None else {"settings": dataclasses.asdict(settings)}
    return {**given, **more, "versions": package_versions()}


def package_versions() -> dict[str, Json]:
    """Package -> installed version, of those that decide results."""
    packages = ("deid_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages}


def _read_png(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _finite(value: object) -> object:
    """A JSON-able value with infinities and NaN replaced."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
