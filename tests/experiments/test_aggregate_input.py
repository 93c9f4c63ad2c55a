"""What experiments.aggregate refuses: one line that names it, and nothing written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import aggregate
from tests.experiments.conftest import assert_refused, finish, process
from tests.experiments.test_aggregate import SWEPT, drawn, runs
from tests.reports.runs_helpers import (
    described,
    read_csv,
    write_attack,
    write_csv,
    write_sweep,
)

__all__ = ["drawn", "runs"]  # Fixtures.


def refused(workplace, capsys, message, *flags, runs="runs"):
    """The command ends in one line, and writes nothing."""
    arguments = [f"--runs={runs}", "--output_dir=out", *flags]
    assert_refused(aggregate.main, arguments, message, workplace, capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs=nowhere"], "runs: nowhere does not exist"),
        (["--runs=file"], "runs: file is no folder"),
        (["--runs=empty"], "runs: there is no run in empty"),
        (["--runs=runs,empty"], "runs: there is no run in empty"),
        (["--runs=runs,,empty"], "runs must be folders by commas"),
        (["--runs="], "--runs is empty"),
        (["--runs=runs,runs/ours"], "runs: runs/ours is given twice"),
        (["--runs=runs/ours,runs/other/../ours"], "is given twice (as runs/ours, too)"),
        (["--min_mr=often"], "min_mr must be numbers from 0 to 1 by commas, got often"),
        (["--min_mr=0.5,"], "min_mr must be numbers"),
        (["--min_mr=99"], "min_mr must be numbers from 0 to 1"),
        (["--min_mr=nan"], "min_mr must be numbers from 0 to 1"),
        (["--confidence=1"], "confidence must be a number > 0 and < 1, got 1"),
        (["--seed=-1"], "seed must be an integer >= 0, got -1"),
        (["--output_dir=file"], "output_dir file is a file"),
        (["--output_dir=runs/ours"], "output_dir runs/ours holds the run of another command"),
        (["--output_dir=foreign"], "output_dir foreign holds table.md"),
    ],
)
def test_bad_flags_are_refused(runs, workplace, capsys, flags, message):
    (workplace / "file").write_text("mine")
    (workplace / "empty/train").mkdir(parents=True)
    (workplace / "foreign").mkdir()
    (workplace / "foreign/table.md").write_text("mine")
    refused(workplace, capsys, message, *flags)


def test_runs_must_be_given(workplace, capsys):
    assert aggregate.main([]) == 2
    assert (
        capsys.readouterr().err == "error: runs must be folders by commas: --runs=DIR,DIR...\n"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "all"}, 'split is "test" and "all"'),
        ({"dataset": "celeba"}, 'dataset is "folder" and "celeba"'),
        ({"n": 30}, "num_images is 20 and 30"),
    ],
)
def test_other_measurements_are_refused(runs, workplace, capsys, changes, message):
    write_attack(runs / "third", "blur", **changes)
    refused(workplace, capsys, f"runs/other and runs/third cannot be compared: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 32}, "image_size is 64 and 32"),
        ({"crop": "square"}, 'crop is "auto" and "square"'),
        ({"seed": 1}, "seed is 0 and 1"),
        ({"quantize": True}, "quantize is false and true"),
        ({"data_dir": "others"}, 'data_dir is "faces" and "others"'),
        ({"target": "none"}, 'target is "random" and "none"'),
        ({"init": "noise"}, 'init is "image" and "noise"'),
    ],
)
def test_other_settings_are_refused(runs, workplace, capsys, changes, message):
    write_attack(runs / "third", "ifgsm", description=described(**changes))
    refused(workplace, capsys, f"runs/other and runs/third cannot be compared: {message}")


def test_other_pictures_and_recognisers_are_refused(runs, workplace, capsys):
    folder = write_attack(runs / "third", "blur")
    description = described("recogniser", accuracy={"test": 0.8})
    (folder / "config.json").write_text(json.dumps(description))
    refused(workplace, capsys, "runs/other and runs/third cannot be compared: recogniser's acc")
    (folder / "config.json").write_text(json.dumps(described()))
    rows = read_csv(folder / "per_image.csv")
    rows[3]["name"] = "x"
    write_csv(folder / "per_image.csv", rows)
    refused(workplace, capsys, "their images differ, p3/003 is only in the first")


def test_the_same_point_twice_is_refused(runs, workplace, capsys):
    shutil.copytree(runs / "ours", runs / "copy")
    refused(
        workplace, capsys, "runs/copy and runs/ours both hold: pfgvm against model_a, penal"
    )


ABSENT = object()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mr", ABSENT, "metrics.json lacks mr"),
        ("method", ABSENT, "metrics.json lacks method"),
        ("method", 3, "method must be a text, got 3"),
        ("model", "", "model must be a text, got ''"),
        ("l2", "nan", "l2 must be a finite number, got 'nan'"),
        ("l2", float("nan"), "l2 must be a finite number, got nan"),
        ("l2_uint8", float("inf"), "l2_uint8 must be a finite number, got inf"),
        ("l2", 10**400, "l2 must be a finite number"),
        ("l2", -1.0, "l2 must be >= 0, got -1"),
        ("l2", None, "l2 must be a finite number, got None"),
        ("l2", True, "l2 must be a finite number, got True"),
        ("mssim", 1.01, "mssim must be from -1 to 1, got 1.01"),
        ("mr", 99.6, "mr must be from 0 to 1, got 99.6"),
        ("mr_uint8", -0.1, "mr_uint8 must be from 0 to 1, got -0.1"),
        ("target_rate", 2, "target_rate must be from 0 to 1, got 2"),
        ("clean_error", [], "clean_error must be a finite number, got []"),
        ("num_images", 20.5, "num_images must be an integer >= 1, got 20.5"),
        ("num_images", 0, "num_images must be an integer >= 1, got 0"),
        ("num_images", float("inf"), "num_images must be an integer >= 1, got inf"),
        ("num_gradients", "many", "num_gradients must be a finite number, got 'many'"),
        ("config", ABSENT, "config must be an object, got None"),
        ("config", [1], "config must be an object, got [1]"),
        ("config", {"epsilon": "nan"}, "epsilon must be a number, got nan"),
        ("config", {"epsilon": [1]}, "epsilon must be a number, got [1]"),
    ],
)
def test_bad_metrics_are_refused_by_name(runs, workplace, capsys, name, value, message):
    path = runs / "ours/metrics.json"
    figures = json.loads(path.read_text())
    figures[name] = value
    if value is ABSENT:
        del figures[name]
    path.write_text(json.dumps(figures))
    refused(workplace, capsys, message)
    refused(workplace, capsys, "error: runs/ours/metrics.json", runs="runs/other,runs/ours")


@pytest.mark.parametrize("name", ["metrics.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b'{"method": "pf', b"[]", b"\xff\xfe", b"[" * 99999])
def test_broken_json_is_refused(runs, workplace, capsys, name, content):
    (runs / "ours" / name).write_bytes(content)
    refused(workplace, capsys, f"runs/ours/{name} is broken")


def edit_rows(path, edit):
    rows = read_csv(path)
    edit(rows)
    write_csv(path, rows)


def _set(row, name, value):
    return lambda rows: rows[row].update({name: value})


def _drop(name):
    return lambda rows: [row.pop(name) for row in rows]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.pop(), " does not belong: 19 images, not 20"),
        (_drop("mssim_uint8"), ", line 2 lacks mssim_uint8"),
        (lambda rows: rows.__setitem__(4, rows[3]), " has the image p3/003 twice"),
        (_set(0, "l2", "nan"), ", line 2: l2 must be a finite number, got 'nan'"),
        (_set(0, "l2", "99"), " does not belong: its mean l2 is"),
    ],
)
def test_records_that_do_not_belong_are_refused(runs, workplace, capsys, edit, message):
    edit_rows(runs / "ours/per_image.csv", edit)
    refused(workplace, capsys, f"error: runs/ours/per_image.csv{message}")


OF_BOTH_KINDS = ("l2", "linf", "mssim", "mr", "target_rate")


@pytest.mark.parametrize(
    "name",
    [*OF_BOTH_KINDS, *(f"{name}_uint8" for name in OF_BOTH_KINDS), "clean_error"],
)
def test_means_that_are_not_those_of_the_records_are_refused(runs, workplace, capsys, name):
    path = runs / "ours/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 0.4}))
    refused(workplace, capsys, f"does not belong: its mean {name} is")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:-20] + "\n", ", line 21: "),
        (lambda text: text + '"', " is broken: "),
        (lambda text: "", " does not belong: 0 images, not 20"),
    ],
)
def test_cut_tables_are_refused(runs, workplace, capsys, edit, message):
    path = runs / "ours/per_image.csv"
    path.write_text(edit(path.read_text()))
    refused(workplace, capsys, f"error: runs/ours/per_image.csv{message}")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("sweep.csv", _drop("mr"), "sweep.csv, line 2 lacks mr"),
        ("sweep.csv", _set(0, "l2", "nan"), "line 2: l2 must be a finite number, got 'nan'"),
        ("sweep.csv", lambda rows: rows.append(rows[0]), "runs/sweep holds twice: pfgvm"),
        ("sweep.csv", lambda rows: rows.pop(), "sweep.csv has no such point"),
        ("per_image.csv", lambda rows: rows.pop(), "does not belong: 49 images, not 50"),
        ("per_image.csv", _drop("epsilon"), "per_image.csv lacks the columns epsilon"),
    ],
)
def test_broken_sweeps_are_refused(workplace, drawn, capsys, name, edit, message):
    folder = write_sweep(workplace / "runs/sweep", SWEPT)
    edit_rows(folder / name, edit)
    refused(workplace, capsys, message)


@pytest.mark.parametrize("cut", [60, 0])
def test_sheet_that_cannot_be_read_is_refused(runs, workplace, capsys, cut):
    path = runs / "ours/sheet.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    refused(workplace, capsys, "runs/ours/sheet.png cannot be read as a PNG file")


def test_folder_of_two_kinds_is_refused(runs, workplace, capsys):
    shutil.copy(write_sweep(workplace / "x", SWEPT) / "sweep.csv", runs / "ours")
    refused(workplace, capsys, "runs/ours holds metrics.json and sweep.csv")


def test_bad_input_as_a_process(workplace):
    status, out, err = finish(process("aggregate", "--runs=nowhere", cwd=workplace))
    assert (status, out, err) == (2, "", "error: runs: nowhere does not exist\n")
    assert list(workplace.iterdir()) == []
