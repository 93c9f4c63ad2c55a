"""Verdicts: whether recognisers still match the faces of a written photo.

The written file is decoded. Each recogniser judges several crops of each face: by the landmarks
detected in the written file, by those of the original, by landmarks that another detector might
find, and after compression. The largest similarity to the original face and to other photos of
the person counts.
"""

import math
from collections.abc import Sequence

import numpy as np

from deid_jax.photos.alignment import landmarks_of
from deid_jax.photos.canvases import Canvas
from deid_jax.photos.faces import Detector, Face, overlap
from deid_jax.photos.file_records import FaceVerdict
from deid_jax.photos.verifiers import Verifier, largest_similarities, own_crops
from deid_jax.transforms.processing import PROCESSING
from deid_jax.types import NumpyArray

# Other detectors' landmarks: rotation in degrees, scale, and shifts in eye distances.
_MISALIGNED = (
    (4.0, 1.0, 0.0, 0.0),
    (-4.0, 1.0, 0.0, 0.0),
    (0.0, 1.1, 0.0, 0.0),
    (0.0, 0.92, 0.0, 0.0),
    (0.0, 1.0, 0.08, 0.08),
)
# Boxes with a larger intersection over union belong to the same face. Given boxes may cover
# only part of one, and a neighbour's crop among a face's can only make its verdict stricter.
_SAME = 0.1


def views(faces: Sequence[Face], found: Sequence[Face]) -> list[list[Face]]:
    """How each face is aligned: as when it was perturbed, then by new detections."""
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
    """The verdicts on every face, one for each recogniser, by its worst crop.

    Args:
      pixels: uint8[H, W, 3], the decoded file.
      faces: where the faces were before they were perturbed.
      references: for each face and each recogniser, `Verifier.references`.
      verifiers: surrogates and judges.
      detector: detects faces again; None: all crops are cut by the original landmarks.
    """
    crops = [
        crops_to_judge(verifiers, pixels, own)
        for own in views(faces, detector(pixels) if detector is not None else ())
    ]
    return [
        tuple(verdict_of(*pair) for pair in zip(verifiers, row.tolist(), strict=True))
        for row in largest_similarities(verifiers, references, crops)
    ]


def crops_to_judge(
    verifiers: Sequence[Verifier], pixels: NumpyArray, aligned: Sequence[Face]
) -> list[NumpyArray]:
    """The crops of a face for each recogniser: float32[n, h, w, 3]."""
    last = aligned[-1]
    landmarks = landmarks_of(last)
    others = [Face(last.box, moved(landmarks, *one)) for one in _MISALIGNED]
    part, corner = Canvas.around(last, pixels).part(pixels)
    (compressed,) = PROCESSING["jpeg75"](part[None])
    there = Face(last.box, landmarks - corner)
    return [
        np.concatenate(parts)
        for parts in zip(
            own_crops(verifiers, pixels, [*aligned, *others]),
            own_crops(verifiers, compressed, [there]),
            strict=True,
        )
    ]


def moved(
    landmarks: NumpyArray, rotation: float, scale: float, right: float, down: float
) -> NumpyArray:
    """Landmarks rotated by degrees and scaled about their centre, then shifted.

    Shifts are relative to the distance between the eyes.
    """
    middle = landmarks.mean(0)
    angle = math.radians(rotation)
    matrix = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    size = float(np.linalg.norm(landmarks[1] - landmarks[0]))
    return middle + (landmarks - middle) @ matrix.T + size * np.array([right, down])


def verdict_of(verifier: Verifier, similarity: float) -> FaceVerdict:
    """A recogniser's verdict at this similarity."""
    threshold = verifier.threshold
    return FaceVerdict(
        recogniser=verifier.embedder.name,
        fitted=verifier.is_surrogate,
        similarity=similarity,
        threshold=threshold,
        margin=threshold - similarity,
        fooled=similarity < threshold,
    )
