"""Recognisers that decide whether two faces show one person: surrogates and judges.

A surrogate is a recogniser that the attack is fitted on; a judge only judges.
"""

import collections
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from deid_jax.errors import InputError
from deid_jax.metrics import verification
from deid_jax.metrics.verification import Distance
from deid_jax.models.templates import ARCFACE, Alignment
from deid_jax.photos.alignment import aligned_crop, crop_matrix
from deid_jax.photos.faces import Face
from deid_jax.recognisers.embedders import Embedder, name_of, split_list
from deid_jax.types import NumpyArray

# Thresholds at a false accept rate of 1 %, measured on all 391,500 pairs of different persons
# among 900 aligned photos of 30 persons of CelebA; 2 % of genuine pairs are missed there. They
# are cosines; dlib's is a distance (at 0.6, which its users set, the rates are 0.3 and 4 %).
THRESHOLDS = {
    "dlib_resnet": 0.631,
    "mobilefacenet_ms1m": 0.291,
    "mobilefacenet_casia": 0.288,
}
# The recognisers if the user names none. The first one comes with the packages that photos
# need; the others are downloaded once.
DEFAULTS = ("dlib_resnet", "mobilefacenet_ms1m", "mobilefacenet_casia")

# The crops of one face for each recogniser: float32[n, h, w, 3].
FaceCrops: TypeAlias = Sequence[NumpyArray]


class EmbeddingError(InputError):
    """A recogniser's embedding of a face is invalid: zero or not finite."""


@dataclasses.dataclass(frozen=True, eq=False)
class Verifier:
    """A surrogate or judge, with the similarity from which two faces match.

    A gallery is float64[K, D], `comparable_of` one person's other photos.
    """

    embedder: Embedder
    threshold: float
    is_surrogate: bool
    gallery: NumpyArray | None = None

    def references(self, own: NumpyArray) -> NumpyArray:
        """The references of a face: float64[R, D], its own embedding first.

        If the gallery's mean matches the face, the mean and each photo of the gallery follow.
        `own` is the comparable embedding, float64[D], of the face before it was perturbed.
        """
        if self.gallery is None or not self.matches_gallery(own):
            return own[None]
        return np.stack([own, self.mean_of(self.gallery), *self.gallery])

    def matches_gallery(self, own: NumpyArray) -> bool | None:
        """Whether the gallery's mean matches a comparable embedding; None without a gallery."""
        if self.gallery is None:
            return None
        mean = self.mean_of(self.gallery)
        return self.similarities(own[None], mean[None]).item() >= self.threshold

    def mean_of(self, rows: NumpyArray) -> NumpyArray:
        """float64[D]: the centroid of comparable embeddings float64[N, D]."""
        everyone = [np.arange(len(rows))]
        return verification.centroids(rows, everyone, self.embedder.distance)[0]

    def dodged(self, references: NumpyArray) -> NumpyArray:
        """float64[D], to move away from: the mean of the first two references."""
        return self.mean_of(references[:2])

    def similarities(self, a: NumpyArray, b: NumpyArray) -> NumpyArray:
        """float64[N, M] of embeddings [N, D] and [M, D]."""
        return verification.similarities(a, b, self.embedder.distance)

    @property
    def rule(self) -> str:
        """When two faces match, in words."""
        if self.embedder.distance is Distance.COSINE:
            return f"similarity ≥ {self.threshold:g}"
        return f"distance ≤ {-self.threshold:g} (similarity ≥ {self.threshold:g})"


def comparable_of(embedder: Embedder, crops: NumpyArray) -> NumpyArray:
    """Embeddings of crops float32[N, h, w, 3] in [0, 1], as they are compared: float64[N, D].

    Raises:
      EmbeddingError: an embedding is not finite, or zero where cosines are compared: the
        recogniser has failed, and was not fooled.
    """
    embeddings = embedder.embed(np.rint(255 * crops).astype(np.uint8))
    try:
        return verification.comparable(embeddings, embedder.distance)
    except InputError as error:
        raise EmbeddingError(f"recogniser {embedder.name}: {error}") from error


