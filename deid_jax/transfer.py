"""What protected photos are worth against a recogniser that compares embeddings.

A recogniser knows people by galleries of clean photos and accepts a photo as a person's where
its cosine to that gallery reaches a threshold, set on clean photos at a false accept rate. A
photo is protected where its own person's score lies below.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deid_jax import verification
from deid_jax._validate import count
from deid_jax.embedders import Embedder
from deid_jax.pair_lists import Positions
from deid_jax.verification import SameDifferent

# What a photo is compared with: clean photos of the person, or the other protected ones.
COMPARED = ("gallery", "protected")


class Faces(NamedTuple):
    """The photos of an evaluation.

    Attributes:
      images: uint8[N, H, W, 3].
      labels: int32[N], persons.
      lists: which photo has which role.
    """

    images: np.ndarray
    labels: np.ndarray
    lists: Positions

    @property
    def protected(self) -> np.ndarray:
        """uint8[M, H, W, 3], the photos to protect, clean."""
        return self.images[self.lists.protected]

    @property
    def protected_labels(self) -> np.ndarray:
        """int32[M], their persons."""
        return self.labels[self.lists.protected]


class Judge(NamedTuple):
    """A recogniser that knows the people of an evaluation by clean photos.

    Attributes:
      embedder: the recogniser.
      galleries: float64[P, D], unit vectors: centroids of each person's gallery.
      own: float64[P, D], likewise of each person's probes: what a protector has, who does not
        know the galleries.
      thresholds: false accept rate -> threshold, of probes against other persons' galleries.
      pairs: how well it tells same from different on the protocol's clean pairs.
    """

    embedder: Embedder
    galleries: np.ndarray
    own: np.ndarray
    thresholds: dict[float, float]
    pairs: SameDifferent

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """float64[N, P], cosines of embeddings [N, D] to every gallery."""
        return verification.cosines(embeddings, self.galleries)


def make_judge(embedder: Embedder, faces: Faces, fars: Sequence[float]) -> Judge:
    """Embeds all clean photos and sets galleries and thresholds.

    Raises:
      InputError: embeddings that are no directions, or too few impostors for a rate.
    """
    embeddings = embedder.embed(faces.images)
    lists, labels = faces.lists, faces.labels
    probes = [lists.probes[labels[lists.probes] == p] for p in range(len(lists.gallery))]
    galleries = verification.centroids(embeddings, lists.gallery)
    scores = verification.cosines(embeddings[lists.probes], galleries)
    genuine, impostor = (
        verification.row_cosines(embeddings[pairs[:, 0]], embeddings[pairs[:, 1]])
        for pairs in (lists.genuine, lists.impostor)
    )
    return Judge(
        embedder=embedder,
        galleries=galleries,
        own=verification.centroids(embeddings, probes),
        thresholds=verification.far_thresholds(scores, labels[lists.probes], fars),
        pairs=verification.accuracy_and_threshold(genuine, impostor),
    )


def figures(judge: Judge, photos: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """The judge's verdict on photos: a row for each false accept rate and comparison.

    Args:
      judge: the recogniser.
      photos: uint8[N, H, W, 3], protected and perhaps processed.
      labels: int[N], their persons.

    Returns:
      Rows of `far`, `threshold`, `compared`, `protected`, `low`, `high`, `num_images`, `score`
      (the mean), and `rank1` and `rank5`: identification rates among all galleries, which
      know no threshold ("" for `compared` = "protected").
    """
    embeddings = judge.embedder.embed(photos)
    scores = judge.scores(embeddings)
    ranks = verification.rank(scores, labels)
    own = {"gallery": verification.genuine_scores(scores, labels)}
    if all(np.sum(labels == label) > 1 for label in labels):
        others = verification.leave_one_out_centroids(embeddings, labels)
        own["protected"] = verification.row_cosines(embeddings, others)
    rows = []
    for far, threshold in judge.thresholds.items():
        for compared, values in own.items():
            known = compared == "gallery"
            rows.append(
                {
                    "far": far,
                    "threshold": threshold,
                    "compared": compared,
                    **verification.protection(values, threshold)._asdict(),
                    "score": float(np.mean(values)),
                    "rank1": verification.rank_rate(ranks, 1) if known else "",
                    "rank5": verification.rank_rate(ranks, 5) if known else "",
                }
            )
    return rows


def averaged(
    judge: Judge, photos: np.ndarray, labels: np.ndarray, size: int
) -> list[dict[str, Any]]:
    """An opponent who has several protected photos of one person and averages their embeddings.

    The mean direction of `size` of a person's photos at a time, in their order, is the probe; a
    remainder is left out.

    Args:
      judge: the recogniser.
      photos: uint8[N, H, W, 3].
      labels: int[N].
      size: photos that are averaged.

    Returns:
      Rows as of `figures`, of `compared` = "gallery" without ranks; none where nobody has
      `size` photos.

    Raises:
      InputError: `size` is below 1, or embeddings are no directions.
    """
    count("size", size, least=1)
    embeddings = judge.embedder.embed(photos)
    groups, persons = [], []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        for first in range(0, len(positions) - size + 1, size):
            groups.append(positions[first : first + size])
            persons.append(label)
    if not groups:
        return []
    means = verification.centroids(embeddings, groups)
    values = verification.genuine_scores(judge.scores(means), np.array(persons))
    return [
        {
            "far": far,
            "threshold": threshold,
            "compared": "gallery",
            **verification.protection(values, threshold)._asdict(),
            "score": float(np.mean(values)),
            "rank1": "",
            "rank5": "",
        }
        for far, threshold in judge.thresholds.items()
    ]
