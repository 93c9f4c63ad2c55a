"""What a long computation has done so far, on disk: pieces that are there or are not."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

# A data set is divided into a multiple of so many shards, that few processes have equal work.
_SHARES = 16
# Pictures in a shard, least and most: accelerators want many at a time.
_ON_CPU, _ELSEWHERE = (32, 256), (512, 4096)


def shards_of(num_images: int, shard_size: int | None = None) -> list[range]:
    """The numbered shards of a data set: positions, in order.

    They depend on nothing but the arguments and the kind of device, so that another number of
    processes or devices finds them as they were left.

    Args:
      num_images: N.
      shard_size: pictures in each but the last; None: what suits the device, 32 to 256 on
        CPUs and 512 to 4,096 elsewhere, so that there are multiples of 16 where N allows it.
    """
    size = shard_size
    if size is None:
        least, most = _ON_CPU if jax.default_backend() == "cpu" else _ELSEWHERE
        count = _SHARES * max(1, -(-num_images // (_SHARES * most)))
        size = max(least, -(-num_images // count))
    return [range(i, min(i + size, num_images)) for i in range(0, num_images, size)]


def digest_of(facts: Mapping[str, Any]) -> str:
    """A name for JSON-able facts, whatever their order."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Store:
    """A folder of finished pieces of one computation.

    Every piece carries a checksum: one that is damaged is as good as none.

    Args:
      folder: where they are; made when the first is kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __len__(self) -> int:
        """Number of pieces kept."""
        return len(list(self._folder.glob("*.json")))

    def read(self, key: Mapping[str, Any] | int) -> Any:
        """The piece kept under a key; None if there is none, or it is damaged."""
        try:
            checksum, _, text = self._path(key).read_bytes().partition(b"\n")
            return json.loads(text) if checksum.decode() == _checksum(text) else None
        except (OSError, ValueError):
            return None

    def write(self, key: Mapping[str, Any] | int, piece: Any) -> None:
        """Keeps a JSON-able piece, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(piece, ensure_ascii=False).encode("utf-8", "surrogatepass")
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".unfinished")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_checksum(text).encode() + b"\n" + text)
                file.flush()
                os.fsync(handle)
            Path(temporary).replace(self._path(key))
        except BaseException:
            Path(temporary).unlink()
            raise

    def all_of(self, keys: Sequence[Mapping[str, Any] | int]) -> Iterator[Any]:
        """The pieces of keys, in their order, one at a time.

        Raises:
          OSError: one of them is not there, or damaged.
        """
        for key in keys:
            piece = self.read(key)
            if piece is None:
                raise OSError(f"{self._path(key)} is missing or damaged: run the command again")
            yield piece

    def _path(self, key: Mapping[str, Any] | int) -> Path:
        name = f"{key:06d}" if isinstance(key, int) else digest_of(key)
        return self._folder / f"{name}.json"


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
