import dataclasses

import pytest

from deid_jax.errors import InputError
from deid_jax.reports.comparable import check_comparable
from deid_jax.reports.measured import FinishedRun
from tests.reports.runs_helpers import changed, finished, point


def test_runs_of_the_same_facts_pass_and_the_facts_are_known():
    one, other = point(seed=1), point("ifgvm", seed=1)
    other = dataclasses.replace(other, records=other.records[::-1])
    shared = check_comparable([finished(one), finished(other)])
    expected = {"image_size": 64, "crop": "auto", "data_dir": "faces", "target": "random",
                "init": "image", "quantize": False}  # fmt: skip
    assert shared.known.items() >= expected.items()
    assert shared.unrecorded == {}


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("settings", {"image_size": 32}, "image_size is 64 and 32"),
        ("dataset", {"crop": "celeba"}, 'crop is "auto" and "celeba"'),
        ("settings", {"crop": "square"}, 'crop is "auto" and "square"'),
        ("dataset", {"persons_seed": 3}, 'persons_seed is "none" and 3'),
        ("settings", {"target": "none"}, 'target is "random" and "none"'),
        ("settings", {"init": "noise"}, 'init is "image" and "noise"'),
        ("settings", {"quantize": True}, "quantize is false and true"),
        ("settings", {"precision": "bf16"}, 'precision is "float32" and "bf16"'),
        ("settings", {"data_dir": "x/others"}, 'data_dir is "faces" and "others"'),
        ("recogniser", {"seed": 1}, "recogniser's seed of model_a is 0 and 1"),
        (
            "recogniser",
            {"training": {"epochs": 9}},
            'recogniser\'s training of model_a is {"epochs": 24} and {"epochs": 9}',
        ),
    ],
)
def test_runs_that_differ_are_refused(section, changes, message):
    with pytest.raises(InputError) as caught:
        check_comparable([finished(), finished(point("ifgvm"), section, **changes)])
    assert str(caught.value) == f"pfgvm and ifgvm cannot be compared: {message}"


@pytest.mark.parametrize(
    "changes",
    [{"crop": "auto"}, {"target": "random"}, {"data_dir": "../faces/"}, {"batch_size": 7}],
)
def test_equivalent_settings_pass(changes):
    check_comparable([finished(), finished(point("ifgvm"), **changes)])


def test_other_images_are_refused():
    one, other = point(seed=1), point("ifgvm", seed=1)
    with pytest.raises(InputError, match=r"pfgvm and ifgvm cannot .* split is"):
        check_comparable([finished(one), finished(dataclasses.replace(other, split="all"))])
    with pytest.raises(InputError, match="num_images is 40 and 41"):
        check_comparable([finished(one), finished(changed(other, num_images=41))])
    renamed = [dataclasses.replace(other.records[0], name="stranger"), *other.records[1:]]
    with pytest.raises(InputError, match="p0/000 is only in the first"):
        check_comparable([finished(one), finished(dataclasses.replace(other, records=renamed))])


def test_methods_that_always_round_go_with_both():
    def unasked(method):
        return finished(point(method), quantize=None)

    shared = check_comparable([unasked("pfgvm"), finished(point("ifgvm")), unasked("apfgvm")])
    assert shared.known["quantize"] is False
    assert not any("quantize" in names for names in shared.unrecorded.values())
    assert check_comparable([finished(point("ifgvm"), quantize=True), unasked("apfgvm")])
    with pytest.raises(InputError, match="quantize is true and false"):
        check_comparable([finished(point("apfgvm"), quantize=True), unasked("pfgvm")])


def test_baselines_have_no_target_and_no_first_iterate():
    check_comparable([finished(), finished(point("blur"), target="none", init="noise")])
    with pytest.raises(InputError, match="blur cannot be compared: seed"):
        check_comparable([finished(), finished(point("blur"), seed=1)])


def test_recognisers_are_compared_model_by_model():
    other = {"model": "vgg16", "seed": 5, "accuracy": {"test": 0.1}}
    vgg16 = finished(point(model="vgg16", source="b"), "recogniser", **other)
    again = finished(point("ifgvm", "vgg16"), "recogniser", **other | {"seed": 6})
    check_comparable([finished(), vgg16])
    with pytest.raises(InputError, match="recogniser's seed of vgg16 is 5 and 6"):
        check_comparable([finished(), vgg16, again])


def test_unrecorded_facts_pass_and_are_listed():
    silent = FinishedRun("ifgvm", [point("ifgvm")])
    shared = check_comparable([silent, finished(point(seed=1))])
    assert shared.known["image_size"] == 64
    assert set(shared.unrecorded["ifgvm"]) == {
        "images", "image_size", "seed", "quantize", "crop", "data_dir", "persons_seed",
        "target", "init", "precision", "recogniser's seed", "recogniser's training",
        "recogniser's accuracy", "recogniser's split", "recogniser's weights",
    }  # fmt: skip
    with pytest.raises(InputError, match="pfgvm and blur cannot be compared: image_size"):
        check_comparable([finished(), silent, finished(point("blur"), image_size=32)])


def test_no_point_is_taken_twice():
    one = point(settings={"num_steps": 50}, source="a")
    same = point(settings={"num_steps": 50.0}, source="b")
    with pytest.raises(InputError, match="a and b both hold: pfgvm against model_a, num_steps"):
        check_comparable([FinishedRun("a", [one]), FinishedRun("b", [same])])
    with pytest.raises(InputError, match=r"^a holds twice: pfgvm"):
        check_comparable([FinishedRun("a", [one, dataclasses.replace(one)])])
    check_comparable([FinishedRun("a", [one, point(model="vgg16")])])
