"""What protected photos are worth against a recogniser that compares embeddings.

A recogniser knows people by galleries of clean photos and accepts a photo as a person's where
its cosine to that gallery reaches a threshold, set on clean photos at a false accept rate. A
photo is protected where its own person's score lies below.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deid_jax.checks import count
from deid_jax.data.pair_lists import Positions
from deid_jax.metrics import statistics, verification
from deid_jax.metrics.verification import SameDifferent
from deid_jax.recognisers.embedders import Embedder

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


class Verdict(NamedTuple):
    """What a judge makes of photos, one by one.

    Attributes:
      outputs: float[N, D], the photos' embeddings, or a classifier's logits.
      labels: int[N], their persons.
      scores: what they are compared with -> float64[N], cosines to their own persons.
      ranks: int[N], the place of a photo's person among all; None where nobody asked.
      thresholds: false accept rate -> the score from which on a photo is known.
      protected: (false accept rate, what they are compared with) -> bool[N].
    """

    outputs: np.ndarray
    labels: np.ndarray
    scores: dict[str, np.ndarray]
    ranks: np.ndarray | None
    thresholds: dict[float, float]
    protected: dict[tuple[Any, str], np.ndarray]


class Judge(NamedTuple):
    """A recogniser that knows the people of an evaluation by clean photos.

    Attributes:
      embedder: the recogniser.
      galleries: float64[P, D], unit vectors: centroids of each person's gallery.
      own: float64[P, D], likewise of each person's probes: what a protector has, who does not
        know the galleries.
      thresholds: false accept rate -> threshold, of probes against other persons' galleries.
      own_thresholds: likewise against other persons' `own`: a protector's guess at them.
      pairs: how well it tells same from different on the protocol's clean pairs.
    """

    embedder: Embedder
    galleries: np.ndarray
    own: np.ndarray
    thresholds: dict[float, float]
    own_thresholds: dict[float, float]
    pairs: SameDifferent

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """float64[N, P], cosines of embeddings [N, D] to every gallery."""
        return verification.cosines(embeddings, self.galleries)

    def verdict(self, photos: np.ndarray, labels: np.ndarray) -> Verdict:
        """On photos uint8[N, H, W, 3] of persons int[N]; see `compare`."""
        return self.compare(self.embedder.embed(photos), labels)

    def compare(self, embeddings: np.ndarray, labels: np.ndarray) -> Verdict:
        """On photos with embeddings [N, D] of persons int[N].

        They are compared with each other only where every person has two or more.
        """
        scores = self.scores(embeddings)
        own = {"gallery": verification.genuine_scores(scores, labels)}
        if all(np.sum(labels == label) > 1 for label in labels):
            others = verification.leave_one_out_centroids(embeddings, labels)
            own["protected"] = verification.row_cosines(embeddings, others)
        return self._verdict(embeddings, labels, own, verification.rank(scores, labels))

    def _verdict(
        self,
        embeddings: np.ndarray,
        labels: np.ndarray,
        scores: dict[str, np.ndarray],
        ranks: np.ndarray | None,
    ) -> Verdict:
        protected = {
            (far, compared): values < threshold
            for far, threshold in self.thresholds.items()
            for compared, values in scores.items()
        }
        return Verdict(embeddings, labels, scores, ranks, self.thresholds, protected)


def make_judge(embedder: Embedder, faces: Faces, fars: Sequence[float]) -> Judge:
    """Embeds all clean photos and sets galleries and thresholds.

    Raises:
      InputError: embeddings that are no directions, or too few impostors for a rate.
    """
    embeddings = embedder.embed(faces.images)
    lists, labels = faces.lists, faces.labels
    probes = [lists.probes[labels[lists.probes] == p] for p in range(len(lists.gallery))]
    galleries = verification.centroids(embeddings, lists.gallery)
    own = verification.centroids(embeddings, probes)
    thresholds, own_thresholds = (
        verification.far_thresholds(
            verification.cosines(embeddings[lists.probes], known), labels[lists.probes], fars
        )
        for known in (galleries, own)
    )
    genuine, impostor = (
        verification.row_cosines(embeddings[pairs[:, 0]], embeddings[pairs[:, 1]])
        for pairs in (lists.genuine, lists.impostor)
    )
    return Judge(
        embedder=embedder,
        galleries=galleries,
        own=own,
        thresholds=thresholds,
        own_thresholds=own_thresholds,
        pairs=verification.accuracy_and_threshold(genuine, impostor),
    )


def figures(
    verdict: Verdict, clean: Verdict, before: Verdict | None = None
) -> list[dict[str, Any]]:
    """What a verdict comes to: a row for each false accept rate and comparison.

    Args:
      verdict: on photos that are protected and perhaps processed.
      clean: of the same judge on the same photos unprotected, processed alike.
      before: on the same photos before they were processed; None: they had no counterparts.

    Returns:
      Rows of `far`, `threshold`, `compared`, `protected` with Wilson's interval `low`, `high`,
      `num_images`, and `person_low`, `person_high`, a bootstrap interval over persons ("" for
      one person); `kept`, the share protected of those protected before ("" for none);
      `unprotected`, the share that the judge misses of `clean`; `score` (the mean), and
      `rank1` and `rank5`, identification rates among all persons, which know no threshold.
      What a verdict has not is "".
    """
    rows = []
    for (far, compared), protected in verdict.protected.items():
        low, high = statistics.wilson(int(np.sum(protected)), len(protected))
        person_low, person_high = _over_persons(protected, verdict.labels)
        # Other protected photos are no persons to choose among.
        ranks = None if compared == "protected" else verdict.ranks
        earlier = () if before is None else np.flatnonzero(before.protected[far, compared])
        rows.append(
            {
                "far": far,
                "threshold": verdict.thresholds.get(far, ""),
                "compared": compared,
                "protected": float(np.mean(protected)),
                "low": low,
                "high": high,
                "num_images": len(protected),
                "person_low": person_low,
                "person_high": person_high,
                "kept": float(np.mean(protected[earlier])) if len(earlier) else "",
                "unprotected": float(np.mean(clean.protected[far, compared])),
                "score": float(np.mean(verdict.scores[compared])) if verdict.scores else "",
                "rank1": "" if ranks is None else verification.rank_rate(ranks, 1),
                "rank5": "" if ranks is None else verification.rank_rate(ranks, 5),
            }
        )
    return rows


def _over_persons(protected: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    bounds = statistics.bootstrap_groups(protected, labels)
    return ("", "") if np.isnan(bounds).any() else bounds


def averaged(judge: Judge, verdict: Verdict, size: int) -> Verdict | None:
    """An opponent who has several protected photos of one person and averages their embeddings.

    The mean direction of `size` of a person's photos at a time, in their order, is the probe; a
    remainder is left out.

    Args:
      judge: the recogniser.
      verdict: its own on the single photos.
      size: photos that are averaged.

    Returns:
      The verdict on the averages, of `compared` = "gallery" without ranks; None where nobody
      has `size` photos.

    Raises:
      InputError: `size` is below 1, or embeddings are no directions.
    """
    count("size", size, least=1)
    groups, persons = [], []
    for label in np.unique(verdict.labels):
        positions = np.flatnonzero(verdict.labels == label)
        for first in range(0, len(positions) - size + 1, size):
            groups.append(positions[first : first + size])
            persons.append(label)
    if not groups:
        return None
    means, labels = verification.centroids(verdict.outputs, groups), np.array(persons)
    scores = {"gallery": verification.genuine_scores(judge.scores(means), labels)}
    return judge._verdict(means, labels, scores, None)
