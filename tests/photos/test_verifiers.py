"""Which recognisers are used, and their thresholds."""

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.photos.verifiers import (
    DEFAULTS,
    THRESHOLDS,
    Verifier,
    load_verifiers,
    thresholds_of,
)
from tests.experiments.protect_helpers import FIRST, SECOND, THIRD
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
        ("0.6", [COSINE, DLIBS], "NAME=VALUE,… if some recognisers compare by cosine"),
        ("two=0.3", [COSINE], "threshold is for one, got two=0.3"),
        ("one=0.3,one=0.4", [COSINE], "threshold of one is given twice"),
        ("one=0.3,0.4", [COSINE], "threshold is for one, got 0.4"),
        ("far=-0.6", [DISTANCE], "threshold of far must be a distance > 0, got -0.6"),
        ("one=nan", [COSINE], "threshold of one must be a cosine > -1 and < 1, got nan"),
        ("one=a", [COSINE], "must be a cosine > -1 and < 1, got a"),
        (None, [COSINE], "recogniser one needs a --threshold=one=VALUE"),
    ],
)
def test_bad_thresholds_are_refused(text, embedders, message):
    with refused(message):
        thresholds_of(text, embedders)


def _loader(*available):
    def load(text, size):
        if text not in available:
            raise InputError(f"cannot download {text}")
        same = SECOND if text == DEFAULTS[1] else FIRST
        return same._replace(name=text)

    return load


def test_unavailable_defaults_are_named_in_one_line(capsys):
    found = load_verifiers(None, "none", None, _loader(*DEFAULTS))
    assert tuple(one.embedder.name for one in found) == DEFAULTS
    assert capsys.readouterr().err == ""
    (only,) = load_verifiers(None, "none", None, _loader(DEFAULTS[0]))
    assert only.embedder.name == DEFAULTS[0] and only.is_surrogate
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in DEFAULTS)


@pytest.mark.parametrize(
    ("available", "roles"),
    [
        (DEFAULTS, (True, True, False)),
        (DEFAULTS[:2], (True, True)),
        (DEFAULTS[1:], (True, True)),
        (DEFAULTS[2:], (True,)),
    ],
)
def test_of_the_defaults_the_last_judges_if_all_are_there(available, roles):
    networks = dict(zip(DEFAULTS, (FIRST, SECOND, THIRD), strict=True))

    def load(text, size):
        if text not in available:
            raise InputError(f"cannot download {text}")
        return networks[text]._replace(name=text)

    found = load_verifiers(None, None, None, load)
    assert tuple(one.embedder.name for one in found) == available
    assert tuple(one.is_surrogate for one in found) == roles


def test_a_list_is_never_shortened_and_a_judge_is_not_fitted():
    with refused("cannot download mobilefacenet_casia"):
        load_verifiers(",".join(DEFAULTS), "none", None, _loader(*DEFAULTS[:2]))
    found = load_verifiers(None, DEFAULTS[1], None, _loader(*DEFAULTS))
    assert [(one.embedder.name, one.is_surrogate) for one in found] == [
        (DEFAULTS[0], True),
        (DEFAULTS[2], True),
        (DEFAULTS[1], False),
    ]


def test_a_judge_is_no_fitted_network_by_another_name():
    with refused(f"judge {DEFAULTS[2]} is the same network as the fitted {DEFAULTS[0]}"):
        load_verifiers(DEFAULTS[0], DEFAULTS[2], None, _loader(*DEFAULTS))


def test_galleries_of_distances_are_means():
    own, gallery = np.array([1.0, 0.0]), np.array([[1.0, 0.2], [1.0, 0.4]])
    known = Verifier(DISTANCE, -0.31, True, gallery).references(own)
    np.testing.assert_allclose(known, [own, [1.0, 0.3], *gallery])
    alone = Verifier(DISTANCE, -0.29, True, gallery).references(own)
    np.testing.assert_array_equal(alone, [own])
