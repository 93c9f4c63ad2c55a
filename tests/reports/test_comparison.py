import dataclasses

import numpy as np
import pytest

from deid_jax.attacks import ATTACKS
from deid_jax.errors import InputError
from deid_jax.metrics.statistics import bootstrap_gain, bootstrap_mean, wilson
from deid_jax.reports import comparison
from deid_jax.reports.comparison import Point, Run, check_comparable, choose, compare


def records_of(l2, mssim, persons=4):
    """One record per value; the 8-bit figures are a little worse."""
    return [
        {
            "person": f"p{i % persons}", "name": f"{i:03d}", "l2": float(a), "mssim": float(b),
            "l2_uint8": float(a) + 0.01, "mssim_uint8": float(b) - 0.01,
        }
        for i, (a, b) in enumerate(zip(l2, mssim, strict=True))
    ]  # fmt: skip


def point(method="pfgvm", model="model_a", *, l2=2.0, mssim=0.95, mr=1.0, n=40, source="",
          seed=None, mr_uint8=None, **settings):  # fmt: skip
    """A point; with per-image records around its figures where a seed is given."""
    records = ()
    if seed is not None:
        generator = np.random.default_rng(seed)
        noise = generator.gamma(2, size=n)
        records = records_of(l2 * noise / noise.mean(), mssim + generator.uniform(0, 0.01, n))
        mssim = float(np.mean([record["mssim"] for record in records]))
    figures = {"dataset": "folder", "split": "test", "num_images": n, "clean_error": 0.1}
    for suffix, more in (("", 0), ("_uint8", 0.01)):
        figures |= {"l2" + suffix: l2 + more, "mssim" + suffix: mssim - more}
    figures |= {"mr": mr, "mr_uint8": mr if mr_uint8 is None else mr_uint8}
    figures["target_rate"] = None
    return Point(method, model, settings, figures, records, source or method)


DESCRIPTION = {
    "settings": {
        "image_size": 64, "crop": None, "seed": 0, "quantize": False, "target": None,
        "init": None, "data_dir": "/here/faces",
    },
    "dataset": {"folder": "faces", "crop": "auto"},
    "recogniser": {
        "model": "model_a", "seed": 0, "split": "train", "training": {"epochs": 24},
        "accuracy": {"test": 0.82}, "weights": "5d41",
    },
}  # fmt: skip


def run(one=None, section="settings", /, **changes):
    """A run of one point, its description changed in one section."""
    one = one or point()
    changed = {**DESCRIPTION, section: {**DESCRIPTION[section], **changes}}
    return Run(one.source, [one], changed)


def test_methods_that_quantize_by_themselves_go_with_any():
    def unasked(method):
        return run(point(method), quantize=None)

    common = check_comparable([unasked("pfgvm"), run(point("ifgvm")), unasked("apfgvm")])
    assert common.facts["quantize"] is False
    assert not any("quantize" in names for names in common.unrecorded.values())
    assert check_comparable([run(point("ifgvm"), quantize=True), unasked("apfgvm")])
    with pytest.raises(InputError, match="quantize is true and false"):
        check_comparable([run(point("apfgvm"), quantize=True), unasked("pfgvm")])


