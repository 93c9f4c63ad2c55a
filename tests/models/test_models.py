"""The recognisers are the paper's: layers, shapes, modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.models import MODELS, create_model
from tests.helpers import refused


def _shapes(name, size, num_classes=30):
    model = create_model(name, num_classes=num_classes, image_size=size)
    example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    return {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}


@pytest.mark.parametrize(
    "size, flat", [(64, 16 * 16 * 64), (224, 56 * 56 * 64), (37, 9 * 9 * 64)]
)
def test_model_a_has_the_papers_layers(size, flat):
    assert _shapes("model_a", size) == {
        "conv1": (5, 5, 3, 32),
        "conv2": (5, 5, 32, 64),
        "fc1": (flat, 512),
        "fc2": (512, 30),
    }


@pytest.mark.parametrize("size, flat", [(224, 7 * 7 * 512), (64, 2 * 2 * 512), (33, 512)])
def test_vgg16_has_the_papers_layers(size, flat):
    features = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    inputs = [3, *features[:-1]]
    shapes = list(_shapes("vgg16", size).values())
    assert sorted(shapes[:]) == sorted(
        [(3, 3, i, o) for i, o in zip(inputs, features, strict=True)]
        + [(flat, 4096), (4096, 4096), (4096, 256), (256, 30)]
    )


def test_vgg16_at_224_has_the_known_number_of_weights():
    """VGG-16 up to fc7 has 134,260,544 weights; the head of 256 and K units is ours."""
    model = create_model("vgg16", num_classes=30, image_size=224)
    example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    body = {name: p for name, p in params.items() if name not in ("fc8", "bn8", "fc9")}
    assert sum(leaf.size for leaf in jax.tree.leaves(body)) == 134_260_544


@pytest.mark.parametrize("name", MODELS)
def test_regularised_layers_exist(name):
    model = create_model(name, num_classes=5, image_size=64)
    assert set(model.regularised) <= set(_shapes(name, 64))


@pytest.mark.slow
def test_dropout_and_batch_norm_act_in_training_only():
    model = create_model("model_a", num_classes=5, image_size=16)
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    variables = model.init(jax.random.key(1), images)

    def trained(key):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    logits, updated = trained(jax.random.key(2))
    other, _ = trained(jax.random.key(3))
    assert not np.allclose(logits, other)
    before, after = variables["batch_stats"], updated["batch_stats"]
    assert not np.allclose(before["bn1"]["mean"], after["bn1"]["mean"])
    np.testing.assert_array_equal(
        model.apply(variables, images), model.apply(variables, images)
    )


@pytest.mark.slow
def test_dropout_drops_nine_tenths():
    model = create_model("model_a", num_classes=5, image_size=16)
    images = jax.random.uniform(jax.random.key(0), (64, 16, 16, 3))
    variables = model.init(jax.random.key(1), images)
    _, state = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats", "intermediates"],
        rngs={"dropout": jax.random.key(2)},
        capture_intermediates=lambda module, _: module.name == "Dropout_0",
    )
    (kept,) = state["intermediates"]["Dropout_0"]["__call__"]
    # ReLU leaves about half of the units, dropout a tenth of these.
    assert 0.03 < float((kept > 0).mean()) < 0.07


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet", 3, 64), "model must be one of .* got resnet"),
        (("vgg16", 3, 31), "image_size must be at least 32"),
        (("model_a", 1, 64), "num_classes must be .* got 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with refused(message):
        name, num_classes, image_size = arguments
        create_model(name, num_classes=num_classes, image_size=image_size)
