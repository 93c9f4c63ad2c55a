"""The recognisers and layers in plain Flax and XLA, to time this project's layers against.

They use the weights of `deid_jax.models`, for inference only. The layout is NHWC for images and
HWIO for kernels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from deid_jax.models.vgg16 import BLOCKS, VGG_FACE_MEAN
from deid_jax.types import Variables


class NaiveModelA(nn.Module):
    """`deid_jax.models.model_a.ModelA` built from `nn.Conv` and `nn.max_pool`."""

    num_classes: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32[B, K] of images float32[B, H, W, 3] in [0, 1]."""
        x = images - 0.5
        for number, features in enumerate((32, 64), start=1):
            x = nn.Conv(features, (5, 5), dtype=self.dtype, name=f"conv{number}")(x)
            x = naive_max_pool(nn.relu(_normalise(x, f"bn{number}", self.dtype)))
        x = nn.Dense(512, dtype=self.dtype, name="fc1")(x.reshape(len(x), -1))
        x = nn.relu(_normalise(x, "bn3", self.dtype))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x)
        return x.astype(jnp.float32)


class NaiveVGG16(nn.Module):
    """`deid_jax.models.vgg16.VGG16` built from `nn.Conv` and `nn.max_pool`."""

    num_classes: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32[B, K] of images float32[B, H, W, 3] in [0, 1]."""
        x = 255 * images - jnp.array([[[VGG_FACE_MEAN]]], images.dtype)
        for block, (depth, features) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                name = f"conv{block}_{layer}"
                x = nn.relu(nn.Conv(features, (3, 3), dtype=self.dtype, name=name)(x))
            x = naive_max_pool(x)
        x = x.reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(4096, dtype=self.dtype, name=name)(x))
        x = nn.Dense(256, dtype=self.dtype, name="fc8")(x)
        x = nn.relu(_normalise(x, "bn8", self.dtype))
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="fc9")(x)
        return x.astype(jnp.float32)


NAIVE_MODELS = {"model_a": NaiveModelA, "vgg16": NaiveVGG16}


def naive_convolve(variables: Variables, images: jax.Array) -> jax.Array:
    """Stride-1 convolution with 'same' padding and bias, in the images' dtype."""
    parameters = jax.tree.map(lambda leaf: leaf.astype(images.dtype), variables["params"])
    dimensions = ("NHWC", "HWIO", "NHWC")
    outputs = lax.conv_general_dilated(
        images, parameters["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    return outputs + parameters["bias"][None, None, None]


def naive_max_pool(images: jax.Array) -> jax.Array:
    """2×2 max-pooling with stride 2."""
    return nn.max_pool(images, (2, 2), strides=(2, 2))


def _normalise(x: jax.Array, name: str, dtype: DTypeLike | None) -> jax.Array:
    return nn.BatchNorm(use_running_average=True, dtype=dtype, name=name)(x)
