"""The benchmark's contract: its JSON, its errors, its clocks and what it counts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments._benchmark import candidates, layer_times, timing
from experiments._common import machine
from experiments._peers import naive, problem
from experiments._peers.problem import Case, Problem

PEERS = ["torch", "torchattacks", "foolbox", "art", "flax", "unprepared", "apfgvm"]
TINY = ("--cases=model_a:16:3", "--num_steps=2", "--repeats=1")


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    """No large matrix product, and a thread per process, as tests share the processor."""
    monkeypatch.setattr(timing, "MATRIX_SIZES", (64, 64))
    monkeypatch.setattr(machine, "threads", lambda: 1)


def run_benchmark(tmp_path, *flags):
    return benchmark.main([f"--output_dir={tmp_path / 'out'}", *flags])


def figures_in(tmp_path):
    return json.loads((tmp_path / "out" / "benchmark.json").read_text())


def draw_weights(model, image_size):
    """Weights in which BatchNorm's parameters and statistics are not the trivial ones."""
    random = np.random.default_rng(0)
    images = jnp.zeros((1, image_size, image_size, 3))

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return np.float32(scale) * random.standard_normal(leaf.shape, np.float32)
        return random.uniform(0.5, 1, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def small_problem(num_steps=3, precision="float32"):
    random = np.random.default_rng(0)
    return Problem(
        Case("model_a", 16, 3),
        draw_weights(naive.NAIVE_MODELS["model_a"](problem.NUM_CLASSES), 16),
        random.uniform(size=(3, 16, 16, 3)).astype(np.float32),
        random.integers(problem.NUM_CLASSES, size=3),
        num_steps,
        precision,
    )


@pytest.mark.slow
def test_writes_the_contracted_figures_and_traces(tmp_path, capsys, monkeypatch):
    # It takes seconds to compile prepared kernels.
    monkeypatch.setattr(candidates, "prepare", lambda variables: variables)
    flags = [*TINY, "--peers=none", f"--profile_dir={tmp_path / 'traces'}"]
    assert run_benchmark(tmp_path, *flags) == 0
    figures = figures_in(tmp_path)
    assert figures["machine"].keys() >= {"processor", "threads", "devices", "versions"}
    assert figures["precision"] == "float32"
    assert (figures["num_steps"], figures["repeats"]) == (2, 1)
    assert (figures["layers"], figures["notes"]) == ([], [])
    (case,) = figures["cases"]
    assert (case["model"], case["image_size"], case["batch"]) == ("model_a", 16, 3)
    assert case["ours_ms"] > 0
    assert case["peers"] == {}
    # Twice the forward pass per image and step.
    rate = 2 * case["forward_gflop"] / (case["ours_ms"] / 1000)
    assert case["gflops"] == pytest.approx(rate)
    share = rate / figures["matrix_product_gflops"]
    assert case["share_of_matrix_product"] == pytest.approx(share)
    assert "model_a 16 px, batch 3" in capsys.readouterr().out
    assert list((tmp_path / "traces" / "model_a-16-3").rglob("*.xplane.pb"))


def test_ours_runs_on_prepared_weights(monkeypatch):
    given = []
    monkeypatch.setattr(candidates, "prepare", lambda variables: variables | {"prepared": {}})
    monkeypatch.setattr(candidates, "jax_attack", lambda *arguments: given.append(arguments))
    candidates.ours(small_problem())
    ((_, _, variables, _),) = given
    assert "prepared" in variables


def test_the_fastest_variant_counts_and_failures_are_named(monkeypatch, capsys):
    clock = [0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def candidate(name, seconds):
        def run_once():
            clock[0] += seconds
            return name

        return candidates.Candidate(name, lambda _: run_once)

    def fails(_):
        raise RuntimeError("no\ncompiler")

    case = small_problem()
    some = [candidate("slow", 3), candidate("fast", 1), candidate("middling", 2)]
    failing = candidates.Candidate("compiled", fails, may_fail=True)
    chosen = candidates.fastest("torch", [failing, *some], case)
    assert (chosen.name, chosen.run()) == ("fast", "fast")
    left_out = "torch: compiled is left out: RuntimeError: no compiler"
    assert chosen.notes == [
        f"model_a 16 px, batch 3: {left_out}",
        "model_a 16 px, batch 3: torch is the fastest of 4 variants: fast",
    ]
    assert capsys.readouterr().err == f"{left_out}\n"
    with pytest.raises(RuntimeError, match="compiler"):
        candidates.fastest("torch", [failing._replace(may_fail=False), *some], case)


def test_runs_go_in_turn_and_the_median_counts(monkeypatch):
    calls, clock = [], iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock) ** 2)
    seconds = timing.time_in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3
    )
    assert "".join(calls) == "ab" * 4
    assert seconds == {"a": 9, "b": 13}


