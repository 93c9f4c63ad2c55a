"""Checks of user input: each raises `InputError` with one line that names what is wrong."""

import itertools
import math
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.errors import InputError


def _is_concrete_number(value: object) -> bool:
    """Whether the value is known now: not a tracer and not a pytree placeholder."""
    if isinstance(value, jax.Array):
        return not isinstance(value, jax.core.Tracer)
    return isinstance(value, int | float | np.ndarray | np.generic)


def non_negative(name: str, value: object) -> None:
    """Refuses NaN and negative numbers; tracers pass unchecked."""
    if _is_concrete_number(value) and not np.all(np.asarray(value) >= 0):
        raise InputError(f"{name} must be a number >= 0, got {value}")


def fraction(name: str, value: object) -> None:
    """Refuses everything but numbers in (0, 1]."""
    if _is_concrete_number(value):
        numbers = np.asarray(value)
        if not np.all((numbers > 0) & (numbers <= 1)):
            raise InputError(f"{name} must be a number > 0 and <= 1, got {value}")


def finite_non_negative(name: str, value: object) -> None:
    """Like `non_negative`, but also refuses infinity."""
    non_negative(name, value)
    if _is_concrete_number(value) and not np.all(np.isfinite(np.asarray(value))):
        raise InputError(f"{name} must be finite, got {value}")


def below_one(name: str, value: object) -> None:
    """Like `finite_non_negative`, but also refuses plain numbers of 1 or more."""
    finite_non_negative(name, value)
    if isinstance(value, int | float) and value >= 1:
        raise InputError(f"{name} must be < 1, got {value}")


def count(name: str, value: object, *, least: int = 0, most: int | None = None) -> None:
    """Refuses everything but an integer of at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be an integer >= {least}, got {value}")
    if most is not None and value > most:
        raise InputError(f"{name} must be at most {most}, got {value}")


def step_counts(name: str, value: object) -> None:
    """Refuses everything but an integer >= 0 or an increasing tuple of them."""
    if not isinstance(value, tuple):
        count(name, value)
        return
    for number in value:
        count(name, number)
    if not value or any(a >= b for a, b in itertools.pairwise(value)):
        raise InputError(f"{name} must be one number or increasing ones, got {value}")


def folder_to_write(name: str, path: Path) -> None:
    """Refuses a path that is not a writable folder and cannot be created as one."""
    whole = path.absolute()
    existing = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
    if not existing.is_dir():
        what = "is" if existing == whole else f"lies below {existing.name},"
        raise InputError(f"{name} {path} {what} a file, not a folder")
    try:
        # Permissions and read-only disks only show when one tries.
        Path(tempfile.mkdtemp(prefix=".probe-", dir=existing)).rmdir()
    except OSError as error:
        raise InputError(f"{name} {path} cannot be written: {error.strerror}") from error


def as_images(name: str, value: object) -> jax.Array:
    """The value as a JAX array; refuses all but float[B, H, W, C], finite pixels in [0, 1].

    B may be 0. Under `jit` and `vmap` only rank and dtype can be checked, not the values.
    """
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} must be [B, H, W, C], got uneven lists") from error
    if array.ndim != 4:
        raise InputError(f"{name} must be [B, H, W, C], got shape {tuple(array.shape)}")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} must be floating point in [0, 1], got dtype {array.dtype}")
    if isinstance(array, jax.core.Tracer) or array.size == 0:
        return jnp.asarray(array)
    # A function that is being traced may close over concrete images.
    with jax.ensure_compile_time_eval():
        low, high = float(array.min()), float(array.max())
    if math.isnan(low) or math.isnan(high):
        raise InputError(f"{name} must be finite, got NaN")
    if low < 0 or high > 1:
        raise InputError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}")
    return jnp.asarray(array)
