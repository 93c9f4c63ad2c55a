"""Thresholds, rates and intervals of strangers, against plain loops over made-up embeddings."""

import itertools

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.photos.strangers import MEAN, OTHERS, SELF, Stranger
from tests.helpers import refused

FAR = 0.3
LABELS = np.repeat(np.arange(6), 5)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def clean():
    """Six persons' five photos each: alike, but not very."""
    generator = np.random.default_rng(0)
    centres = np.repeat(generator.normal(size=(6, 4)), 5, axis=0)
    return unit(centres + generator.normal(size=(30, 4)))


@pytest.fixture(scope="module")
def stranger(clean):
    return Stranger.of(Distance.COSINE, clean, LABELS, (FAR, 0.001), seed=1, resamples=40)


def highest_rejected(scores, far):
    """The highest score that must be rejected so that no more than a share passes."""
    return sorted(scores, reverse=True)[int(len(scores) * far)]


def threshold_of(person, clean, drawn):
    """By a person-disjoint loop over drawn persons; persons drawn twice are two."""
    scores = []
    for one, other in itertools.combinations(drawn, 2):
        if one != other and person not in (one, other):
            pairs = itertools.product(clean[one == LABELS], clean[other == LABELS])
            scores += [float(a @ b) for a, b in pairs]
    return highest_rejected(scores, FAR)


def test_thresholds_come_from_pairs_of_other_persons(clean, stranger):
    found = stranger.thresholds[FAR, OTHERS].values[0]
    wanted = [threshold_of(person, clean, range(6)) for person in range(6)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert len(set(wanted)) > 2
    # For the mean: photos against means of other persons' photos.
    for person in range(6):
        scores = [
            float(clean[i] @ unit(clean[other == LABELS].mean(0)))
            for i, other in itertools.product(range(30), range(6))
            if person not in (LABELS[i], other) and LABELS[i] != other
        ]
        wanted = highest_rejected(scores, FAR)
        assert stranger.thresholds[FAR, MEAN].values[0][person] == pytest.approx(wanted)


def test_resamples_draw_thresholds_and_rates_together(clean, stranger):
    own = stranger.thresholds[FAR, SELF]
    scores = np.random.default_rng(2).uniform(-0.5, 1, 30)
    rates = []
    for drawn, values in zip(own.counts[1:], own.values[1:], strict=True):
        assert drawn.sum() == 6
        persons = np.repeat(np.arange(6), drawn)
        unmatched = []
        for person in persons:
            wanted = threshold_of(person, clean, persons)
            assert values[person] == pytest.approx(wanted)
            unmatched += (scores[person == LABELS] <= wanted).tolist()
        rates.append(np.mean(unmatched))
        assert np.isnan(values[drawn == 0]).all()
    rate = own.rate(scores, LABELS)
    assert rate.share == np.mean(scores < own.values[0][LABELS])
    assert (rate.low, rate.high) == pytest.approx(np.quantile(rates, [0.025, 0.975]))
    assert rate.low < rate.share < rate.high
    again = Stranger.of(Distance.COSINE, clean, LABELS, (FAR,), seed=1, resamples=40)
    assert again.thresholds[FAR, SELF].rate(scores, LABELS) == rate


def test_resamples_without_impostors_are_left_out():
    """Of three persons few draws leave two for the third."""
    few = np.repeat(np.arange(3), 30)
    clean = np.random.default_rng(3).normal(size=(90, 4))
    own = Stranger.of(Distance.COSINE, clean, few, (0.5,), resamples=50).thresholds[0.5, SELF]
    assert np.isnan(own.values[own.counts > 0]).any()
    rate = own.rate(np.linspace(-1, 1, 90), few)
    assert rate.low <= rate.share <= rate.high
    assert own.rate(np.zeros(0), np.zeros(0, int)) == (None, None, None, 0)
    assert own.rate(np.array([2.0]), np.array([1])) == (0, None, None, 1)


def test_rates_at_which_few_pairs_are_accepted_are_left_out_or_refused(clean, stranger):
    """Of 250 pairs without a person 75 pass at 30 %; 0.1 % of them would be none."""
    own = stranger.thresholds[FAR, OTHERS]
    assert (own.num_pairs, own.num_persons) == (75, 6)
    assert "needs 1000 impostor scores" in stranger.left_out[0.001]
    with pytest.raises(InputError, match="accepts only 25 impostor pairs, of 6 persons"):
        Stranger.of(Distance.COSINE, clean, LABELS, (0.1,))


def test_a_threshold_needs_two_other_persons():
    rows, labels = np.random.default_rng(0).normal(size=(80, 4)), np.repeat([0, 1], 40)
    with refused("photos must be of three persons or more, got 2"):
        Stranger.of(Distance.COSINE, rows, labels, [0.01], resamples=3)


def test_photos_are_compared_with_themselves_others_and_their_mean(clean, stranger):
    sign = unit(clean[7] + 0.3)
    found = stranger.compare(sign, 7)
    others = clean[[5, 6, 8, 9]]
    assert found[SELF] == pytest.approx(sign @ clean[7])
    np.testing.assert_allclose(found[OTHERS], others @ sign)
    np.testing.assert_allclose(found[MEAN], [unit(others.mean(0)) @ sign])
    far = Stranger(Distance.EUCLIDEAN, clean, LABELS, {}, {}).compare(sign, 7)
    assert far[SELF] == pytest.approx(-np.linalg.norm(sign - clean[7]))
    np.testing.assert_allclose(far[MEAN], [-np.linalg.norm(sign - others.mean(0))])


def test_rates_are_over_pairs_and_lost_faces_in_none(stranger):
    own = stranger.thresholds[FAR, OTHERS].values[0]
    photos = [0, 5, 10]

    def seen(number, *above):
        """Similarities to four others just above the threshold, or just below."""
        similarities = own[LABELS[number]] + np.where(above, 1e-6, -1e-6)
        return {OTHERS: similarities}

    before = [seen(0, 0, 0, 1, 1), seen(5, 1, 1, 1, 0), seen(10, 0, 0, 0, 0)]
    after = [seen(0, 0, 1, 1, 0), None, seen(10, 1, 0, 0, 0)]
    judged = stranger.judge(OTHERS, FAR, photos, after, before)
    assert judged.rate.share == 5 / 8
    assert judged.rate.num_comparisons == 8
    assert judged.survival == pytest.approx(4 / 6)
    assert stranger.judge(OTHERS, FAR, photos, [None] * 3, before).survival is None
