"""dlib's ResNet against PyTorch, with random weights, and against dlib with its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.models import prepare
from deid_jax.models.dlib_resnet import DlibResNet, array_shapes, convert
from deid_jax.recognisers import weights
from deid_jax.recognisers.weight_files import read_weights
from tests.helpers import refused
from tests.recognisers.test_weight_files import dlib_file


def random_arrays(seed=0):
    """Arrays of the right names and shapes that keep activations of order one."""
    random = np.random.default_rng(seed)

    def draw(name, count):
        if name.startswith("affine"):
            return np.concatenate(
                [random.uniform(0.3, 0.7, count // 2), random.normal(0, 0.1, count // 2)]
            )
        return random.normal(0, 0.06, count)

    return {name: draw(name, n).astype(np.float32) for name, (n,) in array_shapes().items()}


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


@pytest.fixture(scope="module")
def twin(arrays):
    pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    from experiments._peers.dlib_resnet_twin import with_dlib_weights

    return with_dlib_weights(arrays)


def _image():
    return np.random.default_rng(1).random((1, 150, 150, 3), np.float32)


def _assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_file_gives_pytorchs_descriptors(tmp_path, arrays, twin):
    import torch

    path = tmp_path / "network.dat"
    path.write_bytes(dlib_file(arrays))
    model, variables = convert(read_weights(path))
    expected = twin(torch.from_numpy(_image()).permute(0, 3, 1, 2)).numpy()
    _assert_close(jax.jit(model.apply)(variables, _image()), expected)


@pytest.mark.parametrize("ready", [lambda variables: variables, prepare])
@pytest.mark.slow
def test_input_gradients_are_pytorchs(arrays, twin, ready):
    import torch

    model, variables = convert(arrays)
    cotangent = np.random.default_rng(2).normal(size=(1, 128)).astype(np.float32)
    inputs = torch.from_numpy(_image()).requires_grad_(True)
    expected = twin(inputs.permute(0, 3, 1, 2))
    (expected * torch.from_numpy(cotangent)).sum().backward()

    @jax.jit
    def both(images):
        found, vjp = jax.vjp(lambda x: model.apply(ready(variables), x), images)
        return found, *vjp(cotangent)

    found, gradient = both(_image())
    _assert_close(found, expected.detach().numpy())
    wanted = inputs.grad.numpy()
    # Rounding moves a few activations across their kink, where the gradient jumps.
    assert np.linalg.norm(gradient - wanted) < 3e-3 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_published_weights_give_dlibs_descriptors():
    """On its own chips of a photo with a face, and on noise."""
    dlib = pytest.importorskip("dlib", reason="dlib, a peer, is not installed")
    import skimage.data

    path = weights.fetch("dlib_resnet")
    model, variables = convert(read_weights(path))
    photo = skimage.data.astronaut()
    predictor = dlib.shape_predictor(
        str(path.with_name("shape_predictor_5_face_landmarks.dat"))
    )
    boxes = dlib.get_frontal_face_detector()(photo, 1)
    assert boxes
    chips = [dlib.get_face_chip(photo, predictor(photo, box), 150, 0.25) for box in boxes]
    noise = np.random.default_rng(0).integers(0, 256, (2, 150, 150, 3), np.uint8)
    images = np.stack([*chips, *noise])
    network = dlib.face_recognition_model_v1(str(path))
    expected = np.array([np.array(network.compute_face_descriptor(image)) for image in images])
    for own in (variables, prepare(variables)):
        found = jax.jit(model.apply)(own, images.astype(np.float32) / 255)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_initialised_variables_have_the_shapes_of_converted_ones(arrays):
    model, variables = convert(arrays)
    example = jax.ShapeDtypeStruct((1, 150, 150, 3), jnp.float32)
    fresh = jax.eval_shape(model.init, jax.random.key(0), example)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


def test_other_images_are_refused():
    with refused(r"images must be \[B, 150, 150, 3\] for dlib_resnet, got"):
        jax.eval_shape(DlibResNet().init, jax.random.key(0), jnp.zeros((1, 112, 112, 3)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"affine.28": None}, "weights of dlib's ResNet lack the array affine.28"),
        ({"con.29": np.zeros(3)}, "array con.29 does not belong to dlib's ResNet"),
        ({"fc.0": np.zeros(3)}, r"fc.0 must have shape \(32768,\), got \(3,\)"),
        ({"affine.0": np.full(64, np.nan)}, "affine.0 must hold finite floats"),
    ],
)
def test_wrong_arrays_are_named(arrays, change, message):
    changed = {name: array for name, array in (arrays | change).items() if array is not None}
    with refused(message):
        convert(changed)
