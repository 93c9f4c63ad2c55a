"""Face verification: similarity scores, thresholds at a false accept rate, and ranks.

Embeddings are [N, D]; everything is computed in float64 NumPy on the host. A score is a
similarity: the larger, the more alike. For most recognisers it is a cosine; for those that
compare raw embeddings by their Euclidean distance, it is minus that distance (`Distance`). An
image matches a person if its score s with the person's gallery is at least the threshold,
s ≥ t, and is protected if s < t. Persons are columns, and the label of an image is the column
of the person that it shows.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

# A mean of unit vectors shorter than this is rounding error and has no direction.
_NO_DIRECTION = 1e-9


class SameDifferent(NamedTuple):
    """How well scores separate genuine pairs (one person) from impostor pairs (two persons).

    Attributes:
      accuracy: the largest share of pairs that one threshold classifies correctly.
      threshold: the lowest score that reaches this accuracy.
      auc: P(g > i) + P(g = i)/2 for a genuine score g and an impostor score i.
    """

    accuracy: float
    threshold: float
    auc: float


class Distance(enum.Enum):
    """How a recogniser scores two embeddings: by their cosine, or by −‖a − b‖."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"

    def as_similarity(self, value: float) -> float:
        """The similarity that a cosine or a distance, as users state thresholds, stands for."""
        return value if self is Distance.COSINE else -value


def comparable(
    embeddings: NumpyArray, distance: Distance = Distance.COSINE
) -> NDArray[np.float64]:
    """Embeddings as they are compared, float64[N, D]: x / ‖x‖₂ for cosines, else unchanged.

    Raises:
      InputError: not [N, D], not finite, or an embedding of length 0 that has no cosine.
    """
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise InputError(f"embeddings must be [N, D], one or more, got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        bad = np.argmin(np.isfinite(values).all(axis=1))
        raise InputError(f"embeddings must be finite, but number {bad} is not")
    if distance is Distance.EUCLIDEAN:
        return values
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.all(lengths > 0):
        raise InputError(f"embeddings must not be 0, but number {np.argmin(lengths)} is")
    return values / lengths


def similarities(
    a: NumpyArray, b: NumpyArray, distance: Distance = Distance.COSINE
) -> NDArray[np.float64]:
    """⟨aᵢ, bⱼ⟩ / (‖aᵢ‖ ‖bⱼ‖) in [-1, 1], or −‖aᵢ − bⱼ‖: float64[N, M] of [N, D] and [M, D].

    Raises:
      InputError: an embedding that `comparable` refuses.
    """
    first, second = comparable(a, distance), comparable(b, distance)
    if distance is Distance.EUCLIDEAN:
        return -cdist(first, second)
    return np.clip(first @ second.T, -1, 1)


def row_similarities(
    a: NumpyArray, b: NumpyArray, distance: Distance = Distance.COSINE
) -> NDArray[np.float64]:
    """`similarities` of the pairs (aᵢ, bᵢ): float64[N] of a [N, D] and b [N, D].

    Raises:
      InputError: an embedding that `comparable` refuses.
    """
    first, second = comparable(a, distance), comparable(b, distance)
    if distance is Distance.EUCLIDEAN:
        return -np.linalg.norm(first - second, axis=1)
    return np.clip(np.sum(first * second, axis=1), -1, 1)


def centroids(
    embeddings: NumpyArray,
    members: Sequence[NumpyArray],
    distance: Distance = Distance.COSINE,
) -> NDArray[np.float64]:
    """Means mₚ of person p's comparable embeddings; for cosines their direction mₚ / ‖mₚ‖₂.

    float64[P, D] of [N, D]; `members` are the positions of each person's embeddings.

    Raises:
      InputError: a person without embeddings, an embedding that `comparable` refuses, or
        embeddings that cancel (‖mₚ‖ < 1e-9) and are compared by cosines.
    """
    rows = comparable(embeddings, distance)
    for person, positions in enumerate(members):
        if not len(positions):
            raise InputError(f"members must be one or more a person, person {person} has none")
    means = np.stack([rows[positions].mean(axis=0) for positions in members])
    return _comparable_means(means, distance)


def leave_one_out_centroids(
    embeddings: NumpyArray, labels: NumpyArray, distance: Distance = Distance.COSINE
) -> NDArray[np.float64]:
    """For every image, the centroid of the *other* images of the same person.

    It is that of `centroids`: float64[N, D] of embeddings [N, D] and labels int[N]. Its
    `row_similarities` with the embeddings show whether protected images of a person still match
    each other.

    Raises:
      InputError: a person with one image, or what `centroids` refuses.
    """
    rows = comparable(embeddings, distance)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if np.min(counts) < 2:
        alone = np.argmax(counts[inverse] < 2)
        raise InputError(f"labels must each have two photos or more, number {alone} is alone")
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, inverse, rows)
    means = (sums[inverse] - rows) / (counts[inverse, None] - 1)
    return _comparable_means(means, distance)


