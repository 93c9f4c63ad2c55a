"""Which face in a photo is the named person's, and where it is after processing."""

import math
from collections.abc import Sequence

import numpy as np

from deid_jax.metrics import verification
from deid_jax.metrics.verification import Distance
from deid_jax.photos.faces import Face, overlap
from deid_jax.types import NumpyArray

# Boxes with a larger intersection over union belong to the same face.
_SAME = 0.3


def named_faces(
    embeddings: Sequence[Sequence[NumpyArray]],
    labels: Sequence[int] | NumpyArray,
    distances: Sequence[Distance],
) -> list[int | None]:
    """The face in each photo that is most similar to the same person's other photos.

    A recogniser f chooses the face that maximises the mean over the other photos q of
    max_h s_f(face, h), h the faces of q. A face is the person's if more than half of the
    recognisers choose it; otherwise, and if there are no other photos, the result is None.

    Args:
      embeddings: for each of N photos and each recogniser, float[F, D] of the photo's F faces.
      labels: int[N], the photos' persons.
      distances: how each recogniser compares embeddings.
    """
    everyone = np.asarray(labels)
    found: list[int | None] = []
    for number, own in enumerate(embeddings):
        others = [
            embeddings[place]
            for place in np.flatnonzero(everyone == everyone[number]).tolist()
            if place != number and len(embeddings[place][0])
        ]
        if not len(own[0]) or not others:
            found.append(None)
            continue
        votes = np.zeros(len(own[0]), int)
        for column, distance in enumerate(distances):
            nearest = [
                verification.similarities(own[column], one[column], distance).max(1)
                for one in others
            ]
            votes[np.argmax(np.mean(nearest, axis=0))] += 1
        best = int(np.argmax(votes))
        found.append(best if 2 * votes[best] > len(distances) else None)
    return found


def face_again(face: Face, matrix: NumpyArray, found: Sequence[Face]) -> Face | None:
    """The detected face where a similarity, float64[2, 3], moves the box of a face."""
    left, top, width, height = face.box
    scale = math.sqrt(np.linalg.det(matrix[:, :2]))
    x, y = (matrix @ [left + width / 2, top + height / 2, 1]).tolist()
    box = x - scale * width / 2, y - scale * height / 2, scale * width, scale * height
    best = max(found, key=lambda one: overlap(one.box, box), default=None)
    return best if best is not None and overlap(best.box, box) > _SAME else None
