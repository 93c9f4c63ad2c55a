"""MobileFaceNet in the benchmark: its PyTorch twin, what is counted, peers and errors."""

import contextlib
import importlib
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.models import mobilefacenet
from deid_jax.models.mobilefacenet import VARIANTS
from experiments import benchmark
from experiments._common import timing

LIBRARIES = ("torch", "foolbox", "torchattacks", "art")
MODULES = ("torch", "foolbox", "torchattacks", "art.attacks.evasion")


@pytest.fixture(scope="module", autouse=True)
def _libraries():
    """Imports what is installed before any test redirects stderr: ART closes other streams."""
    for module in MODULES:
        with contextlib.suppress(ImportError), warnings.catch_warnings(action="ignore"):
            importlib.import_module(module)


@pytest.fixture(autouse=True)
def _small_and_alone(monkeypatch):
    """No large matrix product, and a thread per process, as tests share the processor."""
    monkeypatch.setattr(timing, "MATRIX_SIZES", (64, 64))
    monkeypatch.setattr(timing, "threads", lambda: 1)


@pytest.fixture
def torch():
    """PyTorch, with a thread."""
    found = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    found.set_num_threads(1)
    return found


def _case(variant, batch=2):
    return timing.Case(f"mobilefacenet_{variant}", 112, batch)


def _arrays(variant):
    """Published weights' names and shapes; BatchNorm and slopes are not the trivial ones."""
    random = np.random.default_rng(0)

    def draw(name, shape):
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            return random.uniform(0.5, 1.5, shape)
        if len(shape) == 1:
            return random.normal(0, 0.1, shape)
        return random.normal(0, np.prod(shape[1:]) ** -0.5, shape)

    shapes = mobilefacenet.array_shapes(variant)
    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_twin_has_our_values_and_input_gradients(variant, torch):
    """In float64: rounding moves activations across their kinks, where gradients jump."""
    from experiments._benchmark import peers

    model, variables = mobilefacenet.convert(_arrays(variant))
    random = np.random.default_rng(1)
    images = random.uniform(size=(2, 112, 112, 3))
    weights = random.normal(size=(2, 128))

    def loss(images):
        embeddings = model.apply(variables, images)
        return (embeddings * weights).sum(), embeddings

    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        (_, ours), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(images)
        assert gradient.dtype == jnp.float64
    twin = peers.twin(f"mobilefacenet_{variant}", variables).double()
    inputs = peers.to_torch(images).requires_grad_(True)
    theirs = twin(inputs)
    (theirs * torch.from_numpy(weights)).sum().backward()
    for found, expected in (
        (ours, theirs.detach().numpy()),
        (gradient, peers.to_numpy(inputs.grad)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    # A twin in float32 computes what ours does, too.
    single = peers.twin(f"mobilefacenet_{variant}", variables)(peers.to_torch(images).float())
    np.testing.assert_allclose(ours, single.numpy(), atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_multiply_adds_are_those_pytorch_counts(variant, torch):
    from torch.utils.flop_counter import FlopCounterMode

    from tests import torch_mobilefacenet

    twin = torch_mobilefacenet.build(variant, _arrays(variant))
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, 3, 112, {"ms1m": 112, "casia": 96}[variant]))
    assert 3e8 < counter.get_total_flops() < 6e8
    assert 2 * timing.forward_multiply_adds(_case(variant, 5)) == counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_and_logits_are_of_128_numbers(variant):
    problem = benchmark.make_problem(_case(variant, 200), 3, seed=0)
    assert problem.images.shape == (200, 112, 112, 3)
    assert 120 <= problem.labels.max() <= 127
    assert problem.labels.min() <= 7
    model = timing.model_of(problem.case)
    assert model.variant == variant
    embeddings = jax.jit(model.apply)(problem.variables, problem.images[:1])
    assert embeddings.shape == (1, 128)
    assert np.std(embeddings) == pytest.approx(1, rel=1e-3)


def test_every_library_attacks_it(tmp_path, monkeypatch, capsys):
    for module in MODULES:
        pytest.importorskip(module, reason=f"{module}, a peer, is not installed")
    problem = benchmark.make_problem(_case("casia", 1), 1, seed=0)
    monkeypatch.setattr(benchmark, "make_problem", lambda *_: problem)
    flags = ["--cases=mobilefacenet_casia:112:1", "--num_steps=1", "--repeats=1"]
    flags += [f"--output_dir={tmp_path / 'out'}", f"--peers={','.join(LIBRARIES)},flax"]
    assert benchmark.main(flags) == 0
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    (row,) = written["cases"]
    assert list(row["peers"]) == list(LIBRARIES)
    # Its weights come with BatchNorm folded: one variant a layout.
    assert row["peers"]["torch"]["variant"].endswith("BatchNorm folded")
    assert "torch is the fastest of 2 variants" in written["notes"][0]
    errors = capsys.readouterr().err
    assert "flax is left out: it has no mobilefacenet_casia\n" in errors
    from experiments._benchmark import peers

    ours = np.asarray(benchmark.ours(problem)())
    change = np.abs(ours - problem.images).mean()
    assert change > 1e-4
    for variant in peers.variants(problem):
        theirs = peers.to_numpy(peers.plain_loop(problem, variant)())
        assert np.abs(theirs - ours).mean() < 0.02 * change


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--cases=mobilefacenet_casia:64:2",
            "image_size must be 112 for mobilefacenet_casia, got 64",
        ),
        (
            "--layers --cases=mobilefacenet_ms1m:112:2",
            "layers of mobilefacenet_ms1m are not timed: give it without layers",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, flags, message):
    assert benchmark.main([f"--output_dir={tmp_path / 'out'}", *flags.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()
