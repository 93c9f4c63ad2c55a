import dataclasses
import json
import signal
import time

import numpy as np
import pytest
from PIL import Image

from deid_jax.attacks import METHODS
from deid_jax.devices.processes import ALONE
from deid_jax.reports import finished_runs
from deid_jax.reports.measured import MeasuredPoint
from deid_jax.runs import RunFolder
from experiments import aggregate, attack, sweep
from experiments._common.flags import parse_flags
from tests.experiments.conftest import assert_refused, finish, listing, process
from tests.helpers import noise_faces
from tests.reports.runs_helpers import images, means, read_csv

TIMING = {"seconds", "images_per_second", "compile_seconds", "attack_seconds", "config"}
QUICK = "--num_steps=3"


@pytest.mark.slow
def test_sweep_writes_what_single_runs_measure(arguments, workplace, capsys):
    grid = ["--sweep=penalty_weight=0.2,1", "--sweep=num_steps=2,4"]
    assert sweep.main([*arguments, *grid]) == 0
    out = capsys.readouterr().out
    assert "4 points" in out
    assert "Table, frontier and metrics: out" in out
    assert sorted(path.name for path in (workplace / "out").iterdir()) == [
        "config.json", "frontier.png", "per_image.csv", "sheets", "sweep.csv",
    ]  # fmt: skip
    rows = read_csv(workplace / "out/sweep.csv")
    assert [(row["penalty_weight"], row["num_steps"]) for row in rows] == [
        ("0.2", "2"), ("0.2", "4"), ("1.0", "2"), ("1.0", "4"),
    ]  # fmt: skip
    records = read_csv(workplace / "out/per_image.csv")
    with Image.open(workplace / "out/frontier.png") as image:
        assert image.size[0] > 800
    for row in rows[3:]:
        flags = [f"--{name}={row[name]}" for name in ("penalty_weight", "num_steps")]
        alone = attack.run(
            parse_flags(attack.AttackSettings, [*arguments[:-1], "--output_dir=alone", *flags])
        )
        for name in alone.keys() & row.keys() - TIMING:
            if isinstance(alone[name], float):
                assert float(row[name]) == pytest.approx(alone[name], rel=1e-4), name
            else:
                assert row[name] == str(alone[name]), name
        own = [
            record
            for record in records
            if (record["penalty_weight"], record["num_steps"])
            == (row["penalty_weight"], row["num_steps"])
        ]
        assert len(own) == alone["num_images"]
        mean = np.mean([float(record["l2_uint8"]) for record in own])
        assert mean == pytest.approx(alone["l2_uint8"], rel=1e-4)


@pytest.mark.slow
def test_methods_stand_side_by_side(arguments, workplace):
    methods = ("pfgvm", "ifgsm", "noise")
    flags = [f"--method={','.join(methods)}", QUICK, "--max_images=2", "--noise_stddev=0.1"]
    assert sweep.main([*arguments, *flags]) == 0
    rows = read_csv(workplace / "out/sweep.csv")
    counts = [len(next(iter(METHODS[name].grid.values()))) for name in methods[:2]]
    expected = ["pfgvm"] * counts[0] + ["ifgsm"] * counts[1] + ["noise"]
    assert [row["method"] for row in rows] == expected
    for row in rows:
        for setting in ("epsilon", "penalty_weight", "noise_stddev"):
            assert (row[setting] != "") == (setting in METHODS[row["method"]].settings())


@pytest.mark.slow
def test_settings_that_are_names_are_swept_and_read_again(arguments, workplace):
    flags = ["--method=apfgvm", QUICK, "--max_images=2", "--sweep=penalty=l2,ssim"]
    assert sweep.main([*arguments, *flags]) == 0
    rows = read_csv(workplace / "out/sweep.csv")
    assert [(row["penalty"], row["quantize"]) for row in rows] == [
        ("l2", "True"), ("ssim", "True"),
    ]  # fmt: skip
    assert [row["l2"] for row in rows] == [row["l2_uint8"] for row in rows]
    run = finished_runs.read_run(workplace / "out")
    points = run.points
    assert [point.settings["penalty"] for point in points] == ["l2", "ssim"]
    assert len(run.sheets) == 1


def test_all_means_every_method_with_its_own_grid():
    grids = sweep.SweepSettings(method="all").grids()
    assert list(grids) == list(METHODS)
    for method, points in grids.items():
        ((name, values),) = METHODS[method].grid.items()
        assert [point[name] for point in points] == list(values)


def test_setting_that_is_given_is_not_swept_by_default():
    settings = {"epsilon": 0.05, "num_steps": 7}
    grids = sweep.SweepSettings(method="pfgvm,ifgvm", method_settings=settings).grids()
    assert [(p["epsilon"], p["num_steps"]) for p in grids["ifgvm"]] == [(0.05, 7)]
    assert len(grids["pfgvm"]) > 1


def test_no_setting_shares_its_name_with_a_column():
    point = MeasuredPoint("", "", "", "", {}, means())
    columns = {*images(means())[0].to_row(), *sweep._row(point, [point], 1)}
    for method in METHODS.values():
        assert not columns & {*method.settings()}


