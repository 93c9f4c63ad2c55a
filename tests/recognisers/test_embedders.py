"""Recognisers by name, by file and brought along; embeddings in batches."""

import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.models import mobilefacenet
from deid_jax.recognisers import embedders, weights
from deid_jax.recognisers.embedders import FunctionModule, load_embedder
from tests.embedding_helpers import faces_of, tiny_embedder, tiny_in_numpy

SIZE = 112
MODULE = """
import jax.numpy as jnp
calls = []

def embed(images):
    calls.append(images.shape)
    return images.mean(axis=(1, 2)) ** 2

def of_no_batch(images):
    return images.mean(axis=(1, 2, 3))

def one_for_all(images):
    return images.mean(axis=(0, 1))

def single_number(images):
    return images.mean(axis=(1, 2, 3))[:, None]

def in_numpy(images):
    import numpy
    return numpy.asarray(images)[:, 0, 0]

def says_much(images):
    raise ValueError("first line\\nsecond line " + 999 * "x")

constant = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with modules in it; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "brought_here.py").write_text(MODULE)
    (tmp_path / "brought_package").mkdir()
    (tmp_path / "brought_package" / "__init__.py").write_text("")
    (tmp_path / "brought_package" / "inner.py").write_text(MODULE)
    (tmp_path / "brought_broken.py").write_text("def embed(images:\n")
    (tmp_path / "brought_failing.py").write_text("raise RuntimeError('first\\nsecond')\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("brought_"):
            del sys.modules[name]


def _random_arrays(variant):
    random = np.random.default_rng(len(variant))
    return {
        name: random.uniform(0.5, 1, shape).astype(np.float32)
        for name, shape in mobilefacenet.array_shapes(variant).items()
    }


@pytest.fixture(scope="module", params=mobilefacenet.VARIANTS)
def arrays(request):
    return request.param, _random_arrays(request.param)


def _assert_same(embedder, variant, arrays):
    module, variables = mobilefacenet.convert(arrays)
    assert (embedder.name, embedder.module) == ("mobilefacenet", module)
    assert embedder.module.variant == variant
    assert embedder.variables["params"].keys() == variables["params"].keys()
    for layer, parts in variables["params"].items():
        for part, array in parts.items():
            np.testing.assert_array_equal(embedder.variables["params"][layer][part], array)


def _one_line(text, image_size=SIZE, **options):
    with pytest.raises(InputError) as refused:
        load_embedder(text, image_size=image_size, **options)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_npz_file(arrays, tmp_path):
    variant, named = arrays
    np.savez(tmp_path / "net.npz", **named)
    loaded = load_embedder(f"mobilefacenet:{tmp_path / 'net.npz'}", image_size=SIZE)
    _assert_same(loaded, variant, named)


@pytest.mark.parametrize(
    ("wrapper", "suffix"),
    [(None, ".pt"), ("net_state_dict", ".ckpt"), ("state_dict", ".pth"), ("model", ".pt")],
)
def test_pytorch_file_with_and_without_what_scripts_put_around(wrapper, suffix, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    named = _random_arrays("casia")
    state = {name: torch.from_numpy(array) for name, array in named.items()}
    # What else lies there is no weight, if something is around the weights.
    tree = {wrapper: state, "epoch": 3, "moments": {"x": torch.ones(2)}} if wrapper else state
    path = tmp_path / f"net{suffix}"
    torch.save(tree, path)
    loaded = load_embedder(f"mobilefacenet:{path}", image_size=SIZE)
    _assert_same(loaded, "casia", named)


def test_both_wrappers_one_in_the_other(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    named = _random_arrays("ms1m")
    state = {name: torch.from_numpy(array) for name, array in named.items()}
    torch.save({"state_dict": {"model": state}}, tmp_path / "net.pt")
    loaded = load_embedder(f"mobilefacenet:{tmp_path / 'net.pt'}", image_size=SIZE)
    _assert_same(loaded, "ms1m", named)


def test_name_alone_is_fetched_and_read(tmp_path, monkeypatch):
    named = _random_arrays("ms1m")
    np.savez(tmp_path / "net.npz", **named)
    asked = []

    def fetch(name, *, progress):
        asked.append(name)
        progress(1, 2)
        return tmp_path / "net.npz"

    monkeypatch.setattr(weights, "fetch", fetch)
    told = []
    loaded = load_embedder(
        "mobilefacenet_ms1m",
        image_size=SIZE,
        progress=lambda *bytes_: told.append(bytes_),
    )
    assert told == [(1, 2)]
    assert asked == ["mobilefacenet_ms1m"]
    _assert_same(loaded._replace(name="mobilefacenet"), "ms1m", named)
    assert loaded.name == "mobilefacenet_ms1m"


def test_names_are_those_of_the_table_whose_hashes_are_known():
    """Nothing that loads a recogniser takes a hash from the user."""
    known = [*embedders.CONVERTERS, "mobilefacenet_ms1m", "mobilefacenet_casia"]
    assert embedders.names() == known
    assert all(weights.WEIGHTS[name].sha256 for name in known if name in weights.WEIGHTS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mobilefacenet", "mobilefacenet"),
        ("mobilefacenet:a.npz", "mobilefacenet"),
        ("mobilefacenet_casia:/c++/a,b.npz", "mobilefacenet_casia"),
        ("mobilefacenets.api:embed", "mobilefacenets.api:embed"),
        ("mobilefacenet_api:embed", "mobilefacenet_api:embed"),
        ("mobilefacenet.api:embed", "mobilefacenet.api:embed"),
    ],
)
def test_names_are_told_from_modules(text, name):
    assert embedders.name_of(text) == name


def test_module_whose_name_begins_like_weights(folder):
    for module in ("mobilefacenets", "mobilefacenet_api"):
        (folder / f"{module}.py").write_text(MODULE)
        loaded = load_embedder(f"{module}:embed", image_size=8)
        assert loaded.name == f"{module}:embed"
        del sys.modules[module]


MS1M, CASIA = "mobilefacenet_ms1m", "mobilefacenet_casia"


@pytest.mark.parametrize(
    ("text", "commas"),
    [
        ("a", [["a"]]),
        (f"{MS1M}, {CASIA},{MS1M}+{CASIA}", [[MS1M], [CASIA], [MS1M, CASIA]]),
        (f"{MS1M}:/c++/A.npz", [[f"{MS1M}:/c++/A.npz"]]),
        (f"{MS1M}:/c++/A.npz+{CASIA}:b.npz", [[f"{MS1M}:/c++/A.npz", f"{CASIA}:b.npz"]]),
        (f"{MS1M}:a,b/c, d.npz,{CASIA}:x", [[f"{MS1M}:a,b/c, d.npz"], [f"{CASIA}:x"]]),
        (f"{CASIA}+{MS1M}:a+b,c+d.pt,{CASIA}", [[CASIA, f"{MS1M}:a+b,c+d.pt"], [CASIA]]),
        (f"{MS1M}:a.npz,my.module:embed+m:n", [[f"{MS1M}:a.npz"], ["my.module:embed", "m:n"]]),
        (f"{MS1M}:a.npz,mobilefacenet_csaia:b", [[f"{MS1M}:a.npz"], ["mobilefacenet_csaia:b"]]),
        # Without a file separators are nothing else.
        ("my.module:embed,", [["my.module:embed"], [""]]),
        ("my.module:embed++m:n", [["my.module:embed", "", "m:n"]]),
        ("my.module:embed,nobody", [["my.module:embed"], ["nobody"]]),
    ],
)
def test_separators_within_paths_separate_nothing(text, commas):
    groups = embedders.split_list(text, ",")
    assert [embedders.split_list(group, "+") for group in groups] == commas


@pytest.mark.parametrize("module", ["brought_here", "brought_package.inner"])
def test_function_of_the_users_own(folder, module):
    loaded = load_embedder(f"{module}:embed", image_size=8)
    assert loaded.name == f"{module}:embed" and loaded.variables == {}
    photos, _ = faces_of(3, 15, size=8)
    expected = (photos / 255).mean(axis=(1, 2)) ** 2
    calls = sys.modules[module].calls
    assert calls == [(2, 8, 8, 3)]  # Only looked at.
    np.testing.assert_allclose(loaded.embed(photos), expected, atol=1e-6)
    np.testing.assert_allclose(loaded.embed(photos[:3]), expected[:3], atol=1e-6)
    assert calls == [(2, 8, 8, 3), (embedders.BATCH_SIZE, 8, 8, 3), (4, 8, 8, 3)]
    loaded.embed(photos[:2])
    loaded.embed(photos[:10])
    assert len(calls) == 3  # One program a size.


@pytest.mark.parametrize("count", [1, 31, 32, 33, 70])
def test_embeddings_in_batches_are_those_of_all_at_once(count):
    embedder = tiny_embedder()
    photos, _ = faces_of(1, count)
    found = embedder.embed(photos)
    assert found.shape == (count, 10) and found.dtype == np.float32
    direct = embedder.module.apply(embedder.variables, jnp.float32(photos) / 255)
    np.testing.assert_allclose(found, direct, atol=1e-6)
    np.testing.assert_allclose(found, tiny_in_numpy(embedder, photos), atol=1e-5)


def test_weights_are_arguments_of_the_program():
    """Another set of weights gives other embeddings through the same module."""
    photos, _ = faces_of(2, 2)
    for seed in range(2):
        embedder = tiny_embedder(seed)
        expected = tiny_in_numpy(embedder, photos)
        np.testing.assert_allclose(embedder.embed(photos), expected, atol=1e-5)


def test_function_modules_are_float32_and_hashed_by_their_function():
    def half(images):
        return images.mean(axis=(1, 2)).astype(jnp.float16)

    module = FunctionModule(half)
    assert module == FunctionModule(half) and hash(module) == hash(FunctionModule(half))
    assert module.apply({}, jnp.ones((2, 4, 4, 3))).dtype == jnp.float32
    assert module != FunctionModule(np.mean)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "arcface",
            "with a NAME of dlib_resnet, mobilefacenet, mobilefacenet_ms1m",
        ),
        ("", "recogniser must be NAME"),
        ("mobilefacenet", "needs a file, mobilefacenet:FILE"),
        ("mobilefacenet_huge", "NAME or NAME:FILE with a NAME of .*, got mobilefacenet_huge$"),
        ("mobilefacenet_huge:net.npz", "NAME or NAME:FILE with a NAME of dlib_resnet, mobile"),
        ("mobilefacenet:missing.npz", "missing.npz are no file"),
        ("mobilefacenet:missing.pt", "weights missing.pt are no file"),
        ("mobilefacenet:brought_here.py", "no readable .npz file"),
        ("brought_nowhere:embed", "cannot be imported: No module named 'brought_nowhere'"),
        ("brought_here:nothing", "cannot be imported: .* no attribute 'nothing'"),
        ("brought_here:", "got brought_here:$"),
        (":embed", "cannot be imported"),
        ("brought_here.embed:x", "cannot be imported"),
        ("brought_broken:embed", "brought_broken:embed cannot be imported"),
        ("brought_failing:embed", "cannot be imported: first second"),
        ("brought_here:constant", "recogniser brought_here:constant is no function"),
        ("brought_here:of_no_batch", r"a vector for each image, .* of two it gives \(2,\)"),
        ("brought_here:one_for_all", r"of two it gives \(112, 3\)"),
        ("brought_here:single_number", r"D >= 2; of two it gives \(2, 1\)"),
        ("brought_here:in_numpy", "in_numpy cannot take images of 112 px: "),
        ("brought_here:says_much", "cannot take images of 112 px: first line second line"),
    ],
)
def test_what_is_no_recogniser_is_refused_in_one_line(folder, text, message):
    assert re.search(message, _one_line(text)), _one_line(text)


def test_arrays_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "net.npz", weight=np.ones(3, np.float32))
    assert "lack the array" in _one_line(f"mobilefacenet:{tmp_path / 'net.npz'}")
