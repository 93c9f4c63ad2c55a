"""The benchmark's contract: its JSON, its errors, and that all peers do the same work."""

import contextlib
import functools
import importlib
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import PFGVMConfig
from deid_jax.models import create_model
from experiments import benchmark
from experiments._benchmark import layer_times, naive
from experiments._common import timing
from tests.helpers import pictures

MODULES = {
    "torch": ("torch",),
    "torchattacks": ("torch", "torchattacks"),
    "foolbox": ("torch", "foolbox"),
    "art": ("torch", "art.attacks.evasion", "art.estimators.classification"),
    "flax": (),
    "unprepared": (),
    "apfgvm": (),
}
LIBRARIES = [name for name, modules in MODULES.items() if modules]
TINY = ("--cases=model_a:16:3", "--num_steps=2", "--repeats=1")


@pytest.fixture(scope="module", autouse=True)
def _libraries():
    """Imports what is installed before any test redirects stderr: ART closes other streams."""
    for modules in MODULES.values():
        for module in modules:
            with contextlib.suppress(ImportError), warnings.catch_warnings(action="ignore"):
                importlib.import_module(module)


@pytest.fixture(scope="module")
def pictures_of_ours():
    """Ours on `_problem()`."""
    return np.asarray(benchmark.ours(_problem())())


@pytest.fixture(autouse=True)
def _small_and_alone(monkeypatch):
    """No large matrix product, and a thread per process, as tests share the processor."""
    monkeypatch.setattr(timing, "MATRIX_SIZES", (64, 64))
    monkeypatch.setattr(timing, "threads", lambda: 1)


@pytest.fixture
def _quick(monkeypatch):
    """Kernels as loaded: it takes seconds to compile prepared ones."""
    monkeypatch.setattr(benchmark, "prepare", lambda variables: variables)


def _import(*names):
    for name in names:
        for module in MODULES[name]:
            pytest.importorskip(module, reason=f"{module}, a peer, is not installed")
    import torch

    torch.set_num_threads(1)


def _run(tmp_path, *flags):
    return benchmark.main([f"--output_dir={tmp_path / 'out'}", *flags])


def _figures(tmp_path):
    return json.loads((tmp_path / "out" / "benchmark.json").read_text())


def _draw(model, image_size):
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


@functools.cache
def _variables():
    return _draw(naive.NAIVE_MODELS["model_a"](timing.NUM_CLASSES), 16)


def _problem(num_steps=3, precision="float32"):
    random = np.random.default_rng(0)
    return timing.Problem(
        timing.Case("model_a", 16, 3),
        _variables(),
        random.uniform(size=(3, 16, 16, 3)).astype(np.float32),
        random.integers(timing.NUM_CLASSES, size=3),
        PFGVMConfig(num_steps=num_steps),
        num_steps,
        precision,
    )


def _only_run(name, problem):
    (candidate,) = benchmark.PEERS[name].candidates(problem)
    return candidate.build(problem)


@pytest.mark.usefixtures("_quick")
def test_writes_the_contracted_figures_and_traces(tmp_path, capsys):
    flags = [*TINY, "--peers=none", f"--profile_dir={tmp_path / 'traces'}"]
    assert _run(tmp_path, *flags) == 0
    figures = _figures(tmp_path)
    assert figures["machine"].keys() >= {"processor", "threads", "devices", "versions"}
    assert figures["precision"] == "float32"
    assert (figures["num_steps"], figures["repeats"]) == (2, 1)
    assert (figures["layers"], figures["notes"]) == ([], [])
    (case,) = figures["cases"]
    assert (case["model"], case["image_size"], case["batch"]) == ("model_a", 16, 3)
    assert case["ours_ms"] > 0
    assert case["peers"] == {}
    # Twice the forward pass per picture and step.
    rate = 2 * case["forward_gflop"] / (case["ours_ms"] / 1000)
    assert case["gflops"] == pytest.approx(rate)
    share = rate / figures["matrix_product_gflops"]
    assert case["share_of_matrix_product"] == pytest.approx(share)
    assert "model_a 16 px, batch 3" in capsys.readouterr().out
    assert list((tmp_path / "traces" / "model_a-16-3").rglob("*.xplane.pb"))