def genuine_scores(scores: NumpyArray, labels: NumpyArray) -> NDArray[np.float64]:
    """sᵢ,ₗᵢ: each probe's score with its own person, float64[N], from scores [N, P]."""
    return scores[np.arange(len(scores)), labels]


def impostor_scores(scores: NumpyArray, labels: NumpyArray) -> NDArray[np.float64]:
    """sᵢ,ₚ, p ≠ lᵢ: the probes' scores with all other persons, float64[N (P − 1)]."""
    return scores[np.arange(scores.shape[1]) != labels[:, None]]


def threshold_at_far(
    impostor_scores: NumpyArray, far: float, counts: NumpyArray | None = None
) -> float:
    """The smallest threshold whose false accept rate is at most `far`.

    min {t ∈ float64: #{s ≥ t} / n ≤ far}. With k the largest integer such that k/n ≤ far, this
    is the float64 just above the (k + 1)-th highest score. Impostors tied at that score are all
    rejected, so the actual rate may be lower than `far` but never higher. n far must be at
    least 1, since fewer scores cannot distinguish it from 0. `counts`, int[n], are the scores'
    multiplicities, 1 by default.

    Raises:
      InputError: `far` out of range, too few scores for it, or one that is not finite.
    """
    scores = _row("impostor_scores", impostor_scores)
    if not 0 < far < 1:
        raise InputError(f"far must be a number > 0 and < 1, got {far}")
    n = len(scores) if counts is None else int(np.sum(counts))
    allowed = int(n * far)  # n far may be rounded up or down: 100 * 0.29 < 29
    if n:
        allowed += ((allowed + 1) / n <= far) - (allowed / n > far)
    if allowed < 1:
        raise InputError(f"far {far:g} needs {1 / far:.0f} impostor scores or more, got {n}")
    if counts is None:
        highest_rejected = np.partition(scores, n - 1 - allowed)[n - 1 - allowed]
    else:
        order = np.argsort(scores, kind="stable")  # Fast where they are sorted already.
        below = np.cumsum(counts[order])
        highest_rejected = scores[order[np.searchsorted(below, n - 1 - allowed, "right")]]
    return float(np.nextafter(highest_rejected, np.inf))


def far_thresholds(
    scores: NumpyArray, labels: NumpyArray, fars: Sequence[float]
) -> dict[float, float]:
    """Maps each far to its threshold, from `similarities` [N, P] of clean probes and galleries.

    The probes' own persons, int[N], are left out.

    Raises:
      InputError: what `threshold_at_far` refuses.
    """
    impostors = impostor_scores(scores, labels)
    return {far: threshold_at_far(impostors, far) for far in fars}


def accuracy_and_threshold(genuine: NumpyArray, impostor: NumpyArray) -> SameDifferent:
    """The best accuracy of accepting pairs with s ≥ t as the same person, and the ROC's area.

    accuracy = max_t (#{g ≥ t} + #{i < t}) / (m + n), over t equal to a score or above all of
    them, where no pair is accepted; the lowest of the best t is returned. The AUC is Mann and
    Whitney's U / (m n), with ties counted half. Pairs of one person have the scores `genuine`,
    [m], those of two persons `impostor`, [n].

    Raises:
      InputError: no scores, or one that is not finite.
    """
    same, other = np.sort(_row("genuine", genuine)), np.sort(_row("impostor", impostor))
    candidates = np.union1d(same, other)
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    accepted = len(same) - np.searchsorted(same, candidates)
    right = accepted + np.searchsorted(other, candidates)
    best = int(np.argmax(right))
    # The number of impostors below each genuine score; ties count half.
    below = np.searchsorted(other, same, "left") + np.searchsorted(other, same, "right")
    return SameDifferent(
        accuracy=float(right[best] / (len(same) + len(other))),
        threshold=float(candidates[best]),
        auc=float(below.mean() / (2 * len(other))),
    )


def rank(scores: NumpyArray, labels: NumpyArray) -> NDArray[np.int64]:
    """Rank of the true person by score: 1 + #{p: sᵢ,ₚ > sᵢ,ₗᵢ}, int64[N] from 1 to P.

    The true person comes first among exactly equal scores, so that ties never count as
    protection.
    """
    true = genuine_scores(scores, labels)
    return 1 + np.count_nonzero(scores > true[:, None], axis=1)


def rank_rate(ranks: NumpyArray, k: int) -> float:
    """Rank-k rate #{rᵢ ≤ k} / n: the share of images whose person ranks in the first k."""
    return float(np.mean(ranks <= k))


def _row(name: str, value: NumpyArray) -> NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.all(np.isfinite(array)):
        raise InputError(
            f"{name} must be finite numbers, one or more, in one row, got shape {array.shape}"
        )
    return array


def _comparable_means(means: NDArray[np.float64], distance: Distance) -> NDArray[np.float64]:
    """Means of comparable embeddings; refuses those of unit vectors that have no direction."""
    if distance is Distance.EUCLIDEAN:
        return means
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if np.min(lengths) < _NO_DIRECTION:
        raise InputError(
            f"embeddings must not cancel, but those of centroid {np.argmin(lengths)} do"
        )
    return means / lengths
