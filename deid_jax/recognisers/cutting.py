"""Recognisers that cut their own crops out of images aligned for others.

The images of a data set are all aligned alike, while each recogniser has its own template and
size. An embedder `in_frame` takes the data set's images and resamples them, differentiably.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from deid_jax.models.templates import Alignment
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from deid_jax.types import Model, NumpyArray, Variables


@dataclasses.dataclass(frozen=True)
class CuttingModule:
    """A network that cuts its crops, of some alignment, out of images of another one."""

    module: Model
    alignment: Alignment
    frame: Alignment

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """The network's output for images float32[B, H, W, 3] of the frame."""
        rows, columns = _matrices(self.frame, self.alignment)
        return self.module.apply(variables, resample(images, rows, columns))

    def clone(self, *, dtype: DTypeLike) -> "CuttingModule":
        """The same, computing in another precision."""
        assert hasattr(self.module, "clone")  # Functions take the images unchanged.
        return dataclasses.replace(self, module=self.module.clone(dtype=dtype))


def in_frame(embedder: Embedder, frame: Alignment) -> Embedder:
    """The embedder for images of `frame`, out of which it cuts its own crops.

    Pixels outside the images are black. Functions take the images unchanged.
    """
    if embedder.alignment == frame or isinstance(embedder.module, FunctionModule):
        return embedder
    module = CuttingModule(embedder.module, embedder.alignment, frame)
    return embedder._replace(module=module, alignment=frame)


def resample(images: jax.Array, rows: ArrayLike, columns: ArrayLike) -> jax.Array:
    """R x Cᵀ of every channel: float32[B, h, w, K] of images [B, H, W, K].

    R is [h, H] and C [w, W].
    """
    lines = jnp.einsum("ij,bjwc->biwc", rows, images)
    return jnp.einsum("ij,bhjc->bhic", columns, lines)


@functools.cache
def _matrices(frame: Alignment, alignment: Alignment) -> tuple[NumpyArray, NumpyArray]:
    scale, (x, y) = frame.onto(alignment)
    rows = resampling_matrix(scale, float(y), alignment.height, frame.height)
    return rows, resampling_matrix(scale, float(x), alignment.width, frame.width)


def resampling_matrix(scale: float, offset: float, length: int, size: int) -> NumpyArray:
    """float32[length, size]: resamples `size` pixels along an axis so that p goes to a p + b.

    Interpolation is linear; for reduction the filter widens with the pixels.
    """
    places = (np.arange(length) - offset) / scale
    reach = max(1.0, 1 / scale)
    margin = int(np.ceil(reach))
    # With the pixels beyond the ends, which are zero, every row adds up to one.
    low = int(min(places.min(), 0)) - margin - 1
    high = int(max(places.max(), size)) + margin + 1
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(low, high)) / reach)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, -low : size - low].astype(np.float32)
