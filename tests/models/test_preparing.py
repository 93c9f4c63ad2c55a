"""Prepared kernels against Flax's own convolution, and what `prepare` may and may not do."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deid_jax.models import create_model, layers, prepare, winograd
from tests.helpers import random_images, randomised, small_model


def _random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def _layer_and_variables(size, channels, features=6):
    layer = layers.conv(features, size, "conv")
    variables = layer.init(jax.random.key(1), jnp.zeros((1, 4, 4, channels)))
    bias = _random((features,), seed=2)
    return layer, {"params": {**variables["params"], "bias": bias}}


@pytest.mark.parametrize("height, width", [(8, 8), (7, 9), (1, 2), (13, 4)])
@pytest.mark.parametrize("size, channels", [(1, 3), (3, 3), (3, 5), (5, 1), (5, 4), (5, 7)])
@pytest.mark.slow
def test_prepared_convolution_equals_flax_with_its_input_gradient(
    height, width, channels, size
):
    layer, variables = _layer_and_variables(size, channels)
    images = _random((2, height, width, channels))
    plain = nn.Conv(6, (size, size))
    cotangent = _random((2, height, width, 6), seed=3)

    @functools.partial(jax.jit, static_argnums=0)
    def both(layer, variables):
        value, vjp = jax.vjp(lambda x: layer.apply(variables, x), images)
        return value, *vjp(cotangent)

    assert jax.tree.leaves(prepare(variables)["prepared"])
    found, expected = both(layer, prepare(variables)), both(plain, variables)
    for ours, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", winograd.SIZES)
def test_winograd_matrices_filter_exactly(size):
    """Aᵀ [(G g) ⊙ (Bᵀ d)] is the correlation of d with g; turning g permutes G g."""
    output, kernel, inputs, turned = winograd.matrices(size)
    random = np.random.default_rng(0)
    signal, taps = random.normal(size=inputs.shape[1]), random.normal(size=size)
    filtered = output @ ((kernel @ taps) * (inputs @ signal))
    np.testing.assert_allclose(filtered, np.correlate(signal, taps, "valid"), rtol=1e-12)
    np.testing.assert_allclose(kernel @ taps[::-1], (kernel @ taps)[list(turned)], rtol=1e-12)


@pytest.mark.parametrize("size", winograd.SIZES)
@pytest.mark.slow
def test_winograd_rounds_to_a_hundred_thousandth(size):
    images = random_images(2, 12).repeat(43, axis=-1)[..., :128]
    kernel = _random((size, size, 128, 8), seed=4)
    wide = [np.asarray(array, np.float64) for array in (images, kernel)]
    padded = np.pad(wide[0], ((0, 0), *[(size // 2, size // 2)] * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    expected = np.einsum("bhwcij,ijck->bhwk", windows, wide[1])
    value = winograd.convolve_winograd(images, winograd.transform(np.asarray(kernel)), size)
    assert np.abs(value - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name, size", [("model_a", 14), ("vgg16", 33)])
@pytest.mark.slow
def test_recognisers_give_the_same_logits_prepared(name, size):
    model = create_model(name, num_classes=5, image_size=size)
    variables = randomised(model, size)
    images = random_images(2, size)
    apply = jax.jit(model.apply)
    plain, prepared = apply(variables, images), apply(prepare(variables), images)
    np.testing.assert_allclose(prepared, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_recogniser_gives_the_same_gradient_prepared():
    _, model, variables = small_model(size=14)
    images = random_images(2, 14)

    @jax.jit
    def gradient(variables):
        return jax.grad(lambda x: model.apply(variables, x)[:, 0].sum())(images)

    plain, prepared = gradient(variables), gradient(prepare(variables))
    # Rounding may put a ReLU or a maximum on its other side: compare as a whole.
    assert jnp.linalg.norm(prepared - plain) < 0.02 * jnp.linalg.norm(plain)


@pytest.mark.slow
def test_vmap_and_scan_over_prepared_convolutions():
    layer, variables = _layer_and_variables(3, channels=6)
    prepared = prepare(variables)
    images = _random((3, 2, 6, 5, 6))

    def attack(images):
        def step(x, _):
            return x - 0.1 * jax.grad(lambda x: (layer.apply(prepared, x) ** 2).sum())(x), None

        return lax.scan(step, images, None, length=3)[0]

    together = jax.jit(jax.vmap(attack))(images)
    for alone, one in zip(images, together, strict=True):
        np.testing.assert_allclose(jax.jit(attack)(alone), one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 8])
def test_prepared_kernels_have_no_gradient(channels):
    layer, variables = _layer_and_variables(3, channels)
    prepared = prepare(variables)

    def loss(variables):
        return layer.apply(variables, jnp.ones((1, 4, 4, channels))).sum()

    with pytest.raises(TypeError, match="prepared weights have no gradient"):
        jax.grad(loss)(prepared)


@pytest.mark.slow
def test_the_compiled_loop_of_a_prepared_recogniser_holds_no_convolution():
    model = create_model("model_a", num_classes=5, image_size=16)
    prepared = prepare(randomised(model, 16))

    def attack(images):
        def step(x, _):
            return x - 0.1 * jax.grad(lambda x: model.apply(prepared, x).sum())(x), None

        return lax.scan(step, images, None, length=3)[0]

    text = jax.jit(attack).lower(random_images(2)).compile().as_text()
    assert " convolution(" not in text
    assert "while(" in text


def test_other_dtypes_take_the_kernel_as_loaded():
    layer, variables = _layer_and_variables(3, channels=8)
    images = _random((1, 5, 5, 8))
    half = layer.clone(dtype=jnp.bfloat16)
    value = half.apply(prepare(variables), images)
    np.testing.assert_array_equal(value, half.apply(variables, images))
    assert value.dtype == jnp.bfloat16


def test_accelerators_get_their_weights_and_convolutions_untouched(monkeypatch):
    layer, variables = _layer_and_variables(3, channels=8)
    images = _random((1, 5, 5, 8))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert prepare(variables) is variables
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: layer.apply(variables, x).sum()))(images))
    assert "custom_vjp" not in jaxpr
    assert "optimization_barrier" not in jaxpr


@pytest.mark.parametrize("name, size", [("model_a", 16), ("vgg16", 32)])
@pytest.mark.slow
def test_bfloat16_recognisers_keep_float32_weights_and_logits(name, size):
    model = create_model(name, num_classes=5, image_size=size)
    variables = randomised(model, size)
    images = random_images(2, size)
    logits = model.apply(variables, images)
    half = model.clone(dtype=jnp.bfloat16)
    rough = half.apply(variables, images)
    assert rough.dtype == jnp.float32
    assert not np.array_equal(rough, logits)
    assert jnp.linalg.norm(rough - logits) < 0.1 * jnp.linalg.norm(logits)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(half.init(jax.random.key(0), images))}
    assert kinds == {jnp.dtype(jnp.float32)}
