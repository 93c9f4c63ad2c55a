"""All that the benchmark times does the same work: ours, PyTorch's, the libraries', layers."""

import contextlib
import functools
import importlib
import warnings

import jax
import numpy as np
import pytest

from deid_jax.models import create_model, mobilefacenet
from deid_jax.models.mobilefacenet import VARIANTS
from experiments import benchmark
from experiments._benchmark import candidates, layer_times
from experiments._peers import naive, problem
from experiments._peers.problem import Case
from tests.experiments.test_benchmark import (
    PEERS,
    TINY,
    draw_weights,
    figures_in,
    run_benchmark,
    small_and_alone,  # noqa: F401
    small_problem,
)
from tests.helpers import random_images
from tests.models.test_mobilefacenet import random_arrays

torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
pytestmark = pytest.mark.slow
torch.set_num_threads(1)

from experiments._peers import fixed_steps, twins  # noqa: E402
from tests.models import published_twins  # noqa: E402

LIBRARIES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "art.attacks.evasion"}


@pytest.fixture(scope="module", autouse=True)
def _libraries():
    """Imports what is installed before any test redirects stderr: ART closes other streams."""
    for module in (*LIBRARIES.values(), "art.estimators.classification"):
        with contextlib.suppress(ImportError), warnings.catch_warnings(action="ignore"):
            importlib.import_module(module)


@functools.cache
def images_of_ours():
    """Ours on `small_problem()`."""
    return np.asarray(candidates.ours(small_problem())())


def _needs(*names):
    for name in names:
        pytest.importorskip(LIBRARIES[name], reason=f"{name}, a peer, is not installed")


def _only_run(name, case):
    (candidate,) = candidates.PEERS[name].candidates(case)
    return candidate.build(case)


def test_every_peer_is_timed(tmp_path, capsys, monkeypatch):
    _needs(*LIBRARIES)
    # It takes seconds to compile prepared kernels.
    monkeypatch.setattr(candidates, "prepare", lambda variables: variables)
    monkeypatch.setattr(benchmark, "make_problem", lambda *_: small_problem(num_steps=2))
    assert run_benchmark(tmp_path, *TINY, "--peers=all") == 0
    figures = figures_in(tmp_path)
    (case,) = figures["cases"]
    assert list(case["peers"]) == PEERS
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


@pytest.mark.parametrize("name", ["torch", *LIBRARIES])
def test_peers_compute_one_gradient_per_step(name, monkeypatch):
    if name != "torch":
        _needs(name)
    from experiments._peers.peer_runs import Counter

    case = small_problem(num_steps=4)
    counter = Counter(twins.twin("model_a", case.variables))
    monkeypatch.setattr(fixed_steps, "twin", lambda *_: counter)
    adversarial = candidates.PEERS[name].candidates(case)[0].build(case)()
    assert counter.num_gradients == case.num_steps
    assert adversarial.shape == (3, 3, 16, 16)


def test_libraries_run_the_same_attack():
    """BIM of three libraries: the same targets, bounds and steps."""
    _needs(*LIBRARIES)
    case = small_problem(num_steps=4)
    found = {name: twins.to_numpy(_only_run(name, case)()) for name in LIBRARIES}
    for adversarial in found.values():
        # Four steps of 0.002, but where two signs differ or the range of a pixel ends.
        assert 0.0079 < np.abs(adversarial - case.images).max() < 0.0081
        assert np.mean(np.abs(adversarial - found["torchattacks"]) > 1e-4) < 1e-2


def _assert_close(found, precision):
    """In bfloat16 on average: ReLUs and maxima flip here and there."""
    difference = np.abs(found - images_of_ours())
    perturbation = np.abs(images_of_ours() - small_problem().images)
    assert perturbation.max() > 0.01
    if precision == "float32":
        assert difference.max() < 1e-4
    else:
        mean = perturbation.mean()
        assert 1e-3 * mean < difference.mean() < 0.2 * mean


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_torch_variants_give_our_images(precision):
    case = small_problem(precision=precision)
    variants = fixed_steps.loop_variants(case)
    assert len({variant.name for variant in variants}) == len(variants) >= 3
    for variant in variants:
        _assert_close(twins.to_numpy(fixed_steps.plain_loop(case, variant)()), precision)


def test_own_baselines_give_our_images():
    for name in ("flax", "unprepared"):
        _assert_close(_only_run(name, small_problem())(), "float32")
    halved = small_problem(precision="bf16")
    _assert_close(_only_run("flax", halved)(), "bf16")
    _assert_close(candidates.ours(halved)(), "bf16")


