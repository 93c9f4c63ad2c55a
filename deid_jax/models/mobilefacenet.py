"""MobileFaceNet: a small face recogniser that maps an aligned face to an embedding.

There are two variants with published weights. Both consist of a stem, fifteen inverted
bottlenecks and a head; they differ in input, activation and stem. BatchNorm is folded into the
preceding convolution.

Chen, Liu, Gao, Han: "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification
on Mobile Devices", CCBR 2018. Bottlenecks: Sandler et al.: "MobileNetV2", CVPR 2018.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.models.folded_layers import FoldedLayer
from deid_jax.models.published import check_arrays
from deid_jax.models.templates import ARCFACE, ARCFACE_NARROW, Alignment
from deid_jax.types import NumpyArray, Variables

VARIANTS = ("ms1m", "casia")

# The length of an embedding.
FEATURES = 128

# The columns of the aligned 112×112 crop that the variant uses.
_SIZE = 112
_COLUMNS = {"ms1m": (0, 112), "casia": (8, 104)}

# Expansion, channels, repeats, and the stride of the first repeat.
_TABLE = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))

_EPSILON = 1e-5


class Bottleneck(NamedTuple):
    """Shape of an inverted bottleneck: 1×1 to `wide`, depthwise 3×3, 1×1 to `channels`."""

    inputs: int
    wide: int
    channels: int
    stride: int

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.channels


def _bottlenecks() -> tuple[Bottleneck, ...]:
    found, inputs = [], 64
    for expansion, channels, repeats, first in _TABLE:
        for number in range(repeats):
            stride = 1 if number else first
            found.append(Bottleneck(inputs, expansion * inputs, channels, stride))
            inputs = channels
    return tuple(found)


BOTTLENECKS = _bottlenecks()


class MobileFaceNet(nn.Module):
    """Maps aligned faces to embeddings.

    Attributes:
      variant: "ms1m" takes 112×112 pixels, and its activations are ReLU6 (ReLU in the stem);
        "casia" takes 112 high × 96 wide, and its activations are PReLU.
      dtype: the dtype of the layers' computations, e.g. bfloat16; None: the input's. Weights
        and embeddings stay float32.
    """

    distance: ClassVar[Distance] = Distance.COSINE

    variant: str = "ms1m"
    dtype: DTypeLike | None = None

    @property
    def alignment(self) -> Alignment:
        """The crops of its training."""
        return ARCFACE_NARROW if self.variant == "casia" else ARCFACE

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Embeddings float32[B, 128], not normalised, of images float32[B, 112, 112, 3].

        Pixels are in [0, 1]; the faces are aligned to the usual template of 112×112. "casia"
        takes the middle 96 columns, or all columns of images that are 96 wide. Training and
        inference are the same function, since BatchNorm is folded.

        Raises:
          InputError: the variant is unknown, or the images have another shape.
        """
        del train
        layer = functools.partial(FoldedLayer, dtype=self.dtype)
        prelu = self.variant == "casia"
        main, stem = ("prelu", "prelu") if prelu else ("relu6", "relu")
        x = _normalised(images, self.variant)
        x = x if self.dtype is None else x.astype(self.dtype)
        x = layer("stem", (3, 3, 3, 64), main, 2, name="stem")(x)
        x = layer("depthwise", (3, 3, 64), stem, name="stem_depthwise")(x)
        if not prelu:
            x = layer("pointwise", (64, 64), stem, name="stem_pointwise")(x)
        for number, block in enumerate(BOTTLENECKS):
            inputs, wide, channels, stride = block
            name = f"block{number}"
            y = layer("pointwise", (inputs, wide), main, name=f"{name}_expand")(x)
            y = layer("depthwise", (3, 3, wide), main, stride, name=f"{name}_depthwise")(y)
            y = layer("pointwise", (wide, channels), None, name=f"{name}_project")(y)
            x = x + y if block.residual else y
        x = layer("pointwise", (128, 512), main, name="head_expand")(x)
        x = layer("whole", (*x.shape[1:3], 512), None, name="head_depthwise")(x)
        x = layer("pointwise", (512, FEATURES), None, name="embedding")(x)
        x = x.reshape(len(x), FEATURES)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normalised(images: jax.Array, variant: str) -> jax.Array:
    """The pixels, normalised as in the variant's training."""
    if variant not in VARIANTS:
        raise InputError(f"variant must be one of {', '.join(VARIANTS)}, got {variant}")
    left, right = _COLUMNS[variant]
    sizes = ((_SIZE, _SIZE, 3), (_SIZE, right - left, 3))
    if images.shape[1:] not in sizes:
        raise InputError(
            f"images must be [B, {_SIZE}, {_SIZE}, 3] for {variant}, got shape {images.shape}"
        )
    if variant == "casia":
        if images.shape[2] == _SIZE:
            images = images[:, :, left:right]
        return (images - 0.5) * (255 / 128)
    mean = jnp.array([0.485, 0.456, 0.406], images.dtype).reshape(1, 1, 1, 3)
    deviation = jnp.array([0.229, 0.224, 0.225], images.dtype).reshape(1, 1, 1, 3)
    return (images - mean) / deviation


class _Source(NamedTuple):
    """The names of a layer's arrays, and the shape of its kernel."""

    convolution: str
    norm: str
    shape: tuple[int, ...]
    bias: str = ""
    slope: str = ""


_NORM = ("weight", "bias", "running_mean", "running_var")


