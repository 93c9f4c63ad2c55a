"""CenterFace: a small face detector that marks the centres of faces, with five landmarks.

A MobileNetV2 reads the image; its features at 1/32, 1/16, 1/8 and 1/4 of the resolution are
joined from the coarsest to the finest. BatchNorm is folded into the preceding convolution.

Xu, Yan, Yang, Peng, Yi, Yang, Jiang: "CenterFace: Joint Face Detection and Alignment Using Face
as Point", Scientific Programming 2020. MobileNetV2: Sandler et al., CVPR 2018.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.errors import InputError
from deid_jax.models.folded_layers import FoldedLayer
from deid_jax.types import NumpyArray, Variables

# Pixels per position of the output, along each side; heights and widths must be multiples of
# the coarsest features' cell.
STRIDE = 4
CELL = 32

# Channels, repeats, and the stride of the first repeat of the bottlenecks, which are six times
# as wide inside.
_TABLE = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_EXPANSION = 6
# Blocks whose features the neck joins, the coarsest last.
_JOINED = (1, 4, 11, 15)
_NECK = 24
# The maps of the head and their channels.
_MAPS = {"pos": 1, "reg": 2, "off": 2, "lm": 10}
_EPSILON = 1e-3
# The file names its arrays by numbers: the first kernel, the first bias, and the step to the
# next convolution.
_FIRST_KERNEL, _FIRST_BIAS, _STEP = 542, 544, 4


class CenterFace(nn.Module):
    """Maps images to maps of faces."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """float32[B, H/4, W/4, 15] of images float32[B, H, W, 3], RGB in [0, 1].

        Of a face whose centre lies in this place: the confidence in [0, 1]; the logarithms of
        height and width in units of 4 pixels; the centre's distance, down and right, from the
        place's middle in the same units; five landmarks, each down and right, as shares of
        height and width from the box's upper left corner: left and right eye, nose, corners of
        the mouth. Height and width must be multiples of `CELL`.
        """
        x = FoldedLayer("stem", (3, 3, 3, 32), "relu", 2, name="stem")(images)
        x = FoldedLayer("depthwise", (3, 3, 32), "relu", name="stem_depthwise")(x)
        x = FoldedLayer("pointwise", (32, 16), None, name="stem_project")(x)
        found: list[jax.Array] = []
        for number, (channels, stride) in enumerate(_blocks()):
            inputs, name = x.shape[-1], f"block{number}"
            wide = _EXPANSION * inputs
            y = FoldedLayer("pointwise", (inputs, wide), "relu", name=f"{name}_expand")(x)
            y = FoldedLayer("depthwise", (3, 3, wide), "relu", stride, name=f"{name}_depth")(y)
            y = FoldedLayer("pointwise", (wide, channels), None, name=f"{name}_project")(y)
            x = x + y if stride == 1 and inputs == channels else y
            if number in _JOINED:
                shape = (channels, _NECK)
                layer = FoldedLayer("pointwise", shape, "relu", name=f"neck{len(found)}")
                found.append(layer(x))
        x = found.pop()
        while found:
            kernel = self.param(f"up{len(found) - 1}_kernel", nn.initializers.he_normal(), _UP)
            bias = self.param(f"up{len(found) - 1}_bias", nn.initializers.zeros, (_NECK,))
            x = nn.relu(_doubled(x, kernel) + bias.reshape(1, 1, 1, -1)) + found.pop()
        x = nn.relu(nn.Conv(_NECK, (3, 3), name="head")(x))
        maps = FoldedLayer("pointwise", (_NECK, sum(_MAPS.values())), None, name="maps")(x)
        return jnp.concatenate([nn.sigmoid(maps[..., :1]), maps[..., 1:]], axis=-1)


_UP = (_NECK, 2, 2, _NECK)


def _blocks() -> list[tuple[int, int]]:
    """Channels and stride of each bottleneck."""
    return [
        (channels, 1 if number else first)
        for channels, repeats, first in _TABLE
        for number in range(repeats)
    ]


def _doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed convolution: each pixel becomes 2×2. Maps [B, H, W, C] to [B, 2H, 2W, K]."""
    batch, height, width, _ = x.shape
    spread = jnp.einsum("bhwc,cijk->bhiwjk", x, kernel)
    return spread.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def centerface_variables(arrays: Mapping[str, NumpyArray]) -> Variables:
    """The network's variables from the initialisers of the published ONNX file, by name.

    Convolutions are numbered in the order in which the network computes them; the neck's
    BatchNorm (ε = 1e-3) is folded in float64.

    Raises:
      InputError: an array is missing or has another shape.
    """
    template = jax.eval_shape(
        CenterFace().init, jax.random.key(0), jax.ShapeDtypeStruct((1, CELL, CELL, 3), "f4")
    )["params"]
    try:
        params = _params(arrays)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"weights are not CenterFace's: {error!r}") from error
    shapes, wanted = (jax.tree.map(np.shape, tree) for tree in (params, template))
    if shapes != wanted:
        raise InputError("weights are not CenterFace's: shapes differ")
    return {"params": params}


def _params(arrays: Mapping[str, NumpyArray]) -> Mapping[str, object]:
    names = ["stem", "stem_depthwise", "stem_project"]
    for number in range(len(_blocks())):
        names += [f"block{number}_{part}" for part in ("expand", "depth", "project")]
    names += [f"neck{number}" for number in range(len(_JOINED) - 1, -1, -1)] + ["head"]
    params: dict[str, object] = {}
    for number, name in enumerate(names):
        kernel = arrays[str(_FIRST_KERNEL + _STEP * number)].transpose(2, 3, 1, 0)
        if name == "stem":
            kernel = kernel * np.float32(255)
        elif name.startswith("stem_d") or name.endswith("depth"):
            kernel = kernel[:, :, 0]
        elif name != "head":
            kernel = kernel[0, 0]
        bias = arrays[str(_FIRST_BIAS + _STEP * number)]
        params[name] = {"kernel": kernel, "bias": bias}
    maps = [(arrays[f"head.{m}_conv.weight"], arrays[f"head.{m}_conv.bias"]) for m in _MAPS]
    params["maps"] = {
        "kernel": np.concatenate([kernel[:, :, 0, 0].T for kernel, _ in maps], axis=1),
        "bias": np.concatenate([bias for _, bias in maps]),
    }
    for number in range(len(_JOINED) - 1):
        start = f"neck.deconv_layers.{number}"
        scale, shift, mean, variance = (
            arrays[f"{start}.bn.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + _EPSILON)
        kernel = arrays[f"{start}.conv.weight"].transpose(0, 2, 3, 1) * scale
        params[f"up{number}_kernel"] = kernel.astype(np.float32)
        params[f"up{number}_bias"] = (shift - mean * scale).astype(np.float32)
    return params
