"""The comparison's contract: files, tables, goals, the same images and targets for all."""

import contextlib
import csv
import importlib.util
import json
import math
import warnings

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from deid_jax.data import load_dataset
from deid_jax.evaluation.records import ImageMetrics
from deid_jax.reports import trial_statistics
from experiments import compare
from experiments._common import data_settings, machine
from experiments._common.flags import parse_flags
from experiments._compare import compare_tables
from experiments._compare.compare_tables import summaries_of
from experiments._compare.trials import Goal, Trial
from experiments._peers import least_distortion
from tests.experiments.conftest import assert_refused, listing
from tests.helpers import noise_faces

FILES = [
    "compare.csv",
    "compare.md",
    "compare.png",
    "config.json",
    "per_image.csv",
    "timing.csv",
]
QUICK = ("--methods=pfgvm,ifgvm", "--num_steps=2", "--targets=random", "--peers=none")


@pytest.fixture
def arguments(arguments):
    """What every comparison on the tiny data set is given."""
    return [*arguments, "--split=all"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """One thread of PyTorch, as tests share the processor."""
    monkeypatch.setattr(machine, "threads", lambda: 1)


def read(lines):
    return list(csv.DictReader(lines))


def table(path):
    return read(path.read_text().splitlines())


def scored(l2, predicted, aim="b", *, claimed=None, predicted_uint8=None, already=False):
    """Person "a" attacked: a float result and an 8-bit image 0.5 further away."""

    def metrics(predicted, l2):
        hit = predicted == aim if aim else None
        return ImageMetrics(predicted, 1.0, predicted != "a", hit, l2, 0.1, 1 - l2 / 10)

    kept = metrics(predicted_uint8 or predicted, l2 + 0.5)
    goal = Goal("random", ("a/0",), np.zeros(1, np.int32), [aim], [already])
    return goal.record(0, (metrics(predicted, l2), kept), 4, 1, claimed)


def trial(method, l2, *, library="deid_jax", num_steps=4, already=0, target="random"):
    """A targeted trial: distances of float results, None where it failed."""
    claimed = None if library == "deid_jax" else False
    records = [
        scored(
            distance or 1.0,
            "a" if distance is None else "b",
            claimed=claimed,
            already=already > place,
        )
        for place, distance in enumerate(l2)
    ]
    return Trial(target, library, method, num_steps, records, 0.5)


def test_goals_are_the_target_or_any_misclassification():
    missed = scored(2.0, "c")
    assert not missed.float_result.success
    assert not missed.uint8_result.success
    assert missed.uint8_result.misclassified
    untargeted = scored(2.0, "c", None)
    assert untargeted.float_result.success
    assert (untargeted.float_result.l2, untargeted.uint8_result.l2) == (2, 2.5)
    assert not scored(2.0, "a", None).float_result.success
    # What rounding undoes is no success of the image.
    undone = scored(2.0, "b", predicted_uint8="a")
    assert (undone.float_result.success, undone.uint8_result.success) == (True, False)


@pytest.mark.parametrize("aim", ["b", None])
def test_originals_that_meet_the_goal_are_successes_at_distance_0(aim):
    """Also where an attack undid it."""
    for predicted in "ab":
        record = scored(2.0, predicted, aim, already=True)
        for result in (record.float_result, record.uint8_result):
            assert result.success
            assert result.misclassified
            assert (result.l2, result.mssim) == (0, 1)


def test_a_twins_claims_are_held_to_the_recogniser():
    found = [
        scored(1.0, predicted, claimed=claimed).unconfirmed
        for predicted, claimed in (("a", True), ("b", True), ("a", False), ("a", None))
    ]
    assert found == [True, False, False, None]


def test_summaries_are_the_closed_forms():
    ours = trial("ours", [9.0, 1.0, 2.5, None], already=1)
    peer = trial("peer", [9.0, 1.5, 3.5, 4.5], already=1, library="foolbox")
    first, second = (row.to_row() for row in summaries_of([ours, peer], "model_a", "ours"))
    assert first["num_images"] == 4
    assert first["num_already"] == 1
    assert (first["success_rate"], first["success_rate_uint8"]) == (0.75, 0.75)
    # The 8-bit distances: 0, 1.5, 3, failure beside 0, 2, 4, 5.
    assert (first["l2_mean"], first["l2_median"]) == (pytest.approx(3.5 / 3), 1)
    assert (first["l2_mean_uint8"], first["l2_median_uint8"]) == (1.5, 1.5)
    assert first["mssim_uint8"] == pytest.approx((1 + 0.85 + 0.7) / 3)
    assert first["mr_uint8"] == 0.75
    assert first["auc_limit"] == second["auc_limit"] == 6
    assert first["auc_uint8"] == pytest.approx((6 + 4.5 + 3) / 4 / 6)
    assert second["auc_uint8"] == pytest.approx((6 + 4 + 2 + 1) / 4 / 6)
    assert second["auc"] == pytest.approx((6 + 4.5 + 2.5 + 1.5) / 4 / 6)
    assert (first["p_value"], first["median_difference"]) == (1, 0)
    # A peer's floats, 0, 1.5, 3.5, 4.5, less 0, 1.5, 3 and one of ours that failed.
    assert second["p_value"] == pytest.approx(stats.wilcoxon([1, -2]).pvalue)
    assert second["median_difference"] == 0
    assert (first["best_peer"], second["best_peer"]) == ("peer", "peer")
    assert first["ratio_to_best_peer"] == ""  # A mean over other images.
    assert second["ratio_to_best_peer"] == pytest.approx((11 / 4) / (9.5 / 4))
    assert second["median_ratio_to_best_peer"] == pytest.approx(3 / 2.5)
    assert (first["num_gradients"], first["num_forwards"]) == (4, 1)
    assert (first["num_unconfirmed"], second["num_unconfirmed"]) == ("", 0)


def test_summaries_of_failures_hold_no_nan():
    (summary,) = summaries_of([trial("ours", [None, None])], "model_a", "ours")
    row = summary.to_row()
    assert (row["success_rate"], row["l2_mean"], row["mssim_uint8"]) == (0, "", "")
    assert (row["auc_uint8"], row["best_peer"], row["ratio_to_best_peer"]) == (0, "", "")
    text = compare_tables.compare_markdown([summary], "heading", [])
    assert "| ours | 0.0 % |" in text
    assert "here none" in text
    trials = [trial("ours", [None, 1.0]), trial("peer", [1.0, None])]
    rows = [row.to_row() for row in summaries_of(trials, "model_a", "ours")]
    assert rows[1]["median_difference"] == ""
    assert not any(isinstance(v, float) and math.isnan(v) for row in rows for v in row.values())


def test_limits_and_best_peers_are_a_targets_own():
    few = trial("peer", [1.0], library="x", num_steps=2)
    many = trial("peer", [2.0], library="x")
    partial = trial("other", [0.5, None], library="x")
    assert compare_tables.best_peer([few, many, trial("ours", [0.1])]) == many
    assert compare_tables.best_peer([many, trial("next", [1.5], library="x")]).method == "next"
    assert compare_tables.best_peer([partial]) is None
    rows = summaries_of(
        [trial("ours", [1.0]), trial("ours", [7.0], target="runner_up")], "model_a", "ours"
    )
    assert [row.auc_limit for row in rows] == [3, 15]
    # Of the reference's largest number of steps; of any where it never succeeds.
    failing = trial("ours", [None])
    assert compare_tables.auc_limit([few, many, failing], "ours") == 2.5
    assert compare_tables.auc_limit([few, many, trial("x", [9.0])], "peer") == 5


def test_markdown_has_a_table_per_target_and_statistic():
    trials = [
        trial("ours", [1.0, 2.0], num_steps=2),
        trial("ours", [0.5, 1.0]),
        trial("peer", [1.0, None], library="foolbox", num_steps=2),
        trial("peer", [1.0, 2.0], library="foolbox"),
    ]
    text = compare_tables.compare_markdown(
        summaries_of(trials, "model_a", "ours"), "What.", ["a", "b"]
    )
    assert text.count("\n## ") == 1
    assert text.count("\n| method | 2 | 4 |\n|---|---|---|\n") == text.count("\n### ") == 8
    assert "| ours | 2.000 (2.000) 100.0 % | 1.250 (1.250) 100.0 % |" in text
    assert "| peer | 1.000 (1.000) 50.0 % | 1.500 (1.500) 100.0 % |" in text
    assert "| ours | — | — |" in text
    assert "What.\n\n- a\n- b\n\n## Targeted (random)" in text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1, "100.0 %"), (0, "0.0 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1e-5, "< 0.1 %")],
)
def test_all_and_none_are_said_of_all_and_none(rate, text):
    assert compare_tables._percent(rate) == text


