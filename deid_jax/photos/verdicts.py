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
from deid_jax.photos.verifiers import Verifier, crops_of, largest_cosines
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
      references: for each face and each recogniser, `Verifier.references`.
      verifiers: surrogates and judges.
      detector: detects faces again; None judges only the original crops.
    """
    matrices = views(faces, detector(pixels) if detector is not None else ())
    crops = [crops_of(pixels, own) for own in matrices]
    return [
        tuple(verdict_of(*pair) for pair in zip(verifiers, row.tolist(), strict=True))
        for row in largest_cosines(verifiers, references, crops)
    ]


def verdict_of(verifier: Verifier, cosine: float) -> FaceVerdict:
    """The verdict of a recogniser that sees this similarity."""
    threshold = verifier.threshold
    return FaceVerdict(
        recogniser=verifier.embedder.name,
        fitted=verifier.is_surrogate,
        cosine=cosine,
        threshold=threshold,
        margin=threshold - cosine,
        fooled=cosine < threshold,
    )
