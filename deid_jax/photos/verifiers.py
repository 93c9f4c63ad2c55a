"""Recognisers that decide whether two faces are one person's: surrogates and judges.

A surrogate is a recogniser that the attack is fitted on; a judge only judges.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from deid_jax.errors import InputError
from deid_jax.photos.alignment import SIZE, aligned_crop, crop_matrix
from deid_jax.photos.faces import Face
from deid_jax.recognisers.embedders import Embedder, name_of, split_list
from deid_jax.types import NumpyArray

# Thresholds at a false accept rate of 1 %, measured on all 391,500 pairs of different persons
# among 900 aligned photos of 30 persons of CelebA; 2 % of genuine pairs are missed there.
THRESHOLDS = {"mobilefacenet_ms1m": 0.296, "mobilefacenet_casia": 0.291}


class BlindError(InputError):
    """A recogniser gives a face no usable embedding: one that is zero or not finite."""


@dataclasses.dataclass(frozen=True, eq=False)
class Verifier:
    """A surrogate or judge, with the similarity from which two faces match.

    A gallery is float64[K, D], unit embeddings of one person's other photos.
    """

    embedder: Embedder
    threshold: float
    is_surrogate: bool
    gallery: NumpyArray | None = None

    def references(self, own: NumpyArray) -> NumpyArray:
        """The references of a face: float64[R, D], unit vectors, its own embedding first.

        If the gallery's mean matches the face, the mean and each photo of the gallery follow.
        `own` is the embedding, float64[D], of the face before it was perturbed.
        """
        if self.gallery is None:
            return own[None]
        mean = mean_direction(self.gallery)
        if own @ mean < self.threshold:
            return own[None]
        return np.stack([own, mean, *self.gallery])


def directions(embedder: Embedder, crops: NumpyArray) -> NumpyArray:
    """Unit embeddings float64[N, D] of crops float32[N, S, S, 3] in [0, 1].

    Raises:
      BlindError: an embedding is zero or not finite, so the recogniser is not fooled but blind.
    """
    embeddings = embedder.embed(np.rint(255 * crops).astype(np.uint8)).astype(np.float64)
    sizes = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise BlindError(f"recogniser {embedder.name}: embeddings must be finite and not 0")
    return embeddings / sizes


def mean_direction(rows: NumpyArray) -> NumpyArray:
    """float64[D]: the direction of the sum of unit vectors float64[N, D]."""
    total = rows.sum(axis=0)
    return total / np.linalg.norm(total)


def dodged(references: NumpyArray) -> NumpyArray:
    """float64[D], to move away from: halfway between the own embedding and any known mean."""
    return mean_direction(references[:2])


def signs_of(verifiers: Sequence[Verifier], crops: NumpyArray) -> list[list[NumpyArray]]:
    """For each crop and each recogniser, `directions`: float64[D]."""
    found = [directions(one.embedder, crops) for one in verifiers]
    return [list(own) for own in zip(*found, strict=True)]


def largest_cosines(
    verifiers: Sequence[Verifier],
    references: Sequence[Sequence[NumpyArray]],
    crops: Sequence[NumpyArray],
) -> NumpyArray:
    """The largest similarity of each face to its references: float64[N, V].

    Args:
      verifiers: V recognisers.
      references: for each of N faces and each recogniser, `Verifier.references`.
      crops: one or more of each face, float32[n, S, S, 3].
    """
    whole, ends = np.concatenate(crops), np.cumsum([len(own) for own in crops])[:-1]
    found = np.empty((len(crops), len(verifiers)))
    for column, verifier in enumerate(verifiers):
        for row, own in enumerate(np.split(directions(verifier.embedder, whole), ends)):
            known = references[row][column]
            found[row, column] = max((known @ direction).max() for direction in own)
    return found


def crops_of(pixels: NumpyArray, matrices: Sequence[NumpyArray]) -> NumpyArray:
    """float32[N, S, S, 3] in [0, 1]: aligned crops, as recognisers take them."""
    return np.stack([aligned_crop(pixels, matrix, SIZE) for matrix in matrices])


def gallery_of(embedder: Embedder, photos: Sequence[tuple[NumpyArray, Face]]) -> NumpyArray:
    """Unit embeddings float64[K, D] of one person's photos: pairs (uint8[H, W, 3], face).

    Raises:
      InputError: their sum is zero, so that they have no mean direction.
    """
    crops = [crops_of(pixels, [crop_matrix(face)])[0] for pixels, face in photos]
    found = directions(embedder, np.stack(crops))
    if not np.linalg.norm(found.sum(axis=0)) > 0:
        raise InputError(f"recogniser {embedder.name}: the photos' directions cancel out")
    return found


def probes() -> NumpyArray:
    """Noise images float32[2, S, S, 3], whose embeddings identify a recogniser."""
    return np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)


def load_verifiers(
    surrogates: str,
    judges: str,
    threshold: float | None,
    load: Callable[[str, int], Embedder],
) -> tuple[Verifier, ...]:
    """Loads surrogates and judges by name.

    Both are lists separated by commas, see `recognisers.embedders`; judges may be `none`. The
    threshold is for all; None uses `THRESHOLDS`. `load` is given a name and the size of crops.

    Raises:
      InputError: a recogniser cannot be loaded, is blind, lacks a threshold or is given twice,
        which is refused before any is loaded.
    """
    fitted = split_list(surrogates, ",")
    others = [] if judges == "none" else split_list(judges, ",")
    if threshold is not None and not -1 < threshold < 1:
        raise InputError(f"threshold must be a cosine > -1 and < 1, got {threshold}")
    texts = (*fitted, *others)
    for name, times in collections.Counter(map(name_of, texts)).items():
        if times > 1:
            raise InputError(f"recogniser {name} is given twice")
    found: list[Verifier] = []
    for number, text in enumerate(texts):
        try:
            embedder = load(text, SIZE)
        except InputError as error:
            if text not in THRESHOLDS:
                raise
            raise InputError(
                f"no weights for {text}: go online once, or give --recogniser={text}:FILE "
                f"({error})"
            ) from error
        own = THRESHOLDS.get(embedder.name) if threshold is None else threshold
        if own is None:
            raise InputError(f"recogniser {embedder.name} needs a --threshold")
        directions(embedder, probes())  # Refuses blind ones.
        found.append(Verifier(embedder, own, number < len(fitted)))
    return tuple(found)
