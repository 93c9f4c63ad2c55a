"""Verdicts: whether recognisers still match the faces of a written photo.

The written file is decoded. Each recogniser judges each face in its own crop, as it was aligned
when perturbed, and as by the box that the detector finds in the protected photo. The largest
similarity counts, to the original face and to other photos of the person.
"""

from collections.abc import Sequence

import numpy as np

from deid_jax.photos.faces import Detector, Face, overlap
from deid_jax.photos.file_records import FaceVerdict
from deid_jax.photos.verifiers import Verifier, largest_similarities, own_crops
from deid_jax.types import NumpyArray

# Boxes with a larger intersection over union belong to the same face.
_SAME = 0.3


def views(faces: Sequence[Face], found: Sequence[Face]) -> list[list[Face]]:
    """How each face is aligned: as it was when perturbed, then by newly detected boxes."""
    views = [[face] for face in faces]
    for new in found:
        overlaps = [overlap(new.box, face.box) for face in faces]
        if max(overlaps) > _SAME:
            views[int(np.argmax(overlaps))].append(new)
    return views


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
    aligned = views(faces, detector(pixels) if detector is not None else ())
    crops = [own_crops(verifiers, pixels, own) for own in aligned]
    return [
        tuple(verdict_of(*pair) for pair in zip(verifiers, row.tolist(), strict=True))
        for row in largest_similarities(verifiers, references, crops)
    ]


def verdict_of(verifier: Verifier, similarity: float) -> FaceVerdict:
    """The verdict of a recogniser that sees this similarity."""
    threshold = verifier.threshold
    return FaceVerdict(
        recogniser=verifier.embedder.name,
        fitted=verifier.is_surrogate,
        similarity=similarity,
        threshold=threshold,
        margin=threshold - similarity,
        fooled=similarity < threshold,
    )
