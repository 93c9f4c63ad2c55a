"""dlib's ResNet: the face recogniser of the Python package `face_recognition`.

It maps an aligned face to a descriptor; two faces match if the Euclidean distance of their
descriptors is below 0.6. The affine layers that replace BatchNorm are folded
into the preceding convolution.

King: "High Quality Face Recognition with Deep Metric Learning", blog.dlib.net, 2017. Blocks:
He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.models import layers
from deid_jax.models.published import check_arrays
from deid_jax.models.templates import DLIB, Alignment
from deid_jax.types import NumpyArray, Variables

# The length of a descriptor.
FEATURES = 128
# Subtracted from RGB in 0 to 255; the difference is divided by 256.
_MEAN = (122.782, 117.001, 104.298)


class Block(NamedTuple):
    """Shape of a residual block: two 3×3 convolutions; `down` halves height and width."""

    inputs: int
    features: int
    down: bool


def _blocks() -> tuple[Block, ...]:
    found, inputs = [], 32
    for features, repeats, down in (
        (32, 3, False),
        (64, 4, True),
        (128, 3, True),
        (256, 3, True),
        (256, 1, True),
    ):
        for number in range(repeats):
            found.append(Block(inputs, features, down and not number))
            inputs = features
    return tuple(found)


BLOCKS = _blocks()


class DlibResNet(nn.Module):
    """Maps aligned faces to descriptors.

    Attributes:
      dtype: the dtype of the layers' computations, e.g. bfloat16; None: the input's. Weights
        and descriptors stay float32.
    """

    alignment: ClassVar[Alignment] = DLIB
    distance: ClassVar[Distance] = Distance.EUCLIDEAN

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Descriptors float32[B, 128], not normalised, of images float32[B, 150, 150, 3].

        Pixels are in [0, 1]; the faces are aligned as in `templates.DLIB`. Training and
        inference are the same function.

        Raises:
          InputError: the images have another shape.
        """
        del train
        if images.shape[1:] != DLIB.shape:
            raise InputError(
                f"images must be [B, 150, 150, 3] for dlib_resnet, got shape {images.shape}"
            )
        x = (images * 255 - jnp.array(_MEAN, images.dtype).reshape(1, 1, 1, 3)) / 256
        x = x if self.dtype is None else x.astype(self.dtype)
        x = layers.conv(32, 7, "stem", self.dtype, stride=2)(x)
        x = layers.max_pool(nn.relu(x), 3)
        for number, (_, features, down) in enumerate(BLOCKS):
            name, stride = f"block{number}", 2 if down else 1
            y = layers.conv(features, 3, f"{name}_first", self.dtype, stride=stride)(x)
            y = layers.conv(features, 3, f"{name}_second", self.dtype)(nn.relu(y))
            shortcut = nn.avg_pool(x, (2, 2), (2, 2)) if down else x
            x = nn.relu(_padded_sum(y, shortcut))
        x = nn.Dense(FEATURES, use_bias=False, dtype=self.dtype, name="descriptor")(
            x.mean(axis=(1, 2))
        )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _padded_sum(a: jax.Array, b: jax.Array) -> jax.Array:
    """A + b; rows, columns and channels that one of them lacks are zeros, after its own."""
    shape = np.maximum(a.shape, b.shape)
    a, b = (jnp.pad(x, [(0, int(size)) for size in shape - np.array(x.shape)]) for x in (a, b))
    return a + b


class _Source(NamedTuple):
    """A convolution of the network: inputs, outputs and the size of its kernel."""

    inputs: int
    features: int
    size: int


def _sources() -> dict[str, _Source]:
    """The convolutions in the order of the file."""
    sources = {"stem": _Source(3, 32, 7)}
    for number, (inputs, features, _) in enumerate(BLOCKS):
        sources[f"block{number}_first"] = _Source(inputs, features, 3)
        sources[f"block{number}_second"] = _Source(features, features, 3)
    return sources


_SOURCES = _sources()


def array_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that `convert` needs, by name: those of dlib's layers.

    `con.N` is the N-th convolution from the input, its filters OIHW and then its biases, in one
    row; `affine.N` what follows it, gains and then shifts; `fc.0` is the last layer.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (inputs, features, size) in enumerate(_SOURCES.values()):
        shapes[f"con.{number}"] = (features * (inputs * size**2 + 1),)
        shapes[f"affine.{number}"] = (2 * features,)
    return shapes | {"fc.0": (BLOCKS[-1].features * FEATURES,)}


def convert(arrays: Mapping[str, NumpyArray]) -> tuple[DlibResNet, Variables]:
    """Builds the network from the arrays of `array_shapes`. The variables are {"params": ...}.

    A convolution w, b and its gains γ and shifts β are folded in float64: w' = γ w and
    b' = γ b + β.

    Raises:
      InputError: an array is missing, unexpected, of the wrong shape, or not finite floats.
    """
    check_arrays("dlib's ResNet", arrays, array_shapes())
    params = {
        name: _folded(arrays[f"con.{number}"], arrays[f"affine.{number}"], source)
        for number, (name, source) in enumerate(_SOURCES.items())
    }
    last = np.reshape(arrays["fc.0"], (-1, FEATURES))
    params["descriptor"] = {"kernel": np.asarray(last, np.float32)}
    return DlibResNet(), {"params": params}


def _folded(con: NumpyArray, affine: NumpyArray, source: _Source) -> dict[str, NumpyArray]:
    """A layer's kernel in our layout and its bias, float32."""
    inputs, features, size = source
    filters, biases = np.split(np.asarray(con, np.float64), [-features])
    gains, shifts = np.split(np.asarray(affine, np.float64), 2)
    kernel = filters.reshape(features, inputs, size, size).transpose(2, 3, 1, 0) * gains
    folded = {"kernel": kernel, "bias": biases * gains + shifts}
    return {name: np.asarray(value, np.float32) for name, value in folded.items()}
