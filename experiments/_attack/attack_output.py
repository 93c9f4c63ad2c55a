"""Where `experiments.attack` puts pictures: PNG files, or a TFDS data set."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from deid_jax.data import FaceDataset
from deid_jax.data.prepared_copy import PreparedCopy, subfolder
from deid_jax.evaluation.records import ImageRecord
from deid_jax.runs.run_folder import RunFolder

FORMATS = ("png", "tfds")
# What of a run folder holds the pictures.
FOLDERS = {"png": "images", "tfds": "dataset"}


class Output(Protocol):
    """Keeps pictures, and knows which shards are whole."""

    def keep(self, index: int, picture: np.ndarray) -> np.ndarray:
        """Keeps uint8[H, W, 3]; returns it as it reads back. For several threads."""
        ...

    def finish(self, shard: int, records: Sequence[ImageRecord]) -> dict[str, int]:
        """Ends a shard whose pictures have all been kept; returns file -> bytes."""
        ...

    def close(self) -> None:
        """Ends the whole, once all processes have finished their shards."""
        ...


class PngOutput:
    """`images/<person>/<name>.png`."""

    def __init__(self, folder: RunFolder, faces: FaceDataset):
        self._folder = folder
        self._faces = faces

    def keep(self, index: int, picture: np.ndarray) -> np.ndarray:
        """See `Output`."""
        return self._folder.write_png(_png(self._faces.picture(index)), picture)

    def finish(self, shard: int, records: Sequence[ImageRecord]) -> dict[str, int]:
        """See `Output`."""
        names = [_png(record.image) for record in records]
        return self._folder.sizes(names)

    def close(self) -> None:
        """See `Output`."""


class CopyOutput:
    """`dataset/<name>/<version>/`, as TFDS prepares data sets."""

    def __init__(self, folder: RunFolder, faces: FaceDataset, shards: Sequence[range]):
        self._root = folder.work_path(".")
        place = self._root / FOLDERS["tfds"] / subfolder(faces)
        self._copy = PreparedCopy(place, faces, shards)
        self._kept: dict[int, bytes] = {}

    def keep(self, index: int, picture: np.ndarray) -> np.ndarray:
        """See `Output`."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG", compress_level=4)
        self._kept[index] = file.getvalue()
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))

    def finish(self, shard: int, records: Sequence[ImageRecord]) -> dict[str, int]:
        """See `Output`."""
        del records
        positions = self._copy.shards[shard]
        pictures = {p: self._kept.pop(p) for p in positions if p in self._kept}
        self._copy.write(shard, pictures)
        paths = self._copy.paths(shard)
        return {str(path.relative_to(self._root)): path.stat().st_size for path in paths}

    def close(self) -> None:
        """See `Output`."""
        self._copy.finish()


def _png(picture: str) -> str:
    return f"{FOLDERS['png']}/{picture}.png"


def is_whole(root: Path, sizes: Mapping[str, int]) -> bool:
    """Whether files are there, of the sizes they were written with."""
    for name, size in sizes.items():
        try:
            if (root / name).stat().st_size != size:
                return False
        except OSError:
            return False
    return True
