"""Convolutions with BatchNorm folded in: the layers of small mobile networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from deid_jax.models import depthwise


class FoldedLayer(nn.Module):
    """A convolution with bias and activation: "relu", "relu6", "prelu" or None.

    The kind is "stem", "depthwise" ('same' padding), "whole" (depthwise, no padding) or
    "pointwise"; the kernel's shape is [3, 3, 3, K], [h, w, C], [h, w, C] or [C, K].
    """

    kind: str
    shape: tuple[int, ...]
    activation: str | None
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float[B, H, W, C] to float[B, H', W', K]."""
        features = self.shape[-1]

        def parameter(name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
            value = self.param(name, init, shape)
            return value if self.dtype is None else value.astype(self.dtype)

        kernel = parameter("kernel", nn.initializers.he_normal(), self.shape)
        bias = parameter("bias", nn.initializers.zeros, (features,))
        if self.kind == "pointwise":
            x = jnp.einsum("bhwc,ck->bhwk", x, kernel)
        elif self.kind == "stem":
            x = _stem(x, kernel)
        else:
            pads = ((1, 1), (1, 1)) if self.kind == "depthwise" else ((0, 0), (0, 0))
            x = depthwise.convolve_depthwise(x, kernel, stride=self.stride, padding=pads)
        x = x + bias.reshape(1, 1, 1, -1)
        if self.activation == "relu":
            return nn.relu(x)
        if self.activation == "relu6":
            # As in PyTorch, the gradient is zero at exactly 0 and 6.
            return jnp.where((x > 0) & (x < 6), x, lax.stop_gradient(jnp.clip(x, 0, 6)))
        if self.activation == "prelu":
            slope = parameter("slope", nn.initializers.constant(0.25), (features,))
            return jnp.where(x > 0, x, slope.reshape(1, 1, 1, -1) * x)
        return x


def _stem(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 convolution of stride 2, padded by one pixel, for even height and width."""
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            images,
            kernel,
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return _patches(images) @ kernel.reshape(-1, kernel.shape[-1])


@jax.custom_vjp
def _patches(images: jax.Array) -> jax.Array:
    """The 3×3 patches at even positions as channels: float[B, H / 2, W / 2, 27]."""
    padded = jnp.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)))
    lines = jnp.concatenate(
        [padded[:, :, 0:-1:2], padded[:, :, 1::2], padded[:, :, 2::2]], axis=-1
    )
    return jnp.concatenate([lines[:, 0:-1:2], lines[:, 1::2], lines[:, 2::2]], axis=-1)


def _patches_forward(images: jax.Array) -> tuple[jax.Array, None]:
    return _patches(images), None


def _patches_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    """The gradient that each patch passes to its pixels, rows first.

    With one pixel of padding, pixel 2q is the middle of patch q; 2q + 1 is the last of patch
    q and the first of patch q + 1.
    """
    for axis in (1, 2):
        first, middle, last = jnp.split(gradient, 3, axis=-1)
        following = [(0, 0)] * 4
        following[axis] = (0, 1)
        moved = lax.slice_in_dim(jnp.pad(first, following), 1, 1 + first.shape[axis], axis=axis)
        both = jnp.stack([middle, last + moved], axis=axis + 1)
        shape = list(middle.shape)
        shape[axis] *= 2
        gradient = both.reshape(shape)
    return (gradient,)


_patches.defvjp(_patches_forward, _patches_backward)
