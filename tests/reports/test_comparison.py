import dataclasses

import pytest

from deid_jax.attacks import ATTACKS
from deid_jax.errors import InputError
from deid_jax.metrics.statistics import bootstrap_gain, bootstrap_mean, wilson
from deid_jax.reports import comparison
from deid_jax.reports.comparison import Estimate, Estimates, tables_of
from deid_jax.reports.measured import choose
from tests.reports.runs_helpers import point


def interval(estimate):
    return estimate.low, estimate.high


def test_one_point_each_gives_one_table_per_kind_8_bit_first():
    tables = tables_of([point("blur"), point("zebra"), point("ifgsm"), point(), point("ants"),
                        point("ifgvm", "vgg16"), point(model="custom")])  # fmt: skip
    assert [(t.kind, t.min_mr) for t in tables] == [("uint8", None), ("float", None)]
    assert tables[0].methods == ("pfgvm", "ifgvm", "ifgsm", "blur", "ants", "zebra")
    assert tables[0].models == ("model_a", "vgg16", "custom")
    assert ("ifgvm", "model_a") not in tables[0].entries
    found = [t.entries["pfgvm", "model_a"].estimates.l2.value for t in tables]
    assert found == [2.01, 2.0]


def test_several_points_give_a_table_for_every_rate():
    points = [point(settings={"penalty_weight": w}) for w in (1.0, 2.0)]
    points.append(point("blur", mr=0.7))
    tables = tables_of(points, min_mr=(0.9, 0.99, 0.5))
    assert [(t.kind, t.min_mr) for t in tables] == [
        (kind, mr) for kind in ("uint8", "float") for mr in (0.9, 0.99, 0.5)
    ]
    entry = tables[0].entries["blur", "model_a"]
    assert (entry.point, entry.best_mr, entry.estimates) == (None, 0.7, Estimates())
    assert tables[2].entries["blur", "model_a"].point is points[2]


def test_least_l2_that_reaches_the_rate_is_chosen_by_the_tables_own_kind():
    weak = point(l2=1.0, mr=0.97, uint8_mr=0.90)
    fair = point(l2=1.5, mr=0.995, uint8_mr=0.985)
    strong = point(l2=3.0, mr=1.0, uint8_mr=0.99)
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
    tie = [point(mr=0.99), point(mr=1.0), point(mr=1.0)]
    assert choose(tie, "float", 0.9) is tie[1]


def test_estimates_have_the_intervals_of_the_statistics():
    one = point(seed=3, mr=0.975)
    eight, real = (
        table.entries["pfgvm", "model_a"].estimates
        for table in tables_of([one], confidence=0.9, seed=7)
    )
    values = [record.float_result.l2 for record in one.records]
    assert interval(real.l2) == bootstrap_mean(values, confidence=0.9, seed=7)
    assert real.l2.low < real.l2.value < real.l2.high
    assert real.mr == Estimate(0.975, *wilson(39, 40, 0.9))
    values = [record.uint8_result.mssim for record in one.records]
    assert interval(eight.mssim) == bootstrap_mean(values, confidence=0.9, seed=7)


@pytest.mark.parametrize("one", [point(seed=1, n=1), point()])
def test_without_records_or_with_one_there_is_no_bootstrap_interval(one):
    table = tables_of([one, dataclasses.replace(one, method="ifgvm")])[0]
    for entry in table.entries.values():
        assert interval(entry.estimates.l2) == (None, None)
        assert entry.estimates.mr.low < 1
    assert table.gains["ifgvm", "model_a"].l2 == Estimate(0.0)


def test_gains_are_the_papers_and_paired():
    ours, other = point(l2=2.0, mr=1.0, seed=5), point("ifgvm", l2=4.0, mr=0.8, seed=5)
    gains = tables_of([ours, other], seed=2)[1].gains["ifgvm", "model_a"]
    assert gains.mr == Estimate(pytest.approx(0.25))
    # The same noise on both: a pair's gain is 50 % whatever images are drawn.
    assert gains.l2 == Estimate(*[pytest.approx(0.5)] * 3)
    other = point("ifgvm", l2=4.0, mr=0.8, seed=6)
    other = dataclasses.replace(other, records=other.records[::-1])
    gains = tables_of([ours, other], seed=2)[1].gains["ifgvm", "model_a"]
    ours, theirs = ([r.float_result for r in p] for p in (ours.records, other.records[::-1]))
    for name, lower_is_better in (("l2", True), ("mssim", False)):
        pair = [[getattr(one, name) for one in of] for of in (ours, theirs)]
        expected = bootstrap_gain(*pair, lower_is_better=lower_is_better, seed=2)
        assert interval(getattr(gains, name)) == expected


def test_gains_need_both_methods_to_reach_the_rate_and_something_to_gain_on():
    points = [point(), point("ifgvm", mr=0.8), point("ifgsm"), point("ifgsm")]
    assert set(tables_of(points, min_mr=[0.9])[0].gains) == {("ifgsm", "model_a")}
    assert len(tables_of(points, min_mr=[0.7])[0].gains) == 2
    assert tables_of([point("ifgvm"), point("ifgsm")])[0].gains == {}
    assert tables_of([point(), point("ifgvm", "vgg16")])[0].gains == {}
    gains = tables_of([point(), point("ifgvm", mr=0.0, l2=0.0)])[1].gains["ifgvm", "model_a"]
    assert (gains.l2, gains.mr) == (None, None)
    assert gains.mssim is not None


def test_the_seed_decides_the_tables():
    points = [point(seed=1), point("ifgvm", seed=2)]
    assert tables_of(points) == tables_of(points)
    assert tables_of(points, seed=1) != tables_of(points)


def test_parameters_are_checked():
    with pytest.raises(InputError, match="confidence"):
        tables_of([point()], confidence=0.0)
    with pytest.raises(InputError, match="seed"):
        tables_of([point(seed=1)], seed=-1)


def test_gains_are_between_attacks_that_exist():
    assert {comparison.OURS, *comparison.OTHERS} <= set(ATTACKS)
