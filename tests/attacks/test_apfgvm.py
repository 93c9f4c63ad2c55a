"""A-PFGVM against a float64 NumPy loop, closed forms, and P-FGVM itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import APFGVMConfig, PFGVMConfig, apfgvm, ddn, pfgvm
from deid_jax.attacks.ddn import DDNConfig
from deid_jax.attacks.penalties import PENALTIES
from deid_jax.errors import InputError
from deid_jax.objectives import cross_entropy, margin
from deid_jax.pixels import LEVELS, on_grid
from tests.helpers import random_images, small_model

KEY = jax.random.key(0)
SHAPE = (8, 7, 3)


def l2_norms(change):
    return np.sqrt(np.sum(np.square(np.asarray(change, np.float64)), axis=(1, 2, 3)))


class Bent:
    """l = w·(x − x₀)/s + Σ c (x − x₀)² + m: a curved boundary at a known image x₀."""

    def __init__(self, seed=3, batch=5, curvature=0.8):
        random = np.random.default_rng(seed)
        self.images = random.integers(64, 192, size=(batch, *SHAPE)) / 255
        self.slope = random.normal(size=(batch, *SHAPE))
        self.slope[-1] *= 4  # One image whose loss is much steeper.
        self.margin = random.uniform(3, 9, size=batch)
        self.curvature = curvature

    def numpy(self, x):
        away = x - self.images
        loss = np.sum((self.slope + self.curvature * away) * away, axis=(1, 2, 3)) + self.margin
        return loss, loss < 0, self.slope + 2 * self.curvature * away

    def objective(self, images, key):
        del key
        slope, curvature, start, margin = (
            jnp.asarray(a, images.dtype)
            for a in (self.slope, self.curvature, self.images, self.margin)
        )
        away = images - start
        loss = jnp.sum(slope * away + curvature * away**2, axis=(1, 2, 3)) + margin
        return loss, loss < 0


def _oracle(problem, num_steps, *, shrink, max_step, quantize):
    """The docstring's recurrence, written anew: float64, one image at a time."""

    def seen(x):
        return np.round(255 * x) / 255 if quantize else x

    finals = []
    for place, original in enumerate(problem.images):

        def judge(x, place=place):
            whole = problem.images.copy()
            whole[place] = x
            loss, success, gradient = problem.numpy(whole)
            return loss[place], success[place], gradient[place]

        x, best, least = original.copy(), None, np.inf
        for n in range(num_steps):
            loss, success, gradient = judge(seen(x))
            length = np.linalg.norm(seen(x) - original)
            if success and length < least:
                best, least = x.copy(), length
            g, delta = gradient, x - original
            beta = shrink * (1 - n / num_steps) ** 1.5
            last = min(0.01, 0.04 / num_steps)
            kappa = (last + (0.01 - last) * (1 - n / num_steps)) * abs(np.sum(g * delta))
            over = 1.05 if best is not None else 1.05 + 0.5 * n / num_steps
            alpha = (over * (loss + kappa) - beta * np.sum(g * delta)) / np.sum(g * g)
            move = -alpha * g - beta * delta
            move *= min(1.0, max_step / max(np.linalg.norm(move), 1e-30))
            x = np.clip(x + move, 0, 1)
        _, success, _ = judge(seen(x))
        if success and np.linalg.norm(seen(x) - original) < least:
            best = x
        low, high, end = (1.0, None, x) if best is None else (0.0, 1.0, best)
        for _ in range(6):
            middle = 1.5 * low if high is None else (low + high) / 2
            if judge(seen(np.clip(original + middle * (end - original), 0, 1)))[1]:
                high = middle
            else:
                low = middle
        high = 1.0 if high is None else high
        finals.append(seen(np.clip(original + high * (end - original), 0, 1)))
    return np.stack(finals)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("num_steps", [1, 12])
@pytest.mark.slow
def test_equals_the_float64_loop(num_steps, quantize):
    problem = Bent()
    settings = {"shrink": 0.9, "max_step": 0.6}
    expected = _oracle(problem, num_steps, quantize=quantize, **settings)
    with jax.enable_x64(True):
        config = APFGVMConfig(num_steps=num_steps, quantize=quantize, **settings)
        result = apfgvm(problem.objective, problem.images, config, KEY)
    assert l2_norms(expected - problem.images).min() > 0.01
    np.testing.assert_allclose(result.images, expected, atol=1e-6)


