"""Locks that let only one run at a time write into a folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from deid_jax.errors import InputError


@contextlib.contextmanager
def locked(name: str, folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder during the block, or until this process ends.

    The lock is on the folder itself, so that no file is left behind and a killed run keeps no
    lock.

    Args:
      name: the flag or argument that gives the folder, for messages.
      folder: created if missing.

    Raises:
      InputError: another run holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{name} {folder} is being written by another run: name another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)