@pytest.mark.slow
def test_writes_tables_that_agree_with_each_image(workplace, arguments, capsys):
    assert compare.main([*arguments, *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "target random, 8-bit images: mean L2 (success)" in out
    folder = workplace / "out"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    rows, lines = table(folder / "compare.csv"), table(folder / "per_image.csv")
    places = [(row["target"], row["method"], row["num_steps"]) for row in rows]
    methods = ("pfgvm", "ifgvm")
    assert places == [("random", method, "2") for method in methods]
    for row, place in zip(rows, places, strict=True):
        own = [n for n in lines if (n["target"], n["method"], n["num_steps"]) == place]
        assert len(own) == int(row["num_images"]) == 18
        reached = [line["success_uint8"] == "True" for line in own]
        assert float(row["success_rate_uint8"]) == pytest.approx(np.mean(reached))
        values = np.where(reached, [float(line["l2_uint8"]) for line in own], np.inf)
        assert float(row["auc_uint8"]) == trial_statistics.auc(values, float(row["auc_limit"]))
        assert {line["num_gradients"] for line in own} == {place[2]}
        # Finished on the grid: there is nothing left to round.
        assert row["l2_mean"] == row["l2_mean_uint8"]
    aims = {m: [n["aim"] for n in lines if n["method"] == m] for m in methods}
    assert aims["pfgvm"] == aims["ifgvm"]
    timings = table(folder / "timing.csv")
    assert [(row["target"], row["method"], row["num_steps"]) for row in timings] == places
    assert all(float(row["ms_per_gradient"]) > 0 for row in timings)
    with Image.open(folder / "compare.png") as picture:
        assert picture.format == "PNG"
    description = json.loads((folder / "config.json").read_text())
    assert description["plan"]["reference"] == "pfgvm"
    assert description["contents"] == FILES


@pytest.mark.slow
def test_the_same_command_gives_the_same_files_but_for_times(workplace, arguments):
    flags = [*arguments, *QUICK, "--methods=pfgvm"]
    runs = []
    for more in ([], [], ["--batch_size=5"]):
        assert compare.main([*flags, *more]) == 0
        files = listing(workplace / "out")
        assert files.pop("timing.csv")
        runs.append(files)
    assert runs[0] == runs[1]
    # In batches the figures are the same but for rounding.
    whole, batches = (read(run["compare.csv"].decode().splitlines()) for run in runs[1:])
    for name, value in whole[0].items():
        other = batches[0][name]
        with contextlib.suppress(ValueError):
            value, other = float(value), pytest.approx(float(other), rel=1e-3)
        assert value == other, name


def test_images_are_kept_where_asked(workplace, arguments):
    flags = [*QUICK, "--methods=pfgvm"]
    assert compare.main([*arguments, *flags, "--keep_images"]) == 0
    lines = table(workplace / "out" / "per_image.csv")
    kept = workplace / "out" / "images" / "pfgvm-2-random"
    written = {str(path.relative_to(kept)) for path in kept.rglob("*.png")}
    assert written == {line["picture"] + ".png" for line in lines}
    assert len(written) == 18
    # The distances are those of the files.
    settings = parse_flags(compare.CompareSettings, arguments)
    faces = load_dataset("folder", settings.options("all"))
    for line in lines:
        original = faces.read(faces.image_names.index(line["picture"]))
        with Image.open(kept / f"{line['picture']}.png") as picture:
            change = (np.asarray(picture, float) - original) / 255
        if line["already"] == "False":
            assert float(line["l2_uint8"]) == pytest.approx(np.linalg.norm(change), rel=1e-5)


@pytest.mark.slow
def test_peers_have_the_same_images_targets_and_judge(workplace, arguments):
    for module in ("torch", "foolbox", "adv_lib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module}, a peer, is not installed")
    with warnings.catch_warnings(action="ignore"):
        least_distortion.import_libraries(list(least_distortion.PEERS))
    flags = ["--methods=pfgvm", "--num_steps=15", "--peers=foolbox_ddn,adv_lib_ddn"]
    flags += ["--sample=6", "--batch_size=4"]
    runs = []
    for _ in range(2):
        assert compare.main([*arguments, *flags]) == 0
        runs.append(listing(workplace / "out"))
        assert runs[-1].pop("timing.csv")
    assert runs[0] == runs[1]
    lines = table(workplace / "out" / "per_image.csv")
    for target in ("random", "none"):
        own = [line for line in lines if line["target"] == target]
        shared = [(n["picture"], n["aim"], n["already"]) for n in own]
        assert shared[:6] == shared[6:12] == shared[12:]
    rows = {(r["target"], r["method"]): r for r in table(workplace / "out" / "compare.csv")}
    assert {row["library"] for row in rows.values()} == {"deid_jax", "foolbox", "adv-lib"}
    for (_, method), row in rows.items():
        if method != "pfgvm":
            assert float(row["success_rate"]) > 0.6
            assert (row["num_gradients"], row["num_unconfirmed"]) == ("15.0", "0")
            # Floats, and then rounded; adv-lib's DDN rounds by itself.
            assert (row["l2_mean"] == row["l2_mean_uint8"]) == (method == "adv_lib_ddn")
    text = (workplace / "out" / "compare.md").read_text()
    assert "adv-lib also asks for torchvision and visdom" in text
    versions = json.loads((workplace / "out" / "config.json").read_text())["peers"]
    assert versions["adv-lib"] == machine.version("adv-lib")


@pytest.mark.parametrize(
    ("num_steps", "split"),
    [(1, (1, 1)), (10, (2, 5)), (20, (4, 5)), (50, (5, 10)), (100, (5, 20)), (1000, (9, 111))],
)
def test_searches_share_the_gradients(num_steps, split):
    assert least_distortion.search_split(num_steps) == split


def test_samples_are_drawn_evenly_by_the_seed():
    faces = noise_faces()  # Of five persons three images of the first and two of the others.
    for size in (1, 5, 7, 10):
        counts = np.bincount(data_settings.sampled(faces, size, 0).labels, minlength=5)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1
    drawn = [data_settings.sampled(faces, 5, seed).image_names for seed in range(4)]
    assert len(set(drawn)) > 1
    assert drawn[0] == data_settings.sampled(faces, 5, 0).image_names
    assert data_settings.sampled(faces, 11, 3).image_names == faces.image_names


def test_peers_that_are_not_installed_are_named_at_once(
    workplace, arguments, capsys, monkeypatch
):
    monkeypatch.setattr(machine, "version", lambda name: None if "a" in name else "1.0")
    message = (
        "peers need eagerpy, adv-lib: pip install --no-deps -r tests/requirements-peers.txt, "
        "or leave them out with --peers=none"
    )
    monkeypatch.setattr(compare.loading, "load_split", None)
    assert_refused(compare.main, [*arguments, "--methods=pfgvm"], message, workplace, capsys)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--methods=pfgvm,blur", "methods must be of pfgvm, "),
        ("--targets=random,all", "targets must be of random, least_likely, runner_up, none"),
        ("--num_steps=20,10", "num_steps must increase, got 20,10"),
        ("--peers=foolbox", "peers must be of foolbox_ddn, "),
        ("--reference=ddd", "reference must be one of those compared (pfgvm, ifgvm), got ddd"),
        ("--sample=19", "sample must be at most 18, the images of the split, got 19"),
        ("--checkpoint=nowhere", "nowhere"),
    ],
)
def test_bad_input_is_named(workplace, arguments, capsys, flag, message):
    assert_refused(compare.main, [*arguments, *QUICK, flag], message, workplace, capsys)