def _plane(batch=6):
    """A margin that a plane divides, and the distances to it."""
    problem = Bent(seed=8, batch=batch, curvature=0.0)
    problem.slope[-1] /= 4
    return problem, problem.margin / l2_norms(problem.slope)


@pytest.mark.parametrize("num_steps, tolerance", [(2, 0.05), (20, 1e-3)])
def test_finds_the_distance_to_a_plane(num_steps, tolerance):
    """|l|/‖∇l‖ in closed form; the final search leaves less than 2 % of 6 halvings."""
    problem, distances = _plane()
    images = np.float32(problem.images)
    config = APFGVMConfig(num_steps=num_steps, quantize=False)
    result = apfgvm(problem.objective, images, config, KEY)
    assert result.success.all()
    ratio = l2_norms(result.images - images) / distances
    assert np.all(ratio >= 1 - 1e-4)
    assert np.all(ratio <= 1.05**2 * (1 + tolerance))
    assert np.all(ratio <= 1 + tolerance + 1 / 2**6)


@pytest.mark.slow
def test_each_penalty_finds_its_own_least_point_of_a_plane():
    """The least ⟨δ, Mδ⟩ with ⟨g, δ⟩ = −l is δ = −l M⁻¹g/⟨g, M⁻¹g⟩; SSIM's is near it."""
    random = np.random.default_rng(2)
    images = jnp.asarray(random.uniform(0.3, 0.7, size=(3, 16, 16, 3)), jnp.float32)
    slope = jnp.asarray(random.normal(size=images.shape), jnp.float32)

    def objective(x, key):
        del key
        loss = 0.5 + jnp.sum(slope * (x - images), axis=(1, 2, 3))
        return loss, loss < 0

    found = {}
    for name in PENALTIES:
        config = APFGVMConfig(num_steps=60, penalty=name, quantize=False)
        found[name] = apfgvm(objective, images, config, KEY)
        assert found[name].success.all()
    for name, penalty in PENALTIES.items():
        terms = penalty(images)
        direction = terms.direction(slope)
        scale = -0.5 / jnp.sum(slope * direction, axis=(1, 2, 3), keepdims=True)
        closed = terms.value(images + scale * direction)
        values = {other: terms.value(result.images) for other, result in found.items()}
        if name == "ssim":
            # Its M⁻¹ is an approximation: following 1 − MSSIM itself ends lower.
            assert np.all(values[name] < closed)
        else:
            np.testing.assert_allclose(values[name] / closed, 1, atol=0.02)
        for other in set(PENALTIES) - {name}:
            assert np.all(values[name] < values[other])


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [True, False])
def test_quantised_results_are_8_bit_images_that_succeed(targeted):
    logits_fn, _, _ = small_model()
    images = on_grid(random_images(12))
    labels = jnp.argmax(logits_fn(images), axis=-1)
    labels = (labels + 1) % 5 if targeted else labels
    objective = margin(logits_fn, labels, targeted=targeted)
    attack = jax.jit(functools.partial(apfgvm, objective))
    result = attack(images, APFGVMConfig(num_steps=20), KEY)
    levels = np.round(255 * np.asarray(result.images)).astype(np.uint8)
    np.testing.assert_array_equal(result.images, LEVELS[levels])
    assert result.success.all()
    named = np.asarray(jnp.argmax(logits_fn(jnp.asarray(LEVELS[levels])), axis=-1) == labels)
    assert named.all() if targeted else not named.any()
    exact = attack(images, APFGVMConfig(num_steps=20, quantize=False), KEY)
    # Rounding to nearest adds 1/12 of a level squared per value, if nothing else.
    rounding = np.sqrt(images[0].size / 12) / 255
    most = np.hypot(l2_norms(exact.images - images), rounding)
    assert np.all(l2_norms(result.images - images) < 1.1 * most)
    # Rounding what is continuous loses images, which is what this is for.
    assert not objective(on_grid(exact.images), KEY)[1].all()


