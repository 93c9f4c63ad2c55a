"""VGG-Face's files: the descriptor is PyTorch's of the same numbers; refusals are clear."""

import functools
import hashlib
import pickle
import sys
from pathlib import Path

import flax.linen as nn
import h5py
import jax
import numpy as np
import pytest
import scipy.io

from deid_jax.errors import InputError
from deid_jax.models import create_model, vgg16
from deid_jax.recognisers.vggface_files import load_vggface
from tests.helpers import refused

# Depths are VGG-16's. All numbers of channels differ, so that no wrong order goes unseen.
NARROW = ((2, 4), (2, 5), (3, 6), (3, 7), (3, 8))
CONVOLUTIONS = [f"conv{b}_{i}" for b, (n, _) in enumerate(NARROW, 1) for i in range(1, n + 1)]
MEAN = np.array([129.1863, 104.7624, 93.5940])


@pytest.fixture
def narrow(monkeypatch):
    """Model B with few channels in its convolutions."""
    monkeypatch.setattr(vgg16, "BLOCKS", NARROW)


@functools.cache
def network(blocks=NARROW, top=True):
    """Layer -> (kernel, bias), all layers convolutions of height, width, inputs, outputs."""
    shapes, inputs = {}, 3
    for block, (depth, features) in enumerate(blocks, start=1):
        for layer in range(1, depth + 1):
            shapes[f"conv{block}_{layer}"] = (3, 3, inputs, features)
            inputs = features
    if top:
        shapes |= {"fc6": (7, 7, inputs, 4096), "fc7": (1, 1, 4096, 4096)}
        shapes["fc8"] = (1, 1, 4096, 11)
    random = np.random.default_rng(5)
    layers = {}
    for name, shape in shapes.items():
        kernel = random.standard_normal(shape, np.float32)
        kernel *= np.float32(np.sqrt(2 / np.prod(shape[:3])))
        layers[name] = kernel, random.uniform(-0.1, 0.1, shape[3]).astype(np.float32)
    return layers


def convolutions():
    return {name: network()[name] for name in CONVOLUTIONS}


def _dense(name, kernel):
    return kernel.reshape(-1, kernel.shape[-1]) if name.startswith("fc") else kernel


def write_keras(path, layers, names=("{}_W_1:0", "{}_b_1:0"), root="/"):
    with h5py.File(path, "w") as file:
        group = file.require_group(root)
        group.attrs["layer_names"] = [b"input_1", *(name.encode() for name in layers)]
        group.create_group("input_1")
        for name, (kernel, bias) in layers.items():
            own = group.create_group(name)
            own[names[0].format(name)], own[names[1].format(name)] = _dense(name, kernel), bias
            if name.startswith("fc"):
                own.create_group("relu")  # That of the activation "fc6/relu".


def write_matconvnet(path, layers, fields=("weights",), nested=True, mean=MEAN):
    cells = []
    for name, (kernel, bias) in layers.items():
        pair = [kernel, bias[:, None]]
        if fields == ("weights",):
            weights = np.empty(2, object)
            weights[:] = pair
            own = {"weights": weights}
        else:
            own = dict(zip(fields, pair, strict=True))
        cells.append({"name": name, "type": "conv", "stride": 1.0, **own})
        cells.append({"name": name.replace("conv", "relu"), "type": "relu"})
    cell = np.empty(len(cells), object)
    cell[:] = cells
    normalization = {"averageImage": np.reshape(mean, (1, 1, 3)), "imageSize": [224, 224, 3]}
    if nested:
        scipy.io.savemat(path, {"net": {"layers": cell, "normalization": normalization}})
    else:
        meta = {"normalization": normalization}
        scipy.io.savemat(path, {"layers": cell, "meta": meta})


def write_npz(path, layers, names=("{}_W", "{}_b"), **others):
    arrays = {}
    for name, (kernel, bias) in layers.items():
        arrays[names[0].format(name)], arrays[names[1].format(name)] = kernel, bias
    np.savez(path, **arrays, **others)


WRITERS = {".h5": write_keras, ".mat": write_matconvnet, ".npz": write_npz}


def reference(layers, inputs):
    """PyTorch's features [B, H, W, C] of inputs [B, H, W, 3] whose mean is subtracted."""
    torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    x = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2), np.float32))
    for name in (name for name in layers if name != "fc8"):
        if name in ("conv2_1", "conv3_1", "conv4_1", "conv5_1", "fc6"):
            x = torch.nn.functional.max_pool2d(x, 2)
        kernel, bias = (torch.from_numpy(array) for array in layers[name])
        padding = 1 if name.startswith("conv") else 0
        x = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=padding)
        x = torch.relu(x)
    return x.permute(0, 2, 3, 1).numpy()


