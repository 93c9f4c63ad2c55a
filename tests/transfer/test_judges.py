"""The judge and its figures, beside loops over single photos."""

import dataclasses
import math

import numpy as np
import pytest

from deid_jax.data.pair_lists import Positions
from deid_jax.errors import InputError
from deid_jax.metrics import verification
from deid_jax.transfer import Faces, GalleryJudge, averaged
from deid_jax.transfer.judges import GALLERY, OTHERS
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
    return Faces(images, labels, lists, [f"{n}" for n in range(len(images))])


@pytest.fixture(scope="module")
def judge(faces):
    return GalleryJudge.of(tiny_embedder(), faces, FARS)


def _noisy(faces, seed, stddev=45):
    noise = np.random.default_rng(seed).normal(0, stddev, faces.protected.shape)
    return np.clip(faces.protected + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(faces):
    """Protected so badly that some are known and some are not."""
    return _noisy(faces, 9)


@pytest.fixture(scope="module")
def found(judge, photos, faces):
    """The judge's verdict on them."""
    return judge.judge(photos, faces.protected_labels)


@pytest.fixture(scope="module")
def clean(judge, faces):
    """Likewise on the unprotected ones, of which it misses some, too."""
    return judge.judge(_noisy(faces, 10, 15), faces.protected_labels)


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
    np.testing.assert_allclose(
        verification.similarities(probe, judge.galleries), expected, atol=1e-12
    )


def test_thresholds_let_few_enough_impostors_pass(judge, faces):
    rows = judge.embedder.embed(faces.images).astype(np.float64)
    impostors = [
        _cosine(rows[place], judge.galleries[person])
        for place in faces.lists.probes
        for person in range(PERSONS)
        if person != faces.labels[place]
    ]
    _assert_at_rates(judge.thresholds, impostors)


def _assert_at_rates(thresholds, impostors):
    assert list(thresholds) == list(FARS)
    for far, threshold in thresholds.items():
        accepted = sum(score >= threshold + 1e-12 for score in impostors)
        one_more = sum(score >= threshold - 1e-12 for score in impostors)
        assert accepted / len(impostors) <= far < one_more / len(impostors)


def test_a_protectors_thresholds_know_no_gallery(judge, faces):
    """Probes beside the other persons' probes."""
    rows = judge.embedder.embed(faces.images).astype(np.float64)
    probes = faces.lists.probes
    own = [_mean_direction(rows[probes[faces.labels[probes] == p]]) for p in range(PERSONS)]
    impostors = [
        _cosine(rows[place], own[person])
        for place in probes
        for person in range(PERSONS)
        if person != faces.labels[place]
    ]
    _assert_at_rates(judge.own_thresholds, impostors)
    assert judge.own_thresholds != judge.thresholds
    # Whatever the stranger has.
    moved = dataclasses.replace(
        faces, lists=faces.lists._replace(gallery=faces.lists.gallery[::-1])
    )
    assert GalleryJudge.of(tiny_embedder(), moved, FARS).own_thresholds == judge.own_thresholds


def test_pairs_are_told_apart_by_the_best_threshold(judge, faces):
    rows = judge.embedder.embed(faces.images).astype(np.float64)
    same, other = (
        [_cosine(rows[a], rows[b]) for a, b in pairs]
        for pairs in (faces.lists.genuine, faces.lists.impostor)
    )
    best = max(
        sum(s >= t for s in same) + sum(s < t for s in other) for t in [*same, *other, 2.0]
    )
    assert judge.accuracy == pytest.approx(best / (len(same) + len(other)))
    wins = [(s > o) + (s == o) / 2 for s in same for o in other]
    assert judge.auc == pytest.approx(np.mean(wins))


def test_too_few_impostors_for_a_rate_and_persons_without_probes_are_refused(faces):
    with pytest.raises(InputError, match=r"far 0\.001 needs 1000 impostor scores or more"):
        GalleryJudge.of(tiny_embedder(), faces, (0.001,))
    probes = faces.lists.probes[faces.labels[faces.lists.probes] != 2]
    few = dataclasses.replace(faces, lists=faces.lists._replace(probes=probes))
    with pytest.raises(InputError, match="person 2 has none"):
        GalleryJudge.of(tiny_embedder(), few, FARS)


def _over_persons(hidden, labels):
    """The exact 2.5 and 97.5 % quantiles over persons with as many photos each."""
    persons = sorted(set(labels))
    sums = [sum(h for h, own in zip(hidden, labels, strict=True) if own == p) for p in persons]
    size, chances = len(hidden) // len(persons), np.ones(1)
    for _ in persons:
        chances = np.convolve(chances, np.bincount(sums, minlength=size + 1) / len(persons))
    upto = np.cumsum(chances)
    return [np.searchsorted(upto, share) / len(hidden) for share in (0.025, 0.975)]


def _rows_of(judge, labels, compared, scores, clean, before=None, ranks=None):
    """What the rows must say of scores, by loops."""
    rows = []
    for far, threshold in judge.thresholds.items():
        flags = [score < threshold for score in scores]
        hidden = sum(flags)
        low, high = _wilson(hidden, len(scores))
        person_low, person_high = _over_persons(flags, labels)
        kept = []
        if before is not None:
            earlier = [score < threshold for score in before]
            kept = [now for now, then in zip(flags, earlier, strict=True) if then]
        rows.append(
            {
                "far": far,
                "threshold": threshold,
                "compared": compared,
                "protected": hidden / len(scores),
                "low": low,
                "high": high,
                "num_images": len(scores),
                "person_low": person_low,
                "person_high": person_high,
                "kept": sum(kept) / len(kept) if kept else None,
                "unprotected": sum(score < threshold for score in clean) / len(clean),
                "score": sum(scores) / len(scores),
                "rank1": None if ranks is None else sum(r <= 1 for r in ranks) / len(ranks),
                "rank5": None if ranks is None else sum(r <= 5 for r in ranks) / len(ranks),
            }
        )
    return rows


def _assert_same_rows(rates, expected):
    found = [dataclasses.asdict(row) for row in rates]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            # What is resampled may fall on the neighbour of the exact quantile.
            slack = 1.01 / theirs["num_images"] if name.startswith("person_") else 1e-9
            same = (
                value
                if value is None or isinstance(value, str)
                else pytest.approx(value, abs=slack)
            )
            assert ours[name] == same, name


def _scores_by_loops(judge, photos, labels):
    """Scores to the own gallery, ranks among all, and scores to the other photos."""
    rows = judge.embedder.embed(photos).astype(np.float64)
    to_gallery, ranks, to_others = [], [], []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        scores = [_cosine(row, gallery) for gallery in judge.galleries]
        to_gallery.append(scores[label])
        ranks.append(sorted(scores, reverse=True).index(scores[label]) + 1)
        others = [n for n in range(len(rows)) if n != number and labels[n] == label]
        to_others.append(_cosine(row, _mean_direction(rows[others])))
    return to_gallery, ranks, to_others


def test_figures_equal_loops_over_photos(judge, photos, faces, found, clean):
    """Photos, the same before something, and the same that nobody protected."""
    labels = faces.protected_labels
    earlier = _noisy(faces, 12)
    to_gallery, ranks, to_others = _scores_by_loops(judge, photos, labels)
    before, _, before_others = _scores_by_loops(judge, earlier, labels)
    free, _, free_others = _scores_by_loops(judge, _noisy(faces, 10, 15), labels)
    expected = [
        row
        for pair in zip(
            _rows_of(judge, labels, "gallery", to_gallery, free, before, ranks),
            _rows_of(judge, labels, "protected", to_others, free_others, before_others),
            strict=True,
        )
        for row in pair
    ]
    ours = found.rates(clean, judge.judge(earlier, labels))
    _assert_same_rows(ours, expected)
    assert {row.compared for row in ours} == {GALLERY, OTHERS}
    for row in ours[:2]:
        assert 0 < row.kept < 1 and 0 < row.unprotected < 1
        # Not the quotient of two shares of all photos, which may be above 1.
        scores = before if row.compared == "gallery" else before_others
        share = np.mean(np.array(scores) < row.threshold)
        assert row.kept != pytest.approx(row.protected / share)
    assert max(ranks) > 1


def test_kept_and_unprotected_are_of_the_same_photos(judge, faces, found):
    """Where none was protected before nothing can be kept."""
    labels = faces.protected_labels
    own = judge.judge(faces.protected, labels)
    everything = {key: np.ones(len(labels), bool) for key in own.protected}
    nothing = {key: ~flags for key, flags in everything.items()}
    for row in found.rates(dataclasses.replace(own, protected=nothing), found):
        assert row.kept == 1 and row.unprotected == 0
    for row in own.rates(
        dataclasses.replace(found, protected=everything),
        dataclasses.replace(own, protected=nothing),
    ):
        assert row.kept is None and row.unprotected == 1
    assert {row.kept for row in found.rates(own)} == {None}


def test_persons_with_one_photo_are_not_compared_with_protected_ones(judge, photos, faces):
    labels = faces.protected_labels
    left = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) == 1))
    verdict = judge.judge(photos[left], labels[left])
    rows = verdict.rates(verdict)
    assert [row.compared for row in rows] == ["gallery"] * len(FARS)
    assert rows[0].num_images == len(left) == len(labels) - 2


