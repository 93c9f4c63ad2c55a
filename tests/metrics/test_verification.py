import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deid_jax.errors import InputError
from deid_jax.metrics import verification
from deid_jax.metrics.verification import Distance


def draw(count, width=7, seed=0):
    """Embeddings of any length."""
    generator = np.random.default_rng(seed)
    scales = generator.uniform(0.1, 50, (count, 1))
    return scales * generator.normal(size=(count, width))


def cosine(a, b):
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    squares = [sum(float(x) ** 2 for x in vector) for vector in (a, b)]
    return dot / math.sqrt(squares[0] * squares[1])


def mean_direction(vectors):
    """What a centroid is, one number at a time and up to its length."""
    total = [0.0] * len(vectors[0])
    for vector in vectors:
        length = math.sqrt(sum(float(x) ** 2 for x in vector))
        total = [t + float(x) / length for t, x in zip(total, vector, strict=True)]
    return total


def test_normalised_embeddings_keep_their_direction_and_lose_their_length():
    embeddings = draw(5)
    units = verification.comparable(embeddings)
    assert units.dtype == np.float64
    np.testing.assert_allclose(np.sum(units**2, axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(verification.comparable(1e6 * embeddings), units, rtol=1e-12)
    for embedding, unit in zip(embeddings, units, strict=True):
        assert cosine(embedding, unit) == pytest.approx(1, abs=1e-14)


def test_what_an_accelerator_returns_is_taken():
    embeddings = draw(4).astype(np.float32)
    for given in (jnp.asarray(embeddings), jnp.asarray(embeddings, jnp.bfloat16)):
        units = verification.comparable(given)
        assert units.dtype == np.float64
        expected = np.asarray(given, np.float64)
        np.testing.assert_allclose(units, verification.comparable(expected), rtol=0)


def test_cosines_are_their_definition():
    a, b = draw(6, seed=1), draw(4, seed=2)
    expected = [[cosine(x, y) for y in b] for x in a]
    np.testing.assert_allclose(verification.similarities(a, b), expected, atol=1e-14)
    expected = [cosine(x, y) for x, y in zip(a[:4], b, strict=True)]
    np.testing.assert_allclose(verification.row_similarities(a[:4], b), expected, atol=1e-14)


def test_cosines_stay_within_one():
    embeddings = draw(400, width=3)
    assert np.max(verification.similarities(embeddings, embeddings)) == 1
    assert np.min(verification.similarities(embeddings, -embeddings)) == -1
    assert np.max(verification.row_similarities(embeddings, 3 * embeddings)) <= 1


MEMBERS = [[0, 3, 4], np.array([7]), [1, 2, 5, 6]]


def test_centroids_are_mean_directions_of_length_one():
    embeddings = draw(8)
    centroids = verification.centroids(embeddings, MEMBERS)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-14)
    for centroid, members in zip(centroids, MEMBERS, strict=True):
        expected = mean_direction([embeddings[i] for i in members])
        assert cosine(centroid, expected) == pytest.approx(1, abs=1e-14)


def test_length_of_an_embedding_has_no_weight_in_the_centroid():
    embeddings = np.array([[1e6, 0.0], [0.0, 1e-6]])
    centroid = verification.centroids(embeddings, [[0, 1]])
    np.testing.assert_allclose(centroid, [[math.sqrt(0.5)] * 2], rtol=1e-14)


def test_leave_one_out_centroids_leave_out_the_photo_and_nothing_else():
    labels = np.array([4, 0, 4, 4, 0, 9, 9, 9])
    embeddings = draw(8, seed=3)
    found = verification.leave_one_out_centroids(embeddings, labels)
    for position, centroid in enumerate(found):
        others = [j for j in range(8) if j != position and labels[j] == labels[position]]
        expected = mean_direction([embeddings[j] for j in others])
        assert np.linalg.norm(centroid) == pytest.approx(1, abs=1e-14)
        assert cosine(centroid, expected) == pytest.approx(1, abs=1e-13)


def test_own_persons_scores_and_all_others():
    scores = np.arange(12.0).reshape(4, 3)
    labels = np.array([2, 0, 0, 1])
    assert verification.genuine_scores(scores, labels).tolist() == [2, 3, 6, 10]
    others = verification.impostor_scores(scores, labels)
    assert others.tolist() == [0, 1, 4, 5, 7, 8, 9, 11]


def _all_thresholds(scores):
    """Every float64 at which the accepted share can change, and its neighbours."""
    near = [(np.nextafter(s, -np.inf), s, np.nextafter(s, np.inf)) for s in scores]
    return sorted({float(t) for three in near for t in three})


@pytest.mark.parametrize("levels", [None, 7, 2, 1])
@pytest.mark.parametrize("far", [0.01, 0.05, 0.29, 0.5, 0.999])
def test_threshold_is_the_smallest_that_keeps_the_rate(levels, far):
    """Against a search over all thresholds; `levels` makes ties."""
    for seed in range(8):
        generator = np.random.default_rng(seed)
        count = int(generator.integers(100, 140))
        scores = generator.uniform(-1, 1, count)
        if levels is not None:
            scores = generator.integers(levels, size=count) / 10
        enough = [
            t for t in _all_thresholds(scores) if sum(s >= t for s in scores) / count <= far
        ]
        threshold = verification.threshold_at_far(scores, far)
        assert threshold == min(enough)
        assert np.mean(scores >= threshold) <= far


@pytest.mark.parametrize("count", [100, 300, 1000, 7000])
def test_whole_numbers_of_impostors_are_all_accepted(count):
    """100 * 0.29 is a little less than 29, and 29 of 100 are meant."""
    scores = np.random.default_rng(0).permutation(count)
    for percent in range(1, 100):
        threshold = verification.threshold_at_far(scores, percent / 100)
        assert np.sum(scores >= threshold) == count * percent // 100


def test_impostors_tied_with_the_first_rejected_one_are_rejected():
    scores = [0.9] + [0.5] * 9
    threshold = verification.threshold_at_far(scores, 0.2)
    assert threshold == np.nextafter(0.5, 1)
    assert np.mean(np.array(scores) >= threshold) == 0.1


def test_rates_that_so_few_scores_cannot_tell_from_zero_are_refused():
    scores = np.random.default_rng(0).uniform(size=999)
    with pytest.raises(InputError, match=r"far 0\.001 needs 1000 impostor scores .* got 999"):
        verification.threshold_at_far(scores, 0.001)
    threshold = verification.threshold_at_far([*scores, 2.0], 0.001)
    assert threshold == np.nextafter(max(scores), 2)


def test_thresholds_leave_the_probes_own_persons_out():
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=400)
    scores = generator.uniform(-1, 0.5, (400, 4))
    scores[np.arange(400), labels] = 0.9
    impostors = [scores[i, p] for i in range(400) for p in range(4) if p != labels[i]]
    found = verification.far_thresholds(scores, labels, (0.01, 0.001))
    assert found == {
        0.01: np.nextafter(sorted(impostors)[-13], 1),
        0.001: np.nextafter(sorted(impostors)[-2], 1),
    }