def test_ours_runs_on_prepared_weights(monkeypatch):
    given = []
    monkeypatch.setattr(benchmark, "prepare", lambda variables: variables | {"prepared": {}})
    monkeypatch.setattr(benchmark, "jax_attack", lambda *arguments: given.append(arguments))
    benchmark.ours(_problem())
    ((_, _, variables),) = given
    assert "prepared" in variables


@pytest.mark.usefixtures("_quick")
def test_every_peer_is_timed(tmp_path, capsys, monkeypatch):
    _import(*MODULES)
    monkeypatch.setattr(benchmark, "make_problem", lambda *_: _problem(num_steps=2))
    assert _run(tmp_path, *TINY, "--peers=all") == 0
    figures = _figures(tmp_path)
    (case,) = figures["cases"]
    assert list(case["peers"]) == list(MODULES)
    for peer in case["peers"].values():
        assert peer["ms"] > 0
        assert peer["ratio"] == pytest.approx(peer["ms"] / case["ours_ms"])
    variant = case["peers"]["torch"]["variant"]
    note = f"model_a 16 px, batch 3: torch is the fastest of 3 variants: {variant}"
    assert figures["notes"] == [note]
    assert figures["machine"]["versions"].keys() >= {"jax", "torch", "foolbox", "torchattacks"}
    printed = capsys.readouterr().out
    assert note in printed
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_perform_one_gradient_per_step(name, monkeypatch):
    _import(name)
    import torch

    from experiments._benchmark import peers

    class Counting(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.gradients = 0

        def forward(self, images):
            logits = self.model(images)
            if logits.requires_grad:
                logits.register_hook(self.count)
            return logits

        def count(self, _):
            self.gradients += 1

    problem = _problem(num_steps=4)
    counting = Counting(peers.twin("model_a", problem.variables)).eval()
    monkeypatch.setattr(peers, "twin", lambda *_: counting)
    candidate = benchmark.PEERS[name].candidates(problem)[0]
    adversarial = candidate.build(problem)()
    assert counting.gradients == problem.num_steps
    assert adversarial.shape == (3, 3, 16, 16)


def test_libraries_run_the_same_attack():
    """BIM of three libraries: the same targets, bounds and steps."""
    _import(*LIBRARIES)
    from experiments._benchmark import peers

    problem = _problem(num_steps=4)
    found = {
        name: peers.to_numpy(_only_run(name, problem)())
        for name in LIBRARIES
        if name != "torch"
    }
    for adversarial in found.values():
        change = np.abs(adversarial - problem.images)
        # Four steps of 0.002, but where two signs differ or a picture ends.
        assert 0.0079 < change.max() < 0.0081
        assert np.mean(np.abs(adversarial - found["torchattacks"]) > 1e-4) < 1e-2


def _assert_close(found, expected, precision):
    """In bfloat16 on average: ReLUs and maxima flip here and there."""
    difference = np.abs(found - expected)
    if precision == "float32":
        assert difference.max() < 1e-4
    else:
        change = np.abs(expected - _problem().images).mean()
        assert 1e-3 * change < difference.mean() < 0.2 * change


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_torch_variants_give_our_pictures(pictures_of_ours, precision):
    _import("torch")
    from experiments._benchmark import peers

    problem = _problem(precision=precision)
    assert np.abs(pictures_of_ours - problem.images).max() > 0.01
    variants = peers.variants(problem)
    assert len({variant.name for variant in variants}) == len(variants) >= 3
    for variant in variants:
        adversarial = peers.to_numpy(peers.plain_loop(problem, variant)())
        _assert_close(adversarial, pictures_of_ours, precision)


@pytest.mark.parametrize("name", ["flax", "unprepared"])
def test_own_baselines_give_our_pictures(name, pictures_of_ours):
    _assert_close(_only_run(name, _problem())(), pictures_of_ours, "float32")


def test_adaptive_attack_succeeds_on_every_picture():
    problem = _problem(num_steps=60)
    images = _only_run("apfgvm", problem)()
    model = create_model(problem.case.model, num_classes=30, image_size=16)
    logits = np.asarray(model.apply(problem.variables, images))
    # They lie as little beyond the boundary as the kernels' preparation moves logits.
    own = np.take_along_axis(logits, problem.labels[:, None], axis=-1)[:, 0]
    assert (own > logits.max(axis=-1) - 1e-3 * np.abs(logits).max()).all()
    assert (
        np.argmax(model.apply(problem.variables, problem.images), -1) != problem.labels
    ).any()


@pytest.mark.parametrize("name", ["ours", "flax"])
def test_precision_reaches_our_models(name, pictures_of_ours):
    problem = _problem(precision="bf16")
    run_once = benchmark.ours(problem) if name == "ours" else _only_run(name, problem)
    _assert_close(run_once(), pictures_of_ours, "bf16")


def test_naive_vgg16_has_the_logits_of_its_twin():
    """`tests.models` holds the twin to this project's VGG-16."""
    _import("torch")
    from experiments._benchmark import peers

    model, images = naive.NAIVE_MODELS["vgg16"](5), np.asarray(pictures(1, 32))
    variables = _draw(model, 32)
    twin = peers.twin("vgg16", variables)
    peers.fold(twin)
    expected = twin(peers.to_torch(images)).numpy()
    found = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_fastest_variant_counts_and_failures_are_named(monkeypatch, capsys):
    clock = [0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def candidate(name, seconds):
        def build(problem):
            def run_once():
                clock[0] += seconds
                return name

            return run_once

        return benchmark.Candidate(name, build)

    def fails(problem):
        raise RuntimeError("no\ncompiler")

    problem = _problem()
    candidates = [candidate("slow", 3), candidate("fast", 1), candidate("middling", 2)]
    failing = benchmark.Candidate("compiled", fails, may_fail=True)
    name, run_once, notes = benchmark.fastest("torch", [failing, *candidates], problem)
    assert (name, run_once()) == ("fast", "fast")
    assert notes == [
        "model_a 16 px, batch 3: torch: compiled is left out: RuntimeError: no compiler",
        "model_a 16 px, batch 3: torch is the fastest of 4 variants: fast",
    ]
    left_out = "torch: compiled is left out: RuntimeError: no compiler\n"
    assert capsys.readouterr().err == left_out
    with pytest.raises(RuntimeError, match="compiler"):
        benchmark.fastest("torch", [failing._replace(may_fail=False), *candidates], problem)


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
    assert timing.forward_multiply_adds(timing.Case("vgg16", 224, 4)) == expected
    expected = 25 * 3 * 32 * 64**2 + 25 * 32 * 64 * 32**2 + 16 * 16 * 64 * 512 + 512 * 30
    assert timing.forward_multiply_adds(timing.Case("model_a", 64, 9)) == expected


def test_matrix_product_rate_is_two_flops_per_multiply_add(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.matrix_product_rate("float32", 3) == 2 * 64**3


def test_each_layer_is_found_once():
    found = layer_times.distinct_layers([timing.Case("vgg16", 224, 4)] * 2)
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


@pytest.mark.parametrize("size", [3, 5, 0])
@pytest.mark.parametrize("backward", [False, True])
def test_layers_compute_the_same(size, backward):
    _import("torch")
    from experiments._benchmark import peers

    channels = 3 if size == 5 else 6
    layer = layer_times.Layer(size, 10, 2, channels, 8 if size else channels)
    runs = layer_times.layer_runs(layer, "float32", seed=0, backward=backward, with_torch=True)
    found = {name: run_once() for name, run_once in runs.items()}
    if backward and not size:  # With the outputs.
        found |= {name: found[name][0] for name in ("ours", "xla")}
    expected = peers.to_numpy(found.pop("torch"))
    assert np.abs(expected).max() > 1
    for result in found.values():
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_layers_are_timed_alone(tmp_path, capsys, monkeypatch):
    _import("torch")
    some = layer_times.distinct_layers([timing.Case("model_a", 8, 2)])[::2]
    monkeypatch.setattr(layer_times, "distinct_layers", lambda cases: some)
    flags = ["--layers", "--cases=model_a:8:2", "--repeats=1", "--precision=bf16"]
    assert _run(tmp_path, *flags, "--peers=torch") == 0
    figures = _figures(tmp_path)
    assert figures["cases"] == []
    convolution, pooling = ("forward", "input gradient"), ("forward", "forward and gradient")
    assert [(row["size"], row["image_size"], row["pass"]) for row in figures["layers"]] == [
        (size, 8, direction)
        for size, directions in ((5, convolution), (0, pooling))
        for direction in directions
    ]
    for row in figures["layers"]:
        assert list(row["peers"]) == ["xla", "torch"]
        for peer in row["peers"].values():
            assert peer["ratio"] == pytest.approx(peer["ms"] / row["ours_ms"])
    assert "conv 5×5, 3 → 32: 8 px, batch 2" in capsys.readouterr().out


def test_default_cases_are_larger_on_accelerators(monkeypatch):
    cases = benchmark.default_cases()
    assert [str(case) for case in cases] == [
        "model_a 64 px, batch 64",
        "model_a 224 px, batch 16",
        "vgg16 64 px, batch 16",
        "vgg16 224 px, batch 4",
    ]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    larger = benchmark.default_cases()
    assert [case[:2] for case in larger] == [case[:2] for case in cases]
    assert [case.batch for case in larger] == [1024, 256, 256, 64]


def test_cases_are_read_in_order():
    cases = benchmark.parse_cases("vgg16:32:3, model_a:4:1")
    assert cases == [timing.Case("vgg16", 32, 3), timing.Case("model_a", 4, 1)]


def test_missing_peer_is_named_and_left_out(monkeypatch, capsys):
    monkeypatch.setattr(timing, "version", lambda name: None if name == "foolbox" else "1")
    monkeypatch.setattr(benchmark, "_torch_has_device", lambda: True)
    assert benchmark.parse_peers("all") == [name for name in MODULES if name != "foolbox"]
    assert capsys.readouterr().err == "foolbox is left out: foolbox not installed\n"
    assert benchmark.parse_peers("flax, torch,flax") == ["flax", "torch"]
    assert benchmark.parse_peers("none") == []


def test_peers_without_our_accelerator_are_left_out(monkeypatch, capsys):
    _import("torch")
    import torch

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.parse_peers("torch,flax") == ["flax"]
    assert capsys.readouterr().err == ("torch is left out: PyTorch has no CUDA device here\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cases=model_a:64", "cases must be MODEL:IMAGE_SIZE:BATCH, …, got 'model_a:64'"),
        (
            "--cases=resnet:64:2",
            "model must be one of model_a, vgg16, mobilefacenet_ms1m, mobilefacenet_casia, got "
            "resnet",
        ),
        ("--cases=model_a:64:0", "batch must be an integer >= 1, got 0"),
        (
            "--peers=caffe",
            "peers must be of torch, torchattacks, foolbox, art, flax, unprepared, apfgvm, all "
            "or none, got caffe",
        ),
        ("--num_steps=0", "num_steps must be an integer >= 1, got 0"),
        ("--repeats=0", "repeats must be an integer >= 1, got 0"),
        ("--seed=-1", "seed must be an integer >= 0, got -1"),
        (
            "--layers --profile_dir=traces",
            "profile_dir traces attacks: give it without layers",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, flags, message):
    assert _run(tmp_path, *flags.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_profile_dir_is_no_file(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert _run(tmp_path, f"--profile_dir={file}") == 2
    assert capsys.readouterr().err == f"error: profile_dir {file} is a file, not a folder\n"


@pytest.mark.parametrize("flag", ["--precision=float16", "--fast"])
def test_unknown_flags_and_choices_are_refused(tmp_path, capsys, flag):
    assert _run(tmp_path, flag) == 2
    assert flag[2:].split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
