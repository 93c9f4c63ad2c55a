"""Atomic writes: a file is either complete or absent, however a run ends."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# The suffix of files that are still being written.
UNFINISHED = ".unfinished"


@contextlib.contextmanager
def replacing(path: Path, *, by_way_of: Path | None = None) -> Iterator[Path]:
    """Yields a hidden path to write to; after the block, its file replaces `path`.

    If the block raises, the file is deleted and `path` is unchanged. A killed process leaves a
    file whose name ends in `UNFINISHED`. Folders above `path` are created. The hidden file is
    in `by_way_of`, a folder on the same disk, or beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, since file names have a maximum length; random, since other processes may write the
    # same file.
    unfinished = (by_way_of or path.parent) / f".{secrets.token_hex(8)}{UNFINISHED}"
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):  # It may never have been created.
            unfinished.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file atomically, so that it also survives a loss of power."""
    with replacing(path) as unfinished, unfinished.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
