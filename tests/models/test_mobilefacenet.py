"""MobileFaceNet against PyTorch: published weights, random weights, and bad weight files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.models import mobilefacenet
from deid_jax.models.mobilefacenet import VARIANTS, MobileFaceNet, array_shapes, convert
from deid_jax.recognisers.weight_files import read_weights
from tests.helpers import refused

WIDTH = {"ms1m": 112, "casia": 96}


def random_arrays(variant, seed=0):
    """Arrays of the right names and shapes that keep activations of order one."""
    random = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            return random.uniform(0.5, 1.5, shape)
        if len(shape) == 1:
            return random.normal(0, 0.1, shape)
        return random.normal(0, np.prod(shape[1:]) ** -0.5, shape)

    shapes = array_shapes(variant)
    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def pictures(count, width=112, seed=0):
    return np.random.default_rng(seed).random((count, 112, width, 3), np.float32)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def arrays(variant):
    return random_arrays(variant)


@pytest.fixture(scope="module")
def network(arrays):
    return convert(arrays)


@pytest.fixture
def published(recogniser_files):
    """The folder of published weights."""
    return recogniser_files["mobilefacenet_ms1m"].parent


def _assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def _both(network, images, weights):
    """Embeddings and the input gradient of ⟨embeddings, weights⟩, compiled."""
    model, variables = network

    def loss(images):
        embeddings = model.apply(variables, images)
        return (embeddings * weights).sum(), embeddings

    (_, embeddings), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(images)
    return embeddings, gradient


def _compare_with_pytorch(variant, arrays, images):
    """Rounding moves a few activations across their kink, where the gradient jumps."""
    torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    from tests.models.published_twins import with_published_weights

    weights = np.random.default_rng(5).normal(size=(len(images), 128)).astype(np.float32)
    embeddings, gradient = _both(convert(arrays), images, weights)
    twin = with_published_weights(variant, arrays)
    inputs = torch.from_numpy(images).requires_grad_(True)
    expected = twin(inputs.permute(0, 3, 1, 2))
    (expected * torch.from_numpy(weights)).sum().backward()
    _assert_close(embeddings, expected.detach().numpy(), 2e-5)
    wanted = inputs.grad.numpy()
    assert np.linalg.norm(gradient - wanted) < 3e-3 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_random_weights_give_pytorchs_embeddings_and_gradients(variant, arrays):
    _compare_with_pytorch(variant, arrays, pictures(2, WIDTH[variant]))


def test_published_weights_give_the_embeddings_stored_with_them(variant, published):
    model, variables = convert(read_weights(published / f"mobilefacenet_{variant}.npz"))
    assert model.variant == variant
    with np.load(published / f"mobilefacenet_{variant}.expected.npz") as expected:
        images, embeddings = expected["images"], expected["embeddings"]
    found = jax.jit(model.apply)(variables, images.astype(np.float32) / 255)
    assert found.dtype == jnp.float32
    _assert_close(found, embeddings, 2e-5)


@pytest.mark.slow
def test_published_weights_give_pytorchs_gradients(variant, published):
    with np.load(published / f"mobilefacenet_{variant}.npz") as file:
        arrays = dict(file)
    with np.load(published / f"mobilefacenet_{variant}.expected.npz") as expected:
        images = expected["images"][:2].astype(np.float32) / 255
    _compare_with_pytorch(variant, arrays, images)


def test_published_names_and_shapes_are_those_expected(variant, published):
    lines = (published / f"mobilefacenet_{variant}.keys.txt").read_text().splitlines()
    listed = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines if line}
    assert listed == {name: str(shape) for name, shape in array_shapes(variant).items()}


def test_initialised_variables_have_the_shapes_of_converted_ones(network):
    model, variables = network
    example = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    fresh = jax.eval_shape(model.init, jax.random.key(0), example)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)


@pytest.mark.slow
def test_casia_looks_at_the_middle_96_columns():
    model, variables = convert(random_arrays("casia"))
    weights = np.ones((2, 128), np.float32)
    images = pictures(2)
    embeddings, gradient = _both((model, variables), images, weights)
    cropped, inner = _both((model, variables), images[:, :, 8:104], weights)
    _assert_close(embeddings, cropped, 1e-6)
    _assert_close(gradient[:, :, 8:104], inner, 1e-4)
    assert not gradient[:, :, :8].any()
    assert not gradient[:, :, 104:].any()


@pytest.mark.slow
def test_weights_have_gradients(network):
    """Against a finite difference along a random direction, in float64."""
    model, variables = network
    random = np.random.default_rng(7)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
        along = jax.tree.map(
            lambda leaf: np.abs(leaf).mean() * random.normal(size=leaf.shape), params
        )
        images = pictures(1).astype(np.float64)
        weights = random.normal(size=(1, 128))

        @jax.jit
        def loss(params):
            return (model.apply({"params": params}, images) * weights).sum()

        gradient = jax.jit(jax.grad(loss))(params)
        for name in params:
            assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient[name])), name
        products = jax.tree.map(lambda a, b: float((a * b).sum()), gradient, along)
        step = 1e-8
        ahead, behind = (
            float(loss(jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, along)))
            for sign in (1, -1)
        )
    slope = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_and_returns_float32(network):
    model, variables = network
    images = pictures(1)
    exact = jax.jit(model.apply)(variables, images)
    near = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images)
    assert near.dtype == jnp.float32
    assert np.any(near != exact)
    cosine = (near * exact).sum() / (jnp.linalg.norm(near) * jnp.linalg.norm(exact))
    assert cosine > 0.99


@pytest.mark.slow
def test_accelerators_compute_the_same(network, monkeypatch):
    """With the convolutions of their libraries, here run on the CPU."""
    model, variables = network
    images, weights = pictures(1), np.ones((1, 128), np.float32)
    expected = _both(network, images, weights)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = str(jax.make_jaxpr(model.apply)(variables, images))
    assert program.count("conv_general_dilated[") == 18
    found = jax.jit(lambda x: model.apply(variables, x))(images)
    monkeypatch.undo()
    _assert_close(found, expected[0])


@pytest.mark.parametrize("shape", [(2, 112, 96, 3), (2, 96, 112, 3), (2, 112, 112, 1), (112,)])
def test_other_images_are_refused(shape):
    with refused(r"images must be \[B, 112, 112, 3\] for ms1m, got"):
        jax.eval_shape(MobileFaceNet("ms1m").init, jax.random.key(0), jnp.zeros(shape))


def test_unknown_variants_are_refused():
    with refused("variant must be one of ms1m, casia, got vgg"):
        MobileFaceNet("vgg").init(jax.random.key(0), jnp.zeros((1, 112, 112, 3)))


def test_counters_of_batches_are_passed_over(variant, arrays, network):
    counted = arrays | {"conv1.1.num_batches_tracked": np.array(3)}
    model, variables = convert(counted)
    assert model.variant == variant
    jax.tree.map(np.testing.assert_array_equal, variables, network[1])


@pytest.mark.parametrize(
    "variant, change, message",
    [
        ("ms1m", {"features.3.conv.2.weight": None}, "lack the array features.3.conv.2.weight"),
        ("casia", {"conv2.prelu.weight": None}, "lack the array conv2.prelu.weight"),
        ("ms1m", {"extra": np.zeros(3)}, "array extra does not belong to MobileFaceNet"),
        ("casia", {"extra": np.zeros(3)}, r"does not belong to MobileFaceNet \(casia\)"),
        ("ms1m", {"bn.bias": np.zeros(3)}, r"bn.bias must have shape \(128,\), got \(3,\)"),
        ("casia", {"linear7.conv.weight": np.zeros((512, 1, 7, 7))}, "linear7.conv.weight"),
        ("ms1m", {"bn.bias": np.zeros(128, int)}, "bn.bias must hold finite floats, got"),
        ("ms1m", {"bn.bias": np.full(128, np.nan)}, "bn.bias must hold finite floats"),
    ],
)
def test_wrong_arrays_are_named(variant, change, message):
    changed = random_arrays(variant) | change
    changed = {name: array for name, array in changed.items() if array is not None}
    with refused(message):
        convert(changed)


def test_bottlenecks_are_the_papers():
    blocks = mobilefacenet.BOTTLENECKS
    assert len(blocks) == 15
    assert [n for n, block in enumerate(blocks) if block.stride == 2] == [0, 5, 12]
    assert [n for n, block in enumerate(blocks) if not block.residual] == [0, 5, 12]
    assert [block.wide for block in blocks] == [128] * 5 + [256] * 7 + [512] + [256] * 2