def features(pretrained, images, name):
    """Model B's output of a layer, after its ReLU."""
    model = create_model("vgg16", num_classes=3, image_size=images.shape[1])
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables["params"].update(pretrained.layers)
    apply = functools.partial(
        model.apply,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == name,
    )
    _, state = jax.jit(apply)(variables, images)
    return nn.relu(state["intermediates"][name]["__call__"][0])


def pictures(size):
    return np.random.default_rng(1).uniform(size=(2, size, size, 3)).astype(np.float32)


def _assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.max())


@pytest.mark.parametrize("suffix", WRITERS)
def test_descriptor_is_that_of_the_files_network(narrow, tmp_path, suffix):
    path = tmp_path / f"vgg_face{suffix}"
    WRITERS[suffix](path, network())
    pretrained = load_vggface(path)
    assert sorted(pretrained.layers) == sorted([*CONVOLUTIONS, "fc6", "fc7"])
    assert pretrained.source == {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    images = pictures(224)
    # Keras' network is fed BGR, as its own `preprocess_input` makes it; the others RGB.
    step = -1 if suffix == ".h5" else 1
    inputs = 255 * images[..., ::step] - MEAN[::step]
    ours = features(pretrained, images, "fc7")
    _assert_close(ours, reference(network(), inputs)[:, 0, 0])
    swapped = reference(network(), inputs[..., ::-1])[:, 0, 0]
    assert np.abs(ours - swapped).max() > 0.05 * swapped.max()


@pytest.mark.parametrize(
    ("suffix", "options", "channels"),
    [
        (".h5", {}, "BGR"),
        (".h5", {"root": "model_weights"}, "BGR"),
        (".h5", {"names": ("{0}/kernel:0", "{0}/bias:0")}, "BGR"),
        (".mat", {}, "RGB"),
        (".mat", {"nested": False}, "RGB"),
        (".mat", {"fields": ("filters", "biases"), "nested": False}, "RGB"),
        (".npz", {}, "RGB"),
        (".npz", {"channels": "BGR"}, "BGR"),
        (".npz", {"names": ("{}/kernel", "{}/bias")}, "RGB"),
    ],
    ids=str,
)
def test_every_layout_gives_the_same_numbers(narrow, tmp_path, suffix, options, channels):
    path = tmp_path / f"it{suffix}"
    WRITERS[suffix](path, convolutions(), **options)
    found = load_vggface(path, image_size=64).layers
    assert sorted(found) == sorted(CONVOLUTIONS)
    for name, (kernel, bias) in convolutions().items():
        if name == "conv1_1" and channels == "BGR":
            kernel = kernel[:, :, ::-1]
        np.testing.assert_array_equal(found[name]["kernel"], kernel)
        np.testing.assert_array_equal(found[name]["bias"], bias)


def test_doubles_and_halves_become_floats(narrow, tmp_path):
    for dtype in (np.float64, np.float16):
        path = tmp_path / f"{dtype.__name__}.npz"
        write_npz(
            path,
            {n: (k.astype(dtype), b.astype(dtype)) for n, (k, b) in convolutions().items()},
        )
        for layer in load_vggface(path, image_size=40).layers.values():
            assert layer["kernel"].dtype == layer["bias"].dtype == np.float32


def test_all_of_vgg_face_without_its_top(tmp_path):
    layers = network(vgg16.BLOCKS, top=False)
    path = tmp_path / "rcmalli_vggface_tf_notop_vgg16.h5"
    write_keras(path, layers)
    pretrained = load_vggface(path, image_size=32)
    sizes = [leaf.size for leaf in jax.tree.leaves(dict(pretrained.layers))]
    # 138,357,544 weights of VGG-16 less its three dense layers.
    assert sum(sizes) == 14_714_688
    images = pictures(32)
    inputs = 255 * images[..., ::-1] - MEAN[::-1]
    _assert_close(features(pretrained, images, "conv5_3"), reference(layers, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
def test_all_of_vgg_face_with_its_top(tmp_path, suffix):
    """Half a gigabyte: the shapes of the published files, and their descriptor."""
    layers = network.__wrapped__(vgg16.BLOCKS)
    path = tmp_path / f"vgg_face{suffix}"
    WRITERS[suffix](path, layers)
    pretrained = load_vggface(path)
    sizes = [leaf.size for leaf in jax.tree.leaves(dict(pretrained.layers))]
    assert sum(sizes) == 134_260_544  # All but those of the classes.
    images = pictures(224)
    step = -1 if suffix == ".h5" else 1
    wanted = reference(layers, 255 * images[..., ::step] - MEAN[::step])[:, 0, 0]
    found = features(pretrained, images, "fc7")
    assert found.shape == (len(images), 4096)
    _assert_close(found, wanted)


def _without(*names):
    return {name: layer for name, layer in network().items() if name not in names}


def _with(name, kernel=None, bias=None):
    layers = convolutions()
    old = layers[name]
    layers[name] = (old[0] if kernel is None else kernel, old[1] if bias is None else bias)
    return layers


@pytest.mark.parametrize("suffix", WRITERS)
def test_missing_layers_and_other_sizes_are_named(narrow, tmp_path, suffix):
    write, path = WRITERS[suffix], tmp_path / f"it{suffix}"

    def refused(message, image_size=224):
        with pytest.raises(InputError, match=message) as caught:
            load_vggface(path, image_size=image_size)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    write(path, _without("conv3_2", "fc6", "fc7"))
    refused(r"has no layer conv3_2$")
    write(path, _without("fc7"))
    refused(r"has no layer fc7$")
    refused(r"image_size must be 224 for .* got 64; weights without fc6 and fc7 \(notop\)", 64)
    write(path, _with("conv2_1", kernel=network()["conv2_1"][0].transpose(3, 2, 0, 1)))
    refused(r"conv2_1 must have a kernel \(3, 3, 4, 5\), got \(5, 4, 3, 3\)")
    write(path, _with("conv2_1", bias=np.zeros(6, np.float32)))
    refused(r"conv2_1 must have a bias \(5,\), got \(6,\)")
    write(path, _with("conv2_1", bias=np.full(5, np.nan, np.float32)))
    refused(r"conv2_1 must be finite, got NaN or infinity")
    write(path, _with("conv2_1", bias=np.arange(5)))
    refused(r"conv2_1 must have a bias of floats, got int")
    path.write_bytes(path.read_bytes()[:400])
    refused(r"cannot be read: \w")


def test_another_file_is_named(narrow, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "text.h5").write_text("no HDF5")
    write_matconvnet(tmp_path / "imagenet.mat", convolutions(), mean=[123.68, 116.779, 103.94])
    scipy.io.savemat(tmp_path / "other.mat", {"x": np.ones(3)})
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    (tmp_path / "new.mat").write_bytes(header.ljust(1024, b"\0"))
    write_npz(tmp_path / "channels.npz", convolutions(), channels="GRB")
    np.savez(tmp_path / "bias.npz", conv1_1_W=network()["conv1_1"][0])
    for name, message in (
        ("nowhere.h5", "nowhere.h5 does not exist"),
        ("folder.h5", "folder.h5 is not a file"),
        ("weights.pth", "pretrained must end in .h5, .mat, .npz, got .*weights.pth"),
        ("text.h5", "text.h5 cannot be read: "),
        ("imagenet.mat", r"is not VGG-Face's: its averageImage is \[123.68, 116.78, 103.94\]"),
        ("other.mat", "other.mat has no layer conv1_1"),
        ("new.mat", "new.mat is of MATLAB 7.3: save it in MATLAB with the option -v7"),
        ("channels.npz", "channels must be RGB or BGR, got GRB"),
        ("bias.npz", r"conv1_1 must be a kernel and a bias, got \(3, 3, 3, 4\)$"),
    ):
        with refused(message):
            load_vggface(tmp_path / name, image_size=32)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    trap = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "object.npz", conv1_1_W=np.array([trap, trap], object))
    (tmp_path / "whole.npz").write_bytes(pickle.dumps(trap))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name, message in (
        ("object.npz", "cannot be read: Object arrays cannot be loaded"),
        ("whole.npz", "cannot be read: it is no .npz archive"),
        ("array.npz", "cannot be read: it is no .npz archive"),
    ):
        with refused(message):
            load_vggface(tmp_path / name)
    assert not trap.path.exists()
    pickle.loads((tmp_path / "whole.npz").read_bytes())
    assert trap.path.exists()


def test_a_missing_h5py_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "it.h5").touch()
    with refused(r"needs h5py: pip install 'deid_jax\[vggface\]'"):
        load_vggface(tmp_path / "it.h5")
