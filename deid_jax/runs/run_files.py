"""What the files of a run contain."""

import dataclasses
import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deid_jax.pixels import Pixels
from deid_jax.types import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The description that makes a folder of files a run; it lists the files and is written last.
DESCRIPTION = "config.json"


def describe(settings: "DataclassInstance | None" = None, **more: object) -> dict[str, object]:
    """The content of `DESCRIPTION`: everything needed to repeat the run, and what it led to."""
    given = {} if settings is None else {"settings": dataclasses.asdict(settings)}
    return {**given, **more, "versions": package_versions()}


def package_versions() -> dict[str, Json]:
    """Package -> installed version, of those that decide results."""
    packages = ("deid_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages}


def read_png(path: Path) -> Pixels:
    """Reads a PNG file: uint8[H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def finite(value: object) -> object:
    """A JSON-able value with infinities and NaN replaced."""
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
