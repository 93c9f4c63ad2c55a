"""Recognisers that compare faces by embeddings: by name, by file, or user-supplied.

A recogniser is given as `NAME` (weights that are downloaded once, see
`deid_jax.recognisers.weights`), as `NAME:FILE` (a file of such weights), or as
`package.module:function`: a function written with `jax.numpy` that maps RGB images
float32[B, H, W, 3] in [0, 1] to float[B, D]. A NAME is one of `names()`; anything else before
a colon is a module.
"""

import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from deid_jax.devices import sharding
from deid_jax.errors import InputError, one_line
from deid_jax.metrics.verification import Distance
from deid_jax.models.templates import ARCFACE, Alignment
from deid_jax.recognisers import weight_files, weights
from deid_jax.types import Model, NumpyArray, Variables


class AlignedModel(Model, Protocol):
    """A network that states which crops it takes and how its embeddings are compared."""

    @property
    def alignment(self) -> Alignment:
        """The crops of a face that it takes."""

    @property
    def distance(self) -> Distance:
        """How its embeddings are compared."""


# Makes module and variables from a file's named arrays.
Convert: TypeAlias = Callable[[Mapping[str, NumpyArray]], tuple[AlignedModel, Variables]]
# Architecture -> its `Convert`.
CONVERTERS = {
    "dlib_resnet": "deid_jax.models.dlib_resnet:convert",
    "mobilefacenet": "deid_jax.models.mobilefacenet:convert",
}
# The number of images embedded at a time.
BATCH_SIZE = 32
_SIZES = (1, 4, BATCH_SIZE)


class Embedder(NamedTuple):
    """A recogniser that compares faces.

    Attributes:
      name: its name, without the folder of a file.
      module: `module.apply(variables, images)` maps float32[B, H, W, 3] to float32[B, D];
        hashable, since it decides the compiled program.
      variables: its weights.
      alignment: the crops that it takes.
      distance: how its embeddings are compared.
    """

    name: str
    module: Model
    variables: Variables
    alignment: Alignment = ARCFACE
    distance: Distance = Distance.COSINE

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings float32[N, D] of uint8[N, H, W, 3], computed in batches."""
        found = []
        variables = sharding.placed_on_devices(self.variables)
        for first in range(0, len(images), BATCH_SIZE):
            batch = images[first : first + BATCH_SIZE]
            # Only a few batch sizes, so that few programs are compiled.
            size = next(size for size in _SIZES if size >= len(batch))
            padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
            found.append(np.asarray(_embed(variables, padded, self.module))[: len(batch)])
        return np.concatenate(found)


@functools.partial(jax.jit, static_argnames="module")
def _embed(variables: Variables, images: jax.Array, module: Model) -> jax.Array:
    return module.apply(variables, images.astype(jnp.float32) / 255)


@dataclasses.dataclass(frozen=True)
class FunctionModule:
    """Wraps a function float32[B, H, W, 3] -> float[B, D], which holds its weights."""

    function: Callable[[jax.Array], jax.Array]

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """The embeddings float32[B, D]; `variables` is empty."""
        del variables
        return jnp.asarray(self.function(images), jnp.float32)


def names() -> list[str]:
    """Every NAME: the architectures, and their weights that can be downloaded."""
    rows = weights.WEIGHTS.items()
    found = [name for name, row in rows if row.converter in CONVERTERS.values()]
    return list(dict.fromkeys([*CONVERTERS, *found]))


def name_of(text: str) -> str:
    """The short name of a recogniser: NAME for NAME:FILE; a function keeps its full name."""
    name = text.partition(":")[0]
    return name if name in names() else text


def split_list(text: str, separator: str) -> list[str]:
    """Splits a list of recognisers into strings for `load_embedder`.

    A file's path may contain the separator: after NAME:FILE it separates only if a NAME or
    `module:` follows.
    """
    known = "|".join(map(re.escape, names()))
    first, *rest = text.split(separator)
    found = [first]
    for part in rest:
        in_path = re.search(rf"(^|[,+])\s*({known}):", found[-1])
        if in_path and not re.match(rf"\s*(({known})\s*($|[,+])|[\w.]+:)", part):
            found[-1] += separator + part
        else:
            found.append(part)
    return [part.strip() for part in found]


def load_embedder(
    text: str,
    *,
    image_size: int,
    progress: weights.BytesProgress | None = None,
) -> Embedder:
    """Loads the recogniser given by `text`.

    A network states its own alignment. A function is given ArcFace's crop of `image_size`
    pixels a side, and its embeddings are compared by cosines. `progress` is called with the
    bytes received during a download.

    Raises:
      InputError: there is no such recogniser or file, it cannot be read, or it cannot take
        these images.
    """
    name, _, rest = text.partition(":")
    if name in names():
        path = Path(rest) if rest else _fetch(name, progress)
        embedder = _loaded(name, path)
    elif rest.isidentifier():
        embedder = _user_supplied(text, image_size)
    else:
        raise InputError(
            f"recogniser must be NAME or NAME:FILE with a NAME of {', '.join(names())}, or "
            f"package.module:function, got {text}"
        )
    _check(embedder)
    return embedder


def _fetch(name: str, progress: weights.BytesProgress | None) -> Path:
    if name not in weights.WEIGHTS:
        rows = ", ".join(row for row in names() if row in weights.WEIGHTS)
        raise InputError(
            f"recogniser {name} needs a file, {name}:FILE; by name alone there are {rows}"
        )
    return weights.fetch(name, progress=progress)


def _loaded(name: str, path: Path) -> Embedder:
    """A network with the weights in a file."""
    converter = CONVERTERS.get(name) or weights.WEIGHTS[name].converter
    place, attribute = converter.split(":")
    convert: Convert = getattr(importlib.import_module(place), attribute)
    module, variables = convert(weight_files.read_weights(path))
    return Embedder(name, module, variables, module.alignment, module.distance)


def _user_supplied(text: str, image_size: int) -> Embedder:
    """Imports `package.module:function`; modules in the working folder are found, too."""
    module_name, _, function_name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # A module's own code may raise anything.
        raise InputError(f"recogniser {text} cannot be imported: {one_line(error)}") from error
    if not callable(function):
        raise InputError(f"recogniser {text} is no function")
    return Embedder(text, FunctionModule(function), {}, ARCFACE.scaled(image_size))


def _check(embedder: Embedder) -> None:
    """Refuses a recogniser that does not give one vector per image."""
    images = jax.ShapeDtypeStruct((2, *embedder.alignment.shape), jnp.float32)
    try:
        shape = jax.eval_shape(embedder.module.apply, embedder.variables, images).shape
    except Exception as error:
        raise InputError(
            f"recogniser {embedder.name} cannot take images of {embedder.alignment.height} px: "
            f"{one_line(error)}"
        ) from error
    if len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
        raise InputError(
            f"recogniser {embedder.name} must give a vector for each image, [B, D] with "
            f"D >= 2; of two it gives {shape}"
        )