def test_runs_of_the_same_facts_pass_and_the_facts_are_told():
    common = check_comparable([run(point(seed=1)), run(point("ifgvm", seed=2))])
    assert common.facts["image_size"] == 64
    assert common.facts["crop"] == "auto"
    assert common.facts["data_dir"] == "faces"
    assert (common.facts["target"], common.facts["init"]) == ("random", "image")
    assert common.facts["quantize"] is False
    assert common.unrecorded == {}


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("settings", {"image_size": 32}, "image_size is 64 and 32"),
        ("settings", {"crop": "square"}, 'crop is "auto" and "square"'),
        ("dataset", {"crop": "celeba"}, 'crop is "auto" and "celeba"'),
        ("dataset", {"persons_seed": 3}, 'persons_seed is "none" and 3'),
        ("settings", {"target": "runner_up"}, 'target is "random" and "runner_up"'),
        ("settings", {"target": "none"}, 'target is "random" and "none"'),
        ("settings", {"init": "noise"}, 'init is "image" and "noise"'),
        ("settings", {"seed": 1}, "seed is 0 and 1"),
        ("settings", {"quantize": True}, "quantize is false and true"),
        ("settings", {"precision": "bf16"}, 'precision is "float32" and "bf16"'),
        ("settings", {"data_dir": "x/others"}, 'data_dir is "faces" and "others"'),
        ("recogniser", {"seed": 1}, "recogniser's seed of model_a is 0 and 1"),
        ("recogniser", {"weights": "9f"}, "recogniser's weights of model_a is"),
        ("recogniser", {"split": "all"}, "recogniser's split of model_a is"),
        (
            "recogniser",
            {"training": {"epochs": 9}},
            'recogniser\'s training of model_a is {"epochs": 24} and {"epochs": 9}',
        ),
        ("recogniser", {"accuracy": {"test": 0.9}}, "recogniser's accuracy of model_a is"),
    ],
)
def test_what_must_not_be_compared_is_refused_by_name(section, changes, message):
    with pytest.raises(InputError) as caught:
        check_comparable([run(), run(point("ifgvm"), section, **changes)])
    assert str(caught.value).startswith("pfgvm and ifgvm cannot be compared: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": "auto"},
        {"target": "random"},
        {"init": "image"},
        {"data_dir": "../faces/"},
        {"data_dir": "."},
        {"batch_size": 7},
    ],
)
def test_what_means_the_same_is_the_same(changes):
    check_comparable([run(), run(point("ifgvm"), **changes)])


@pytest.mark.parametrize(
    ("name", "value"), [("dataset", "celeba"), ("split", "all"), ("num_images", 41)]
)
def test_other_pictures_are_refused(name, value):
    other = point("ifgvm")
    other = dataclasses.replace(other, figures={**other.figures, name: value})
    with pytest.raises(InputError, match=rf"pfgvm and ifgvm cannot .* {name} is"):
        check_comparable([run(), run(other)])


def test_other_names_of_pictures_are_refused():
    one, other = point(seed=1), point("ifgvm", seed=1)
    renamed = [{**other.records[0], "name": "stranger"}, *other.records[1:]]
    other = dataclasses.replace(other, records=renamed)
    with pytest.raises(InputError, match="p0/000 is only in the first"):
        check_comparable([run(one), run(other)])


def test_order_of_pictures_does_not_matter():
    one, other = point(seed=1), point("ifgvm", seed=1)
    other = dataclasses.replace(other, records=other.records[::-1])
    check_comparable([run(one), run(other)])


def test_baselines_have_no_target_and_no_first_iterate():
    check_comparable([run(), run(point("blur"), target="none", init="noise")])
    with pytest.raises(InputError, match="blur cannot be compared: seed"):
        check_comparable([run(), run(point("blur"), seed=1)])


def test_recognisers_are_compared_model_by_model():
    other = {"model": "vgg16", "seed": 5, "accuracy": {"test": 0.1}}
    vgg16 = point(model="vgg16", source="b")
    check_comparable([run(), run(vgg16, "recogniser", **other)])
    again = run(point("ifgvm", "vgg16"), "recogniser", **{**other, "seed": 6})
    with pytest.raises(InputError, match="recogniser's seed of vgg16 is 5 and 6"):
        check_comparable([run(), run(vgg16, "recogniser", **other), again])


def test_a_difference_between_unequal_neighbours_of_a_silent_run_is_found():
    silent = Run("ifgvm", [point("ifgvm")])
    with pytest.raises(InputError, match="pfgvm and blur cannot be compared: image_size"):
        check_comparable([run(), silent, run(point("blur"), image_size=32)])


