"""Protects the photos and videos of a folder, and records the outcome of each file."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from deid_jax.errors import InputError, TransientError
from deid_jax.photos import face_attack, files
from deid_jax.photos.detectors import DEFAULT
from deid_jax.photos.faces import Face, FaceChoice, FaceError
from deid_jax.photos.file_records import (
    NO_FACE,
    NOT_PROTECTED,
    UNREADABLE,
    FileRecord,
    PhotoFigures,
    VideoFigures,
    reason_of,
)
from deid_jax.photos.manifest import outputs_of, sha256_of, sha256_of_file
from deid_jax.photos.protector import ProtectedPhoto, Protector
from deid_jax.photos.verifiers import EmbeddingError, comparable_of, fingerprint_images
from deid_jax.photos.written_files import ProtectedError, is_remembered, remember
from deid_jax.recognisers.embedders import Embedder
from deid_jax.runs import write_whole
from deid_jax.types import NumpyArray
from deid_jax.videos.video import VideoJob, VideoReport

# Shows the progress of a file that takes a long time.
Say = Callable[[str], None]
_NO_FACE = "no face was found: nothing was written"


@dataclasses.dataclass(frozen=True)
class FileProtector:
    """Protects files one by one, from an input file or folder into an output folder."""

    protector: Protector
    choice: FaceChoice
    source: Path
    output: Path

    def digest(self, settings: Mapping[str, object]) -> str:
        """A digest of the command's settings and all else but the file that determines it."""
        verifiers = self.protector.verifiers
        parts = [json.dumps(settings, sort_keys=True)]
        parts += [f"{one.threshold!r} {_digest(one.embedder)}" for one in verifiers]
        # Their defaults differ between versions.
        parts += [repr(self.protector.strength), repr(face_attack.ATTACK)]
        galleries = (one.gallery for one in verifiers if one.gallery is not None)
        parts += [sha256_of(gallery.tobytes()) for gallery in galleries]
        if self.choice.listed is not None:
            parts.append(repr(sorted(self.choice.listed.items())))
        looks = self.protector.detector is not None or self.choice.landmarker is not None
        if looks and settings["detector"] != DEFAULT:
            parts.append(sha256_of(Path(str(settings["detector"])).read_bytes()))
        return sha256_of("\n".join(parts).encode())[:16]

    def protect(
        self, name: str, content: bytes | InputError | None, digest: str, say: Say
    ) -> FileRecord:
        """Protects one file; an error is written into its record.

        The content may be the error on reading it, and is None for videos; the digest is its
        SHA-256.
        """
        if isinstance(content, InputError):
            return FileRecord(name, UNREADABLE, str(content), source_sha256=digest)
        obstacle = self._obstacle(name)
        if obstacle is not None:
            return FileRecord(name, NOT_PROTECTED, f"nothing was written: {obstacle}")
        try:
            if digest in self._outputs or is_remembered(digest):
                raise ProtectedError(name)
            if content is None:
                return self._video(name, digest, say)
            return self._photo(name, content, digest)
        except InputError as error:
            status = UNREADABLE
            if isinstance(error, FaceError):
                status = NO_FACE
            elif isinstance(error, EmbeddingError | ProtectedError):
                status = NOT_PROTECTED
            # Without a digest the file is tried again: its content alone is not the cause.
            passes = isinstance(error, TransientError | ProtectedError | FaceError)
            return FileRecord(name, status, str(error), source_sha256="" if passes else digest)

    @functools.cached_property
    def _outputs(self) -> set[str]:
        """SHA-256 of what an earlier run wrote into the input folder."""
        return outputs_of(self.source if self.source.is_dir() else self.source.parent)

    def _obstacle(self, name: str) -> str | None:
        """Why an output cannot be written (its path is taken or leads elsewhere), or None."""
        target = self.output / name
        place, whole = (Path(os.path.realpath(one)) for one in (target.parent, self.output))
        if not place.is_relative_to(whole):
            return "a link in its place leads out of the output folder"
        if target.is_dir() and not target.is_symlink():
            return "in its place is a folder"
        if any(above.is_file() for above in target.parents):
            return "in its folder's place is a file"
        return None

    def _photo(self, name: str, content: bytes, digest: str) -> FileRecord:
        photo = files.parse_photo(content, name)
        if photo.is_marked:
            raise ProtectedError(name)
        faces, left = self.choice.faces(name, photo.pixels)
        if not faces:
            return FileRecord(name, NO_FACE, _NO_FACE, source_sha256=digest)
        try:
            done = self.protector.protect_photo(photo, faces, name)
        except TransientError:
            raise
        except InputError as error:  # A recogniser is blind, or the file cannot be encoded.
            return FileRecord(name, NOT_PROTECTED, str(error), source_sha256=digest)
        write_whole(self.output / name, done.data)
        height, width = done.pixels.shape[:2]
        figures = PhotoFigures(left, height, width, done.quality)
        return self._written(name, digest, done, figures)

    def _video(self, name: str, digest: str, say: Say) -> FileRecord:
        most_left = 0

        def detector(pixels: NumpyArray) -> list[Face]:
            nonlocal most_left
            faces, left = self.choice.faces(name, pixels)
            most_left = max(most_left, left)
            return faces

        done = VideoJob(
            protector=self.protector,
            source=self.source / name if self.source.is_dir() else self.source,
            target=self.output / name,
            name=name,
            detector=detector,
            progress=lambda stage, place, total: say(f"{stage} {place}/{total}"),
        ).run()
        if not done.written:
            return FileRecord(name, NO_FACE, _NO_FACE, source_sha256=digest)
        size = (done.height, done.width)
        figures = VideoFigures(most_left, *size, done.num_frames, done.num_face_frames)
        return self._written(name, digest, done, figures)

    def _written(
        self,
        name: str,
        digest: str,
        done: ProtectedPhoto | VideoReport,
        figures: PhotoFigures | VideoFigures,
    ) -> FileRecord:
        written = sha256_of_file(self.output / name)
        if written != digest:
            remember(written)
        return FileRecord(
            file=name,
            status=done.status,
            reason=reason_of(done.faces),
            output=name,
            source_sha256=digest,
            output_sha256=written,
            faces=done.faces,
            figures=figures,
        )


def _digest(embedder: Embedder) -> str:
    digest = hashlib.sha256(embedder.name.encode())
    for leaf in jax.tree.leaves(embedder.variables):
        digest.update(np.asarray(leaf).tobytes())
    # A user-supplied function has no weights, so it is identified by its embeddings.
    images = fingerprint_images(embedder.alignment)
    digest.update(comparable_of(embedder, images).tobytes())
    return digest.hexdigest()
