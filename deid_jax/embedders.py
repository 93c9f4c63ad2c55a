"""Recognisers that compare faces by embeddings, by name, by file, or brought along.

A recogniser is named `NAME` (weights that are downloaded once, see `deid_jax.weights`),
`NAME:FILE` (a file of such weights), or `package.module:function`: a function from RGB
pictures float32[B, H, W, 3] in [0, 1] to float[B, D], written with `jax.numpy`.
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import downloading
from deid_jax._validate import InputError

# The architecture's name, with which names of weights begin -> module:function that loads.
LOADERS = {"mobilefacenet": "deid_jax.models.mobilefacenet:load"}
# PyTorch's own files are read without running what they hold.
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
# What training scripts put around a network's weights.
_WRAPPERS = ("net_state_dict.", "state_dict.", "model.")
# Pictures whose embeddings are computed at a time.
BATCH_SIZE = 32
_SIZES = (1, 4, BATCH_SIZE)


class Embedder(NamedTuple):
    """A recogniser that compares faces.

    Attributes:
      name: what it is called, without a file's folder.
      module: `module.apply(variables, images)` gives float32[B, D] of float32[B, H, W, 3];
        hashable, since it decides the compiled program.
      variables: its weights.
    """

    name: str
    module: Any
    variables: Any

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeddings float32[N, D] of uint8[N, H, W, 3], a batch at a time."""
        found = []
        for first in range(0, len(images), BATCH_SIZE):
            batch = images[first : first + BATCH_SIZE]
            # Of a few sizes alone, so that there are few programs.
            size = next(size for size in _SIZES if size >= len(batch))
            padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
            found.append(np.asarray(_embed(self.variables, padded, self.module))[: len(batch)])
        return np.concatenate(found)


@functools.partial(jax.jit, static_argnames="module")
def _embed(variables: Any, images: jax.Array, module: Any) -> jax.Array:
    return module.apply(variables, images.astype(jnp.float32) / 255)


@dataclasses.dataclass(frozen=True)
class FunctionModule:
    """A function in a module's place: it holds its weights itself.

    Attributes:
      function: float32[B, H, W, 3] in [0, 1] -> float[B, D].
    """

    function: Callable[[jax.Array], jax.Array]

    def apply(self, variables: Any, images: jax.Array) -> jax.Array:
        """float32[B, D]; there are no variables."""
        del variables
        return jnp.asarray(self.function(images), jnp.float32)


def name_of(text: str) -> str:
    """What a recogniser is called: NAME of NAME:FILE; a function keeps its whole name."""
    name = text.partition(":")[0]
    return name if name.startswith(tuple(LOADERS)) else text


def load_embedder(
    text: str,
    *,
    image_size: int,
    sha256: str | None = None,
    progress: downloading.Progress = downloading.no_progress,
) -> Embedder:
    """The recogniser that `text` names.

    Args:
      text: `NAME`, `NAME:FILE` or `package.module:function`.
      image_size: H = W of the pictures that it is to judge.
      sha256: of the file to download, where the table of weights knows none.
      progress: told of bytes while they are downloaded.

    Raises:
      InputError: there is no such recogniser or file, it cannot be read, or it cannot take
        these pictures.
    """
    name, _, rest = text.partition(":")
    architecture = next((known for known in LOADERS if name.startswith(known)), None)
    if architecture is None and rest:
        embedder = _brought(text)
    elif architecture is None:
        raise InputError(
            f"recogniser must be NAME or NAME:FILE with a NAME of {', '.join(_names())}, or "
            f"package.module:function, got {text}"
        )
    else:
        path = Path(rest) if rest else _fetch(name, sha256, progress)
        embedder = Embedder(name, *_loaded(LOADERS[architecture], path))
    _check(embedder, image_size)
    return embedder


def _names() -> list[str]:
    from deid_jax.weights import WEIGHTS

    return [*LOADERS, *(name for name in WEIGHTS if name.startswith(tuple(LOADERS)))]


def _fetch(name: str, sha256: str | None, progress: downloading.Progress) -> Path:
    from deid_jax import weights

    if name not in weights.WEIGHTS:
        raise InputError(
            f"recogniser {name} needs a file, {name}:FILE; by name alone there are "
            + ", ".join(row for row in weights.WEIGHTS if row.startswith(tuple(LOADERS)))
        )
    return weights.fetch(name, sha256=sha256, progress=progress)


def _loaded(loader: str, path: Path) -> tuple[Any, Any]:
    """Module and variables of a file: `.npz`, or PyTorch's."""
    if path.suffix not in _TORCH_SUFFIXES:
        return _attribute(loader)(path)
    from deid_jax import torch_files

    arrays = torch_files.read(path)
    for wrapper in _WRAPPERS:
        inner = {n.removeprefix(wrapper): a for n, a in arrays.items() if n.startswith(wrapper)}
        arrays = inner or arrays
    return _attribute(loader.partition(":")[0] + ":convert")(arrays)


def _attribute(target: str) -> Any:
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _brought(text: str) -> Embedder:
    """`package.module:function`, looked for beside the working folder's modules, too."""
    module_name, _, function_name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # A module's own code may raise anything.
        raise InputError(f"recogniser {text} cannot be imported: {_short(error)}") from error
    if not callable(function):
        raise InputError(f"recogniser {text} is no function")
    return Embedder(text, FunctionModule(function), {})


def _check(embedder: Embedder, image_size: int) -> None:
    """Refuses what does not give one vector a picture."""
    pictures = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    try:
        shape = jax.eval_shape(embedder.module.apply, embedder.variables, pictures).shape
    except Exception as error:
        raise InputError(
            f"recogniser {embedder.name} cannot take pictures of {image_size} px: "
            f"{_short(error)}"
        ) from error
    if len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
        raise InputError(
            f"recogniser {embedder.name} must give a vector for each picture, [B, D] with "
            f"D >= 2; of two it gives {shape}"
        )


def _short(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