def test_what_is_not_recorded_passes_and_is_named():
    silent = Run("ifgvm", [point("ifgvm")])
    common = check_comparable([silent, run(point(seed=1))])
    assert common.facts["image_size"] == 64
    assert set(common.unrecorded) == {"ifgvm"}
    assert set(common.unrecorded["ifgvm"]) == {
        "pictures", "image_size", "seed", "quantize", "crop", "data_dir", "persons_seed",
        "target", "init", "precision", "recogniser's seed", "recogniser's training",
        "recogniser's accuracy", "recogniser's split", "recogniser's weights",
    }  # fmt: skip
    bare = check_comparable([Run("blur", [point("blur")])])
    assert not {"target", "init"} & set(bare.unrecorded["blur"])


def test_rows_of_one_sweep_must_agree_too():
    rows = [point(l2=1.0, penalty_weight=1.0), point(l2=2.0, penalty_weight=2.0)]
    rows[1] = dataclasses.replace(rows[1], figures={**rows[1].figures, "split": "all"})
    with pytest.raises(InputError, match=r'^sweep cannot be compared: split is "test" and'):
        check_comparable([Run("sweep", rows)])


def test_no_point_is_taken_twice():
    one, same = point(num_steps=50, source="a"), point(num_steps=50.0, source="b")
    with pytest.raises(InputError, match="a and b both hold: pfgvm against model_a, num_steps"):
        check_comparable([Run("a", [one]), Run("b", [same])])
    with pytest.raises(InputError, match=r"^a holds twice: pfgvm"):
        check_comparable([Run("a", [one, dataclasses.replace(one)])])
    check_comparable([Run("a", [one]), Run("b", [point("ifgvm", num_steps=50)])])
    check_comparable([Run("a", [one]), Run("b", [point(model="vgg16", num_steps=50)])])


def test_one_point_each_gives_one_table_a_kind_8_bit_first():
    tables = compare([point("blur"), point("zebra"), point("ifgsm"), point(), point("ants"),
                      point("ifgvm", "vgg16"), point(model="custom")])  # fmt: skip
    assert [(table.kind, table.min_mr) for table in tables] == [
        ("uint8", None),
        ("float", None),
    ]
    assert tables[0].methods == ("pfgvm", "ifgvm", "ifgsm", "blur", "ants", "zebra")
    assert tables[0].models == ("model_a", "vgg16", "custom")
    assert ("ifgvm", "model_a") not in tables[0].entries
    assert tables[0].entries["pfgvm", "model_a"].figures["l2"].value == 2.01
    assert tables[1].entries["pfgvm", "model_a"].figures["l2"].value == 2.0


def test_several_points_give_a_table_for_every_threshold():
    points = [point(penalty_weight=w) for w in (1.0, 2.0)] + [point("blur", mr=0.7)]
    tables = compare(points, min_mr=(0.9, 0.99, 0.5))
    assert [(table.kind, table.min_mr) for table in tables] == [
        (kind, mr) for kind in ("uint8", "float") for mr in (0.9, 0.99, 0.5)
    ]
    assert tables[0].entries["blur", "model_a"].point is None
    assert tables[0].entries["blur", "model_a"].best_mr == 0.7
    assert tables[0].entries["blur", "model_a"].figures == {}
    assert tables[2].entries["blur", "model_a"].point is points[2]


def test_least_l2_that_reaches_the_rate_is_chosen_by_the_tables_own_kind():
    weak = point(l2=1.0, mr=0.97, mr_uint8=0.90, penalty_weight=3.0)
    fair = point(l2=1.5, mr=0.995, mr_uint8=0.985, penalty_weight=2.0)
    strong = point(l2=3.0, mr=1.0, mr_uint8=0.99, penalty_weight=1.0)
    points = [strong, weak, fair]
    assert choose(points, "float", 0.99) is fair
    assert choose(points, "uint8", 0.99) is strong
    assert choose(points, "uint8", 0.9) is weak
    assert choose(points, "uint8", 0.995) is None
    assert choose(points, "float", None) is weak


def test_the_threshold_itself_is_reached_and_ties_go_to_the_higher_rate():
    exact, just_below = point(mr=199 / 200), point(mr=199 / 200 - 1e-4)
    assert choose([exact], "float", 0.995) is exact
    assert choose([just_below], "float", 0.995) is None
    tie = [point(mr=0.99, num_steps=1), point(mr=1.0, num_steps=2), point(mr=1.0, num_steps=3)]
    assert choose(tie, "float", 0.9) is tie[1]


