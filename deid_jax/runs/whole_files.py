"""Files that are there whole or not at all, however a run ends."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# How the names of files end that are still being written.
UNFINISHED = ".unfinished"


@contextlib.contextmanager
def replacing(path: Path, *, by_way_of: Path | None = None) -> Iterator[Path]:
    """A hidden path to write to, whose file takes the place of `path` after the block.

    If the block raises, the file is deleted and `path` stays as it was. A killed process leaves
    a file whose name ends in `UNFINISHED`. Folders above `path` are made.

    Args:
      path: the file to be.
      by_way_of: the folder of the hidden file, on the same disk; None: that of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short: names have a longest length. Random: other processes may write the same file.
    unfinished = (by_way_of or path.parent) / f".{secrets.token_hex(8)}{UNFINISHED}"
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):  # It may never have been made.
            unfinished.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that survives a loss of power, too."""
    with replacing(path) as unfinished, unfinished.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
