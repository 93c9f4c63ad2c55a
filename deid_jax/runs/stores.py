"""Stores of finished pieces of work, from which an interrupted run resumes."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import jax

from deid_jax.runs.whole_files import write_whole
from deid_jax.types import Json

# The key of a piece: its number, or JSON-able facts about it, in any order.
Key = Mapping[str, object] | int

# The folder in which a store keeps its records.
PIECES = "pieces"
# The number of shards is a multiple of this, so that a few processes get equal work.
_SHARES = 16
# The least and most images in a shard: accelerators want many at a time.
_ON_CPU, _ELSEWHERE = (32, 256), (512, 4096)


def shards_of(num_images: int, shard_size: int | None = None) -> list[range]:
    """The positions in each shard of a data set, in order.

    They depend only on the arguments and the kind of device, so that any number of processes
    and devices can resume from the same shards.

    Args:
      num_images: N.
      shard_size: images in each shard but the last; None: what suits the device, 32 to 256 on
        CPUs and 512 to 4,096 elsewhere, in a multiple of 16 shards if N allows it.
    """
    size = shard_size
    if size is None:
        least, most = _ON_CPU if jax.default_backend() == "cpu" else _ELSEWHERE
        count = _SHARES * max(1, -(-num_images // (_SHARES * most)))
        size = max(least, -(-num_images // count))
    return [range(i, min(i + size, num_images)) for i in range(0, num_images, size)]


def digest_of(facts: Mapping[str, object]) -> str:
    """A short hash of JSON-able facts, independent of their order."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Store:
    """The finished pieces of one computation, in memory."""

    def __init__(self) -> None:
        self._pieces: dict[str, Json] = {}

    def done(self, key: Key) -> bool:
        """Whether a piece is finished."""
        return self._name(key) in self._pieces

    def write(self, key: Key, piece: Json, files: Iterable[str] = ()) -> None:
        """Marks a piece as finished and keeps its records; this store ignores its files."""
        self._pieces[self._name(key)] = piece

    def all_of(self, keys: Sequence[Key]) -> Iterator[Json]:
        """The pieces of keys, in their order, one at a time."""
        return (self._pieces[self._name(key)] for key in keys)

    @staticmethod
    def _name(key: Key) -> str:
        return f"{key:06d}" if isinstance(key, int) else digest_of(key)


class FolderStore(Store):
    """The finished pieces of one computation, on disk, shared by any number of processes.

    A piece counts as unfinished if its record is damaged or one of its files is missing.

    Args:
      root: the folder of the pieces' files; their records are in its subfolder `pieces`.
    """

    def __init__(self, root: Path):
        self._root = root
        self._folder = root / PIECES

    def __len__(self) -> int:
        """The number of pieces written."""
        return len(list(self._folder.glob("*.json")))

    def done(self, key: Key) -> bool:
        """Whether a piece is finished: undamaged, and its files have the recorded sizes."""
        found = self._read(key)
        return found is not None and _sizes(self._root, found["files"]) == found["files"]

    def write(self, key: Key, piece: Json, files: Iterable[str] = ()) -> None:
        """Marks a piece as finished and saves its records, atomically."""
        whole = {"files": _sizes(self._root, files), "records": piece}
        text = json.dumps(whole, ensure_ascii=False).encode("utf-8", "surrogatepass")
        write_whole(self._path(key), _checksum(text) + b"\n" + text)

    def all_of(self, keys: Sequence[Key]) -> Iterator[Json]:
        """The pieces of keys, in their order, one at a time.

        Raises:
          OSError: one of them is missing or damaged.
        """
        for key in keys:
            found = self._read(key)
            if found is None:
                raise OSError(f"{self._path(key)} is missing or damaged: run the command again")
            yield found["records"]

    def _read(self, key: Key) -> "_Piece | None":
        try:
            checksum, _, text = self._path(key).read_bytes().partition(b"\n")
            whole: _Piece | None = json.loads(text) if checksum == _checksum(text) else None
        except (OSError, ValueError):
            return None
        return whole

    def _path(self, key: Key) -> Path:
        return self._folder / f"{self._name(key)}.json"


class _Piece(TypedDict):
    """A finished piece: its records, and its files with their sizes."""

    files: dict[str, int | None]
    records: Json


def _sizes(root: Path, names: Iterable[str]) -> dict[str, int | None]:
    """Name -> size in bytes; None for missing files."""
    paths = {name: root / name for name in names}
    return {n: path.stat().st_size if path.is_file() else None for n, path in paths.items()}


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
