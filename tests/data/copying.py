"""Copies of small data sets, with images that tell their position."""

import numpy as np

from deid_jax.data import FaceDataset
from deid_jax.data.prepared_copy import PreparedCopy
from tests.data.tfds_sets import noise, png

SIZE = 12


def new_picture(position):
    """What the image at a position becomes."""
    return noise(5000 + position, SIZE, SIZE)


def shards_of(total, length):
    return [range(start, min(start + length, total)) for start in range(0, total, length)]


def write_copy(folder, dataset, length=7, lost=()):
    """Writes the whole copy; the shards come last to first, as if from other machines."""
    shards = shards_of(len(dataset), length)
    for number in reversed(range(len(shards))):
        copy = PreparedCopy(folder, dataset, shards)
        kept = [position for position in shards[number] if position not in lost]
        written = copy.write(
            number, {position: png(new_picture(position)) for position in kept}
        )
        assert written == kept
    return PreparedCopy(folder, dataset, shards).finish()


def other_set(**changes):
    """A set that comes from no TFDS set."""
    facts = {
        "name": "folder",
        "persons": ("ada", "bob", "ünal"),
        "labels": np.arange(10, dtype=np.int32) % 3,
        "names": tuple(f"pic é {number}" for number in range(10)),
        "read": new_picture,
        "image_size": SIZE,
        "split": "all",
        "attributes": {
            "young": np.arange(10) % 2 == 0,
            "yaw": np.linspace(0, 1, 10, dtype=np.float32),
            "hair": np.array(["dark", "fair"] * 5),
        },
    }
    return FaceDataset(**(facts | changes))
