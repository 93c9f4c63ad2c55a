"""A random-access set of face images with identities, which every loader returns.

Images are uint8[H, W, 3] in sRGB, as in image files; `dataset[i]` gives float32 in [0, 1].
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from deid_jax.errors import InputError
from deid_jax.pixels import LEVELS
from deid_jax.types import NumpyArray

SPLITS = ("all", "train", "test")

# An object of TensorFlow Datasets, which is untyped.
TfdsObject: TypeAlias = Any  # type: ignore[explicit-any]
# One image with its label and position: name -> array.
Example: TypeAlias = Mapping[str, NumpyArray | np.int32]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Options of a data set's loader.

    Attributes:
      image_size: height and width in pixels of the images returned.
      seed: decides the split and every other choice of the loader.
      data_dir: folder of the data set; None for loaders that generate their data.
      skip_unreadable: leave out (and count) images that cannot be read, instead of raising.
      crop: name of the face crop, a key of `deid_jax.data.images.CROPS`.
    """

    image_size: int
    split: str = "all"
    seed: int = 0
    data_dir: str | None = None
    skip_unreadable: bool = False
    crop: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {self.split}")


@dataclasses.dataclass(frozen=True)
class StoredExamples:
    """The places of N images in the prepared TFDS data set that they come from.

    Attributes:
      builder: TFDS's builder of the data set.
      splits: the names of its non-empty splits.
      split_of: int[N], each image's split, as a position in `splits`.
      positions: int[N], each image's position in its split.
      read: (split, position) -> serialized example; thread safe; `InputError` if damaged.
    """

    builder: TfdsObject
    splits: tuple[str, ...]
    split_of: NumpyArray
    positions: NumpyArray
    read: Callable[[str, int], bytes]

    def place(self, index: int) -> tuple[str, int]:
        """The split of image `index`, and its position there."""
        return self.splits[self.split_of[index]], int(self.positions[index])

    def record(self, index: int) -> bytes:
        """The serialized example of image `index`."""
        return self.read(*self.place(index))

    def take(self, indices: NumpyArray) -> "StoredExamples":
        """The places of the images at `indices`, in that order."""
        return dataclasses.replace(
            self, split_of=self.split_of[indices], positions=self.positions[indices]
        )


@dataclasses.dataclass(frozen=True)
class FaceDataset:
    """N images of P persons; also a Grain random-access source.

    Attributes:
      persons: class names; an image's label is the position of its person here.
      labels: int32[N].
      names: N image names, unique within a person, without suffix ("001").
      read: position -> uint8[H, W, 3]; thread safe; raises a one-line `InputError` with the
        image's name if it cannot be read.
      attributes: name -> array[N] of what is known apart from the identity; may be empty.
      provenance: JSON-able facts about how the set was made (crop, seed, selection, counts).
      skip_unreadable: whether images found to be unreadable when they are read are left out,
        instead of stopping the run.
      examples: the images' places in a prepared TFDS data set; None if not from TFDS.
    """

    name: str
    persons: tuple[str, ...]
    labels: NumpyArray
    names: tuple[str, ...]
    read: Callable[[int], NumpyArray]
    image_size: int
    split: str
    attributes: Mapping[str, NumpyArray] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, object] = dataclasses.field(default_factory=dict)
    skip_unreadable: bool = False
    examples: StoredExamples | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """One example: image float32[H, W, 3] in [0, 1], label int32, position int32."""
        image = LEVELS[self.read(int(index))]
        return {"image": image, "label": self.labels[index], "position": np.int32(index)}

    def __repr__(self) -> str:
        return (
            f"FaceDataset({self.name}, split={self.split}, {len(self)} images of "
            f"{len(self.persons)} persons, {self.image_size} px)"
        )

    @property
    def image_names(self) -> tuple[str, ...]:
        """All images as "person/name", unique in the set."""
        return tuple(self.image_name(index) for index in range(len(self)))

    def image_name(self, index: int) -> str:
        """One image as "person/name"."""
        return f"{self.persons[self.labels[index]]}/{self.names[index]}"

    def take(self, indices: Sequence[int] | NumpyArray) -> "FaceDataset":
        """The subset of the images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read = self.read
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            names=tuple(self.names[i] for i in chosen),
            read=lambda index: read(int(chosen[index])),
            attributes={name: values[chosen] for name, values in self.attributes.items()},
            examples=None if self.examples is None else self.examples.take(chosen),
        )

    def is_readable(self, index: int) -> bool:
        """Whether an image is not left out; it is read if `skip_unreadable` is on."""
        return not self.skip_unreadable or bool(self._pixels(index))

    def readable(self) -> "FaceDataset":
        """The images that are not left out; reads all of them if `skip_unreadable` is on.

        Raises:
          InputError: there are none.
        """
        positions = [index for index in range(len(self)) if self.is_readable(index)]
        if not positions:
            raise InputError("no image could be read")
        return self.take(positions)

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of everything that decides names, labels and pixels.

        If `provenance["fingerprint"]` identifies the files, no image is read; otherwise all
        images are.

        Raises:
          InputError: an image cannot be read (and `skip_unreadable` is off).
        """
        source = self.provenance.get("fingerprint")
        facts = [self.image_size, self.provenance.get("crop"), source]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for index in range(len(self)):
            digest.update(f"{self.image_name(index)}\0".encode(errors="surrogatepass"))
        digest.update(np.asarray(self.labels, dtype="<i4").tobytes())
        if source is None:
            for index in range(len(self)):
                digest.update(self._pixels(index))
        return digest.hexdigest()

    def _pixels(self, index: int) -> bytes:
        """An image's pixels; empty for an image that is left out."""
        try:
            return self.read(index).tobytes()
        except InputError:
            if not self.skip_unreadable:
                raise
            return b""


class Loader(Protocol):
    """Loads the requested split of a data set, or raises a one-line `InputError`."""

    def __call__(self, options: DataOptions) -> FaceDataset:
        """Returns the images of `options.split`, ordered by person, then image name.

        Only `tfds` keeps the order of its files, so that a copy of the set has the same order.
        """
        ...
