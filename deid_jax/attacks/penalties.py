"""Penalties: the 'realism' term R(x̂) that is added to the loss.

The paper's is ½‖δ‖², δ = x̂ − x. All but one of these are quadratic, R = ½⟨δ, Mδ⟩ with a
metric M that weighs perturbations more where people notice them more. In that metric a loss
with gradient g falls fastest along −M⁻¹g (`direction`), and R along −M⁻¹∇R = −δ (`pull`).
Images are float32[B, H, W, C] in [0, 1].
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import metrics
from deid_jax.arrays import norms
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

# The cost of a difference between neighbours, relative to that of the perturbation itself.
_ROUGHNESS = 1.0
# The cost of perturbing luminance (ITU-R BT.601), relative to that of perturbing colour.
_LUMINANCE = 4.0
_RED_GREEN_BLUE = np.array([0.299, 0.587, 0.114], np.float32)
# The standard deviation below which a surface counts as plain.
_PLAIN = 0.03
# The smallest cost of a pixel, relative to the mean, so that the perturbation does not collect
# in a few pixels.
_LEAST_COST = 0.2

Images = Callable[[jax.Array], jax.Array]


class Penalty(NamedTuple):
    """The penalty R for one batch of originals x.

    Attributes:
      value: x̂ -> [B], increases with R(x̂) and is zero at x; defines which image is nearer.
      direction: g -> M⁻¹g.
      pull: x̂ -> M⁻¹∇R(x̂); δ where R is quadratic.
    """

    value: Images
    direction: Images
    pull: Images


def l2_penalty(images: jax.Array) -> Penalty:
    """The paper's penalty: R = ½‖δ‖², M = 1; `value` is ‖δ‖₂."""
    return Penalty(
        value=lambda adversarial: norms(adversarial - images),
        direction=lambda gradient: gradient,
        pull=lambda adversarial: adversarial - images,
    )


def smooth_penalty(images: jax.Array) -> Penalty:
    """Makes low frequencies cheaper: R = ½(‖δ‖² + ‖∇δ‖²), ∇ the differences of neighbours.

    M is diagonal in the cosine transform: 1 + (4 − 2 cos(πk/H) − 2 cos(πl/W)).
    """
    rows, columns = (jnp.asarray(_cosines(n), images.dtype) for n in images.shape[1:3])
    cost = 1 + _ROUGHNESS * (_stiffness(len(rows))[:, None] + _stiffness(len(columns)))

    def scaled(batch: jax.Array, factor: NumpyArray) -> jax.Array:
        spectrum = jnp.einsum("kh,bhwc,lw->bklc", rows, batch, columns, precision="highest")
        spectrum = spectrum * jnp.asarray(factor, batch.dtype)[None, :, :, None]
        return jnp.einsum("kh,bklc,lw->bhwc", rows, spectrum, columns, precision="highest")

    return Penalty(
        value=lambda adversarial: norms(scaled(adversarial - images, np.sqrt(cost))),
        direction=lambda gradient: scaled(gradient, 1 / cost),
        pull=lambda adversarial: adversarial - images,
    )


def luminance_penalty(images: jax.Array) -> Penalty:
    """Makes luminance cost more: R = ½(‖δ‖² + 3·|Y|⁻²‖⟨Y, δ⟩‖²), Y the luma weights.

    A perturbation along Y = (0.299, 0.587, 0.114) costs four times one orthogonal to it. For
    images with other than three channels, all channels have the same weight.
    """
    weights = _RED_GREEN_BLUE if images.shape[-1] == 3 else np.ones(images.shape[-1])
    along = np.outer(weights, weights) / float(np.sum(weights**2))
    across = np.eye(len(weights)) - along

    def scaled(batch: jax.Array, factor: float) -> jax.Array:
        matrix = jnp.asarray(across + factor * along, batch.dtype)
        return jnp.einsum("bhwc,cd->bhwd", batch, matrix, precision="highest")

    return Penalty(
        value=lambda adversarial: norms(scaled(adversarial - images, _LUMINANCE**0.5)),
        direction=lambda gradient: scaled(gradient, 1 / _LUMINANCE),
        pull=lambda adversarial: adversarial - images,
    )


