"""The judge and its figures, beside loops over single photos."""

import math

import numpy as np
import pytest

from deid_jax import transfer
from deid_jax._validate import InputError
from deid_jax.pair_lists import Positions
from deid_jax.transfer import Faces, averaged, figures, make_judge
from tests.embedding_helpers import faces_of, tiny_embedder, tiny_in_numpy, unit_rows

PERSONS, PER_PERSON = 7, 9
FARS = (0.2, 0.05)
ORDER = np.random.default_rng(5).permutation(PERSONS * PER_PERSON)


@pytest.fixture(scope="module")
def faces():
    """Photos out of order; of each person 3 for the gallery, 3 probes, 3 protected."""
    images, labels = faces_of(PERSONS, PER_PERSON, noise=60)
    images, labels = images[ORDER], labels[ORDER]
    own = [np.flatnonzero(labels == person) for person in range(PERSONS)]
    lists = Positions(
        protected=np.sort(np.concatenate([places[:3] for places in own])),
        gallery=tuple(places[3:6] for places in own),
        probes=np.concatenate([places[6:] for places in own])[::-1],
        genuine=np.array(
            [(places[a], places[b]) for places in own for a, b in ((0, 4), (1, 7))]
        ),
        impostor=np.array(
            [(own[p][k], own[p - 1][k + 1]) for p in range(PERSONS) for k in (0, 3)]
        ),
    )
    return Faces(images, labels, lists)


@pytest.fixture(scope="module")
def judge(faces):
    return make_judge(tiny_embedder(), faces, FARS)


@pytest.fixture(scope="module")
def photos(faces):
    """Protected so badly that some are known and some are not."""
    noise = np.random.default_rng(9).normal(0, 45, faces.protected.shape)
    return np.clip(faces.protected + noise, 0, 255).astype(np.uint8)


def _cosine(a, b):
    return float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))


def _mean_direction(rows):
    return unit_rows(np.mean([row / np.linalg.norm(row) for row in rows], axis=0)[None])[0]


def _wilson(hidden, n, z=1.959963984540054):
    """From the textbook's formula."""
    share = hidden / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def test_faces_know_what_is_protected(faces):
    assert faces.protected.shape == (3 * PERSONS, 16, 16, 3)
    for photo, label, place in zip(
        faces.protected, faces.protected_labels, faces.lists.protected, strict=True
    ):
        np.testing.assert_array_equal(photo, faces.images[place])
        assert label == faces.labels[place]