def face_embeddings(
    verifiers: Sequence[Verifier], pixels: NumpyArray, faces: Sequence[Face]
) -> list[list[NumpyArray]]:
    """The comparable embedding, float64[D], of each face of a photo for each recogniser."""
    if not faces:
        return []
    found = [
        comparable_of(one.embedder, crops)
        for one, crops in zip(verifiers, own_crops(verifiers, pixels, faces), strict=True)
    ]
    return [list(own) for own in zip(*found, strict=True)]


def largest_similarities(
    verifiers: Sequence[Verifier],
    references: Sequence[Sequence[NumpyArray]],
    crops: Sequence[FaceCrops],
) -> NumpyArray:
    """The largest similarity of each face to its references: float64[N, V].

    Args:
      verifiers: V recognisers.
      references: for each of N faces and each recogniser, `Verifier.references`.
      crops: one or more crops of each of N faces for each recogniser.
    """
    found = np.empty((len(crops), len(verifiers)))
    ends = np.cumsum([len(own[0]) for own in crops])[:-1]
    for column, verifier in enumerate(verifiers):
        whole = comparable_of(verifier.embedder, np.concatenate([own[column] for own in crops]))
        for row, own in enumerate(np.split(whole, ends)):
            found[row, column] = verifier.similarities(references[row][column], own).max()
    return found


def all_match_gallery(
    verifiers: Sequence[Verifier], embeddings: Sequence[NumpyArray]
) -> bool | None:
    """Whether all recognisers match a face with the gallery; None without a gallery.

    False means somebody else's face, one that was protected before, or a false non-match. There
    is one comparable embedding for each recogniser.
    """
    found = [
        one.matches_gallery(embedding)
        for one, embedding in zip(verifiers, embeddings, strict=True)
    ]
    return None if None in found else all(found)


def crops_of(
    pixels: NumpyArray, faces: Sequence[Face], alignment: Alignment = ARCFACE
) -> NumpyArray:
    """float32[N, h, w, 3] in [0, 1]: aligned crops of a photo's faces."""
    return np.stack(
        [aligned_crop(pixels, crop_matrix(face, alignment), alignment) for face in faces]
    )


def own_crops(
    verifiers: Sequence[Verifier], pixels: NumpyArray, faces: Sequence[Face]
) -> list[NumpyArray]:
    """`crops_of` a photo's faces for each recogniser, by its own alignment."""
    alignments = dict.fromkeys(one.embedder.alignment for one in verifiers)
    found = {alignment: crops_of(pixels, faces, alignment) for alignment in alignments}
    return [found[one.embedder.alignment] for one in verifiers]


def gallery_of(verifier: Verifier, photos: Sequence[tuple[NumpyArray, Face]]) -> NumpyArray:
    """Comparable embeddings float64[K, D] of one person's photos: (uint8[H, W, 3], face).

    Raises:
      InputError: they cancel out, so that they have no mean.
    """
    alignment = verifier.embedder.alignment
    crops = [crops_of(pixels, [face], alignment)[0] for pixels, face in photos]
    found = comparable_of(verifier.embedder, np.stack(crops))
    try:
        verifier.mean_of(found)
    except InputError as error:
        raise InputError(f"recogniser {verifier.embedder.name}: {error}") from error
    return found


def fingerprint_images(alignment: Alignment) -> NumpyArray:
    """Noise images float32[2, h, w, 3], whose embeddings identify a recogniser."""
    return np.random.default_rng(0).random((2, *alignment.shape), np.float32)


def thresholds_of(text: str | None, embedders: Sequence[Embedder]) -> list[float]:
    """The similarities from which faces match, by `--threshold` (NAME=VALUE, …).

    A value is a cosine, > -1 and < 1, or a distance, > 0, for recognisers that compare by
    distance. A single value applies to all, if they compare alike. None, or a name left out,
    means that of `THRESHOLDS`.

    Raises:
      InputError: a bad or missing value, an unknown name, or a single value for both kinds.
    """
    given: dict[str, str] = {}
    names = [one.name for one in embedders]
    if text is not None and "=" not in text:
        if len({one.distance for one in embedders}) > 1:
            raise InputError(
                f"threshold must be NAME=VALUE,… if some recognisers compare by cosine and "
                f"others by distance, got {text}"
            )
        given = dict.fromkeys(names, text)
    elif text is not None:
        for part in text.split(","):
            name, _, value = part.strip().rpartition("=")
            if name in given:
                raise InputError(f"threshold of {name} is given twice")
            if name not in names:
                raise InputError(f"threshold is for {', '.join(names)}, got {part}")
            given[name] = value
    found = []
    for one in embedders:
        if one.name not in given and one.name not in THRESHOLDS:
            raise InputError(f"recogniser {one.name} needs a --threshold={one.name}=VALUE")
        found.append(_threshold(one, given.get(one.name, THRESHOLDS.get(one.name, ""))))
    return found


