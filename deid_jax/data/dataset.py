"""What every loader returns: a random-access set of face pictures with identities.

Pictures are uint8[H, W, 3] in sRGB order (as any file holds them); `dataset[i]` gives
float32 in [0, 1].
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax._validate import InputError

SPLITS = ("all", "train", "test")

# The 256 values of a pixel as float32. A table, because compiled programs may divide by 255
# differently in the last bit, and then a picture would differ from itself.
LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)


def to_uint8(images: jax.Array) -> jax.Array:
    """round(255 x), of pictures in [0, 1]."""
    return jnp.round(255 * images).astype(jnp.uint8)


# 1/255 = _HIGH + _LOW: a level times the former, of 9 bits, is exact, so that the sum rounds to
# LEVELS whether or not product and sum are fused. (XLA turns a division by 255 into a product
# with 1/255, which does not; looking LEVELS up takes twenty times as long.)
_HIGH = np.float32(float.fromhex("0x1.01p-8"))
_LOW = np.float32(1 / 255 - float(_HIGH))


def on_grid(images: jax.Array) -> jax.Array:
    """Pictures in [0, 1] as they read back from an 8-bit file, bit for bit."""
    levels = jnp.round(255 * images).astype(jnp.float32)
    return (levels * _HIGH + levels * _LOW).astype(images.dtype)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What a loader is asked for.

    Attributes:
      data_dir: folder of the data set; loaders that embed their data take none.
      image_size: height and width in pixels of the pictures returned.
      split: "train", "test" or "all".
      seed: decides the split and every other choice of the loader.
      skip_unreadable: leave out (and count) pictures that cannot be read, instead of raising.
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
class FaceDataset:
    """N pictures of P persons; also a Grain random-access source.

    Attributes:
      name: the data set's name, a key of `deid_jax.data.DATASETS`.
      persons: class names; the label of a picture is its person's position here.
      labels: int32[N].
      names: N picture names, unique within a person, without suffix ("001").
      read: position -> uint8[H, W, 3]; thread safe.
      image_size: H = W.
      split: the split that this is.
      attributes: name -> array[N] of what is known beside the identity; may be empty.
      provenance: JSON-able facts on how the set was made (crop, seed, selection, counts).
    """

    name: str
    persons: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    read: Callable[[int], np.ndarray]
    image_size: int
    split: str
    attributes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example: image float32[H, W, 3] in [0, 1], label int32, position int32."""
        image = LEVELS[self.read(int(index))]
        return {"image": image, "label": self.labels[index], "position": np.int32(index)}

    def __repr__(self) -> str:
        return (
            f"FaceDataset({self.name}, split={self.split}, {len(self)} pictures of "
            f"{len(self.persons)} persons, {self.image_size} px)"
        )

    @property
    def pictures(self) -> tuple[str, ...]:
        """Every picture as "person/name", unique in the set."""
        return tuple(
            f"{self.persons[label]}/{name}"
            for label, name in zip(self.labels, self.names, strict=True)
        )

    def take(self, indices: Sequence[int] | np.ndarray) -> "FaceDataset":
        """The same set with only the pictures at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read = self.read
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            names=tuple(self.names[i] for i in chosen),
            read=lambda index: read(int(chosen[index])),
            attributes={name: values[chosen] for name, values in self.attributes.items()},
        )


class Loader(Protocol):
    """A data set by name: builds the split asked for, or raises `InputError` in one line."""

    def __call__(self, options: DataOptions) -> FaceDataset:
        """Returns the pictures of `options.split`, ordered by person, then picture name."""
        ...
