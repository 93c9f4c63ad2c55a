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

    It is fast on the CPU for the convolutions of these recognisers: stride 1, no dilation, one
    group. All others are passed to `lax.conv_general_dilated` unchanged, as is everything on
    accelerators, whose libraries are fast in any dimension order.
    """
    steps = (window_strides, kwargs.get("lhs_dilation"), kwargs.get("rhs_dilation"))
    plain = (
        jax.default_backend() == "cpu"
        and kwargs.get("feature_group_count", 1) == 1
        and all(tuple(step or (1, 1)) == (1, 1) for step in steps)
    )
    if not plain:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], (1, 1), padding)
    (top, bottom), (left, right) = padding
    return _conv(lhs, rhs, ((top, bottom), (left, right)))


class Conv(nn.Conv):  # type: ignore[explicit-any]  # of Flax's fields
    """`nn.Conv` of stride 1 and 'same' padding that uses a prepared kernel if it has one.

    Prepared kernels are float32; with another `dtype` the kernel is used as loaded.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves float[B, H, W, C] to float[B, H, W, K]."""
        is_prepared = self.has_variable(preparing.COLLECTION, "kernel")
        if not is_prepared or self.dtype not in (None, jnp.float32):
            return super().__call__(inputs)
        kernel: preparing.Kernel = self.get_variable(preparing.COLLECTION, "kernel")
        bias: jax.Array = self.get_variable("params", "bias")
        return preparing.convolve_prepared(inputs, kernel) + bias.reshape(1, 1, 1, -1)


def conv(features: int, size: int, name: str, dtype: DTypeLike | None = None) -> Conv:
    """A size×size convolution of stride 1 with 'same' padding, bias and He initialisation."""
    return Conv(
        features,
        (size, size),
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


def max_pool(images: jax.Array) -> jax.Array:
    """2×2 max-pooling of stride 2; an odd last row or column is dropped ('valid').

    It is computed as the maximum over four strided slices, since the gradient of `nn.max_pool`
    (select-and-scatter) takes forty times as long on the CPU. In a tie the gradient is shared
    among the largest, while `nn.max_pool` gives it to the first. Maps float[B, H, W, C] to
    float[B, H // 2, W // 2, C].
    """
    height, width = images.shape[1] // 2 * 2, images.shape[2] // 2 * 2
    images = images[:, :height, :width]
    top = jnp.maximum(images[:, 0::2, 0::2], images[:, 0::2, 1::2])
    bottom = jnp.maximum(images[:, 1::2, 0::2], images[:, 1::2, 1::2])
    return jnp.maximum(top, bottom)