def texture_penalty(images: jax.Array) -> Penalty:
    """Makes plain surfaces cost more: M = diag(w), w = 1/(σ² + 0.03²) over its mean, w ≥ 0.2.

    σ² is the variance of the original's channel in SSIM's window around the pixel.
    """
    variance = _variance(images)
    return _diagonal(images, 1 / (variance + _PLAIN**2))


def ssim_penalty(images: jax.Array) -> Penalty:
    """R = 1 − MSSIM, the metric itself (dm-pix's, differentiated), with mirrored borders.

    The metric's windows lie inside the image and barely cover its border, where the
    perturbation would collect; padded by a mirrored half window, every pixel counts alike.

    M is diag(w), w = 1/(2σ² + C₂) over its mean, at least 0.2, where σ² is the variance of
    the window around the pixel. This is the loss in SSIM's contrast and structure terms from
    a small perturbation there whose mean over the window is zero.

    Raises:
      InputError: images are smaller than SSIM's window.
    """
    if min(images.shape[1:3]) < metrics.SSIM_WINDOW:
        raise InputError(
            f"penalty ssim needs images of at least {metrics.SSIM_WINDOW} pixels each way, "
            f"got {images.shape[1]}x{images.shape[2]}"
        )
    variance = _variance(images)
    constant = 0.03**2
    metric = _diagonal(images, 1 / (2 * variance + constant))

    def lost(adversarial: jax.Array) -> jax.Array:
        return 1 - metrics.mssim(_mirrored(adversarial), _mirrored(images))

    def pull(adversarial: jax.Array) -> jax.Array:
        slope = jax.grad(lambda batch: lost(batch).sum())(adversarial)
        return metric.direction(slope) * (0.5 * num_windows) / mean_cost

    # MSSIM is a mean over windows: δ costs about Σ δ²/(2σ² + C₂) over their number.
    num_windows = images[0].size
    mean_cost = jnp.mean(1 / (2 * variance + constant), axis=(1, 2, 3), keepdims=True)
    return Penalty(value=lost, direction=metric.direction, pull=pull)


def _mirrored(images: jax.Array) -> jax.Array:
    """The images padded by mirroring half of SSIM's window."""
    half = metrics.SSIM_WINDOW // 2
    return jnp.pad(images, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")


def _diagonal(images: jax.Array, cost: jax.Array) -> Penalty:
    """The penalty with M = diag(cost over its mean), for each image."""
    relative = cost / jnp.mean(cost, axis=(1, 2, 3), keepdims=True)
    relative = jnp.maximum(relative, _LEAST_COST)
    return Penalty(
        value=lambda adversarial: norms(jnp.sqrt(relative) * (adversarial - images)),
        direction=lambda gradient: gradient / relative,
        pull=lambda adversarial: adversarial - images,
    )


def _variance(images: jax.Array) -> jax.Array:
    """The variance per channel in SSIM's Gaussian window at each pixel, cut at the border."""
    rows, columns = (jnp.asarray(_windows(size), images.dtype) for size in images.shape[1:3])

    def mean(batch: jax.Array) -> jax.Array:
        return jnp.einsum("ih,bhwc,jw->bijc", rows, batch, columns, precision="highest")

    return jnp.maximum(mean(jnp.square(images)) - jnp.square(mean(images)), 0)


def _windows(size: int) -> NumpyArray:
    """A matrix whose row i is a Gaussian, σ = 1.5, within 5 pixels of pixel i; it sums to 1."""
    distance = np.abs(np.arange(size)[:, None] - np.arange(size))
    weights = np.exp(-0.5 * (distance / 1.5) ** 2) * (distance <= metrics.SSIM_WINDOW // 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _cosines(size: int) -> NumpyArray:
    """The matrix of the orthonormal cosine transform (DCT-II), float64[size, size]."""
    from scipy.fft import dct

    return dct(np.eye(size), axis=0, norm="ortho")


def _stiffness(size: int) -> NumpyArray:
    """The eigenvalue of ∇ᵀ∇ for each row of `_cosines`."""
    return 2 - 2 * np.cos(np.pi * np.arange(size) / size)


PENALTIES: Mapping[str, Callable[[jax.Array], Penalty]] = {
    "l2": l2_penalty,
    "ssim": ssim_penalty,
    "smooth": smooth_penalty,
    "luminance": luminance_penalty,
    "texture": texture_penalty,
}
