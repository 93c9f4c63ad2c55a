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

    The lock is on the folder itself, created if missing, so that no file is left behind and a
    killed run keeps no lock.

    Raises:
      InputError: another run holds the lock; `name` is what the message calls the folder.
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
