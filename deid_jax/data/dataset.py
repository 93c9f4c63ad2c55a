"""A random-access set of face images with identities, as every loader returns it.

Images are uint8[H, W, 3] in sRGB order (as any file holds them); `dataset[i]` gives
float32 in [0, 1].
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

# An object of TensorFlow Datasets, which has no types of its own.
TfdsObject: TypeAlias = Any  # type: ignore[explicit-any]
# One image with its label and position, by name.
Example: TypeAlias = Mapping[str, NumpyArray | np.int32]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Options of a data set's loader.

    Attributes:
      data_dir: folder of the data set; loaders that embed their data take none.
      image_size: height and width in pixels of the images returned.
      split: "train", "test" or "all".
      seed: decides the split and every other choice of the loader.
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


class StoredExamples(Protocol):
    """Where images lie in the prepared TFDS data set that they come from."""

    @property
    def builder(self) -> TfdsObject:
        """TFDS's builder of that set."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of its splits that have examples."""
        ...

    @property
    def split_of(self) -> NumpyArray:
        """int[N]: each image's split, as a position in `splits`."""
        ...

    @property
    def positions(self) -> NumpyArray:
        """int[N]: each image's place in its split."""
        ...

    def record(self, index: int) -> bytes:
        """The serialized example of image `index`; thread safe; `InputError` if damaged."""
        ...

    def take(self, indices: NumpyArray) -> "StoredExamples":
        """Those of the images at `indices`, in that order."""
        ...


@dataclasses.dataclass(frozen=True)
class FaceDataset:
    """N images of P persons; also a Grain random-access source.

    Attributes:
      name: the data set's name, a key of `deid_jax.data.DATASETS`.
      persons: class names; the label of an image is its person's position here.
      labels: int32[N].
      names: N image names, unique within a person, without suffix ("001").
      read: position -> uint8[H, W, 3]; thread safe; raises `InputError`, which names the
        image in one line, for what cannot be read.
      image_size: H = W.
      split: the split that this is.
      attributes: name -> array[N] of what is known beside the identity; may be empty.
      provenance: JSON-able facts on how the set was made (crop, seed, selection, counts).
      skip_unreadable: whether images that turn out to be unreadable only when they are read
        are left out, instead of stopping the run.
      examples: the images' places in a prepared TFDS data set; None if they come from none.
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
    def pictures(self) -> tuple[str, ...]:
        """Every image as "person/name", unique in the set."""
        return tuple(self.picture(index) for index in range(len(self)))

    def picture(self, index: int) -> str:
        """One image as "person/name"."""
        return f"{self.persons[self.labels[index]]}/{self.names[index]}"

    def take(self, indices: Sequence[int] | NumpyArray) -> "FaceDataset":
        """The same set with only the images at `indices`, in that order."""
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

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of what decides the names, the labels and the pixels.

        Where `provenance["fingerprint"]` tells the files apart, no image is read; all are
        read otherwise.

        Raises:
          InputError: an image cannot be read (and `skip_unreadable` is off).
        """
        source = self.provenance.get("fingerprint")
        facts = [self.image_size, self.provenance.get("crop"), source]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for index in range(len(self)):
            digest.update(f"{self.picture(index)}\0".encode(errors="surrogatepass"))
        digest.update(np.asarray(self.labels, dtype="<i4").tobytes())
        if source is None:
            for index in range(len(self)):
                digest.update(self._pixels(index))
        return digest.hexdigest()

    def _pixels(self, index: int) -> bytes:
        """An image's pixels; nothing for one that is left out."""
        try:
            return self.read(index).tobytes()
        except InputError:
            if not self.skip_unreadable:
                raise
            return b""


class Loader(Protocol):
    """A data set by name: builds the split asked for, or raises `InputError` in one line."""

    def __call__(self, options: DataOptions) -> FaceDataset:
        """Returns the images of `options.split`, ordered by person, then image name.

        Only `tfds` keeps the order of its files, which a copy of the set then has too.
        """
        ...
