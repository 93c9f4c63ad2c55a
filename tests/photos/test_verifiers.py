"""Which recognisers are asked, from which similarity on they match, and in which crops."""

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.models.templates import ARCFACE, DLIB
from deid_jax.photos import crop_attack
from deid_jax.photos.alignment import fit_similarity, to_photo
from deid_jax.photos.faces import Face
from deid_jax.photos.verifiers import (
    DEFAULTS,
    THRESHOLDS,
    Verifier,
    crops_of,
    load_verifiers,
    own_crops,
    thresholds_of,
)
from tests.experiments.protect_helpers import FIRST, picture
from tests.helpers import refused

COSINE = FIRST._replace(name="one")
DISTANCE = FIRST._replace(name="far", distance=Distance.EUCLIDEAN)
DLIBS = FIRST._replace(name="dlib_resnet", distance=Distance.EUCLIDEAN)


@pytest.mark.parametrize(
    "text, embedders, expected",
    [
        ("0.3", [COSINE], [0.3]),
        ("0.6", [DISTANCE, DLIBS], [-0.6, -0.6]),
        ("one=0.3, far=0.7", [COSINE, DISTANCE], [0.3, -0.7]),
        ("one=-0.1", [COSINE, DLIBS], [-0.1, -THRESHOLDS["dlib_resnet"]]),
        (None, [DLIBS], [-THRESHOLDS["dlib_resnet"]]),
    ],
)
def test_thresholds_are_similarities(text, embedders, expected):
    assert thresholds_of(text, embedders) == expected


@pytest.mark.parametrize(
    "text, embedders, message",
    [
        ("0.6", [COSINE, DLIBS], "NAME=VALUE for each of recognisers that differ in kind"),
        ("two=0.3", [COSINE], "given twice or for no recogniser: two=0.3"),
        ("one=0.3,one=0.4", [COSINE], "given twice or for no recogniser: one=0.4"),
        ("one=0.3,0.4", [COSINE], "given twice or for no recogniser: 0.4"),
        ("far=-0.6", [DISTANCE], "threshold of far must be a distance > 0, got -0.6"),
        ("one=nan", [COSINE], "threshold of one must be a cosine > -1 and < 1, got nan"),
        ("one=a", [COSINE], "must be a cosine > -1 and < 1, got a"),
        (None, [COSINE], "recogniser one needs a --threshold=one=VALUE"),
    ],
)
def test_bad_thresholds_are_refused(text, embedders, message):
    with refused(message):
        thresholds_of(text, embedders)


def _loader(*at_hand):
    def load(text, size):
        if text not in at_hand:
            raise InputError(f"cannot download {text}")
        return FIRST._replace(name=text)

    return load


def test_defaults_that_cannot_be_had_are_told_in_one_line(capsys):
    found = load_verifiers(None, "none", None, _loader(*DEFAULTS))
    assert tuple(one.embedder.name for one in found) == DEFAULTS
    assert capsys.readouterr().err == ""
    (only,) = load_verifiers(None, "none", None, _loader(DEFAULTS[0]))
    assert only.embedder.name == DEFAULTS[0] and only.is_surrogate
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in DEFAULTS)


def test_a_list_is_never_shortened_and_a_judge_is_not_fitted():
    with refused("cannot download mobilefacenet_casia"):
        load_verifiers(",".join(DEFAULTS), "none", None, _loader(*DEFAULTS[:2]))
    found = load_verifiers(None, DEFAULTS[1], None, _loader(*DEFAULTS))
    assert [(one.embedder.name, one.is_surrogate) for one in found] == [
        (DEFAULTS[0], True),
        (DEFAULTS[2], True),
        (DEFAULTS[1], False),
    ]


def test_galleries_of_distances_are_means():
    own, gallery = np.array([1.0, 0.0]), np.array([[1.0, 0.2], [1.0, 0.4]])
    known = Verifier(DISTANCE, -0.31, True, gallery).references(own)
    np.testing.assert_allclose(known, [own, [1.0, 0.3], *gallery])
    alone = Verifier(DISTANCE, -0.29, True, gallery).references(own)
    np.testing.assert_array_equal(alone, [own])


@pytest.mark.parametrize("width", [90.0, 400.0])
def test_what_the_attack_takes_a_surrogate_to_see_is_what_it_sees(width):
    """In its own crop, of a photo to which the perturbation was added."""
    random = np.random.default_rng(3)
    points = (ARCFACE.points + random.normal(0, 1.5, (5, 2))) * width / 90 + 20
    face = Face((20.0, 20.0, width, width), points)
    side = round(2 * width)
    pixels = picture(0, size=(side, side), contrast=20)
    surrogates = [Verifier(FIRST._replace(alignment=DLIB), 0.5, True)]
    crops = crop_attack.Crops.of(surrogates, pixels, [face], grey=False)
    np.testing.assert_array_equal(crops.own[0].images, own_crops(surrogates, pixels, [face])[0])
    # Smooth, so that rounding to 8 bits is small beside it.
    waves = np.cumsum(np.cumsum(random.normal(0, 1, (112, 112, 3)), 0), 1)
    change = np.float32(0.2 * waves / np.abs(waves).max())
    (expected,) = crop_attack._seen(crops, crops.images + change)
    matrix = fit_similarity(points, ARCFACE.points)
    rows, columns, own = to_photo(change, matrix, pixels.shape[:2])
    changed = pixels.astype(np.float64)
    changed[rows, columns] += 255 * own
    after = crops_of(np.rint(changed).clip(0, 255).astype(np.uint8), [face], DLIB)
    moved, wanted = after - crops.own[0].images, expected - crops.own[0].images
    assert np.abs(wanted).max() > 0.03
    assert np.abs(moved - wanted).mean() < 0.1 * np.abs(wanted).mean()
