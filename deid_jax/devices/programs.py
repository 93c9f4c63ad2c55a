"""Programs compiled once per shape, and whether the device has the memory for them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.stages import Compiled, Wrapped

from deid_jax.errors import InputError
from deid_jax.types import PyTree

# Of the memory that is free, the share that a program may take: other processes grow, too.
_SHARE = 0.9

_compiled: dict[tuple[object, ...], Compiled] = {}


def compile_once(function: Wrapped, *arguments: PyTree, **static: object) -> Compiled:
    """A jitted function compiled for arguments like these; the same again for the same.

    Args:
      function: what `jax.jit` made.
      arguments: arrays, or what only has their shapes and dtypes.
      static: its static arguments, by name.

    Returns:
      The program, to be called with the arguments alone.
    """
    leaves, structure = jax.tree.flatten(arguments)
    avals = tuple((jax.typeof(x).shape, jax.typeof(x).dtype) for x in leaves)
    key = (function, structure, avals, tuple(sorted(static.items())))
    if key not in _compiled:
        _compiled[key] = function.lower(*arguments, **static).compile()
    return _compiled[key]


def num_compiled() -> int:
    """How many programs `compile_once` has compiled in this process."""
    return len(_compiled)


def required_bytes(compiled: Compiled) -> int:
    """Memory for a program's arguments, results and intermediate arrays, in bytes."""
    sizes = compiled.memory_analysis()
    assert sizes is not None  # Only programs read from a file lack it.
    return int(
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def free_bytes() -> int | None:
    """Free memory of each device of this process; None where the system does not tell."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    if device.platform != "cpu":
        return None
    known = [free for free in (_free_in_system(), _free_in_container()) if free is not None]
    # Virtual devices of a CPU share its memory.
    return int(_SHARE * min(known) / jax.local_device_count()) if known else None


def _free_in_system() -> int | None:
    """Memory that Linux can give to processes without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(available[0]) if available else None


def _free_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory left below a container's limit, where it has one."""
    try:
        limit, used = (
            (folder / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(used)


def smaller_to_fit(
    size: int, compiled: Compiled, limit: int | None, *, least: int = 1
) -> int | None:
    """A batch size that should fit if this one does not; None if it does.

    Args:
      size: images per call of `compiled`.
      compiled: the program.
      limit: bytes that a device has; None: unknown, so that everything fits.
      least: the smallest size, one image per device.

    Raises:
      InputError: not even that fits.
    """
    needed = required_bytes(compiled)
    if limit is None or needed <= limit:
        return None
    if size <= least:
        raise InputError(
            f"one image needs {_gib(needed)} of memory, and {_gib(limit)} are free"
        )
    smaller = max(least, min(size - 1, size * limit // needed))
    _say_split(size, smaller, f"needs {_gib(needed)} of memory, {_gib(limit)} are free")
    return smaller


class OutOfMemoryError(Exception):
    """The device has no room for a program's arrays."""


@contextmanager
def watching_memory() -> Iterator[None]:
    """Raises `OutOfMemoryError` where the device says that its memory is used up."""
    try:
        yield
    except jax.errors.JaxRuntimeError as failure:
        if "RESOURCE_EXHAUSTED" not in str(failure):
            raise
        raise OutOfMemoryError from failure


def half_of(size: int, *, least: int = 1) -> int:
    """The batch size to continue with after `OutOfMemoryError`; warns.

    Args:
      size: the batch size.
      least: the smallest size, one image per device.

    Raises:
      InputError: it was the smallest.
    """
    if size <= least:
        raise InputError("one image needs more memory than there is")
    smaller = max(least, size // 2)
    _say_split(size, smaller, "needs more memory than there is")
    return smaller


def _say_split(size: int, smaller: int, reason: str) -> None:
    warnings.warn(
        f"a batch of {size} {reason}: going on with batches of {smaller}", stacklevel=3
    )


def _gib(size: int) -> str:
    gib = size / 2**30
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.2g} GiB"