def _ms1m_sources() -> dict[str, _Source]:
    sources = {
        "stem": _Source("conv1.0", "conv1.1", (64, 3, 3, 3)),
        "stem_depthwise": _Source("dw_conv.depthwise", "dw_conv.bn1", (64, 1, 3, 3)),
        "stem_pointwise": _Source("dw_conv.pointwise", "dw_conv.bn2", (64, 64, 1, 1)),
        "head_expand": _Source("conv2.0", "conv2.1", (512, 128, 1, 1)),
        "head_depthwise": _Source("gdconv.depthwise", "gdconv.bn", (512, 1, 7, 7)),
        "embedding": _Source("conv3", "bn", (FEATURES, 512, 1, 1), "conv3.bias"),
    }
    for number, (inputs, wide, channels, _) in enumerate(BOTTLENECKS):
        ours, theirs = f"block{number}", f"features.{number}.conv"
        sources |= {
            f"{ours}_expand": _Source(f"{theirs}.0.0", f"{theirs}.0.1", (wide, inputs, 1, 1)),
            f"{ours}_depthwise": _Source(f"{theirs}.1.0", f"{theirs}.1.1", (wide, 1, 3, 3)),
            f"{ours}_project": _Source(f"{theirs}.2", f"{theirs}.3", (channels, wide, 1, 1)),
        }
    return sources


def _casia_sources() -> dict[str, _Source]:
    def named(name: str, shape: tuple[int, ...], *, slope: bool = True) -> _Source:
        prelu = f"{name}.prelu.weight" if slope else ""
        return _Source(f"{name}.conv", f"{name}.bn", shape, slope=prelu)

    def numbered(block: str, first: int, shape: tuple[int, ...], *, slope: bool) -> _Source:
        prelu = f"{block}.{first + 2}.weight" if slope else ""
        return _Source(f"{block}.{first}", f"{block}.{first + 1}", shape, slope=prelu)

    sources = {
        "stem": named("conv1", (64, 3, 3, 3)),
        "stem_depthwise": named("dw_conv1", (64, 1, 3, 3)),
        "head_expand": named("conv2", (512, 128, 1, 1)),
        "head_depthwise": named("linear7", (512, 1, 7, 6), slope=False),
        "embedding": named("linear1", (FEATURES, 512, 1, 1), slope=False),
    }
    for number, (inputs, wide, channels, _) in enumerate(BOTTLENECKS):
        ours, theirs = f"block{number}", f"blocks.{number}.conv"
        sources |= {
            f"{ours}_expand": numbered(theirs, 0, (wide, inputs, 1, 1), slope=True),
            f"{ours}_depthwise": numbered(theirs, 3, (wide, 1, 3, 3), slope=True),
            f"{ours}_project": numbered(theirs, 6, (channels, wide, 1, 1), slope=False),
        }
    return sources


_SOURCES = {"ms1m": _ms1m_sources(), "casia": _casia_sources()}


def array_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that `convert` needs, by name, in PyTorch's layout (OIHW)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for convolution, norm, shape, *others in _SOURCES[variant].values():
        vectors = [f"{norm}.{part}" for part in _NORM] + [name for name in others if name]
        shapes |= {f"{convolution}.weight": shape} | dict.fromkeys(vectors, shape[:1])
    return shapes


def convert(arrays: Mapping[str, NumpyArray]) -> tuple[MobileFaceNet, Variables]:
    """Builds the network from weights named and stored as in PyTorch.

    BatchNorm is folded into the preceding convolution w, in float64:
    w' = w γ / √(σ² + ε) and b' = β + (b − μ) γ / √(σ² + ε), ε = 1e-5.

    The arrays are those of `array_shapes(variant)`; the variant is inferred from the names, and
    PyTorch's counters `num_batches_tracked` are ignored. The variables are {"params": ...}.

    Raises:
      InputError: an array is missing, unexpected, of the wrong shape, or not finite floats.
    """
    names = {name for name in arrays if not name.endswith("num_batches_tracked")}
    variant = max(VARIANTS, key=lambda v: len(names & array_shapes(v).keys()))
    own = {name: arrays[name] for name in names}
    check_arrays(f"MobileFaceNet ({variant})", own, array_shapes(variant))
    params = {name: _folded(arrays, source) for name, source in _SOURCES[variant].items()}
    return MobileFaceNet(variant), {"params": params}


def _folded(arrays: Mapping[str, NumpyArray], source: _Source) -> dict[str, NumpyArray]:
    """A layer's kernel in our layout, bias and slope, float32."""

    def get(name: str) -> NumpyArray:
        return np.asarray(arrays[name], np.float64)

    scale, shift, mean, variance = (get(f"{source.norm}.{part}") for part in _NORM)
    scale = scale / np.sqrt(variance + _EPSILON)
    kernel = get(f"{source.convolution}.weight") * scale[:, None, None, None]
    if source.shape[1] == 1:
        kernel = kernel[:, 0].transpose(1, 2, 0)
    elif source.shape[2:] == (1, 1):
        kernel = kernel[:, :, 0, 0].T
    else:
        kernel = kernel.transpose(2, 3, 1, 0)
    bias = shift + ((get(source.bias) if source.bias else 0) - mean) * scale
    folded = {"kernel": kernel, "bias": bias}
    if source.slope:
        folded["slope"] = get(source.slope)
    return {name: np.asarray(value, np.float32) for name, value in folded.items()}