def test_figures_have_the_intervals_of_the_statistics():
    one = point(seed=3, mr=0.975)
    (eight, real) = compare([one], confidence=0.9, seed=7)
    figures = real.entries["pfgvm", "model_a"].figures
    values = [record["l2"] for record in one.records]
    assert figures["l2"][1:] == bootstrap_mean(values, confidence=0.9, seed=7)
    assert figures["l2"].low < figures["l2"].value < figures["l2"].high
    assert figures["mr"] == (0.975, *wilson(39, 40, 0.9))
    values = [record["mssim_uint8"] for record in one.records]
    expected = bootstrap_mean(values, confidence=0.9, seed=7)
    assert eight.entries["pfgvm", "model_a"].figures["mssim"][1:] == expected


@pytest.mark.parametrize("n", [1, 40])
def test_without_records_or_with_one_there_is_no_bootstrap_interval(n):
    one = point(seed=1, n=1) if n == 1 else point(n=40)
    other = dataclasses.replace(one, method="ifgvm")
    tables = compare([one, other])
    for entry in tables[0].entries.values():
        assert entry.figures["l2"][1:] == (None, None)
        assert entry.figures["mr"].low < 1
    assert tables[0].gains["ifgvm", "model_a"]["l2"] == (0.0, None, None)


def test_gains_are_the_papers_and_paired():
    ours, other = point(l2=2.0, mr=1.0, seed=5), point("ifgvm", l2=4.0, mr=0.8, seed=5)
    gains = compare([ours, other], seed=2)[1].gains["ifgvm", "model_a"]
    assert gains["l2"].value == pytest.approx(0.5)
    assert gains["mr"] == (pytest.approx(0.25), None, None)
    # The same noise on both: a pair's gain is 50 % whatever pictures are drawn.
    assert gains["l2"][1:] == pytest.approx((0.5, 0.5))
    other = point("ifgvm", l2=4.0, mr=0.8, seed=6)
    other = dataclasses.replace(other, records=other.records[::-1])
    gains = compare([ours, other], seed=2)[1].gains["ifgvm", "model_a"]
    pair = [[r["l2"] for r in records] for records in (ours.records, other.records[::-1])]
    assert gains["l2"][1:] == bootstrap_gain(*pair, lower_is_better=True, seed=2)
    pair = [[r["mssim"] for r in records] for records in (ours.records, other.records[::-1])]
    assert gains["mssim"][1:] == bootstrap_gain(*pair, lower_is_better=False, seed=2)


def test_gains_need_both_methods_to_reach_the_rate():
    points = [
        point(mr=1.0),
        point("ifgvm", mr=0.8),
        point("ifgsm"),
        point("ifgsm", num_steps=1),
    ]
    assert set(compare(points, min_mr=[0.9])[0].gains) == {("ifgsm", "model_a")}
    assert set(compare(points, min_mr=[0.7])[0].gains) == {
        ("ifgvm", "model_a"),
        ("ifgsm", "model_a"),
    }
    assert compare([point("ifgvm"), point("ifgsm")])[0].gains == {}
    assert compare([point(), point("ifgvm", "vgg16")])[0].gains == {}


def test_gain_over_nothing_is_left_out():
    other = point("ifgvm", mr=0.0)
    other = dataclasses.replace(other, figures={**other.figures, "l2": 0.0})
    assert set(compare([point(), other])[1].gains["ifgvm", "model_a"]) == {"mssim"}


def test_the_same_points_give_the_same_tables():
    points = [point(seed=1), point("ifgvm", seed=2)]
    assert compare(points) == compare(points)
    assert compare(points, seed=1) != compare(points)


def test_parameters_are_checked():
    with pytest.raises(InputError, match="confidence"):
        compare([point()], confidence=0.0)
    with pytest.raises(InputError, match="seed"):
        compare([point(seed=1)], seed=-1)


def test_gains_are_between_attacks_that_exist():
    assert {comparison.OURS, *comparison.OTHERS} <= set(ATTACKS)
