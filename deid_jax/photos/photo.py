"""One photo from its file's bytes to the protected file's, judged as it will be seen.

The strength of every face rises step by step until every judge is fooled in the encoded file,
or the cap on what may be seen is reached; then the strongest try is kept and called what it is.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.metrics import mssim
from deid_jax.photos import files, protection
from deid_jax.photos.alignment import crop_matrix, support
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.files import Photo
from deid_jax.photos.judging import (
    Verdict,
    Witness,
    crops_of,
    directions,
    goal,
    judge,
    knowledge,
)

# Where the photo's own quality would spoil as much as the change may.
_FINE_QUALITY = 97
# How often changes are made smaller for what encoding and other faces add to them.
_CORRECTIONS = 6


@dataclasses.dataclass(frozen=True)
class Strength:
    """How much may be changed.

    Attributes:
      psnrs: tries, in dB of the face's pixels in the file, from the least visible to the cap.
      num_steps: gradient steps of the first; half as many of the others, which go on from it.
    """

    psnrs: tuple[float, ...] = (42.0, 41.0, 40.0, 39.0, 38.0)
    num_steps: int = 30

    def __post_init__(self) -> None:
        falling = all(more > less for more, less in itertools.pairwise(self.psnrs))
        if not self.psnrs or not falling or not all(map(math.isfinite, self.psnrs)):
            raise InputError(f"psnrs must be numbers, each below the last, got {self.psnrs}")
        count("num_steps", self.num_steps, least=1)


DEFAULT = Strength()


class FaceReport(NamedTuple):
    """What became of one face.

    Attributes:
      face: where it is.
      tried: the PSNR of the last try in dB: what may be changed at most.
      psnr: of the pixels that the change may touch, the decoded file's against the photo's, dB.
      ssim: mean SSIM of its crop.
      verdicts: one of each witness.
    """

    face: Face
    tried: float
    psnr: float
    ssim: float
    verdicts: list[Verdict]

    @property
    def protected(self) -> bool:
        """Whether every witness is fooled."""
        return all_fooled(self.verdicts)


def all_fooled(verdicts: Sequence[Verdict]) -> bool:
    """Whether nobody knows the face."""
    return all(verdict.fooled for verdict in verdicts)


class Protected(NamedTuple):
    """A protected photo.

    Attributes:
      data: the file's content.
      pixels: uint8[H, W, 3], as the file shows them.
      quality: the file's quality, of JPEG and WebP; None of lossless formats.
      faces: what became of each face.
    """

    data: bytes
    pixels: np.ndarray
    quality: int | None
    faces: list[FaceReport]

    @property
    def protected(self) -> bool:
        """Whether every witness is fooled on every face."""
        return all(face.protected for face in self.faces)


def protect(
    photo: Photo,
    faces: Sequence[Face],
    witnesses: Sequence[Witness],
    key: jax.Array,
    *,
    strength: Strength = DEFAULT,
    known: Sequence[np.ndarray | None] | None = None,
    detector: Detector | None = None,
    keep_metadata: bool = False,
) -> Protected:
    """Changes the faces until they are not known again, as little as that takes.

    Args:
      photo: the photo.
      faces: one or more.
      witnesses: who judges; those that are `fitted` are known to the attack, at least one.
      key: one key.
      strength: how much may be changed.
      known: for each witness the directions float[K, D] of a person's other photos, from
        which every face that it takes for that person is kept apart, too; or None.
      detector: finds faces anew in the changed photo, for the judges.
      keep_metadata: see `files.encode`.

    Raises:
      InputError: no face, no witness that is fitted, or one who sees nothing in a face.
    """
    if not faces:
        raise InputError("faces must be one or more")
    if not any(witness.fitted for witness in witnesses):
        raise InputError("witnesses must have one or more that are fitted")
    places = _Places(photo, faces)
    crops = crops_of(photo.pixels, places.matrices)
    references = [
        _references(witness, crops, None if known is None else known[number])
        for number, witness in enumerate(witnesses)
    ]
    quality, losses = _quality(photo, places, strength.psnrs[-1])
    keys = jax.random.split(key, len(faces))
    fitted = [pair for pair in zip(witnesses, references, strict=True) if pair[0].fitted]
    changes: list[np.ndarray] = [np.zeros(0)] * len(faces)
    level = np.zeros(len(faces), int)
    todo = np.arange(len(faces))
    # Each round raises a face's level, so that there are at most as many as levels and faces.
    # Faces that overlap may undo each other: a face's turn may come again.
    while len(todo):
        written = _Written(b"", photo.pixels)  # The last round's memory is free.
        for one in np.unique(level[todo]):
            own = todo[level[todo] == one]
            at = protection.crops_at(
                crops[own], [places.matrices[number] for number in own], grey=places.grey
            )
            found = protection.changes_from(
                [witness for witness, _ in fitted],
                at,
                [np.stack([goal(each[face]) for face in own]) for _, each in fitted],
                np.stack([changes[number] for number in own]) if one else None,
                psnr=strength.psnrs[one],
                keys=keys[own],
                num_steps=-(-strength.num_steps // 2) if one else strength.num_steps,
            )
            for place, change in zip(own, found, strict=True):
                changes[place] = change
        tried = np.array(strength.psnrs)[level]
        written = _written(places, changes, tried, losses, quality, keep_metadata)
        verdicts = judge(written.pixels, faces, references, witnesses, detector)
        known_still = np.array([not all_fooled(own) for own in verdicts])
        todo = np.flatnonzero(known_still & (level + 1 < len(strength.psnrs)))
        level[todo] += 1
    reports = [
        _report(places, number, written.pixels, float(tried[number]), own)
        for number, own in enumerate(verdicts)
    ]
    return Protected(written.data, written.pixels, quality, reports)


class _Places:
    """Where a photo's faces are, and which pixels their changes may touch."""

    def __init__(self, photo: Photo, faces: Sequence[Face]):
        self.photo = photo
        self.faces = faces
        self.matrices = [crop_matrix(face) for face in faces]
        shape = photo.pixels.shape[:2]
        self.supports = [support(matrix, shape) for matrix in self.matrices]
        # Many a grey photo is in a file of three channels: it is to stay grey, too.
        red, green, blue = np.moveaxis(photo.pixels, 2, 0)
        self.grey = photo.grey or bool(np.array_equal(red, green) and np.array_equal(red, blue))

    def errors(self, seen: np.ndarray) -> np.ndarray:
        """Each face's mean squared error in the pixels it may touch, of a range of 1."""
        found = np.zeros(len(self.faces))
        for number, (ys, xs, inside) in enumerate(self.supports):
            if inside.any():
                difference = seen[ys, xs].astype(np.int16) - self.photo.pixels[ys, xs]
                squares = np.square(difference, dtype=np.int32).sum(axis=2)
                found[number] = squares.sum(where=inside, dtype=np.float64) / inside.sum()
        return found / (3 * 255**2)


