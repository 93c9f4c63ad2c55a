"""The machine that a measurement was made on: processor, threads, installed packages."""

import importlib.metadata
import os
import platform
from pathlib import Path


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def threads() -> int:
    """The number of XLA's CPU threads: one per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name if Linux reports it, otherwise its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def share_with_pytorch() -> None:
    """Settings that JAX and PyTorch read when they start; the user's win.

    PyTorch needs room on the same accelerator. OpenMP threads that spin while waiting can block
    each other on few or shared cores, and a PyTorch loop then takes several times as long.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