def test_adaptive_attack_succeeds_on_every_image():
    case = small_problem(num_steps=60)
    images = _only_run("apfgvm", case)()
    model = create_model("model_a", num_classes=problem.NUM_CLASSES, image_size=16)
    logits = np.asarray(model.apply(case.variables, images))
    # The kernels' preparation moves logits further than they are beyond the boundary.
    own = np.take_along_axis(logits, case.labels[:, None], axis=-1)[:, 0]
    assert (own > logits.max(axis=-1) - 1e-3 * np.abs(logits).max()).all()
    assert (np.argmax(model.apply(case.variables, case.images), -1) != case.labels).any()


def test_naive_vgg16_has_the_logits_of_its_twin():
    """`tests.models` holds the twin to this project's VGG-16."""
    model, images = naive.NAIVE_MODELS["vgg16"](5), np.asarray(random_images(1, 32))
    variables = draw_weights(model, 32)
    twin = twins.twin("vgg16", variables)
    twins.fold_batch_norms(twin)
    expected = twin(twins.to_torch(images)).numpy()
    found = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [5, 0])
@pytest.mark.parametrize("backward", [False, True])
def test_layers_compute_the_same(size, backward):
    channels = 3 if size else 6
    layer = layer_times.Layer(size, 10, 2, channels, 8 if size else channels)
    runs = layer_times.layer_runs(
        layer, precision="float32", seed=0, with_torch=True, backward=backward
    )
    found = {name: run_once() for name, run_once in runs.items()}
    if backward and not size:  # With the outputs.
        found |= {name: found[name][0] for name in ("ours", "xla")}
    expected = twins.to_numpy(found.pop("torch"))
    assert np.abs(expected).max() > 1
    for result in found.values():
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_layers_are_timed_alone(tmp_path, capsys, monkeypatch):
    some = layer_times.distinct_layers([Case("model_a", 8, 2)])[::2]
    monkeypatch.setattr(layer_times, "distinct_layers", lambda cases: some)
    flags = ["--layers", "--cases=model_a:8:2", "--repeats=1", "--precision=bf16"]
    assert run_benchmark(tmp_path, *flags, "--peers=torch") == 0
    figures = figures_in(tmp_path)
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


def _small_mobilefacenet(variant, batch=1):
    return Case(f"mobilefacenet_{variant}", 112, batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mobilefacenet_is_the_one_of_the_published_layout(variant):
    """`tests.models` holds the published layout to this project's MobileFaceNet."""
    arrays = random_arrays(variant)
    _, variables = mobilefacenet.convert(arrays)
    folded = twins.twin(f"mobilefacenet_{variant}", variables).double()
    published = published_twins.with_published_weights(variant, arrays).double()
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 112, 112, generator=random, dtype=torch.float64)
    weights = torch.rand(2, 128, generator=random, dtype=torch.float64)
    results = []
    for network in (folded, published):
        inputs = images.clone().requires_grad_(True)
        embeddings = network(inputs)
        (gradient,) = torch.autograd.grad((embeddings * weights).sum(), inputs)
        results.append((embeddings.detach(), gradient))
    for found, expected in zip(*results, strict=True):
        # Folded in float32.
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_multiply_adds_are_those_pytorch_counts(variant):
    from torch.utils.flop_counter import FlopCounterMode

    network = published_twins.with_published_weights(variant, random_arrays(variant))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 112, 112))
    assert 3e8 < counter.get_total_flops() < 6e8
    found = problem.forward_multiply_adds(_small_mobilefacenet(variant, 5))
    assert 2 * found == counter.get_total_flops()


def test_every_library_attacks_mobilefacenet(tmp_path, monkeypatch):
    _needs(*LIBRARIES)
    case = problem.make_problem(_small_mobilefacenet("casia"), 1, seed=0)
    embeddings = jax.jit(problem.model_of(case.case).apply)(case.variables, case.images)
    assert embeddings.shape == (1, 128)
    assert np.std(embeddings) == pytest.approx(1, rel=1e-3)
    monkeypatch.setattr(benchmark, "make_problem", lambda *_: case)
    flags = ["--cases=mobilefacenet_casia:112:1", "--num_steps=1", "--repeats=1"]
    assert run_benchmark(tmp_path, *flags, f"--peers=torch,{','.join(LIBRARIES)}") == 0
    figures = figures_in(tmp_path)
    (row,) = figures["cases"]
    assert list(row["peers"]) == ["torch", *LIBRARIES]
    # Its weights come with BatchNorm folded: one variant a layout.
    assert row["peers"]["torch"]["variant"].endswith("BatchNorm folded")
    assert "torch is the fastest of 2 variants" in figures["notes"][0]
    ours = np.asarray(candidates.ours(case)())
    perturbation = np.abs(ours - case.images).mean()
    assert perturbation > 1e-4
    for variant in fixed_steps.loop_variants(case):
        theirs = twins.to_numpy(fixed_steps.plain_loop(case, variant)())
        assert np.abs(theirs - ours).mean() < 0.02 * perturbation
