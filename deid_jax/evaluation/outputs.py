"""Where the de-identified images of a data set are written: PNG files, or a TFDS data set."""

import io
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from deid_jax.data import FaceDataset
from deid_jax.data.prepared_copy import PreparedCopy, subfolder
from deid_jax.evaluation.records import ImageRecord
from deid_jax.pixels import Pixels
from deid_jax.runs import RunFolder

_IMAGES, _DATASET = "images", "dataset"
# The names that outputs write in a run folder.
OUTPUT_NAMES = (_IMAGES, _DATASET)


class ImageOutput(Protocol):
    """Writes the images of a run, shard by shard."""

    def keep(self, index: int, image: Pixels) -> Pixels:
        """Saves uint8[H, W, 3] and returns it as read back. Called from several threads."""

    def finish(self, shard: int, records: Sequence[ImageRecord]) -> list[str]:
        """Ends a shard once all its images are saved; returns the names of its files."""

    def close(self) -> None:
        """Ends the output, once all processes have finished their shards."""


class FilesOutput:
    """Writes PNG files, `images/<person>/<name>.png`."""

    def __init__(self, folder: RunFolder, dataset: FaceDataset, shards: Sequence[range]):
        del shards
        self._folder = folder
        self._dataset = dataset

    def keep(self, index: int, image: Pixels) -> Pixels:
        """See `ImageOutput`."""
        return self._folder.write_png(_png(self._dataset.image_name(index)), image)

    def finish(self, shard: int, records: Sequence[ImageRecord]) -> list[str]:
        """See `ImageOutput`."""
        return [_png(record.image) for record in records]

    def close(self) -> None:
        """See `ImageOutput`."""


class TfdsOutput:
    """Writes a data set as TFDS prepares them, `dataset/<name>/<version>/`."""

    def __init__(self, folder: RunFolder, dataset: FaceDataset, shards: Sequence[range]):
        self._root = folder.work_path(".")
        self._copy = PreparedCopy(self._root / _DATASET / subfolder(dataset), dataset, shards)
        self._kept: dict[int, bytes] = {}

    def keep(self, index: int, image: Pixels) -> Pixels:
        """See `ImageOutput`."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="PNG", compress_level=4)
        self._kept[index] = file.getvalue()
        with Image.open(file) as written:
            return np.asarray(written.convert("RGB"))

    def finish(self, shard: int, records: Sequence[ImageRecord]) -> list[str]:
        """See `ImageOutput`."""
        del records
        positions = self._copy.shards[shard]
        images = {p: self._kept.pop(p) for p in positions if p in self._kept}
        self._copy.write(shard, images)
        return [str(path.relative_to(self._root)) for path in self._copy.paths(shard)]

    def close(self) -> None:
        """See `ImageOutput`."""
        self._copy.finish()


# --output_format -> the output that writes the images.
FORMATS: Mapping[str, type[FilesOutput] | type[TfdsOutput]] = {
    "png": FilesOutput,
    "tfds": TfdsOutput,
}


def _png(image: str) -> str:
    return f"{_IMAGES}/{image}.png"
