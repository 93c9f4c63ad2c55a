"""What more processes bring: the command that measures it."""

import json

import pytest

from experiments import scaling
from tests.experiments.conftest import assert_refused
from tests.reports.runs_helpers import read_csv

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_every_number_of_processes_is_run_in_turn(arguments, workplace, capsys):
    flags = ["--processes=1,2", "--repeats=2", "--split=all", "--num_steps=2"]
    flags.append("--penalty_weight=1")
    assert scaling.main([*arguments, *flags]) == 0
    lines = read_csv(workplace / "out/scaling.csv")
    turns = [line["turn"] + line["num_processes"] for line in lines]
    assert turns == ["01", "02", "11", "12"]
    assert len({line["l2_uint8"] for line in lines}) == 1
    assert {line["num_images"] for line in lines} == {"18"}
    settings = json.loads((workplace / "out/config.json").read_text())["settings"]
    assert settings["method_settings"] == {"num_steps": 2, "penalty_weight": 1.0}
    out = capsys.readouterr().out
    assert "cores of each process: 1" in out
    assert "times the first" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=two"], "processes must be whole numbers by commas, got two"),
        (["--processes=0"], "processes must be an integer >= 1, got 0"),
        (["--repeats=0"], "repeats must be an integer >= 1, got 0"),
        (["--cores_per_process=0"], "cores_per_process must be an integer >= 1"),
        (["--processes=1000"], "1000 processes of 1 cores are more than the"),
        (["--epsilon=0.1"], "--epsilon=0.1 does not apply to --method=pfgvm"),
        (["--checkpoint=nowhere"], "checkpoint nowhere does not exist"),
    ],
)
def test_bad_input_is_refused(arguments, workplace, capsys, flags, message):
    assert_refused(scaling.main, [*arguments, *flags], message, workplace, capsys)


def test_what_ends_a_run_is_told(arguments, workplace, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "_arguments", lambda settings: ["--method=none"])
    assert scaling.main([*arguments, "--processes=1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: a run failed: flag --method=none: value should be one of")
    assert err.count("\n") == 1
    assert not (workplace / "out").exists()
