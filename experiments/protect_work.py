"""What `experiments.protect` does with each file: a photo or a video, and its record."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deid_jax._validate import InputError
from deid_jax.embedders import Embedder
from deid_jax.photos import faces as face_finding
from deid_jax.photos import files
from deid_jax.photos.alignment import aligned_face
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.judging import Witness, directions
from deid_jax.photos.manifest import Record, digest_of, digest_of_file
from deid_jax.photos.photo import Strength, protect
from deid_jax.photos.video import protect_video
from experiments import protect_inputs
from experiments.protect_report import (
    NO_FACE,
    NOT_PROTECTED,
    PROTECTED,
    UNREADABLE,
    figures,
    figures_of_video,
)

# What is said of a file that takes long.
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Work:
    """Everything that is needed to do a file.

    Attributes:
      settings: fields of `ProtectSettings` that decide what is written.
      source: the input file or folder.
      output: the folder to write into.
      chosen: `largest`, `all` or boxes.
      told: faces of files, by name; None: they are found, or `chosen`.
      detector: None where faces are told.
      witnesses: who judges.
      known: for each the person of `gallery`; None without.
      strength: how much may be changed.
      key: one key.
    """

    settings: dict[str, Any]
    source: Path
    output: Path
    chosen: str | list[Face]
    told: dict[str, list[Face]] | None
    detector: Detector | None
    witnesses: list[Witness]
    known: list[np.ndarray] | None
    strength: Strength
    key: jax.Array

    def digest(self) -> str:
        """Of all that decides what is written, but the file."""
        parts = [json.dumps(self.settings, sort_keys=True)]
        parts += [_digest(witness.embedder) for witness in self.witnesses]
        parts += [digest_of(direction.tobytes()) for direction in self.known or ()]
        if self.told is not None:
            parts.append(repr(sorted(self.told.items())))
        elif self.detector not in (None, face_finding.cascade):
            parts.append(digest_of(Path(self.settings["detector"]).read_bytes()))
        return digest_of("\n".join(parts).encode())[:16]

    def do(
        self, name: str, content: bytes | InputError | None, digest: str, say: Say
    ) -> Record:
        """Does one file; what is wrong with it goes into its record.

        Args:
          name: below the input folder.
          content: what is in it, or what is wrong with it; None of videos, which are not read
            at once.
          digest: SHA-256 of its content.
          say: told how far it is.
        """
        record: Record = {
            "file": name,
            "status": UNREADABLE,
            "reason": None,
            "output": None,
            "source_sha256": digest,
            "output_sha256": None,
            "faces": [],
        }
        if isinstance(content, InputError):
            return record | {"reason": str(content)}
        done = self._video(name, say) if content is None else self._photo(name, content)
        return record | done

    def _photo(self, name: str, content: bytes) -> Record:
        try:
            photo = files.parse_photo(content, name)
            faces = self._faces(name, photo.pixels)
        except InputError as error:
            return {"reason": str(error)}
        if not faces:
            return _no_face()
        try:
            done = protect(
                photo,
                faces,
                self.witnesses,
                self._key(name),
                strength=self.strength,
                known=self.known,
                detector=self.detector,
                keep_metadata=self.settings["keep_metadata"],
            )
        except InputError as error:  # A recogniser sees nothing in a face.
            return {"status": NOT_PROTECTED, "reason": str(error)}
        files.write_whole(self.output / name, done.data)
        return _written(name, digest_of(done.data), done.protected) | figures(done)

    def _video(self, name: str, say: Say) -> Record:
        source = self.source / name if self.source.is_dir() else self.source
        try:
            done = protect_video(
                source,
                self.output / name,
                self.witnesses,
                self._key(name),
                detector=lambda pixels: self._faces(name, pixels),
                strength=self.strength,
                known=self.known,
                keep_metadata=self.settings["keep_metadata"],
                update=lambda doing, place, number: say(f"{doing} {place}/{number}"),
            )
        except InputError as error:
            return {"reason": str(error)}
        if not done.written:
            return _no_face()
        digest = digest_of_file(self.output / name)
        return _written(name, digest, done.protected) | figures_of_video(done)

    def _key(self, name: str) -> jax.Array:
        """A file's own, whatever lies beside it."""
        named = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return jax.random.fold_in(self.key, int(named[:8], 16))

    def _faces(self, name: str, pixels: np.ndarray) -> list[Face]:
        """The faces of a photo that are to be protected."""
        if self.settings["aligned"]:
            return [aligned_face(pixels.shape[:2], name)]
        if self.detector is not None:
            assert isinstance(self.chosen, str)
            return face_finding.choose(self.detector(pixels), self.chosen)
        whole = (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0]))
        told = self.chosen if self.told is None else self._told(name)
        assert not isinstance(told, str)
        for face in told:
            if not face_finding.overlap(face.box, whole) > 0:
                raise InputError(f"{name}: a face's box lies beside the photo, {face.box}")
        return face_finding.choose(told, "largest") if self.chosen == "largest" else told

    def _told(self, name: str) -> list[Face]:
        """The boxes of a file, by its name below the folder or its own."""
        assert self.told is not None
        return self.told.get(name, self.told.get(Path(name).name, []))


def _no_face() -> Record:
    return {"status": NO_FACE, "reason": "no face was found: nothing was written"}


def _written(name: str, digest: str, protected: bool) -> Record:
    return {
        "status": PROTECTED if protected else NOT_PROTECTED,
        "reason": None if protected else "a recogniser still knows a face",
        "output": name,
        "output_sha256": digest,
    }


def _digest(embedder: Embedder) -> str:
    digest = hashlib.sha256(embedder.name.encode())
    for leaf in jax.tree.leaves(embedder.variables):
        digest.update(np.asarray(leaf).tobytes())
    # A function that was brought along is known by what it does alone.
    digest.update(directions(embedder, protect_inputs.sample()).tobytes())
    return digest.hexdigest()
