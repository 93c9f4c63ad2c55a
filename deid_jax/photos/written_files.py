"""Remembers the files that protection wrote, so that they are refused as input.

Protecting such a file again moves its faces back towards the real ones, and the verdict, which
compares with the input file, calls them protected. An index in the user's cache folder holds
the SHA-256 of every file that was written, one per line.
"""

import os
import warnings
from pathlib import Path

from deid_jax.errors import InputError, one_line
from deid_jax.recognisers.weights import default_cache

INDEX = "protected.txt"


class ProtectedError(InputError):
    """A file is protected already; `name` is its name in the message."""

    def __init__(self, name: str):
        super().__init__(
            f"{name} is protected already, and protecting it again may undo that: give the "
            "original"
        )


def remember(digest: str) -> None:
    """Adds the SHA-256 of a written file to the index; only warns if that fails."""
    path = None
    try:
        path = _index()
        path.parent.mkdir(parents=True, exist_ok=True)
        # A short line is appended atomically, so that other runs may append as well.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{digest}\n".encode())
        finally:
            os.close(descriptor)
    except (OSError, InputError) as error:
        where = "" if path is None else f"{path}: "
        warnings.warn(
            f"written files will not be refused as input later: {where}{one_line(error)}",
            stacklevel=2,
        )


def is_remembered(digest: str) -> bool:
    """Whether the index holds this SHA-256; False for an empty one."""
    try:
        return bool(digest) and digest.encode() in _index().read_bytes()
    except (OSError, InputError):  # `remember` has warned that nothing is remembered.
        return False


def _index() -> Path:
    return default_cache("protected") / INDEX
