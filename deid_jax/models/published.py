"""What the converters of published weights share."""

from collections.abc import Mapping

import numpy as np

from deid_jax.errors import InputError
from deid_jax.types import NumpyArray


def check_arrays(
    network: str, arrays: Mapping[str, NumpyArray], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuses arrays that are not exactly those of a network.

    Raises:
      InputError: an array is missing, unexpected, of the wrong shape, or not finite floats.
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise InputError(f"weights of {network} lack the array {name}")
        array = np.asarray(arrays[name])
        if array.shape != shape:
            raise InputError(f"array {name} must have shape {shape}, got {array.shape}")
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise InputError(f"array {name} must hold finite floats, got dtype {array.dtype}")
    for name in sorted(arrays.keys() - shapes.keys()):
        raise InputError(f"array {name} does not belong to {network}")
