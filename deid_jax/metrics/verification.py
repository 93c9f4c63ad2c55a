"""Whether face recognisers still know a person: scores, thresholds, rates.

Embeddings are [N, D], of any scale; everything is computed in float64 NumPy on the host.
A score is a cosine in [-1, 1]. A photo is taken for a person if its score s to the person is
at least the threshold: s ≥ t; it is protected if s < t. Persons are columns, and the label of
a photo is the column of the person that it shows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from deid_jax import checks
from deid_jax.errors import InputError
from deid_jax.metrics import statistics

# False accept rates that thresholds are set at.
FARS = (0.01, 0.001)

# A person's score: the cosine to the centroid of their gallery, or the highest to its photos.
SCORINGS = ("centroid", "max")

# Below this length a mean of unit vectors is rounding error, and has no direction.
_NO_DIRECTION = 1e-9


class SameDifferent(NamedTuple):
    """How well scores tell pairs of one person from pairs of two.

    Attributes:
      accuracy: the best share of pairs told rightly by one threshold.
      threshold: the lowest score that reaches it.
      auc: P(g > i) + P(g = i)/2 of a genuine score g and an impostor score i.
    """

    accuracy: float
    threshold: float
    auc: float


class Protection(NamedTuple):
    """A share of photos that are not taken for the person they show.

    Attributes:
      protected: the share, s < t.
      low: lower end of its Wilson interval.
      high: upper end.
      num_images: number of photos.
    """

    protected: float
    low: float
    high: float
    num_images: int


def normalise(embeddings: Any) -> np.ndarray:
    """Each embedding x as x / ‖x‖₂, float64[N, D].

    Raises:
      InputError: not [N, D], not finite, or an embedding of length 0.
    """
    values = _matrix("embeddings", embeddings)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.all(lengths > 0):
        raise InputError(f"embeddings must not be 0, but number {np.argmin(lengths)} is")
    return values / lengths


def cosines(a: Any, b: Any) -> np.ndarray:
    """⟨aᵢ, bⱼ⟩ / (‖aᵢ‖ ‖bⱼ‖), float64[N, M] in [-1, 1], of a [N, D] and b [M, D].

    Raises:
      InputError: another shape, or an embedding that `normalise` refuses.
    """
    first, second = normalise(a), normalise(b)
    _check_widths(first, second)
    return np.clip(first @ second.T, -1, 1)


def row_cosines(a: Any, b: Any) -> np.ndarray:
    """⟨aᵢ, bᵢ⟩ / (‖aᵢ‖ ‖bᵢ‖), float64[N] in [-1, 1], of a [N, D] and b [N, D].

    Pairs of photos (i, j) of `embeddings` are `row_cosines(embeddings[i], embeddings[j])`.

    Raises:
      InputError: another shape, or an embedding that `normalise` refuses.
    """
    first, second = normalise(a), normalise(b)
    _check_widths(first, second)
    if len(first) != len(second):
        raise InputError(f"a and b must be as many, got {len(first)} and {len(second)}")
    return np.clip(np.sum(first * second, axis=1), -1, 1)


def centroids(embeddings: Any, members: Sequence[Any]) -> np.ndarray:
    """cₚ = mₚ / ‖mₚ‖₂ with mₚ the mean of person p's normalised embeddings.

    Args:
      embeddings: [N, D].
      members: for each of P persons the positions of their embeddings, one or more.

    Returns:
      float64[P, D].

    Raises:
      InputError: a person without embeddings, a position out of range, an embedding that
        `normalise` refuses, or embeddings that cancel (‖mₚ‖ < 1e-9).
    """
    units = normalise(embeddings)
    chosen = _members(members, len(units))
    return _directions(np.stack([units[positions].mean(axis=0) for positions in chosen]))


def leave_one_out_centroids(embeddings: Any, labels: Any) -> np.ndarray:
    """For every photo the centroid of the *other* photos of its person.

    cᵢ = mᵢ / ‖mᵢ‖₂, mᵢ the mean of eⱼ / ‖eⱼ‖₂ over j ≠ i with the label of i. The cosine of
    each photo to it, `row_cosines(embeddings, result)`, tells whether protected photos are
    still linked to each other.

    Args:
      embeddings: [N, D].
      labels: int[N].

    Returns:
      float64[N, D].

    Raises:
      InputError: a person with one photo, or what `centroids` refuses.
    """
    units = normalise(embeddings)
    own = _labels(labels, len(units))
    _, inverse, counts = np.unique(own, return_inverse=True, return_counts=True)
    if np.min(counts) < 2:
        alone = np.argmax(counts[inverse] < 2)
        raise InputError(f"labels must each have two photos or more, number {alone} is alone")
    sums = np.zeros((len(counts), units.shape[1]))
    np.add.at(sums, inverse, units)
    return _directions((sums[inverse] - units) / (counts[inverse, None] - 1))


def gallery_scores(
    probes: Any, references: Any, members: Sequence[Any], *, scoring: str = "centroid"
) -> np.ndarray:
    """How much each probe looks like each person, by the person's gallery.

    "centroid": cos(xᵢ, cₚ), cₚ by `centroids`. "max": maxⱼ cos(xᵢ, rⱼ) over p's photos j.

    Args:
      probes: [N, D].
      references: [M, D].
      members: for each of P persons the positions of their gallery in `references`.
      scoring: one of `SCORINGS`.

    Returns:
      float64[N, P].

    Raises:
      InputError: an unknown scoring, or what `cosines` and `centroids` refuse.
    """
    if scoring not in SCORINGS:
        raise InputError(f"scoring must be one of {', '.join(SCORINGS)}, got {scoring}")
    if scoring == "centroid":
        return cosines(probes, centroids(references, members))
    scores = cosines(probes, references)
    chosen = _members(members, scores.shape[1])
    return np.stack([scores[:, positions].max(axis=1) for positions in chosen], axis=1)


def genuine_scores(scores: Any, labels: Any) -> np.ndarray:
    """sᵢ,ₗᵢ: each probe's score to its own person, float64[N], of scores [N, P].

    Raises:
      InputError: another shape, a score that is not finite, or a label that is no column.
    """
    values, own = _scores_and_labels(scores, labels)
    return values[np.arange(len(values)), own]


def impostor_scores(scores: Any, labels: Any) -> np.ndarray:
    """sᵢ,ₚ, p ≠ lᵢ: the probes' scores to all other persons, float64[N (P − 1)].

    Raises:
      InputError: another shape, a score that is not finite, or a label that is no column.
    """
    values, own = _scores_and_labels(scores, labels)
    return values[np.arange(values.shape[1]) != own[:, None]]


def accept_rate(scores: Any, threshold: float) -> float:
    """#{s ≥ t} / n: the false accept rate of impostors, the true one of genuine scores.

    Raises:
      InputError: no scores, one that is not finite, or a threshold that is no number.
    """
    return float(np.mean(_row("scores", scores) >= _threshold(threshold)))


def threshold_at_far(impostor_scores: Any, far: float) -> float:
    """The smallest threshold at which few enough impostors are accepted.

    min {t ∈ float64: #{s ≥ t} / n ≤ far}. With k the largest integer of k/n ≤ far that is the
    float64 next above the (k + 1)-th highest score. So of impostors that tie there all are
    rejected, and the rate reached may be lower than `far`, never higher.

    Args:
      impostor_scores: [n], of any order.
      far: false accept rate, between 0 and 1; n far ≥ 1, since fewer scores cannot tell it
        from 0.

    Raises:
      InputError: `far` out of range, too few scores for it, or one that is not finite.
    """
    scores = _row("impostor_scores", impostor_scores)
    if not 0 < far < 1:
        raise InputError(f"far must be a number > 0 and < 1, got {far}")
    n = len(scores)
    allowed = int(n * far)  # n far may be rounded up or down: 100 * 0.29 < 29
    allowed += ((allowed + 1) / n <= far) - (allowed / n > far)
    if allowed < 1:
        raise InputError(f"far {far:g} needs {1 / far:.0f} impostor scores or more, got {n}")
    highest_rejected = np.partition(scores, n - 1 - allowed)[n - 1 - allowed]
    return float(np.nextafter(highest_rejected, np.inf))


def far_thresholds(
    scores: Any, labels: Any, fars: Sequence[float] = FARS
) -> dict[float, float]:
    """`threshold_at_far` for several rates, over clean probes against other persons.

    Args:
      scores: [N, P], of `gallery_scores`.
      labels: int[N], the probes' own persons, which are left out.
      fars: false accept rates.

    Returns:
      far -> threshold.

    Raises:
      InputError: what `impostor_scores` or `threshold_at_far` refuses.
    """
    impostors = impostor_scores(scores, labels)
    return {far: threshold_at_far(impostors, far) for far in fars}


def accuracy_and_threshold(genuine: Any, impostor: Any) -> SameDifferent:
    """The best accuracy of saying "same person" to scores s ≥ t, and the area under the ROC.

    accuracy = max_t (#{g ≥ t} + #{i < t}) / (m + n), over t among the scores and above them
    all, where no pair is accepted; of equally good ones the lowest t is returned. The AUC is
    Mann and Whitney's U / (m n), ties counted half.

    Args:
      genuine: [m], scores of pairs of one person.
      impostor: [n], scores of pairs of two persons.

    Raises:
      InputError: no scores, or one that is not finite.
    """
    same, other = np.sort(_row("genuine", genuine)), np.sort(_row("impostor", impostor))
    candidates = np.union1d(same, other)
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    accepted = len(same) - np.searchsorted(same, candidates)
    right = accepted + np.searchsorted(other, candidates)
    best = int(np.argmax(right))
    # Impostors below each genuine score, and those tied with it counted half.
    below = np.searchsorted(other, same, "left") + np.searchsorted(other, same, "right")
    return SameDifferent(
        accuracy=float(right[best] / (len(same) + len(other))),
        threshold=float(candidates[best]),
        auc=float(below.mean() / (2 * len(other))),
    )


def protection(scores: Any, threshold: float, *, confidence: float = 0.95) -> Protection:
    """#{s < t} / n of protected photos' scores to their own persons, with Wilson's interval.

    Args:
      scores: [n], of `genuine_scores` or of `row_cosines`.
      threshold: t, of clean photos: `far_thresholds`.
      confidence: of the interval, between 0 and 1.

    Raises:
      InputError: no scores, one that is not finite, or a parameter out of range.
    """
    values = _row("scores", scores)
    hidden = int(np.sum(values < _threshold(threshold)))
    low, high = statistics.wilson(hidden, len(values), confidence)
    return Protection(hidden / len(values), low, high, len(values))


def rank(scores: Any, labels: Any) -> np.ndarray:
    """1 + #{p: sᵢ,ₚ > sᵢ,ₗᵢ}: the place of the true person in the list of the likeliest.

    1 is the best. Of persons with exactly equal scores the true one counts as first, so that
    ties never count as protection.

    Args:
      scores: [N, P].
      labels: int[N], columns of the true persons.

    Returns:
      int64[N], from 1 to P.

    Raises:
      InputError: another shape, a score that is not finite, or a label that is no column.
    """
    values, own = _scores_and_labels(scores, labels)
    true = values[np.arange(len(values)), own]
    return 1 + np.count_nonzero(values > true[:, None], axis=1)


def rank_rate(ranks: Any, k: int) -> float:
    """#{rᵢ ≤ k} / n: the share of photos whose person is among the k likeliest.

    Raises:
      InputError: no ranks, one below 1, or k below 1.
    """
    values = _row("ranks", ranks)
    checks.count("k", k, least=1)
    if np.min(values) < 1:
        raise InputError(f"ranks must be at least 1, got {np.min(values):g}")
    return float(np.mean(values <= k))


def _matrix(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name} must be [N, D], one or more, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        bad = np.argmin(np.isfinite(array).all(axis=1))
        raise InputError(f"{name} must be finite, but number {bad} is not")
    return array


def _row(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.all(np.isfinite(array)):
        raise InputError(
            f"{name} must be finite numbers, one or more, in one row, got shape {array.shape}"
        )
    return array


def _threshold(value: float) -> float:
    if np.isnan(value):
        raise InputError(f"threshold must be a number, got {value}")
    return value


def _check_widths(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError(f"embeddings must be equally long, got {a.shape[1]} and {b.shape[1]}")


def _labels(value: Any, count: int) -> np.ndarray:
    labels = np.asarray(value)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be int[{count}], got {labels.dtype}{[*labels.shape]}")
    return labels


def _scores_and_labels(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    values = _matrix("scores", scores)
    own = _labels(labels, len(values))
    if own.min() < 0 or own.max() >= values.shape[1]:
        raise InputError(
            f"labels must be 0 to {values.shape[1] - 1}, got {own.min()} to {own.max()}"
        )
    return values, own


def _members(members: Sequence[Any], count: int) -> list[np.ndarray]:
    """Positions by person, each checked to be one or more of `count`."""
    chosen = [np.asarray(positions) for positions in members]
    if not chosen:
        raise InputError("members must be of one person or more, got none")
    for person, positions in enumerate(chosen):
        if positions.ndim != 1 or not positions.size:
            raise InputError(f"members must be one or more a person, person {person} has none")
        if not np.issubdtype(positions.dtype, np.integer):
            raise InputError(f"members must be positions, got {positions.dtype}")
        low, high = positions.min(), positions.max()
        if low < 0 or high >= count:
            raise InputError(
                f"members must be 0 to {count - 1}, person {person} has {low} to {high}"
            )
    return chosen


def _directions(means: np.ndarray) -> np.ndarray:
    """Means of unit vectors, normalised; refuses those that have no direction."""
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if np.min(lengths) < _NO_DIRECTION:
        raise InputError(
            f"embeddings must not cancel, but those of centroid {np.argmin(lengths)} do"
        )
    return means / lengths