def test_every_methods_settings_are_read_again(workplace, monkeypatch):
    """Two points of each method, with all its settings, through aggregate."""
    for module in (sweep, aggregate):
        monkeypatch.setattr(module, "draw_frontier", lambda points: b"")
    measured = means(n=10)
    points = [
        MeasuredPoint(name, "model_a", "folder", "test", own | {first: value}, measured)
        for name, method in METHODS.items()
        for own in [dataclasses.asdict(method.config())]
        for first, values in method.grid.items()
        for value in values[:2]
    ]
    folder = RunFolder(workplace / "out", ["sweep.csv", "per_image.csv", "frontier.png"])
    settings = sweep.SweepSettings()
    with folder:
        sweeper = sweep._Sweeper(settings, None, noise_faces(), folder, ALONE)
        sweeper.write_tables(points, [images(measured, n) for n in range(len(points))])
    assert aggregate.main(["--runs=out", "--output_dir=compared"]) == 0
    found = finished_runs.read_run(workplace / "out").points
    assert [point.method for point in found] == [point.method for point in points]
    for point, own in zip(found, points, strict=True):
        assert point.records == images(measured, points.index(own))
        # Flags have the form that they have in CSV.
        assert point.settings == {
            name: str(value) if isinstance(value, bool) else value
            for name, value in own.settings.items()
        }


def test_defaults_that_are_spelled_out_change_nothing():
    def facts(**changes):
        settings = sweep.SweepSettings(**changes)
        return sweep._Sweeper(settings, None, noise_faces(), None, ALONE).facts({})

    spelled_out = {"target": "random", "init": "image", "precision": "float32"}
    assert facts() == facts(**spelled_out, batch_size=3)
    for changes in ({"target": "none"}, {"init": "noise"}, {"precision": "bf16"}, {"seed": 1}):
        assert facts() != facts(**changes)


@pytest.mark.slow
def test_repeated_alike(arguments, workplace):
    flags = ["--method=noise,pfgvm", QUICK, "--sweep=penalty_weight=0.5,1"]
    assert sweep.main([*arguments, *flags]) == 0
    first = listing(workplace / "out")
    assert sweep.main([*arguments, *flags]) == 0
    assert listing(workplace / "out") == first


@pytest.mark.slow
def test_sheets_show_the_best_points(arguments, workplace, capsys):
    flags = ["--method=pfgvm,mask", "--split=all", "--step_size=0.5", "--num_steps=20"]
    assert sweep.main([*arguments, *flags]) == 0
    shown = json.loads((workplace / "out/config.json").read_text())["shown"]
    rows = read_csv(workplace / "out/sweep.csv")
    out = capsys.readouterr().out
    for method, settings in shown.items():
        own = [row for row in rows if row["method"] == method]
        enough = [row for row in own if float(row["mr_uint8"]) >= 0.99]
        if not enough:
            highest = max(float(row["mr_uint8"]) for row in own)
            enough = [row for row in own if float(row["mr_uint8"]) == highest]
        best = min(enough, key=lambda row: float(row["l2_uint8"]))
        assert {name: float(best[name]) for name in settings} == settings
        assert f"L2 {float(best['l2_uint8']):.3f}" in out
        with Image.open(workplace / f"out/sheets/{method}.png") as image:
            assert image.size[0] > 1000


@pytest.mark.slow
def test_killed_sweep_goes_on_and_ends_alike(arguments, workplace):
    flags = ["--split=all", "--shard_size=3", "--settings_per_call=1", "--num_steps=20"]
    flags += ["--sweep=penalty_weight=0.1,0.2,0.3,0.5,0.7,1"]
    undisturbed = [*arguments[:-1], "--output_dir=whole", *flags]
    assert finish(process("sweep", *undisturbed, cwd=workplace))[0] == 0
    killed = process("sweep", *arguments, *flags, cwd=workplace)
    deadline = time.monotonic() + 120
    while len(list(workplace.glob("out/.sweep.csv.unfinished/*/pieces/*.json"))) < 4:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    finish(killed)
    assert not (workplace / "out/sweep.csv").exists()
    status, _, err = finish(process("sweep", *arguments, *flags, cwd=workplace))
    assert (status, err) == (0, "going on where the sweep stopped\n")
    ours, whole = (listing(workplace / name) for name in ("out", "whole"))
    configs = [json.loads(files.pop("config.json")) for files in (ours, whole)]
    assert ours == whole
    assert configs[0]["versions"] == configs[1]["versions"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method=pfgwm"], "--method must be of pfgvm,"),
        (["--method="], "--method is empty"),
        (["--method=pfgvm,pfgvm"], "names a method twice"),
        (["--sweep=penalty_weight"], "must be SETTING=VALUE,VALUE"),
        (["--sweep=penalty_weight=a,b"], "the values must be numbers"),
        (["--sweep=num_steps=1.5"], "the values must be numbers"),
        (["--sweep=penalty_weight="], "the values must be numbers"),
        (["--sweep=epsilon=0.1"], "--sweep=epsilon does not apply to --method=pfgvm"),
        (["--sweep=step_size=1", "--sweep=step_size=2"], "--sweep=step_size is given twice"),
        (["--sweep=step_size=0.1,0.1"], "must be different ones"),
        (["--sweep=step_size=-1"], "step_size must be a number >= 0, got -1"),
        (["--sweep=step_size=1", "--step_size=2"], "step_size is swept and set to 2"),
        (["--epsilon=0.1"], "--epsilon=0.1 does not apply to --method=pfgvm"),
        (["--method=blur,mask", "--target=none"], "--target=none does not apply to"),
        (["--settings_per_call=0"], "settings_per_call must be an integer >= 1"),
        (["--checkpoint=nowhere"], "checkpoint nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, workplace, capsys, flags, words):
    assert_refused(sweep.main, [*arguments, *flags], words, workplace, capsys)
    assert list(workplace.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_grid_that_diverges_warns(arguments, workplace, capsys):
    flags = ["--sweep=penalty_weight=1,30", QUICK, "--max_images=2"]
    assert sweep.main([*arguments, *flags]) == 0
    assert "warning: step_size * penalty_weight is 0.1 * 30 = 3" in capsys.readouterr().err