def test_multiply_adds_are_those_of_the_closed_form():
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    sizes = [224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14]
    expected = sum(
        9 * before * after * size**2
        for before, after, size in zip(channels, channels[1:], sizes, strict=False)
    )
    assert expected == 15_346_630_656
    expected += 25088 * 4096 + 4096 * 4096 + 4096 * 256 + 256 * 30
    assert problem.forward_multiply_adds(Case("vgg16", 224, 4)) == expected
    expected = 25 * 3 * 32 * 64**2 + 25 * 32 * 64 * 32**2 + 16 * 16 * 64 * 512 + 512 * 30
    assert problem.forward_multiply_adds(Case("model_a", 64, 9)) == expected


def test_matrix_product_rate_is_two_flops_per_multiply_add(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.matrix_product_rate("float32", 3) == 2 * 64**3


def test_each_layer_is_found_once():
    found = layer_times.distinct_layers([Case("vgg16", 224, 4)] * 2)
    convolutions = [(layer.channels, layer.image_size) for layer in found if layer.size]
    assert convolutions == [
        (3, 224),
        (64, 224),
        (64, 112),
        (128, 112),
        (128, 56),
        (256, 56),
        (256, 28),
        (512, 28),
        (512, 14),
    ]
    pools = [(layer.channels, layer.image_size) for layer in found if not layer.size]
    assert pools == [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14)]


def test_default_cases_are_larger_on_accelerators(monkeypatch):
    cases = benchmark.default_cases()
    assert [str(case) for case in cases] == [
        "model_a 64 px, batch 64",
        "model_a 224 px, batch 16",
        "vgg16 64 px, batch 16",
        "vgg16 224 px, batch 4",
    ]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [case.batch for case in benchmark.default_cases()] == [1024, 256, 256, 64]


def test_cases_are_read_in_order():
    cases = benchmark.parse_cases("vgg16:32:3, model_a:4:1")
    assert cases == [Case("vgg16", 32, 3), Case("model_a", 4, 1)]


def test_missing_peers_are_named_and_left_out(monkeypatch, capsys):
    monkeypatch.setattr(machine, "version", lambda name: None if name == "foolbox" else "1")
    monkeypatch.setattr(candidates, "_torch_has_device", lambda: True)
    present = candidates.present_peers("all")
    assert present == [name for name in PEERS if name != "foolbox"]
    assert capsys.readouterr().err == "foolbox is left out: foolbox not installed\n"
    assert candidates.present_peers("flax, torch,flax") == ["flax", "torch"]
    assert candidates.present_peers("none") == []
    assert candidates.present_peers("flax", [Case("mobilefacenet_ms1m", 112, 1)]) == []
    error = capsys.readouterr().err
    assert error == "flax is left out: it has no mobilefacenet_ms1m\n"
    monkeypatch.setattr(candidates, "_torch_has_device", lambda: False)
    assert candidates.present_peers("torch,flax") == ["flax"]
    assert capsys.readouterr().err == "torch is left out: PyTorch has no CUDA device here\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cases=model_a:64", "cases must be MODEL:IMAGE_SIZE:BATCH, …, got 'model_a:64'"),
        (
            "--cases=resnet:64:2",
            "model must be one of model_a, vgg16, mobilefacenet_ms1m, mobilefacenet_casia, got "
            "resnet",
        ),
        (
            "--cases=mobilefacenet_casia:64:2",
            "image_size must be 112 for mobilefacenet_casia, got 64",
        ),
        ("--cases=model_a:64:0", "batch must be an integer >= 1, got 0"),
        (
            "--peers=caffe",
            "peers must be of torch, torchattacks, foolbox, art, flax, unprepared, apfgvm, all "
            "or none, got caffe",
        ),
        ("--repeats=0", "repeats must be an integer >= 1, got 0"),
        (
            "--layers --profile_dir=traces",
            "profile_dir traces attacks: give it without layers",
        ),
        (
            "--layers --cases=mobilefacenet_ms1m:112:2",
            "layers of mobilefacenet_ms1m are not timed: give it without layers",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, flags, message):
    assert run_benchmark(tmp_path, *flags.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()
