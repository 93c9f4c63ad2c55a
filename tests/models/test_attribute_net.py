"""The attributes' network: its layers at every size, and classes that an attribute lacks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deid_jax.models.attribute_net import UNUSED, AttributeNet, patches

CLASSES = (2, 4, 3)


@pytest.fixture(scope="module")
def model():
    return AttributeNet(CLASSES)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((4, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def variables(model, images):
    """Weights drawn by NumPy, which takes no compilation; statistics are 1."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), shapes["params"]
    )
    statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    return {"params": params, "batch_stats": statistics["batch_stats"]}


@pytest.fixture(scope="module")
def logits(model, variables, images):
    return np.asarray(jax.jit(model.apply)(variables, images))


@pytest.mark.parametrize(
    ("size", "channels", "flat"),
    [(64, 12, 2048), (8, 3, 128), (37, 3, 2048), (96, 27, 2048), (224, 147, 2048)],
)
def test_trunk_works_on_the_same_grid_at_every_size(model, size, channels, flat):
    example = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    params = variables["params"]
    kernels = {name: p["kernel"].shape for name, p in params.items() if "kernel" in p}
    assert kernels == {
        "conv1": (3, 3, channels, 32),
        "conv2": (3, 3, 32, 64),
        "conv3": (3, 3, 64, 128),
        "fc": (flat, 256),
        "heads": (256, 3 * 4),
    }
    assert set(model.regularised) <= set(kernels)
    assert jax.eval_shape(model.apply, variables, example).shape == (2, 3, 4)


def test_patches_are_the_pixels_in_order():
    picture = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    found = patches(jnp.asarray(picture), 2)
    assert found.shape == (2, 3, 3, 12)
    for row in range(3):
        for column in range(3):
            block = picture[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(found[:, row, column], block.reshape(2, 12))
    np.testing.assert_array_equal(patches(jnp.asarray(picture), 1), picture)


def test_unused_classes_are_never_named_and_cost_nothing(logits):
    used = np.array([[k < count for k in range(4)] for count in CLASSES])
    assert np.all(logits[:, ~used] == UNUSED)
    assert np.all(np.abs(logits[:, used]) < 1e3)
    labels = np.array([[0, 3, 2], [1, 2, 1], [1, 0, 0], [0, 1, 2]], np.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    for b in range(4):
        for a, count in enumerate(CLASSES):
            own = logits[b, a, :count].astype(np.float64)
            expected = np.log(np.sum(np.exp(own))) - own[labels[b, a]]
            np.testing.assert_allclose(losses[b, a], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_no_gradient_reaches_unused_classes(model, variables, images):
    def loss(params):
        logits = model.apply({**variables, "params": params}, images)
        labels = jnp.zeros((4, 3), jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])["heads"]["bias"].reshape(3, 4)
    for a, count in enumerate(CLASSES):
        assert np.all(gradient[a, count:] == 0)
        assert np.all(gradient[a, :count] != 0)


def test_dropout_and_batch_norm_act_in_training_only(model, variables, images, logits):
    @jax.jit
    def trained(key):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    first, updated = trained(jax.random.key(2))
    second, _ = trained(jax.random.key(3))
    assert not np.allclose(first, second)
    assert not np.allclose(updated["batch_stats"]["bn1"]["mean"], 1)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, images), logits)
