"""Whether faces of a written photo are still known: the verdict on a file, not on a hope.

The file's own bytes are decoded, and each face is shown to each judge twice: in the crop that
it was changed in, and in the crop of the box that the detector finds in the changed photo, if
it finds one. The highest likeness counts, to all that the judge knows of the person: the face
as it was, and other photos where there are any, each and their mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deid_jax.errors import InputError
from deid_jax.photos.alignment import SIZE, crop, crop_matrix
from deid_jax.photos.faces import Detector, Face, overlap
from deid_jax.recognisers.embedders import Embedder

# The cosine from which on 1 % of pairs of different persons are taken for one: of all 391,500
# such pairs among 900 photos of 30 persons of CelebA, aligned. 2 % of pairs of one person are
# missed there.
THRESHOLDS = {"mobilefacenet_ms1m": 0.296, "mobilefacenet_casia": 0.291}

# Boxes that overlap so far, intersection over union, are the same face's.
_SAME = 0.3


class BlindError(InputError):
    """A recogniser sees nothing in a face: its embedding is zero or not finite."""


class Witness(NamedTuple):
    """A recogniser that judges.

    Attributes:
      embedder: the recogniser.
      threshold: the cosine from which on it takes two faces for one person's.
      fitted: whether the change was made knowing it.
    """

    embedder: Embedder
    threshold: float
    fitted: bool


class Verdict(NamedTuple):
    """What one recogniser makes of one face.

    Attributes:
      recogniser: its name.
      fitted: whether the change was made knowing it.
      cosine: the highest likeness to what it knows of the person.
      threshold: from which on it says "the same person".
      fooled: cosine < threshold.
    """

    recogniser: str
    fitted: bool
    cosine: float
    threshold: float

    @property
    def fooled(self) -> bool:
        """Whether cosine < threshold."""
        return self.cosine < self.threshold


def directions(embedder: Embedder, crops: np.ndarray) -> np.ndarray:
    """Unit embeddings float64[N, D] of crops float32[N, S, S, 3] in [0, 1].

    Raises:
      BlindError: an embedding is zero or not finite: a judge who sees nothing is not fooled.
    """
    embeddings = embedder.embed(np.rint(255 * crops).astype(np.uint8)).astype(np.float64)
    sizes = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise BlindError(f"recogniser {embedder.name}: embeddings must be finite and not 0")
    return embeddings / sizes


def crops_of(pixels: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """float32[N, S, S, 3] in [0, 1]: the faces as recognisers are shown them."""
    return np.stack([crop(pixels, matrix, SIZE) for matrix in matrices])


def judge(
    pixels: np.ndarray,
    faces: Sequence[Face],
    references: Sequence[Sequence[np.ndarray]],
    witnesses: Sequence[Witness],
    detector: Detector | None = None,
) -> list[list[Verdict]]:
    """Every witness on every face.

    Args:
      pixels: uint8[H, W, 3], the decoded file.
      faces: where faces were before they were changed.
      references: for each witness and each face [R, D], unit vectors: `knowledge` of its
        person.
      witnesses: who judges.
      detector: finds faces anew; None: only the old places are looked at.

    Returns:
      A list for each face, with a verdict of each witness.
    """
    places = [[crop_matrix(face)] for face in faces]
    for found in detector(pixels) if detector is not None else ():
        overlaps = [overlap(found.box, face.box) for face in faces]
        if overlaps and max(overlaps) > _SAME:
            places[int(np.argmax(overlaps))].append(crop_matrix(found))
    flat = [(number, matrix) for number, own in enumerate(places) for matrix in own]
    crops = crops_of(pixels, [matrix for _, matrix in flat])
    verdicts: list[list[Verdict]] = [[] for _ in faces]
    for witness, known in zip(witnesses, references, strict=True):
        shown = directions(witness.embedder, crops)
        highest = np.full(len(faces), -1.0)
        for (number, _), direction in zip(flat, shown, strict=True):
            highest[number] = max(highest[number], likeness(direction, known[number]))
        for number, cosine in enumerate(highest):
            name = witness.embedder.name
            verdicts[number].append(
                Verdict(name, witness.fitted, float(cosine), witness.threshold)
            )
    return verdicts


def likeness(direction: np.ndarray, known: np.ndarray) -> float:
    """max_r ⟨d, k_r⟩ of unit vectors float64[D] and float64[R, D]."""
    return float((known @ direction).max())


def directions_of_photos(
    embedder: Embedder, photos: Sequence[tuple[np.ndarray, Face]]
) -> np.ndarray:
    """float64[K, D], directions of one person's photos: (uint8[H, W, 3], its face).

    Raises:
      InputError: they cancel out.
    """
    crops = [crops_of(pixels, [crop_matrix(face)])[0] for pixels, face in photos]
    found = directions(embedder, np.stack(crops))
    if not np.linalg.norm(found.sum(axis=0)) > 0:
        raise InputError(f"recogniser {embedder.name}: the photos' directions cancel out")
    return found


def knowledge(own: np.ndarray, photos: np.ndarray | None, threshold: float) -> np.ndarray:
    """float64[R, D], what a judge knows of a face's person: unit vectors, the face's own first.

    Args:
      own: float64[D], of the face before it was changed: the hardest to come away from.
      photos: float64[K, D], of other photos of a person; None: there are none. They count where
        the judge takes the face for that person's: their mean, and each of them.
      threshold: the judge's.
    """
    if photos is None:
        return own[None]
    mean = photos.sum(axis=0)
    mean = mean / np.linalg.norm(mean)
    return np.stack([own, mean, *photos]) if own @ mean >= threshold else own[None]


def goal(known: np.ndarray) -> np.ndarray:
    """float64[D], what the attack goes away from: the face itself and its person's mean."""
    direction = known[:2].sum(axis=0)
    return direction / np.linalg.norm(direction)
