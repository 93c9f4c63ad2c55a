"""One photo from its file's bytes to the protected file's, judged as it will be seen.

The strength of every face rises step by step until every judge is fooled in the encoded file,
or the cap on what may be seen is reached; then the strongest try is kept and called what it is.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.metrics import mssim
from deid_jax.photos import files, protection
from deid_jax.photos.alignment import crop_matrix, support
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.files import Photo
from deid_jax.photos.judging import Verdict, Witness, crops_of, directions, judge

# Where the photo's own quality would spoil as much as the change may.
_FINE_QUALITY = 97


@dataclasses.dataclass(frozen=True)
class Strength:
    """How much may be changed.

    Attributes:
      psnrs: tries, in dB of the face's pixels in the file, from the least visible to the cap.
      num_steps: gradient steps of each.
    """

    psnrs: tuple[float, ...] = (42.0, 41.0, 40.0, 39.0, 38.0)
    num_steps: int = 30


DEFAULT = Strength()


class FaceReport(NamedTuple):
    """What became of one face.

    Attributes:
      face: where it is.
      tried: the PSNR of the last try in dB.
      psnr: of the changed pixels in the decoded file, against the original's, dB.
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
      known: for each witness the direction float[D] of a person's other photos, which stands
        for every face that it takes for that person; None, or where it does not: the face's
        own, unchanged, which is the hardest to come away from.
      detector: finds faces anew in the changed photo, for the judges.
      keep_metadata: see `files.encode`.
    """
    matrices = [crop_matrix(face) for face in faces]
    crops = crops_of(photo.pixels, matrices)
    references = [
        _references(witness, crops, None if known is None else known[number])
        for number, witness in enumerate(witnesses)
    ]
    quality, losses = _quality(photo, matrices, strength.psnrs[-1])
    keys = jax.random.split(key, len(faces))
    fitted = [pair for pair in zip(witnesses, references, strict=True) if pair[0].fitted]
    changes: list[np.ndarray] = [np.zeros(0)] * len(faces)
    level = np.zeros(len(faces), int)
    todo = np.arange(len(faces))
    # Faces that overlap may undo each other, so a face's turn may come again.
    for _ in range(2 * len(strength.psnrs)):
        for one in np.unique(level[todo]):
            places = todo[level[todo] == one]
            found = protection.changes(
                [witness.embedder for witness, _ in fitted],
                crops[places],
                [matrices[n] for n in places],
                [reference[places] for _, reference in fitted],
                grey=photo.grey,
                psnr=strength.psnrs[one],
                keys=keys[places],
                num_steps=strength.num_steps,
            )
            for place, change in zip(places, found, strict=True):
                changes[place] = change
        tried = np.array(strength.psnrs)[level]
        room = _room(tried, losses)
        pixels = protection.add(photo.pixels, changes, matrices, room, grey=photo.grey)
        data = files.encode(photo, pixels, keep_metadata=keep_metadata, quality=quality)
        seen = files.parse_photo(data, "the protected photo").pixels
        verdicts = judge(seen, faces, references, witnesses, detector)
        known_still = np.array([not all_fooled(own) for own in verdicts])
        todo = np.flatnonzero(known_still & (level + 1 < len(strength.psnrs)))
        if not len(todo):
            break
        level[todo] += 1
    reports = [
        _report(photo, seen, *rest)
        for rest in zip(faces, matrices, tried.tolist(), verdicts, strict=True)
    ]
    return Protected(data, seen, quality, reports)


def _quality(
    photo: Photo, matrices: Sequence[np.ndarray], cap: float
) -> tuple[int | None, np.ndarray]:
    """The file's quality, and what encoding alone costs each face: mean squared errors.

    The photo's own quality, where encoding takes at most a quarter of what the cap leaves.
    """
    if photo.lossless:
        return None, np.zeros(len(matrices))
    for quality in sorted({photo.quality, max(photo.quality, _FINE_QUALITY)}):
        again = files.parse_photo(
            files.encode(photo, photo.pixels, quality=quality), "the photo"
        ).pixels
        losses = np.array([_error(photo, again, matrix) for matrix in matrices])
        if losses.max() <= 10 ** (-cap / 10) / 4:
            break
    return quality, losses


def _room(psnrs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The PSNRs that the changes may have, so that with encoding each face has its own."""
    whole = 10 ** (-psnrs / 10)
    return -10 * np.log10(np.maximum(whole - losses, whole / 4))


def _references(witness: Witness, crops: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """[N, D], what the witness is to know of each face's person."""
    own = directions(witness.embedder, crops)
    if known is None:
        return own
    same = own @ known >= witness.threshold
    return np.where(same[:, None], known[None], own)


def _report(
    photo: Photo,
    seen: np.ndarray,
    face: Face,
    matrix: np.ndarray,
    tried: float,
    verdicts: list[Verdict],
) -> FaceReport:
    error = _error(photo, seen, matrix)
    psnr = -10 * math.log10(error) if error > 0 else math.inf
    pair = [jnp.asarray(crops_of(pixels, [matrix])) for pixels in (seen, photo.pixels)]
    return FaceReport(face, tried, psnr, float(mssim(*pair)[0]), verdicts)


def _error(photo: Photo, seen: np.ndarray, matrix: np.ndarray) -> float:
    """The mean squared error of the pixels that a face's change may touch, of a range of 1."""
    ys, xs, inside = support(matrix, photo.pixels.shape[:2])
    if not inside.any():
        return 0.0
    difference = seen[ys, xs][inside].astype(np.float64) - photo.pixels[ys, xs][inside]
    return float(np.mean(np.square(difference / 255)))
