"""What a long computation has done so far, on disk: pieces that are there or are not."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Store:
    """A folder of finished pieces of one computation.

    Pieces of other computations (other facts) lie in folders of their own and are not read.

    Args:
      folder: where computations of this kind keep their pieces; made when the first is kept.
      facts: JSON-able, all that decides what a piece holds beside its key.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        self._folder = folder / _digest(facts)

    def __len__(self) -> int:
        """Number of pieces kept."""
        return len(list(self._folder.glob("*.json")))

    def read(self, key: Mapping[str, Any]) -> Any:
        """The piece kept under a key; None if there is none, or it cannot be read."""
        try:
            return json.loads(self._path(key).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, key: Mapping[str, Any], piece: Any) -> None:
        """Keeps a JSON-able piece, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".unfinished")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(piece, file)
            Path(temporary).replace(self._path(key))
        except BaseException:
            Path(temporary).unlink()
            raise

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self._folder / f"{_digest(key)}.json"


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
