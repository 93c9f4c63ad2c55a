"""Protects the faces of one photo, and judges the encoded file.

The whole budget is spent, because a perturbation that only just fools the surrogates seldom
fools other recognisers. With several budgets, a face that a surrogate still matches gets the
next one. If a surrogate still matches it at the last budget, the face is not protected.
"""

import dataclasses
import hashlib
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
from deid_jax.photos import face_attack, files
from deid_jax.photos.canvases import Canvas
from deid_jax.photos.face_attack import Canvases
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.file_records import FaceReport, status_of, worst_of
from deid_jax.photos.files import Photo
from deid_jax.photos.verdicts import judge
from deid_jax.photos.verifiers import Verifier, all_match_gallery, crops_of, face_embeddings
from deid_jax.types import NumpyArray

# The budget: PSNR of the face, see `Canvas.error`, in dB.
STRENGTHS = {"light": 42.0, "medium": 40.0, "strong": 38.0}
# The search for the least perturbation: PSNR of the first try, the step to the next, and how
# far below its threshold a surrogate's similarity must be.
_FIRST, _LOWER, _MARGIN = 46.0, 2.0, 0.1
# The largest part of the budget that encoding with the photo's own settings may cost.
_MOST_LOST = 1 / 16
# The qualities that are tried if it costs more.
_QUALITIES = (92, 95, 98)
# JPEG encodes squares of this many pixels by themselves, if its chroma has half the resolution.
_BLOCK = 16
# Most rescalings that allow for encoding and other faces; they end early once this share of
# each budget is spent.
_CORRECTIONS = 6
_LEAST_SPENT = 0.97


@dataclasses.dataclass(frozen=True)
class Strength:
    """The budgets of one or more tries.

    Attributes:
      psnrs: PSNR of the face, see `Canvas.error`, in dB, from the least visible budget to the
        cap.
      num_steps: gradient steps of the first try; later tries continue with half as many.
      margin: how far below its threshold a surrogate's similarity must be; otherwise the next
        budget is tried.
    """

    psnrs: tuple[float, ...] = (STRENGTHS["medium"],)
    num_steps: int = 60
    margin: float = 0.0

    @classmethod
    def of(cls, name: str, num_steps: int, *, least: bool = False) -> "Strength":
        """The whole budget of a key of `STRENGTHS`, or the least perturbation within it."""
        cap = STRENGTHS[name]
        if not least:
            return cls((cap,), num_steps)
        return cls(tuple(np.arange(_FIRST, cap - 0.1, -_LOWER).tolist()), num_steps, _MARGIN)

    def __post_init__(self) -> None:
        falling = all(more > less for more, less in itertools.pairwise(self.psnrs))
        if not self.psnrs or not falling or not all(map(math.isfinite, self.psnrs)):
            raise InputError(f"psnrs must be numbers, each below the last, got {self.psnrs}")
        count("num_steps", self.num_steps, least=1, most=10**6)


class ProtectedPhoto(NamedTuple):
    """The file of a protected photo, and its decoded pixels, uint8[H, W, 3].

    Its quality is None for lossless formats.
    """

    data: bytes
    pixels: NumpyArray
    quality: int | None
    faces: tuple[FaceReport, ...]

    @property
    def status(self) -> str:
        """The worst status of a face."""
        return worst_of(face.status for face in self.faces)


