"""Verdicts: whether recognisers still match the faces of a written photo.

The written file is decoded. Each recogniser judges each face in the crop that was perturbed and
in the crop of the box that the detector finds in the protected photo. The largest similarity
counts, to the original face and to other photos of the person.
"""

from collections.abc import Sequence

import numpy as np

from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.faces import Detector, Face, overlap
from deid_jax.photos.file_records import FaceVerdict
from deid_jax.photos.verifiers import Verifier, crops_of, directions, similarity
from deid_jax.types import NumpyArray

# Boxes with a larger intersection over union belong to the same face.
_SAME = 0.3


def views(faces: Sequence[Face], found: Sequence[Face]) -> list[list[NumpyArray]]:
    """The crop matrices of each face: the original crop, then those of newly detected boxes."""
    matrices = [[crop_matrix(face)] for face in faces]
    for new in found:
        overlaps = [overlap(new.box, face.box) for face in faces]
        if max(overlaps) > _SAME:
            matrices[int(np.argmax(overlaps))].append(crop_matrix(new))
    return matrices


def judge(
    pixels: NumpyArray,
    faces: Sequence[Face],
    references: Sequence[Sequence[NumpyArray]],
    verifiers: Sequence[Verifier],
    detector: Detector | None = None,
) -> list[tuple[FaceVerdict, ...]]:
    """The verdicts on every face, one for each recogniser.

    Args:
      pixels: uint8[H, W, 3], the decoded file.
      faces: where the faces were before they were perturbed.
      references: for each recogniser and each face, `Verifier.references`.
      verifiers: surrogates and judges.
      detector: detects faces again; None judges only the original crops.
    """
    matrices = views(faces, detector(pixels) if detector is not None else ())
    crops = crops_of(pixels, [matrix for own in matrices for matrix in own])
    ends = np.cumsum([len(own) for own in matrices])[:-1]
    verdicts: list[list[FaceVerdict]] = [[] for _ in faces]
    for verifier, known in zip(verifiers, references, strict=True):
        shown = np.split(directions(verifier.embedder, crops), ends)
        for own, reference, found in zip(shown, known, verdicts, strict=True):
            cosine = max(similarity(direction, reference) for direction in own)
            found.append(_verdict(verifier, cosine))
    return [tuple(own) for own in verdicts]


def _verdict(verifier: Verifier, cosine: float) -> FaceVerdict:
    threshold = verifier.threshold
    return FaceVerdict(
        recogniser=verifier.embedder.name,
        fitted=verifier.is_surrogate,
        cosine=cosine,
        threshold=threshold,
        margin=threshold - cosine,
        fooled=cosine < threshold,
    )
