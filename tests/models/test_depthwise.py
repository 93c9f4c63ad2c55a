"""Depthwise convolution against XLA's own, with both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deid_jax.models import depthwise

CASES = [
    # height, width, kernel, stride, padding
    (8, 8, (3, 3), 1, ((1, 1), (1, 1))),
    (7, 9, (3, 3), 1, ((1, 1), (1, 1))),
    (8, 6, (3, 3), 2, ((1, 1), (1, 1))),
    (7, 9, (3, 3), 2, ((1, 1), (1, 1))),
    (8, 9, (3, 3), 2, ((0, 1), (1, 0))),
    (9, 8, (5, 3), 2, ((2, 2), (0, 0))),
    (8, 7, (2, 4), 1, ((0, 1), (3, 0))),
    (8, 7, (1, 2), 2, ((0, 0), (0, 0))),
    (11, 10, (3, 2), 3, ((1, 0), (0, 2))),
    (7, 7, (7, 7), 1, ((0, 0), (0, 0))),
    (7, 6, (7, 6), 1, ((0, 0), (0, 0))),
    (8, 6, (7, 6), 1, ((0, 0), (0, 0))),
]


def _random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _xla(images, kernel, stride, padding):
    return lax.conv_general_dilated(
        images,
        kernel[:, :, None],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


@pytest.mark.parametrize("height, width, size, stride, padding", CASES)
def test_values_and_both_gradients_equal_xla(height, width, size, stride, padding):
    images, kernel = _random((2, height, width, 5)), _random((*size, 5), seed=1)

    def ours(images, kernel):
        return depthwise.convolve_depthwise(images, kernel, stride=stride, padding=padding)

    def xla(images, kernel):
        return _xla(images, kernel, stride, padding)

    def both(function, images, kernel, seed):
        value, vjp = jax.vjp(function, images, kernel)
        return value, *vjp(_random(value.shape, seed))

    found = jax.jit(lambda *a: both(ours, *a, 2))(images, kernel)
    expected = jax.jit(lambda *a: both(xla, *a, 2))(images, kernel)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (6, 1)])
def test_kernel_may_have_an_axis_for_its_one_input(size, stride):
    images, kernel = _random((2, 6, 6, 3)), _random((size, size, 3), seed=1)

    def gradient(kernel):
        return jax.grad(
            lambda k: (depthwise.convolve_depthwise(images, k, stride=stride) ** 2).sum()
        )(kernel)

    np.testing.assert_array_equal(
        depthwise.convolve_depthwise(images, kernel[:, :, None], stride=stride),
        depthwise.convolve_depthwise(images, kernel, stride=stride),
    )
    found = gradient(kernel[:, :, None])
    assert found.shape == (size, size, 1, 3)
    np.testing.assert_array_equal(found[:, :, 0], gradient(kernel))


@pytest.mark.parametrize("stride", [1, 2])
def test_numpy_sums_the_same_products(stride):
    images, kernel = _random((2, 6, 5, 3)), _random((3, 3, 3), seed=1)
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("bpqcij,ijc->bpqc", windows[:, ::stride, ::stride], kernel)
    found = depthwise.convolve_depthwise(
        images, kernel, stride=stride, padding=((1, 1), (1, 1))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_grouped_convolution_is_left_in_a_loop():
    """XLA's own is what makes the loop slow."""
    kernel = _random((3, 3, 4))

    def loss(images):
        for stride in (1, 2):
            images = depthwise.convolve_depthwise(
                images, kernel, stride=stride, padding=((1, 1), (1, 1))
            )
        return (images**2).sum()

    def attack(images):
        def step(x, _):
            return (x - 0.1 * jax.grad(loss)(x), None)

        return lax.scan(step, images, None, length=3)[0]

    text = jax.jit(attack).lower(jnp.zeros((1, 8, 8, 4))).compile().as_text()
    assert "while(" in text
    assert "convolution(" not in text


def test_accelerators_get_the_convolution_of_their_library(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    images, kernel = _random((2, 7, 6, 3)), _random((3, 3, 3), seed=1)
    options = {"stride": 2, "padding": ((1, 1), (1, 1))}
    program = str(
        jax.make_jaxpr(lambda x: depthwise.convolve_depthwise(x, kernel, **options))(images)
    )
    assert program.count("conv_general_dilated[") == 1
    found = depthwise.convolve_depthwise(images, kernel, **options)
    monkeypatch.undo()
    np.testing.assert_allclose(
        found, depthwise.convolve_depthwise(images, kernel, **options), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_runs_under_vmap():
    images, kernel = _random((3, 2, 6, 7, 4)), _random((3, 3, 4), seed=1)

    def gradient(images):
        def loss(images):
            outputs = depthwise.convolve_depthwise(
                images, kernel, stride=2, padding=((1, 1), (1, 1))
            )
            return (outputs**2).sum()

        return jax.grad(loss)(images)

    single = [gradient(one) for one in images]
    np.testing.assert_allclose(jax.vmap(gradient)(images), single, rtol=1e-5, atol=1e-5)
