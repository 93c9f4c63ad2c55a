"""Convolution and max-pooling that stay fast inside `lax.scan` on the CPU.

Values and gradients are those of `flax.linen.Conv` and `flax.linen.max_pool`, except for ties
in a maximum; the layout is NHWC for images and HWIO for kernels. Kernels as loaded have
gradients, for training; after `preparing.prepare`, convolutions are even faster.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from deid_jax.models import preparing
from deid_jax.models.depthwise import Padding


def _convolve(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    # XLA on the CPU packs channels in groups of four: with a fourth channel of zeros, Model A's
    # first convolution takes half the time (74 -> 38 ms for 64 images of 64 px). 3×3 kernels
    # gain nothing.
    if images.shape[-1] == 3 and kernel.shape[0] >= 5:
        images = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
    return lax.conv_general_dilated(
        images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Stride-1 convolution whose input gradient is also an NHWC/HWIO convolution.

    Autodiff writes that gradient with transposed dimension numbers, for which XLA on the CPU
    has only a slow path inside loop bodies (https://github.com/jax-ml/jax/issues/12868).
    """
    return _convolve(images, kernel, padding)


def _conv_forward(
    images: jax.Array, kernel: jax.Array, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(images, kernel, padding), (images, kernel)


def _conv_backward(
    padding: Padding, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    # ∂/∂x of x ⋆ w is the full correlation with w turned by 180°, channels swapped. Without
    # the barrier XLA folds the swap into the convolution's dimension numbers: the slow path.
    turned = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    (top, bottom), (left, right) = padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    full = ((height - top, height - bottom), (width - left, width - right))
    images_gradient = _convolve(gradient, turned, full)
    # Dead code, not computed, where only the input's gradient is needed, as in attacks. Batch
    # and channels are swapped: autodiff's own dimension numbers take 1.1 to 3.5 times as long.
    kernel_gradient = _convolve(
        lax.optimization_barrier(images.transpose(3, 1, 2, 0)),
        lax.optimization_barrier(gradient.transpose(1, 2, 0, 3)),
        padding,
    )
    return images_gradient, kernel_gradient.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)


def conv_general_dilated(  # type: ignore[explicit-any]  # Flax's keywords, passed on
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **kwargs: Any,
) -> jax.Array:
    """Replaces `lax.conv_general_dilated` in `nn.Conv(conv_general_dilated=...)`.

    It is fast on the CPU for the convolutions of these recognisers: stride 1 or 2, no dilation,
    one group. All others are passed to `lax.conv_general_dilated` unchanged, as is everything
    on accelerators, whose libraries are fast in any dimension order.
    """
    dilations = (kwargs.get("lhs_dilation"), kwargs.get("rhs_dilation"))
    strides = tuple(window_strides)
    plain = (
        jax.default_backend() == "cpu"
        and kwargs.get("feature_group_count", 1) == 1
        and strides in ((1, 1), (2, 2))
        and all(tuple(dilation or (1, 1)) == (1, 1) for dilation in dilations)
    )
    if not plain:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    pads = ((top, bottom), (left, right))
    return _conv_halving(lhs, rhs, pads) if strides == (2, 2) else _conv(lhs, rhs, pads)


def _conv_halving(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Stride-2 convolution: one of stride 1, in which 2×2 pixels are one with 4 C channels."""
    pads, kernel_pads = [(0, 0, 0)], []
    for size, length, (before, after) in zip(
        images.shape[1:3], kernel.shape[:2], padding, strict=True
    ):
        outputs = (size + before + after - length) // 2 + 1
        # Some of the last pixels may be needed by no output; the pad is then negative.
        needed = 2 * (outputs - 1) + length + length % 2
        pads.append((before, needed - size - before, 0))
        kernel_pads.append((0, length % 2))
    images = lax.pad(images, jnp.zeros((), images.dtype), [*pads, (0, 0, 0)])
    kernel = jnp.pad(kernel, [*kernel_pads, (0, 0), (0, 0)])
    kernel = _by_fours(kernel.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    return _conv(_by_fours(images), kernel, ((0, 0), (0, 0)))


def _by_fours(images: jax.Array) -> jax.Array:
    """float[B, H / 2, W / 2, 4 C]: the pixels of each 2×2 as channels."""
    batch, height, width, channels = images.shape
    split = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, -1)


class Conv(nn.Conv):  # type: ignore[explicit-any]  # of Flax's fields
    """`nn.Conv` that uses a prepared kernel if it has one, for stride 1 and 'same' padding.

    Prepared kernels are float32; with another `dtype` the kernel is used as loaded.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves float[B, H, W, C] to float[B, H, W, K]."""
        is_prepared = self.has_variable(preparing.COLLECTION, "kernel")
        if not is_prepared or self.strides != 1 or self.dtype not in (None, jnp.float32):
            return super().__call__(inputs)
        kernel: preparing.Kernel = self.get_variable(preparing.COLLECTION, "kernel")
        bias: jax.Array = self.get_variable("params", "bias")
        return preparing.convolve_prepared(inputs, kernel) + bias.reshape(1, 1, 1, -1)


def conv(
    features: int, size: int, name: str, dtype: DTypeLike | None = None, *, stride: int = 1
) -> Conv:
    """A size×size convolution with bias and He initialisation.

    Its padding is 'same' for stride 1, and none ('valid') for stride 2.
    """
    return Conv(
        features,
        (size, size),
        strides=stride,
        padding="SAME" if stride == 1 else "VALID",
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


def max_pool(images: jax.Array, size: int = 2) -> jax.Array:
    """Max-pooling of size×size pixels and stride 2; rows and columns left over are dropped.

    It is computed as the maximum over strided slices, since the gradient of `nn.max_pool`
    (select-and-scatter) takes forty times as long on the CPU. In a tie the gradient is shared
    among the largest, while `nn.max_pool` gives it to the first. Maps float[B, H, W, C] to
    float[B, (H − size) // 2 + 1, (W − size) // 2 + 1, C].
    """
    for axis in (2, 1):
        last = (images.shape[axis] - size) // 2 * 2
        slices = [
            lax.slice_in_dim(images, first, first + last + 1, 2, axis) for first in range(size)
        ]
        images = functools.reduce(jnp.maximum, slices)
    return images