@pytest.mark.slow
def test_changes_less_than_ddn_and_any_fixed_penalty_weight():
    logits_fn, _, _ = small_model()
    images = random_images(16)
    labels = (jnp.argmax(logits_fn(images), axis=-1) + 2) % 5
    ours = apfgvm(
        margin(logits_fn, labels, targeted=True),
        images,
        APFGVMConfig(num_steps=20, quantize=False),
        KEY,
    )
    assert ours.success.all()
    distance = l2_norms(ours.images - images).mean()
    objective = cross_entropy(logits_fn, labels, targeted=True)
    theirs = ddn(objective, images, DDNConfig(num_steps=20), KEY)
    assert distance < l2_norms(theirs.images - images).mean()
    fixed = jax.jit(functools.partial(pfgvm, objective))
    for weight in (0.03, 0.1, 0.3, 1.0, 3.0):
        result = fixed(images, PFGVMConfig(penalty_weight=weight, num_steps=20), KEY)
        if result.success.all():
            assert distance < 0.9 * l2_norms(result.images - images).mean()


def test_returns_what_succeeds_already_bit_for_bit():
    problem, _ = _plane()
    problem.margin = -problem.margin
    images = LEVELS[np.round(255 * problem.images).astype(np.uint8)]
    problem.images = images.astype(np.float64)
    result = apfgvm(problem.objective, images, APFGVMConfig(num_steps=5), KEY)
    np.testing.assert_array_equal(result.images, images)
    assert result.success.all()


@pytest.mark.parametrize("share, expected", [(0.1, True), (0.01, False)])
def test_looks_outwards_where_no_iterate_succeeded(share, expected):
    """Steps too short for the plane: six forward passes go up to 1.5⁶ = 11.4 times on."""
    problem, distances = _plane()
    images = np.float32(problem.images)
    step = share * distances.min()
    config = APFGVMConfig(num_steps=4, shrink=0.0, max_step=step, quantize=False)
    result = apfgvm(problem.objective, images, config, KEY)
    np.testing.assert_array_equal(result.success, [expected] * 6)
    if expected:
        # Halved at most five times between 1.5ᵏ⁻¹ and 1.5ᵏ, twice in the worst case here.
        assert np.all(l2_norms(result.images - images) < 1.3 * distances)
    else:
        np.testing.assert_allclose(l2_norms(result.images - images), 4 * step, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e12])
def test_no_scale_of_the_loss_matters(scale):
    problem, distances = _plane()
    images = np.float32(problem.images)

    def scaled(x, key):
        loss, success = problem.objective(x, key)
        return scale * loss, success

    config = APFGVMConfig(num_steps=10, quantize=False)
    result = apfgvm(scaled, images, config, KEY)
    assert result.success.all()
    np.testing.assert_allclose(l2_norms(result.images - images), distances, rtol=0.02)


def test_counts_one_gradient_a_step_and_every_forward_pass():
    """Counted by the objective itself, while nothing is compiled."""
    forwards = gradients = 0

    def count_forward(_):
        nonlocal forwards
        forwards += 1

    def count_gradient(_):
        nonlocal gradients
        gradients += 1

    @jax.custom_vjp
    def loss_of(images):
        jax.debug.callback(count_forward, images[0, 0, 0, 0])
        return jnp.sum(images, axis=(1, 2, 3)) - 1

    def forward(images):
        return jnp.sum(images, axis=(1, 2, 3)) - 1, jnp.ones_like(images)

    def backward(ones, cotangent):
        jax.debug.callback(count_gradient, cotangent[0])
        return (ones * cotangent[:, None, None, None],)

    loss_of.defvjp(forward, backward)

    def objective(images, key):
        del key
        loss = loss_of(images)
        return loss, loss < 0

    result = apfgvm(objective, random_images(1), APFGVMConfig(num_steps=7), KEY)
    jax.effects_barrier()
    assert (gradients, forwards) == (7, 8)
    assert (int(result.num_gradients[0]), int(result.num_forwards[0])) == (7, 8)


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("shrink", 1.5, "shrink must be <= 1, got 1.5"),
        ("penalty", "l1", "penalty must be one of l2, ssim, smooth, luminance, texture"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, message):
    with pytest.raises(InputError, match=message):
        APFGVMConfig(**{setting: value})
