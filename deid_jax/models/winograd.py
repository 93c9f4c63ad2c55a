"""Convolutions by Winograd's minimal filtering: four to six times fewer multiplications.

F(m×m, r×r) computes m×m outputs Y of an r×r kernel g from a tile d of a×a inputs,
a = m + r − 1, with a² multiplications per pair of channels instead of m²r²:

    Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

Summed over channels, these are a² matrix products, which run at the processor's full speed.
`transform` computes G g Gᵀ once, outside an attack's loop; `convolve_winograd` and its gradient
do the rest, with the same transformed kernel.

Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. The matrices are
Toom's and Cook's for the evaluation points below.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal
from jax.experimental.xla_metadata import set_xla_metadata

from deid_jax.types import NumpyArray, PyTree

P = ParamSpec("P")
T = TypeVar("T")

# m. Of 2, 4 and 6, 4 is fastest for both recognisers at 64 and at 224 px.
TILE = 4

# r -> evaluation points other than 0 and ∞. Each set contains the inverse of every point, so
# rotating a kernel by 180° only permutes its transform, and the gradient needs no second one.
_POINTS = {
    3: (Fraction(1), Fraction(-1), Fraction(2), Fraction(1, 2)),
    5: tuple(Fraction(*p) for p in ((1, 1), (-1, 1), (2, 1), (1, 2), (-2, 1), (-1, 2))),
}
SIZES = tuple(_POINTS)

# [a][a] arrays [C, K]: kept separate, since XLA copies a slice before multiplying it.
Transformed = tuple[tuple[jax.Array, ...], ...]


class _Matrices(NamedTuple):
    """Aᵀ [m, a], G [a, r], Bᵀ [a, a], and the permutation of the points by a 180° rotation."""

    output: NumpyArray
    kernel: NumpyArray
    input: NumpyArray
    turned: tuple[int, ...]


@functools.cache
def matrices(size: int) -> _Matrices:
    """The matrices of F(m×m, r×r) for r = size.

    A filter is the transpose of a product of polynomials: evaluation at the points (the
    Vandermonde matrix), product, interpolation (Lagrange polynomials). The row of G for a point
    p is scaled by p^{−(r−1)/2} |D_p D_{1/p}|^{−1/2}, D_p = Π_{q ≠ p} (p − q): the first factor
    makes the rotation a permutation, the second keeps the entries of Bᵀ short.
    """
    points = [Fraction(0), *_POINTS[size]]

    def evaluate(degree: int) -> NumpyArray:
        rows = [[float(point**power) for power in range(degree)] for point in points]
        return np.array([*rows, [0.0] * (degree - 1) + [1.0]])

    def others(point: Fraction) -> list[Fraction]:
        return [other for other in points if other != point]

    def spread(point: Fraction) -> Fraction:
        return math.prod((point - other for other in others(point)), start=Fraction(1))

    length = TILE + size - 1
    kernel, inputs = evaluate(size), np.zeros((length, length))
    for row, point in enumerate(points):
        scale = 1.0
        if point:
            scale = float(point) ** (size // 2)
            scale *= float(abs(spread(point) * spread(1 / point))) ** 0.5
        kernel[row] /= scale
        polynomial = np.poly([float(other) for other in others(point)])
        inputs[row, :-1] = scale / float(spread(point)) * polynomial[::-1]
    inputs[-1] = np.poly([float(point) for point in points])[::-1]
    turned = [length - 1, *(points.index(1 / point) for point in points[1:]), 0]
    return _Matrices(evaluate(TILE).T, kernel, inputs, tuple(turned))


def transform(kernel: NumpyArray) -> Transformed:
    """Computes G g Gᵀ for a kernel float32[r, r, C, K], r in `SIZES`.

    It uses NumPy: compiling the same for every layer's shape would take longer.
    """
    matrix = matrices(len(kernel)).kernel.astype(np.float32)
    rows = np.tensordot(matrix, kernel, axes=(1, 0))
    points = np.tensordot(matrix, rows, axes=(1, 1)).swapaxes(0, 1)
    return tuple(tuple(map(jnp.asarray, row)) for row in points)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_winograd(images: jax.Array, kernel: Transformed, size: int) -> jax.Array:
    """Stride-1 convolution with 'same' padding, using a transformed kernel.

    Rounding differs from a plain convolution's by 1e-5 of the largest output.

    Maps float[B, H, W, C] to float[B, H, W, K]; `size` is r.

    Raises:
      TypeError: the gradient with respect to the kernel is requested.
    """
    return _convolve(images, kernel, size, turned=False)


def _forward(
    images: CustomVJPPrimal, kernel: PyTree, size: int
) -> tuple[jax.Array, Transformed]:
    def value(leaf: CustomVJPPrimal) -> jax.Array:
        if leaf.perturbed:
            raise TypeError("prepared weights have no gradient: train with them as loaded")
        return leaf.value

    values = jax.tree.map(value, kernel, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    return _convolve(images.value, values, size, turned=False), values


def _backward(
    size: int, kernel: Transformed, gradient: jax.Array
) -> tuple[jax.Array, Transformed]:
    images_gradient = _convolve(gradient, kernel, size, turned=True)
    return images_gradient, jax.tree.map(jnp.zeros_like, kernel)


convolve_winograd.defvjp(_forward, _backward, symbolic_zeros=True)


def _convolve(images: jax.Array, kernel: Transformed, size: int, *, turned: bool) -> jax.Array:
    """Convolves; if `turned`, with w rotated by 180° and C and K swapped: the gradient."""
    matrix, order = matrices(size).input, matrices(size).turned
    contracted = 0
    if turned:
        kernel, contracted = tuple(tuple(kernel[i][j] for j in order) for i in order), 1
    products = []
    for line, points in zip(_input_lines(images, size), kernel, strict=True):
        tiles = _combine(matrix, _every_tile(line, size, axis=2))
        products.append(
            [
                lax.dot_general(tile, point, (((3,), (contracted,)), ((), ())))
                for tile, point in zip(tiles, points, strict=True)
            ]
        )
    height, width = images.shape[1:3]
    return _outputs(_output_lines(products, size), size)[:, :height, :width]


def _apart(function: Callable[P, T]) -> Callable[P, T]:
    """Prevents the result of `function` from being recomputed for each of its consumers.

    XLA on the CPU fuses a cheap producer into every consumer, so that each output of a tile
    would recompute all a² products, in a single thread; barriers have been removed by then, but
    a call that is not inlined survives. Model A, 64 px, batch 64: 1.97 instead of 2.54 ms per
    image and iteration; VGG-16, batch 16: 13.9 instead of 24.9 ms.
    """
    compiled = jax.jit(function, static_argnames="size")

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments, **named)

    return call


@_apart
def _input_lines(images: jax.Array, size: int) -> list[jax.Array]:
    """Bᵀ d, along the rows: a arrays [B, H/m, W', C]."""
    height, width = images.shape[1:3]
    margin = size // 2
    rows = (margin, -height % TILE + margin)
    columns = (margin, -width % TILE + margin)
    padded = jnp.pad(images, ((0, 0), rows, columns, (0, 0)))
    return _combine(matrices(size).input, _every_tile(padded, size, axis=1))


@_apart
def _output_lines(products: list[list[jax.Array]], size: int) -> list[list[jax.Array]]:
    """Aᵀ M, along the rows: [a][m] arrays [B, H/m, W/m, K]."""
    matrix = matrices(size).output
    return [_combine(matrix, list(column)) for column in zip(*products, strict=True)]


@_apart
def _outputs(lines: list[list[jax.Array]], size: int) -> jax.Array:
    """(Aᵀ M) A, along the columns, with the tiles joined: [B, H', W', K]."""
    matrix = matrices(size).output
    tiles = [_combine(matrix, list(row)) for row in zip(*lines, strict=True)]
    outputs = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)
    batch, rows, _, columns, _, features = outputs.shape
    return outputs.reshape(batch, rows * TILE, columns * TILE, features)


def _every_tile(array: jax.Array, size: int, axis: int) -> list[jax.Array]:
    """The first entries of all tiles along an axis, then the second, ..., then the a-th."""
    length = TILE + size - 1
    last = array.shape[axis] - length
    return [
        lax.slice_in_dim(array, start, start + last + 1, TILE, axis) for start in range(length)
    ]


def _combine(matrix: NumpyArray, parts: list[jax.Array]) -> list[jax.Array]:
    """The sums Σ_j matrix[i, j] parts[j] for every i."""
    return [
        functools.reduce(
            jnp.add,
            [
                part if weight == 1 else jnp.asarray(weight, part.dtype) * part
                for weight, part in zip(row, parts, strict=True)
                if weight
            ],
        )
        for row in matrix
    ]
