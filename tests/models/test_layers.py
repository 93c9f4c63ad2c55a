"""The fast convolution and pooling against Flax's own and XLA's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deid_jax.models import layers


def _random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("height, width", [(8, 8), (7, 9)])
@pytest.mark.parametrize(
    "size, padding",
    [(3, "SAME"), (5, "SAME"), (1, "VALID"), (3, "VALID"), (4, ((2, 1), (0, 3)))],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.slow
def test_convolution_equals_xla_with_both_gradients(height, width, size, padding, stride):
    images = _random((2, height + 4, width + 4, 3))
    kernel = _random((size, size, 3, 4), seed=1)
    dimensions = ("NHWC", "HWIO", "NHWC")

    def ours(images, kernel):
        return layers.conv_general_dilated(images, kernel, (stride, stride), padding)

    def xla(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, (stride, stride), padding, dimension_numbers=dimensions
        )

    value, vjp = jax.vjp(ours, images, kernel)
    expected, expected_vjp = jax.vjp(xla, images, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    cotangent = _random(value.shape, seed=2)
    for gradient, wanted in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (3, 3)},
        {"kernel_dilation": (2, 2)},
        {"input_dilation": (2, 2), "padding": ((1, 1), (1, 1))},
        {"feature_group_count": 2},
    ],
)
@pytest.mark.slow
def test_other_convolutions_fall_back_to_flax(options):
    images = _random((2, 9, 7, 4))
    settings = {"features": 6, "kernel_size": (3, 3), **options}
    plain = nn.Conv(**settings)
    fast = nn.Conv(**settings, conv_general_dilated=layers.conv_general_dilated)
    variables = plain.init(jax.random.key(1), images)
    np.testing.assert_array_equal(fast.apply(variables, images), plain.apply(variables, images))


@pytest.mark.parametrize("height, width", [(8, 8), (7, 9), (2, 3), (5, 4)])
@pytest.mark.slow
def test_max_pool_equals_flax_with_its_gradient(height, width):
    images = _random((3, height, width, 2))

    def flax_pool(images):
        return nn.max_pool(images, (2, 2), strides=(2, 2))

    value, vjp = jax.vjp(layers.max_pool, images)
    expected, expected_vjp = jax.vjp(flax_pool, images)
    np.testing.assert_array_equal(value, expected)
    cotangent = _random(value.shape, seed=1)
    np.testing.assert_allclose(vjp(cotangent)[0], expected_vjp(cotangent)[0], rtol=1e-6)


def test_max_pool_shares_the_gradient_of_ties():
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(gradient, np.full((1, 2, 2, 1), 0.25))


def test_input_gradient_inside_a_scan_holds_only_fast_convolutions():
    """No convolution of the compiled loop may have other than NHWC/HWIO dimension order."""
    kernel = _random((3, 3, 4, 4))

    def loss(images):
        return layers.conv_general_dilated(images, kernel, (1, 1), "SAME").sum()

    def attack(images):
        def step(x, _):
            return (x - 0.1 * jax.grad(loss)(x), None)

        return lax.scan(step, images, None, length=3)[0]

    text = jax.jit(attack).lower(_random((1, 8, 8, 4))).compile().as_text()
    labels = [part.split()[0] for part in text.split("dim_labels=")[1:]]
    orders = {label.rstrip(",") for label in labels}
    assert orders <= {"b01f_01io->b01f"}, orders