def test_galleries_and_own_photos_are_mean_directions(judge, faces):
    rows = tiny_in_numpy(judge.embedder, faces.images)
    for person in range(PERSONS):
        expected = _mean_direction(rows[faces.lists.gallery[person]])
        np.testing.assert_allclose(judge.galleries[person], expected, atol=1e-5)
        probes = [place for place in faces.lists.probes if faces.labels[place] == person]
        np.testing.assert_allclose(judge.own[person], _mean_direction(rows[probes]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(judge.galleries, axis=1), 1, atol=1e-12)
    probe = rows[faces.lists.probes[:4]]
    expected = [[_cosine(row, gallery) for gallery in judge.galleries] for row in probe]
    np.testing.assert_allclose(judge.scores(probe), expected, atol=1e-12)


def test_thresholds_let_few_enough_impostors_pass(judge, faces):
    rows = judge.embedder.embed(faces.images).astype(np.float64)
    impostors = [
        _cosine(rows[place], judge.galleries[person])
        for place in faces.lists.probes
        for person in range(PERSONS)
        if person != faces.labels[place]
    ]
    assert list(judge.thresholds) == list(FARS)
    for far, threshold in judge.thresholds.items():
        accepted = sum(score >= threshold + 1e-12 for score in impostors)
        one_more = sum(score >= threshold - 1e-12 for score in impostors)
        assert accepted / len(impostors) <= far < one_more / len(impostors)


def test_pairs_are_told_apart_by_the_best_threshold(judge, faces):
    rows = judge.embedder.embed(faces.images).astype(np.float64)
    same, other = (
        [_cosine(rows[a], rows[b]) for a, b in pairs]
        for pairs in (faces.lists.genuine, faces.lists.impostor)
    )
    best = max(
        sum(s >= t for s in same) + sum(s < t for s in other) for t in [*same, *other, 2.0]
    )
    assert judge.pairs.accuracy == pytest.approx(best / (len(same) + len(other)))
    wins = [(s > o) + (s == o) / 2 for s in same for o in other]
    assert judge.pairs.auc == pytest.approx(np.mean(wins))


def test_too_few_impostors_for_a_rate_and_persons_without_probes_are_refused(faces):
    with pytest.raises(InputError, match=r"far 0\.001 needs 1000 impostor scores or more"):
        make_judge(tiny_embedder(), faces, (0.001,))
    probes = faces.lists.probes[faces.labels[faces.lists.probes] != 2]
    few = faces._replace(lists=faces.lists._replace(probes=probes))
    with pytest.raises(InputError, match="person 2 has none"):
        make_judge(tiny_embedder(), few, FARS)


def _rows_of(judge, scores, compared, ranks=None):
    """What the rows must say of scores, by loops."""
    rows = []
    for far, threshold in judge.thresholds.items():
        hidden = sum(score < threshold for score in scores)
        low, high = _wilson(hidden, len(scores))
        rows.append(
            {
                "far": far,
                "threshold": threshold,
                "compared": compared,
                "protected": hidden / len(scores),
                "low": low,
                "high": high,
                "num_images": len(scores),
                "score": sum(scores) / len(scores),
                "rank1": "" if ranks is None else sum(r <= 1 for r in ranks) / len(ranks),
                "rank5": "" if ranks is None else sum(r <= 5 for r in ranks) / len(ranks),
            }
        )
    return rows


def _assert_same_rows(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            same = value if isinstance(value, str) else pytest.approx(value, abs=1e-9)
            assert ours[name] == same, name


def test_figures_equal_loops_over_photos(judge, photos, faces):
    labels = faces.protected_labels
    rows = judge.embedder.embed(photos).astype(np.float64)
    to_gallery, ranks, to_others = [], [], []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        scores = [_cosine(row, gallery) for gallery in judge.galleries]
        to_gallery.append(scores[label])
        ranks.append(sorted(scores, reverse=True).index(scores[label]) + 1)
        others = [n for n in range(len(rows)) if n != number and labels[n] == label]
        to_others.append(_cosine(row, _mean_direction(rows[others])))
    expected = [
        row
        for pair in zip(
            _rows_of(judge, to_gallery, "gallery", ranks),
            _rows_of(judge, to_others, "protected"),
            strict=True,
        )
        for row in pair
    ]
    found = figures(judge, photos, labels)
    _assert_same_rows(found, expected)
    assert {row["compared"] for row in found} == set(transfer.COMPARED)
    assert all(0 < row["protected"] < 1 for row in found if row["compared"] == "gallery")
    assert max(ranks) > 1


def test_persons_with_one_photo_are_not_compared_with_protected_ones(judge, photos, faces):
    labels = faces.protected_labels
    left = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) == 1))
    found = figures(judge, photos[left], labels[left])
    assert [row["compared"] for row in found] == ["gallery"] * len(FARS)
    assert found[0]["num_images"] == len(left) == len(labels) - 2


@pytest.mark.parametrize("size", [1, 2, 3])
def test_averages_of_protected_photos(judge, photos, faces, size):
    """In their order; a remainder is left out."""
    labels = faces.protected_labels
    rows = judge.embedder.embed(photos).astype(np.float64)
    scores = []
    for person in range(PERSONS):
        own = [row for row, label in zip(rows, labels, strict=True) if label == person]
        while len(own) >= size:
            scores.append(_cosine(_mean_direction(own[:size]), judge.galleries[person]))
            own = own[size:]
    assert len(scores) == PERSONS * (3 // size)
    _assert_same_rows(averaged(judge, photos, labels, size), _rows_of(judge, scores, "gallery"))


def test_averages_know_more_than_single_photos(judge, photos, faces):
    one, three = (averaged(judge, photos, faces.protected_labels, n)[0] for n in (1, 3))
    assert three["score"] > one["score"] and three["protected"] <= one["protected"]


def test_nobody_with_enough_photos(judge, photos, faces):
    assert averaged(judge, photos, faces.protected_labels, 4) == []
    for size in (0, -1):
        with pytest.raises(InputError, match=f"size must be an integer >= 1, got {size}"):
            averaged(judge, photos, faces.protected_labels, size)