@dataclasses.dataclass(frozen=True)
class Protector:
    """Protects photos and videos: recognisers, detector, strength and key.

    Attributes:
      verifiers: surrogates, at least one, and judges.
      key: one key; each file's key is derived from it and the file's name.
      detector: detects the faces again in written files; None: all crops are cut by the
        original landmarks.
      keep_metadata: see `files.encode_photo`.
      mark: whether written files say that they are protected, see `Photo.with_mark`.
    """

    verifiers: tuple[Verifier, ...]
    key: jax.Array
    detector: Detector | None = None
    strength: Strength = Strength()
    keep_metadata: bool = False
    mark: bool = False

    def __post_init__(self) -> None:
        if not self.surrogates:
            raise InputError("verifiers must have one or more surrogates")

    @property
    def surrogates(self) -> tuple[Verifier, ...]:
        """The recognisers that the attack is fitted on."""
        return tuple(one for one in self.verifiers if one.is_surrogate)

    def key_of(self, name: str) -> jax.Array:
        """The key of a file, which depends only on its name below the input folder."""
        named = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return jax.random.fold_in(self.key, int(named[:8], 16))

    def protect_photo(self, photo: Photo, faces: Sequence[Face], name: str) -> ProtectedPhoto:
        """Perturbs one or more faces within the budget, and judges the written file.

        The file's name decides the random choices.

        Raises:
          InputError: the file cannot be encoded, or a recogniser gives no valid embedding.
        """
        photo = photo.with_mark() if self.mark else photo
        return _PhotoAttack(self, photo, faces, self.key_of(name)).run()


