"""Kernels converted, once, into the form in which the CPU convolves fastest.

An attack uses the same kernels hundreds of times, so work that depends on the kernels alone is
done before its loop. Only CPUs gain: accelerators' libraries choose their own algorithms and
layouts.
"""

from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.models import im2col, winograd
from deid_jax.types import PyTree, Variables

# A prepared kernel: as loaded, for `im2col`, or transformed, for `winograd`.
Kernel: TypeAlias = jax.Array | winograd.Transformed

# The collection of a module's variables that holds them.
COLLECTION = "prepared"

# Up to this many channels patches are written out; above it, Winograd's filtering is used.
_FEW_CHANNELS = 4


def prepare(variables: Variables) -> Variables:
    """Variables with which `model.apply` gives the same logits and input gradients, faster.

    The recognisers' convolutions then run as `convolve_winograd` and `convolve_patches`. This
    takes memory for four times the 3×3 and 2.6 times the 5×5 kernels. On platforms other than
    the CPU the variables are returned unchanged, as are those without layers of this project.

    The variables must not be traced. The result is for inference and attacks, not for training:
    it contains the loaded kernels, but they are no longer used.
    """
    if jax.default_backend() != "cpu" or "params" not in variables:
        return variables
    return {**variables, COLLECTION: _prepare_all(variables["params"])}


def _prepare_all(parameters: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The prepared kernels of all layers, at any depth, that have a kernel to prepare."""
    found: dict[str, PyTree] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            if inner := _prepare_all(value):
                found[name] = inner
        elif name == "kernel" and value.ndim == 4:
            height, width, channels, _ = value.shape
            if height == width and height % 2 and channels <= _FEW_CHANNELS:
                found[name] = jnp.asarray(value)
            elif height == width and height in winograd.SIZES:
                found[name] = winograd.transform(np.asarray(value))
    return found


def convolve_prepared(images: jax.Array, kernel: Kernel) -> jax.Array:
    """Stride-1 convolution with 'same' padding, using a prepared kernel."""
    if not isinstance(kernel, tuple):
        return im2col.convolve_patches(images, kernel)
    return winograd.convolve_winograd(images, kernel, len(kernel) - winograd.TILE + 1)