@pytest.mark.parametrize("levels", [None, 9, 2])
@pytest.mark.parametrize(("num_genuine", "num_impostor"), [(40, 40), (1, 30), (25, 4)])
def test_accuracy_and_auc_against_all_thresholds_and_all_pairs(
    levels, num_genuine, num_impostor
):
    for seed in range(6):
        generator = np.random.default_rng(seed)
        genuine = generator.normal(0.5, 0.4, num_genuine)
        impostor = generator.normal(0, 0.4, num_impostor)
        if levels is not None:
            genuine, impostor = np.round(levels * genuine), np.round(levels * impostor)
        right = {
            t: sum(g >= t for g in genuine) + sum(i < t for i in impostor)
            for t in _all_thresholds([*genuine, *impostor])
        }
        result = verification.accuracy_and_threshold(genuine, impostor)
        count = num_genuine + num_impostor
        assert result.accuracy == max(right.values()) / count
        assert right[result.threshold] == max(right.values())
        wins = sum((g > i) + (g == i) / 2 for g in genuine for i in impostor)
        assert result.auc == pytest.approx(wins / (num_genuine * num_impostor), abs=1e-14)
        u = stats.mannwhitneyu(genuine, impostor).statistic
        assert result.auc == pytest.approx(u / (num_genuine * num_impostor), abs=1e-14)


def test_of_equally_good_thresholds_the_lowest_score_is_returned():
    result = verification.accuracy_and_threshold([0.4, 0.8], [0.6, 0.2])
    assert result == (0.75, 0.4, 0.75)
    assert verification.accuracy_and_threshold([0.7, 0.5], [0.1]) == (1, 0.5, 1)