class _PhotoAttack:
    """The attack on the faces of one photo."""

    def __init__(
        self, protector: Protector, photo: Photo, faces: Sequence[Face], key: jax.Array
    ):
        self._protector = protector
        self._photo = photo
        self._faces = faces
        self._encoder = _Encoder(photo, faces, protector.strength.psnrs[-1])
        self._canvases = Canvases.of(
            protector.surrogates, photo.pixels, self._encoder.canvases, grey=photo.grey
        )
        found = face_embeddings(protector.verifiers, photo.pixels, faces)
        self._references = [
            [
                one.references(embedding)
                for one, embedding in zip(protector.verifiers, embeddings, strict=True)
            ]
            for embeddings in found
        ]
        self._in_gallery = [
            all_match_gallery(protector.verifiers, embeddings) for embeddings in found
        ]
        self._keys = jax.random.split(key, len(faces))
        self._found: list[NumpyArray] = [np.zeros(0)] * len(faces)

    def run(self) -> ProtectedPhoto:
        """Perturbs the faces; those that a surrogate still matches get the next budget."""
        protector, psnrs = self._protector, self._protector.strength.psnrs
        level = np.zeros(len(self._faces), int)
        todo = np.arange(len(self._faces))
        # Each round raises a level, so there are at most levels × faces rounds. Faces that
        # overlap may undo each other: a face may need another try later.
        while len(todo):
            data, pixels = b"", self._photo.pixels  # Frees the last round's memory.
            for one in np.unique(level[todo]):
                self._perturb(todo[level[todo] == one], int(one))
            tried = np.array(psnrs)[level]
            data, pixels = self._encoder.encode(self._found, tried, protector.keep_metadata)
            verdicts = judge(
                pixels, self._faces, self._references, protector.verifiers, protector.detector
            )
            # A judge must not steer the attack.
            margins = [min(one.margin for one in own if one.fitted) for own in verdicts]
            matched = np.array(margins) <= protector.strength.margin
            todo = np.flatnonzero(matched & (level + 1 < len(psnrs)))
            level[todo] += 1
        errors = self._encoder.errors(pixels).tolist()
        before, after = (crops_of(image, self._faces) for image in (self._photo.pixels, pixels))
        ssims = mssim(jnp.asarray(after), jnp.asarray(before)).tolist()
        reports = tuple(
            FaceReport(
                box=face.box,
                score=face.score,
                status=status_of(own, face.score),
                strength_db=psnr,
                psnr=-10 * math.log10(error) if error > 0 else math.inf,
                ssim=ssim,
                verdicts=own,
                in_gallery=in_gallery,
            )
            for face, own, psnr, error, ssim, in_gallery in zip(
                self._faces,
                verdicts,
                tried.tolist(),
                errors,
                ssims,
                self._in_gallery,
                strict=True,
            )
        )
        return ProtectedPhoto(data, pixels, self._encoder.quality, reports)

    def _perturb(self, faces: NumpyArray, level: int) -> None:
        """Finds the perturbations of faces, starting from those of the previous level."""
        strength = self._protector.strength
        found = face_attack.perturbations(
            self._protector.verifiers,
            self._canvases.take(faces),
            [self._references[face] for face in faces],
            np.stack([self._found[face] for face in faces]) if level else None,
            psnr=strength.psnrs[level],
            keys=self._keys[faces],
            num_steps=-(-strength.num_steps // 2) if level else strength.num_steps,
        )
        for face, perturbation in zip(faces, found, strict=True):
            self._found[face] = perturbation


class _Encoder:
    """Encodes a photo with perturbations so that each face keeps its budget in the file.

    Coarse quantisation and subsampled chroma lose part of a perturbation: if the photo's own
    settings cost more than `_MOST_LOST` of the budget at the cap, finer settings are used.
    """

    def __init__(self, photo: Photo, faces: Sequence[Face], cap: float):
        self._photo = photo
        self.canvases = [Canvas.around(face, photo.pixels) for face in faces]
        self._quality: int | None = None
        self._losses: NumpyArray = np.zeros(len(faces))
        if photo.lossless:
            return
        finer = sorted({max(quality, photo.quality) for quality in _QUALITIES})
        for self._quality in (None, *finer):
            self._losses = self._lost_at(self._quality)
            if self._losses.max() <= 10 ** (-cap / 10) * _MOST_LOST:
                break

    def _lost_at(self, quality: int | None) -> NumpyArray:
        """`errors` from encoding alone, of the part of the photo that holds the faces."""
        photo = self._photo
        parts = [canvas.part(photo.pixels) for canvas in self.canvases]
        # JPEG's blocks remain the same.
        low = np.min([first for _, first in parts], axis=0).astype(int) // _BLOCK * _BLOCK
        high = np.max([first + own.shape[1::-1] for own, first in parts], axis=0).astype(int)
        shown = photo.pixels.copy()
        faces = slice(low[1], high[1]), slice(low[0], high[0])
        if shown[faces].size:
            opaque = dataclasses.replace(photo, alpha=None)
            data = files.encode_photo(opaque, shown[faces], quality=quality)
            shown[faces] = files.parse_photo(data, "the photo").pixels
        return self.errors(shown)

    @property
    def quality(self) -> int | None:
        """None for lossless formats."""
        photo = self._photo
        if photo.lossless:
            return None
        return self._quality or photo.quality

    def errors(self, shown: NumpyArray) -> NumpyArray:
        """`Canvas.error` of each face."""
        before = self._photo.pixels
        return np.array([canvas.error(before, shown) for canvas in self.canvases])

    def encode(
        self, perturbations: Sequence[NumpyArray], psnrs: NumpyArray, keep_metadata: bool
    ) -> tuple[bytes, NumpyArray]:
        """The file with all perturbations, and its decoded pixels.

        Encoding and overlapping faces add errors of their own, so the perturbations are
        rescaled, at most `_CORRECTIONS` times, until nearly all of each budget is spent. No
        face is below its PSNR if a try achieves that; otherwise the try that exceeds a budget
        by the smallest factor is returned.
        """
        photo = self._photo
        allowed = 10 ** (-psnrs / 10)
        own = np.maximum(allowed - self._losses, allowed / 4)
        best, least = b"", math.inf
        for _ in range(_CORRECTIONS):
            budgets = -10 * np.log10(own)
            faces = zip(self.canvases, perturbations, strict=True)
            pixels = face_attack.add(photo.pixels, faces, budgets, grey=photo.grey)
            data = files.encode_photo(
                photo, pixels, keep_metadata=keep_metadata, quality=self._quality
            )
            del pixels  # Photos are large.
            shown = files.parse_photo(data, "the protected photo").pixels
            spent = self.errors(shown) / allowed
            most = max(float(spent.max()), 1.0)
            if most <= least:
                best, least = data, most
            if most == 1 and np.all(spent >= _LEAST_SPENT):
                return data, shown
            change = np.maximum(spent, 0.1)  # Nothing may be spent, by the tiniest faces.
            own = own * np.where(spent > 1, 0.99 * change**-1.5, change**-0.7)
        del shown
        return best, files.parse_photo(best, "the protected photo").pixels