def test_two_ways_to_choose_pictures_are_one_too_many(workplace, arguments, capsys):
    flags = [*arguments, *QUICK, "--sample=3", "--max_images=3"]
    assert_refused(
        compare.main, flags, "sample and max_images exclude each other", workplace, capsys
    )


@pytest.mark.skipif(machine.version("adv-lib") is None, reason="adv-lib, a peer, is missing")
def test_peers_of_more_persons_are_named(workplace, arguments, capsys):
    flags = [*arguments, "--methods=pfgvm", "--num_steps=2", "--peers=adv_lib_alma"]
    message = "adv_lib_alma needs at least 4 persons, got 3"
    assert_refused(compare.main, flags, message, workplace, capsys)


@pytest.mark.skipif(machine.version("torch") is None, reason="torch, a peer, is not installed")
@pytest.mark.parametrize(
    ("names", "model", "num_steps", "message"),
    [
        (["adv_lib_pdgd"], "model_a", 1, "adv_lib_pdgd needs num_steps of at least 2"),
        (["foolbox_ddn"], "no_such_model", 1, "no PyTorch twin of no_such_model"),
    ],
)
def test_peers_that_cannot_run_are_named(names, model, num_steps, message):
    with pytest.raises(compare.InputError, match=message):
        least_distortion.check_peers(names, model, num_steps)