def test_scores_that_tell_nothing():
    assert verification.accuracy_and_threshold([0.5] * 3, [0.5] * 3) == (0.5, 0.5, 0.5)
    # All the wrong way round, and impostors many: nobody is accepted.
    result = verification.accuracy_and_threshold([0.1], [0.2, 0.3])
    assert result == (2 / 3, np.nextafter(0.3, 1), 0)


@pytest.mark.parametrize("levels", [None, 3])
def test_rank_is_the_place_in_the_sorted_list(levels):
    generator = np.random.default_rng(0)
    scores = generator.uniform(size=(50, 9))
    if levels is not None:
        scores = np.round(levels * scores)
    labels = generator.integers(9, size=50)
    ranks = verification.rank(scores, labels)
    assert ranks.dtype == np.int64
    for own, row, found in zip(labels, scores, ranks, strict=True):
        # The true person before all others of the same score.
        order = sorted(range(9), key=lambda p, row=row, own=own: (-row[p], p != own))
        assert found == order.index(own) + 1
    for k in (1, 3, 9):
        assert verification.rank_rate(ranks, k) == sum(r <= k for r in ranks) / 50
    assert verification.rank_rate(ranks, 9) == 1


def test_equal_scores_never_protect():
    assert verification.rank(np.zeros((2, 4)), [3, 0]).tolist() == [1, 1]


TWO = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.comparable([1.0]), r"embeddings must be \[N, D\], one or more"),
        (lambda v: v.comparable(np.zeros((0, 3))), r"one or more, got shape \(0, 3\)"),
        (lambda v: v.comparable([[1, 2], [0, 0]]), "must not be 0, but number 1 is"),
        (lambda v: v.comparable([[1, 2], [np.nan, 0]]), "finite, but number 1 is not"),
        (lambda v: v.centroids(TWO, [[0], []]), "one or more a person, person 1 has none"),
        (lambda v: v.centroids([[1, 2], [-3, -6]], [[0], [0, 1]]), "centroid 1 do"),
        (lambda v: v.leave_one_out_centroids(TWO, [0, 1]), "number 0 is alone"),
        (lambda v: v.threshold_at_far([0.1, np.nan], 0.5), "impostor_scores must be finite"),
        (lambda v: v.threshold_at_far([0.1], 0.0), "far must be a number > 0 and < 1, got 0"),
        (lambda v: v.threshold_at_far([0.1], 1.0), "far must be a number > 0 and < 1, got 1"),
        (lambda v: v.accuracy_and_threshold([], [0.1]), "genuine must be finite numbers"),
        (lambda v: v.accuracy_and_threshold([0.1], [[0.1]]), r"in one row, got shape \(1, 1\)"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(verification)
    assert "\n" not in str(caught.value)


def test_counted_scores_are_as_good_as_repeated_ones():
    generator = np.random.default_rng(4)
    scores = np.round(generator.normal(size=300), 1)
    counts = generator.integers(0, 4, 300)
    for far in (0.01, 0.1, 0.5):
        repeated = verification.threshold_at_far(np.repeat(scores, counts), far)
        assert verification.threshold_at_far(scores, far, counts) == repeated
    with pytest.raises(InputError, match="needs 10 impostor scores or more, got 0"):
        verification.threshold_at_far(scores, 0.1, 0 * counts)


def test_distances_are_of_raw_embeddings_and_their_means():
    """Similarity is minus the distance, so that the larger is the more alike."""
    random = np.random.default_rng(4)
    a, b = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    wanted = [[-math.dist(one, other) for other in b] for one in a]
    found = verification.similarities(a, b, Distance.EUCLIDEAN)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    rows = verification.row_similarities(a, b, Distance.EUCLIDEAN)
    np.testing.assert_allclose(rows, np.diag(wanted), rtol=1e-12)
    (mean,) = verification.centroids(a, [[0, 3]], Distance.EUCLIDEAN)
    np.testing.assert_allclose(mean, (a[0] + a[3]) / 2, rtol=1e-12)
    others = verification.leave_one_out_centroids(a, [0, 1, 0, 1, 0], Distance.EUCLIDEAN)
    np.testing.assert_allclose(others[2], (a[0] + a[4]) / 2, rtol=1e-12)
    nothing = verification.comparable([[0.0, 0.0]], Distance.EUCLIDEAN)
    np.testing.assert_array_equal(nothing, [[0.0, 0.0]])