def test_one_person_alone_says_nothing_of_others(judge, photos, faces):
    own = faces.protected_labels == 2
    verdict = judge.judge(photos[own], faces.protected_labels[own])
    for row in verdict.rates(verdict):
        assert row.person_low is row.person_high is None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_averages_of_protected_photos(judge, photos, faces, found, clean, size):
    """In their order; a remainder is left out."""
    labels = faces.protected_labels
    scores, persons = [], []
    for pictures in (photos, _noisy(faces, 10, 15)):
        rows = judge.embedder.embed(pictures).astype(np.float64)
        scores.append([])
        for person in range(PERSONS):
            own = [row for row, label in zip(rows, labels, strict=True) if label == person]
            while len(own) >= size:
                mean = _mean_direction(own[:size])
                scores[-1].append(_cosine(mean, judge.galleries[person]))
                persons.append(person)
                own = own[size:]
        assert len(scores[-1]) == PERSONS * (3 // size)
    expected = _rows_of(judge, persons[: len(scores[0])], "gallery", *scores)
    means = [averaged(judge, verdict, size) for verdict in (found, clean)]
    _assert_same_rows(means[0].rates(means[1]), expected)


def test_averages_know_more_than_single_photos(judge, found):
    one, three = (averaged(judge, found, size) for size in (1, 3))
    one, three = one.rates(one)[0], three.rates(three)[0]
    assert three.score > one.score and three.protected <= one.protected


def test_nobody_with_enough_photos(judge, found):
    assert averaged(judge, found, 4) is None
    for size in (0, -1):
        with pytest.raises(InputError, match=f"size must be an integer >= 1, got {size}"):
            averaged(judge, found, size)
