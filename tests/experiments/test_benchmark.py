"""The benchmark's contract: its JSON, its peers, its errors."""

import json

import pytest

from experiments import benchmark


def _run(tmp_path, *flags):
    return benchmark.main([f"--output_dir={tmp_path / 'out'}", *flags])


def test_writes_the_contracted_figures(tmp_path, capsys):
    flags = ["--cases=model_a:16:2,model_a:12:3", "--peers=none", "--num_steps=2"]
    assert _run(tmp_path, *flags, "--repeats=1") == 0
    figures = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert set(figures) >= {"machine", "cases"}
    assert [(c["model"], c["image_size"], c["batch"]) for c in figures["cases"]] == [
        ("model_a", 16, 2),
        ("model_a", 12, 3),
    ]
    assert all(case["ours_ms"] > 0 and case["peers"] == {} for case in figures["cases"])
    assert "model_a 16 px, batch 2" in capsys.readouterr().out


def test_compares_with_pytorch_in_turn(tmp_path):
    pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    flags = ["--cases=model_a:16:2", "--num_steps=2", "--repeats=1"]
    assert _run(tmp_path, *flags) == 0
    (case,) = json.loads((tmp_path / "out" / "benchmark.json").read_text())["cases"]
    peer = case["peers"]["torch"]
    assert peer["ratio"] == pytest.approx(peer["ms"] / case["ours_ms"])


def test_runs_go_in_turn_and_the_median_counts(monkeypatch):
    calls, clock = [], iter(range(100))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock) ** 2)
    seconds = benchmark.time_in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3
    )
    assert "".join(calls) == "ab" * 4
    assert seconds == {"a": 9, "b": 13}


def test_missing_peer_is_named_and_left_out(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "_version", lambda package: None)
    assert benchmark.parse_peers("torch") == []
    assert capsys.readouterr().err == "torch is left out: torch not installed\n"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--cases=model_a:64", "cases must be MODEL:IMAGE_SIZE:BATCH, …, got 'model_a:64'"),
        ("--cases=resnet:64:2", "model must be one of model_a, vgg16, got resnet"),
        ("--cases=model_a:64:0", "batch must be an integer >= 1, got 0"),
        ("--peers=caffe", "peers must be of torch or none, got caffe"),
        ("--num_steps=0", "num_steps must be an integer >= 1, got 0"),
        ("--repeats=0", "repeats must be an integer >= 1, got 0"),
        ("--seed=-1", "seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, flag, message):
    assert _run(tmp_path, flag) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()
