"""Programs compiled once per shape, and the device memory that they need."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.stages import Compiled, Wrapped

from deid_jax.errors import InputError
from deid_jax.types import PyTree

# The share of free memory that a program may take: other processes may grow, too.
_SHARE = 0.9

_compiled: dict[tuple[object, ...], Compiled] = {}


def compile_once(function: Wrapped, *arguments: PyTree, **static: object) -> Compiled:
    """Compiles a jitted function for arguments like these; cached.

    Args:
      function: the result of `jax.jit`.
      arguments: arrays, or objects with their shapes and dtypes.
      static: its static arguments; the program is called without them.
    """
    leaves, structure = jax.tree.flatten(arguments)
    avals = tuple((jax.typeof(x).shape, jax.typeof(x).dtype) for x in leaves)
    key = (function, structure, avals, tuple(sorted(static.items())))
    if key not in _compiled:
        _compiled[key] = function.lower(*arguments, **static).compile()
    return _compiled[key]


def required_bytes(compiled: Compiled) -> int:
    """The memory for a program's arguments, results and intermediate arrays, in bytes."""
    sizes = compiled.memory_analysis()
    assert sizes is not None  # Only programs read from a file lack it.
    return int(
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def free_bytes() -> int | None:
    """The free memory of each device of this process, in bytes; None if unknown."""
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
    """The memory that Linux can give to processes without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(available[0]) if available else None


def _free_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory remaining below a container's limit, if it has one."""
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
    """A smaller batch size that should fit; None if `size`, that of the program, fits.

    Args:
      size: images per call of `compiled`.
      compiled: the program.
      limit: bytes available on a device; None: unknown, so everything is taken to fit.
      least: the smallest size, one image per device.

    Raises:
      InputError: the smallest size does not fit.
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
    """Raised if the device has no memory for a program's arrays."""


@contextmanager
def watching_memory() -> Iterator[None]:
    """Raises `OutOfMemoryError` if the device reports that its memory is exhausted."""
    try:
        yield
    except jax.errors.JaxRuntimeError as failure:
        if "RESOURCE_EXHAUSTED" not in str(failure):
            raise
        raise OutOfMemoryError from failure


def half_of(size: int, *, least: int = 1) -> int:
    """The batch size to continue with after an `OutOfMemoryError`; issues a warning.

    Raises:
      InputError: it was already the smallest, one image per device.
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