class _Written(NamedTuple):
    """A file's content, and the pixels that it shows."""

    data: bytes
    pixels: np.ndarray


def _written(
    places: _Places,
    changes: Sequence[np.ndarray],
    psnrs: np.ndarray,
    losses: np.ndarray,
    quality: int | None,
    keep_metadata: bool,
) -> _Written:
    """The file with all changes, in which no face is changed more than its PSNR says.

    Encoding adds an error of its own, and so do faces that overlap: where both together exceed
    what is allowed the changes are made smaller, until it is kept or a few times were in vain.
    """
    photo = places.photo
    allowed = 10 ** (-psnrs / 10)
    own = np.maximum(allowed - losses, allowed / 4)
    for _ in range(_CORRECTIONS):
        pixels = protection.add(
            photo.pixels, changes, places.matrices, -10 * np.log10(own), grey=places.grey
        )
        data = files.encode(photo, pixels, keep_metadata=keep_metadata, quality=quality)
        del pixels  # Photos are large.
        seen = files.parse_photo(data, "the protected photo").pixels
        errors = places.errors(seen)
        if np.all(errors <= allowed):
            break
        excess = np.maximum(errors / allowed, 1)
        own = own / excess**1.5
    return _Written(data, seen)


def _quality(photo: Photo, places: _Places, cap: float) -> tuple[int | None, np.ndarray]:
    """The file's quality, and what encoding alone costs each face: mean squared errors.

    The photo's own quality, where encoding takes at most a quarter of what the cap leaves.
    """
    if photo.lossless:
        return None, np.zeros(len(places.faces))
    for quality in sorted({photo.quality, max(photo.quality, _FINE_QUALITY)}):
        data = files.encode(photo, photo.pixels, quality=quality)
        losses = places.errors(files.parse_photo(data, "the photo").pixels)
        if losses.max() <= 10 ** (-cap / 10) / 4:
            break
    return quality, losses


def _references(
    witness: Witness, crops: np.ndarray, photos: np.ndarray | None
) -> list[np.ndarray]:
    """[R, D] for each face: what the witness knows of its person."""
    each = directions(witness.embedder, crops)
    return [knowledge(own, photos, witness.threshold) for own in each]


def _report(
    places: _Places, number: int, seen: np.ndarray, tried: float, verdicts: list[Verdict]
) -> FaceReport:
    error = float(places.errors(seen)[number])
    psnr = -10 * math.log10(error) if error > 0 else math.inf
    matrix = places.matrices[number]
    pair = [jnp.asarray(crops_of(pixels, [matrix])) for pixels in (seen, places.photo.pixels)]
    return FaceReport(places.faces[number], tried, psnr, float(mssim(*pair)[0]), verdicts)