def _threshold(embedder: Embedder, value: str | float) -> float:
    cosine = embedder.distance is Distance.COSINE
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (-1 < number < 1 if cosine else 0 < number < math.inf):
        wanted = "a cosine > -1 and < 1" if cosine else "a distance > 0"
        raise InputError(f"threshold of {embedder.name} must be {wanted}, got {value}")
    return embedder.distance.as_similarity(number)


def load_verifiers(
    surrogates: str | None,
    judges: str | None,
    threshold: str | None,
    load: Callable[[str, int], Embedder],
) -> tuple[Verifier, ...]:
    """Loads surrogates and judges by name.

    Both are lists separated by commas, see `recognisers.embedders`; judges may be `none`.
    Without surrogates, those of `DEFAULTS` that are available are loaded, and a line on
    standard error names the others; if all are available and no judges are given, the last one
    judges. Thresholds are those of `thresholds_of`. `load` takes a name and the size of crops.

    Raises:
      InputError: a recogniser cannot be loaded, gives invalid embeddings, lacks a threshold, is
        given twice (refused before any is loaded), or judges although it is fitted under
        another name.
    """
    others = [] if judges in (None, "none") else split_list(str(judges), ",")
    given = [] if surrogates is None else split_list(surrogates, ",")
    for name, times in collections.Counter(map(name_of, (*given, *others))).items():
        if times > 1:
            raise InputError(f"recogniser {name} is given twice")
    embedders = [] if surrogates is not None else default_embedders(load, others)
    fitted = len(embedders) + len(given)
    if judges is None and len(embedders) == len(DEFAULTS):
        fitted -= 1
    for text in (*given, *others):
        try:
            embedder = load(text, ARCFACE.height)
        except InputError as error:
            if text not in THRESHOLDS:
                raise
            raise InputError(
                f"no weights for {text}: go online once, or give --recogniser={text}:FILE "
                f"({error})"
            ) from error
        embedders.append(embedder)
    check_networks(embedders[:fitted], embedders[fitted:])
    return tuple(
        Verifier(embedder, own, number < fitted)
        for number, (embedder, own) in enumerate(
            zip(embedders, thresholds_of(threshold, embedders), strict=True)
        )
    )


def check_networks(surrogates: Sequence[Embedder], judges: Sequence[Embedder]) -> None:
    """Refuses invalid embeddings, and judges that are surrogates by another name."""
    fitted: dict[bytes, str] = {}
    for number, one in enumerate((*surrogates, *judges)):
        own = comparable_of(one, fingerprint_images(one.alignment)).tobytes()
        if number < len(surrogates):
            fitted[own] = one.name
        elif own in fitted:
            raise InputError(
                f"judge {one.name} is the same network as the fitted {fitted[own]}"
            )


def default_embedders(
    load: Callable[[str, int], Embedder], judges: Sequence[str]
) -> list[Embedder]:
    """Those of `DEFAULTS` that are available and do not judge; standard error names the others.

    Raises:
      InputError: none of them is available.
    """
    names = [name for name in DEFAULTS if name not in map(name_of, judges)]
    found: list[Embedder] = []
    missing: dict[str, InputError] = {}
    for name in names:
        try:
            found.append(load(name, ARCFACE.height))
        except InputError as error:
            missing[name] = error
    if not found:
        raise next(iter(missing.values()))
    if missing:
        *_, cause = missing.values()
        print(
            f"using only {', '.join(one.name for one in found)}, and no judge: "
            f"{' and '.join(missing)} cannot be loaded ({cause})",
            file=sys.stderr,
        )
    return found
