"""Metrics of de-identification, one value per image.

Pictures are float32[B, H, W, C] in [0, 1]; every result is [B]. The mean over the pictures of
a run is taken once, on the host, over real (not padding) entries: `summarise`.
"""

import array
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SSIM_WINDOW = 11  # pixels


def l2(images: jax.Array, originals: jax.Array) -> jax.Array:
    """‖x̂ − x‖₂ over all pixels and channels, pixels in [0, 1]: the paper's L2."""
    return jnp.sqrt(jnp.sum(jnp.square(images - originals), axis=(1, 2, 3)))


def linf(images: jax.Array, originals: jax.Array) -> jax.Array:
    """‖x̂ − x‖∞: the largest change of a pixel's channel."""
    return jnp.max(jnp.abs(images - originals), axis=(1, 2, 3))


def mssim(images: jax.Array, originals: jax.Array) -> jax.Array:
    """Mean structural similarity, the paper's SI.

    11×11 Gaussian window of σ = 1.5, K₁ = 0.01, K₂ = 0.03, data range 1, windows that lie
    wholly inside the picture, mean over channels. Wang, Bovik, Sheikh, Simoncelli: "Image
    Quality Assessment", 2004. Pictures must be at least 11 pixels wide and high.
    """
    from dm_pix import ssim

    # The window as two matrix products: dm-pix's own 1-D convolutions take nine times as long
    # on the CPU, a tenth of the whole time of a ten-step attack.
    rows, columns = (jnp.asarray(_gaussian_windows(size)) for size in images.shape[1:3])

    def blur(pictures: jax.Array) -> jax.Array:
        return jnp.einsum("ih,bhwc,jw->bijc", rows, pictures, columns, precision="highest")

    return ssim(images, originals, filter_fn=blur)


@functools.cache
def _gaussian_windows(size: int) -> np.ndarray:
    """Row i holds SSIM's window of 11 taps, σ = 1.5, over pixels i to i + 10 of a line."""
    half = SSIM_WINDOW // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / 1.5) ** 2)
    windows = np.zeros((size - 2 * half, size), np.float32)
    for row in range(len(windows)):
        windows[row, row : row + SSIM_WINDOW] = taps / taps.sum()
    return windows


def misclassified(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether argmax f(x̂) ≠ y, bool[B]; its mean is the misclassification rate MR."""
    return jnp.argmax(logits, axis=-1) != labels


def summarise(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Means over per-image records, in float64.

    Args:
      records: one mapping per image, gone through once; only its numbers are kept.
      names: the entries to average: numbers or booleans.

    Returns:
      name -> mean, a share of 0 to 1 for booleans; and "count", the number of records.

    Raises:
      ValueError: there are no records.
    """
    columns = {name: array.array("d") for name in names}
    count = 0
    for record in records:
        count += 1
        for name, column in columns.items():
            column.append(record[name])
    if not count:
        raise ValueError("records must hold at least one image, got none")
    means = {name: float(np.mean(np.asarray(column))) for name, column in columns.items()}
    return {**means, "count": count}
