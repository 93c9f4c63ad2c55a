"""Strangers: judges of whole photos, with their own thresholds and clean photos of the persons.

A stranger has embeddings of clean photos of P persons, one face each. A protected photo is
compared with the same clean photo ("self"), with each other photo of the person ("others",
whose rates are over pairs), and with the mean of these ("mean").

Thresholds are person-disjoint: a person's threshold at a false accept rate comes from impostor
pairs of two other persons, so that a look-alike does not set it. Intervals bootstrap over
persons, which resamples the impostor pairs, and so the thresholds, along with the rates.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from deid_jax.errors import InputError
from deid_jax.metrics import statistics, verification
from deid_jax.metrics.verification import Distance
from deid_jax.types import NumpyArray

SELF, OTHERS, MEAN = "self", "others", "mean"
COMPARED = (SELF, OTHERS, MEAN)
# The similarities of a photo for each of `COMPARED`: to itself, to K others, and to their mean;
# without other photos the last two are empty.
Comparisons: TypeAlias = dict[str, NumpyArray]
# Doddington's rule of 30: with 30 errors or more, the true error rate is within 30 % of the
# measured one, with 90 % confidence. Doddington et al.: "The NIST speaker recognition
# evaluation", 2000. Errors here are accepted impostor pairs.
LEAST_PAIRS = 30
RESAMPLES = 1000


class ImpostorPairs(NamedTuple):
    """Pairs of two persons: ascending scores float64[M], and the persons of each, int[M]."""

    scores: NumpyArray
    first: NumpyArray
    second: NumpyArray

    @classmethod
    def of(cls, scores: NumpyArray, first: NumpyArray, second: NumpyArray) -> "ImpostorPairs":
        """Those among pairs of embeddings with scores [K], of persons int[K] each."""
        order = np.argsort(scores)
        order = order[first[order] != second[order]]
        return cls(scores[order], first[order], second[order])

    def without(self, person: int) -> NumpyArray:
        """bool[M]: the pairs that do not involve a person."""
        return (self.first != person) & (self.second != person)


@dataclasses.dataclass(frozen=True)
class DisjointThresholds:
    """Person-disjoint thresholds at one false accept rate, for all persons and resamples.

    Row 0 holds all persons once; the others are the bootstrap's.

    Attributes:
      counts: int[1 + R, P], how often each person is drawn.
      values: float64[1 + R, P]; NaN for persons who are not drawn, and where a resample has too
        few impostors.
      num_pairs: accepted impostor pairs, for the person for whom they are fewest.
      num_persons: persons in accepted pairs.
    """

    counts: NumpyArray
    values: NumpyArray
    num_pairs: int
    num_persons: int

    @classmethod
    def of(cls, pairs: ImpostorPairs, far: float, counts: NumpyArray) -> "DisjointThresholds":
        """Sets the thresholds.

        Raises:
          InputError: fewer than three persons, fewer than `LEAST_PAIRS` impostor pairs are
            accepted, or too few for any.
        """
        if counts.shape[1] < 3:
            raise InputError(
                f"photos must be of three persons or more, got {counts.shape[1]}: a person's "
                "threshold comes from pairs of two others"
            )
        apart = [pairs.without(person) for person in range(counts.shape[1])]
        accepted = [
            own & (pairs.scores >= verification.threshold_at_far(pairs.scores[own], far))
            for own in apart
        ]
        some = np.any(accepted, axis=0)
        persons = np.union1d(pairs.first[some], pairs.second[some])
        fewest = int(np.sum(accepted, axis=1).min())
        if fewest < LEAST_PAIRS:
            raise InputError(
                f"far {far:g} accepts only {fewest} impostor pairs, of {len(persons)} persons: "
                f"{LEAST_PAIRS} pairs are needed"
            )
        values = np.full(counts.shape, np.nan)
        for row, drawn in zip(values, counts, strict=True):
            weights = drawn[pairs.first] * drawn[pairs.second]
            for person in np.flatnonzero(drawn):
                own = weights * apart[person]
                if own.sum() * far >= 1:
                    row[person] = verification.threshold_at_far(pairs.scores, far, own)
        return cls(counts, values, fewest, len(persons))

    def unmatched(self, similarities: NumpyArray, labels: NumpyArray) -> NumpyArray:
        """bool[N]: which similarities [N] to persons int[N] are below the threshold."""
        return similarities < self.values[0][labels]

    def rate(self, similarities: NumpyArray, labels: NumpyArray) -> "NonMatchRate":
        """The share of similarities [N] to persons int[N] below the threshold."""
        num_persons = self.counts.shape[1]
        sizes = np.bincount(labels, minlength=num_persons)
        below = np.zeros(self.values.shape)
        for person in np.flatnonzero(sizes):
            own = np.sort(similarities[labels == person])
            below[:, person] = np.searchsorted(own, self.values[:, person])
        below[np.isnan(self.values) & (self.counts > 0)] = np.nan
        totals = self.counts @ sizes
        usable = totals > 0
        # A person who is not drawn has no threshold, and no weight either.
        shares = np.sum(self.counts * below, axis=1)[usable] / totals[usable]
        drawn = shares[1:][~np.isnan(shares[1:])]
        if not usable[0]:
            return NonMatchRate(None, None, None, 0)
        if np.count_nonzero(sizes) < 2 or not len(drawn):
            return NonMatchRate(float(shares[0]), None, None, len(labels))
        return NonMatchRate(float(shares[0]), *statistics.percentiles(drawn), len(labels))


class NonMatchRate(NamedTuple):
    """A share of comparisons, their number, and its interval; None where there are none."""

    share: float | None
    low: float | None
    high: float | None
    num_comparisons: int


class StrangerRates(NamedTuple):
    """The non-match rate, and the share of non-matches before processing that remain after."""

    rate: NonMatchRate
    survival: float | None


@dataclasses.dataclass(frozen=True)
class Stranger:
    """A judge with embeddings of clean photos, and its thresholds at each false accept rate.

    Attributes:
      distance: how the recogniser scores two embeddings.
      clean: float64[N, D], comparable embeddings.
      labels: int[N], from 0 to P − 1.
      thresholds: (far, one of `COMPARED`) -> thresholds; false accept rates at which too few
        pairs are accepted are missing.
      left_out: far -> why that false accept rate is missing.
    """

    distance: Distance
    clean: NumpyArray
    labels: NumpyArray
    thresholds: dict[tuple[float, str], DisjointThresholds]
    left_out: dict[float, str]

    @classmethod
    def of(
        cls,
        distance: Distance,
        clean: NumpyArray,
        labels: NumpyArray,
        fars: Sequence[float],
        *,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> "Stranger":
        """Sets thresholds by the clean photos.

        Raises:
          InputError: too few impostor pairs are accepted at the first false accept rate.
        """
        persons = np.arange(labels.max() + 1)
        draws = statistics.group_draws(len(persons), seed=seed, resamples=resamples)
        drawn = np.sum(np.concatenate(list(draws))[..., None] == persons, axis=1)
        counts = np.concatenate([np.ones((1, len(persons)), int), drawn])
        rows, columns = np.triu_indices(len(clean), 1)
        every = verification.similarities(clean, clean, distance)[rows, columns]
        pairs = ImpostorPairs.of(every, labels[rows], labels[columns])
        centres = verification.centroids(clean, [labels == one for one in persons], distance)
        known = verification.similarities(clean, centres, distance).ravel()
        each, by = np.repeat(labels, len(persons)), np.tile(persons, len(clean))
        mean_pairs = ImpostorPairs.of(known, each, by)
        thresholds: dict[tuple[float, str], DisjointThresholds] = {}
        left_out: dict[float, str] = {}
        for far in fars:
            try:
                own = DisjointThresholds.of(pairs, far, counts)
                mean = DisjointThresholds.of(mean_pairs, far, counts)
            except InputError as error:
                if far == fars[0]:
                    raise
                left_out[far] = str(error)
                continue
            thresholds |= {(far, SELF): own, (far, OTHERS): own, (far, MEAN): mean}
        return cls(distance, clean, labels, thresholds, left_out)

    def compare(self, embedding: NumpyArray, index: int) -> Comparisons:
        """Compares an embedding, float64[D], of a photo with the clean photo of this index."""
        others = np.flatnonzero(self.labels == self.labels[index])
        others = self.clean[others[others != index]]

        def to(known: NumpyArray) -> NumpyArray:
            return verification.similarities(embedding[None], known, self.distance)[0]

        found = {SELF: to(self.clean[[index]]), OTHERS: np.zeros(0), MEAN: np.zeros(0)}
        if len(others):
            mean = verification.centroids(others, [np.arange(len(others))], self.distance)
            found |= {OTHERS: to(others), MEAN: to(mean)}
        return found

    def judge(
        self,
        compared: str,
        far: float,
        indices: Sequence[int],
        found: Sequence[Comparisons | None],
        before: Sequence[Comparisons | None],
    ) -> StrangerRates:
        """The rates of the photos with indices int[M], found after processing and before.

        None stands for a photo in which no face was found; it is left out.
        """
        thresholds = self.thresholds[far, compared]
        rate = thresholds.rate(*self._joined(compared, indices, found))
        pairs = list(zip(indices, found, before, strict=True))
        both = [own for own in pairs if own[1] is not None and own[2] is not None]
        kept = [index for index, _, _ in both]
        after = thresholds.unmatched(*self._joined(compared, kept, [own[1] for own in both]))
        earlier = thresholds.unmatched(*self._joined(compared, kept, [own[2] for own in both]))
        return StrangerRates(rate, float(np.mean(after[earlier])) if earlier.any() else None)

    def _joined(
        self, compared: str, indices: Sequence[int], found: Sequence[Comparisons | None]
    ) -> tuple[NumpyArray, NumpyArray]:
        """All similarities, float64[n], and the persons of each, int[n]."""
        values: list[NumpyArray] = [np.zeros(0)]
        labels: list[NumpyArray] = [np.zeros(0, int)]
        for index, one in zip(indices, found, strict=True):
            if one is not None:
                values.append(one[compared])
                labels.append(np.full(len(values[-1]), self.labels[index]))
        return np.concatenate(values), np.concatenate(labels)
