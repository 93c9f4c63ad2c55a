"""Depthwise convolutions that stay fast inside `lax.scan` on the CPU.

Every channel has its own kernel:

    y[b, p, q, c] = Σ_ij w[i, j, c] x[b, s p + i − top, s q + j − left, c],  x = 0 outside.

For grouped convolutions, XLA on the CPU computes one output at a time. Written out as h·w
shifted multiply-adds, the same sum is fast both forwards and backwards.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve_depthwise(
    images: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> jax.Array:
    """A faster `lax.conv_general_dilated` with one group per channel, and its gradients.

    Accelerators, whose libraries have depthwise convolutions, get `lax.conv_general_dilated`.

    Maps float[B, H, W, C] to
    float[B, ⌊(H + top + bottom − h) / s⌋ + 1, ⌊(W + left + right − w) / s⌋ + 1, C].
    The kernel is float[h, w, C] or [h, w, 1, C]; the padding is ((top, bottom), (left, right)).
    """
    kernel = kernel.reshape(*kernel.shape[:2], kernel.shape[-1])
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            images,
            kernel[:, :, None],
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=images.shape[-1],
        )
    if padding == ((0, 0), (0, 0)) and images.shape[1:] == kernel.shape:
        return jnp.einsum("bhwc,hwc->bc", images, kernel)[:, None, None]
    return _convolve(images, kernel, stride, padding)


def _padded(images: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


def _window(
    padded: jax.Array, start: tuple[int, int], shape: Sequence[int], stride: int
) -> jax.Array:
    """The pixels that one weight of the kernel multiplies: float[B, *shape, C]."""
    batch, _, _, channels = padded.shape
    (i, j), (height, width) = start, shape
    limits = (batch, i + stride * (height - 1) + 1, j + stride * (width - 1) + 1, channels)
    return lax.slice(padded, (0, i, j, 0), limits, (1, stride, stride, 1))


def _output_shape(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[int, int]:
    rows, columns = (
        (size + sum(pads) - length) // stride + 1
        for size, pads, length in zip(images.shape[1:3], padding, kernel.shape, strict=False)
    )
    return rows, columns


def _weight(kernel: jax.Array, i: int, j: int) -> jax.Array:
    return kernel[i, j].reshape(1, 1, 1, -1)


def _sum_of_products(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    padded, shape = _padded(images, padding), _output_shape(images, kernel, stride, padding)
    return functools.reduce(
        jnp.add,
        [
            _weight(kernel, i, j) * _window(padded, (i, j), shape, stride)
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        ],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return _sum_of_products(images, kernel, stride, padding)


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _sum_of_products(images, kernel, stride, padding), (images, kernel)


def _backward(
    stride: int, padding: Padding, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    images_gradient = _images_gradient(
        gradient, kernel, stride, tuple(zip(images.shape[1:3], padding, strict=True))
    )
    # Dead code, not computed, where only the images' gradient is needed, as in attacks.
    padded = _padded(images, padding)
    products = [
        [
            jnp.sum(_window(padded, (i, j), gradient.shape[1:3], stride) * gradient, (0, 1, 2))
            for j in range(kernel.shape[1])
        ]
        for i in range(kernel.shape[0])
    ]
    return images_gradient, jnp.stack([jnp.stack(row) for row in products])


_convolve.defvjp(_forward, _backward)


def _taps(phase: int, before: int, length: int, stride: int) -> list[tuple[int, int]]:
    """The weights that apply to inputs s q + phase, and their outputs: [(i, output − q)].

    Output p uses input s p + i − before with weight i.
    """
    offset, first = divmod(phase + before, stride)
    return [(i, offset - m) for m, i in enumerate(range(first, length, stride))]


def _images_gradient(
    gradient: jax.Array,
    kernel: jax.Array,
    stride: int,
    sides: Sequence[tuple[int, tuple[int, int]]],
) -> jax.Array:
    """For each input, the sum of its outputs' gradients times their weights.

    Inputs at even and odd positions (s = 2) meet different weights: each phase is a sum of
    shifted products, and the phases are interleaved at the end. Sides are (H, (top, bottom)),
    (W, (left, right)).
    """
    taps, pads, counts = [], [], []
    for axis, (size, (before, _)) in enumerate(sides):
        of_axis = [_taps(r, before, kernel.shape[axis], stride) for r in range(stride)]
        offsets = [offset for phase in of_axis for _, offset in phase]
        count = -(-size // stride)
        low = max(0, -min(offsets))
        high = max(0, max(offsets) + count - gradient.shape[1 + axis])
        taps.append([[(i, offset + low) for i, offset in phase] for phase in of_axis])
        pads.append((low, high))
        counts.append(count)
    padded = _padded(gradient, (pads[0], pads[1]))

    def of_phase(rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> jax.Array:
        products = [
            _weight(kernel, i, j) * _window(padded, (p, q), counts, 1)
            for i, p in rows
            for j, q in columns
        ]
        if not products:  # a kernel shorter than the stride skips these inputs
            return jnp.zeros((len(gradient), *counts, gradient.shape[-1]), gradient.dtype)
        return functools.reduce(jnp.add, products)

    phases = [[of_phase(rows, columns) for columns in taps[1]] for rows in taps[0]]
    if stride == 1:
        return phases[0][0]
    together = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    whole = together.reshape(
        len(gradient), counts[0] * stride, counts[1] * stride, gradient.shape[-1]
    )
    return whole[:, : sides[0][0], : sides[1][0]]
