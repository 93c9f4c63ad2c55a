"""What `experiments.protect` does with each file: a photo or a video, and its record."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deid_jax.errors import InputError, TransientError
from deid_jax.photos import faces as face_finding
from deid_jax.photos import files
from deid_jax.photos.alignment import aligned_face
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.judging import BlindError, Witness, directions
from deid_jax.photos.manifest import Record, digest_of, digest_of_file
from deid_jax.photos.photo import Strength, protect
from deid_jax.recognisers.embedders import Embedder
from deid_jax.videos.video import protect_video
from experiments._protect import protect_inputs
from experiments._protect.protect_report import (
    NO_FACE,
    NOT_PROTECTED,
    PROTECTED,
    UNREADABLE,
    figures,
    figures_of_video,
)

# What is said of a file that takes long.
Say = Callable[[str], None]


class FaceError(InputError):
    """Where a face is said to be there is none."""


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
      known: for each the directions of the person's photos in `gallery`; None without.
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
        hindrance = self._hindrance(name)
        if hindrance is not None:
            # Without its digest, so that it is looked at anew.
            return record | {
                "status": NOT_PROTECTED,
                "reason": f"nothing was written: {hindrance}",
                "source_sha256": "",
            }
        done = self._video(name, say) if content is None else self._photo(name, content)
        return record | done

    def _hindrance(self, name: str) -> str | None:
        """Why a file cannot be written: what is in its place, or leads it elsewhere."""
        target = self.output / name
        place, whole = (Path(os.path.realpath(one)) for one in (target.parent, self.output))
        if not place.is_relative_to(whole):
            return "a link in its place leads out of the output folder"
        if target.is_dir() and not target.is_symlink():
            return "in its place is a folder"
        if any(above.is_file() for above in target.parents):
            return "in its folder's place is a file"
        return None

    def _photo(self, name: str, content: bytes) -> Record:
        try:
            photo = files.parse_photo(content, name)
        except TransientError as error:
            return {"reason": str(error), "source_sha256": ""}
        except InputError as error:
            return {"reason": str(error)}
        try:
            faces, left = self._faces(name, photo.pixels)
        except FaceError as error:
            return {"status": NO_FACE, "reason": str(error)}
        if not faces:
            return _no_face()
        try:
            done = protect(
                photo,
                faces,
                self.witnesses,
                key_of(name, self.key),
                strength=self.strength,
                known=self.known,
                detector=self.detector,
                keep_metadata=self.settings["keep_metadata"],
            )
        except InputError as error:  # A recogniser sees nothing, or no such file can be made.
            return {"status": NOT_PROTECTED, "reason": str(error)}
        files.write_whole(self.output / name, done.data)
        written = _written(name, digest_of(done.data), done.protected)
        return written | {"faces_left": left} | figures(done)

    def _video(self, name: str, say: Say) -> Record:
        source = self.source / name if self.source.is_dir() else self.source
        most_left = 0

        def found(pixels: np.ndarray) -> list[Face]:
            nonlocal most_left
            faces, left = self._faces(name, pixels)
            most_left = max(most_left, left)
            return faces

        try:
            done = protect_video(
                source,
                self.output / name,
                self.witnesses,
                key_of(name, self.key),
                detector=found,
                strength=self.strength,
                known=self.known,
                keep_metadata=self.settings["keep_metadata"],
                update=lambda doing, place, number: say(f"{doing} {place}/{number}"),
            )
        except TransientError as error:
            return {"reason": str(error), "source_sha256": ""}
        except FaceError as error:
            return {"status": NO_FACE, "reason": str(error)}
        except BlindError as error:
            return {"status": NOT_PROTECTED, "reason": str(error)}
        except InputError as error:
            return {"reason": str(error)}
        if not done.written:
            return _no_face()
        digest = digest_of_file(self.output / name)
        written = _written(name, digest, done.protected)
        return written | {"faces_left": most_left} | figures_of_video(done)

    def _faces(self, name: str, pixels: np.ndarray) -> tuple[list[Face], int]:
        """The faces of a photo that are to be protected, and how many others were found.

        Raises:
          FaceError: the picture is no aligned face, or a box that was told lies beside it.
        """
        if self.settings["aligned"]:
            try:
                return [aligned_face(pixels.shape[:2], name)], 0
            except InputError as error:
                raise FaceError(str(error)) from error
        if self.detector is not None:
            assert isinstance(self.chosen, str)
            found = self.detector(pixels)
            chosen = face_finding.choose(found, self.chosen)
            return chosen, len(found) - len(chosen)
        whole = (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0]))
        told = self.chosen if self.told is None else self._told(name)
        assert not isinstance(told, str)
        for face in told:
            if not face_finding.overlap(face.box, whole) > 0:
                raise FaceError(f"{name}: a face's box lies beside the photo, {face.box}")
        chosen = face_finding.choose(told, "largest") if self.chosen == "largest" else told
        return chosen, len(told) - len(chosen)

    def _told(self, name: str) -> list[Face]:
        """The boxes of a file, by its name below the folder or its own."""
        assert self.told is not None
        return self.told.get(name, self.told.get(Path(name).name, []))


def key_of(name: str, key: jax.Array) -> jax.Array:
    """A file's own key, by its name below the input folder, whatever lies beside it."""
    named = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return jax.random.fold_in(key, int(named[:8], 16))


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
