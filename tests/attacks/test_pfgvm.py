"""P-FGVM against its closed form, and its kinship with I-FGVM."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import IFGVMConfig, PFGVMConfig, ifgvm, pfgvm
from deid_jax.objectives import cross_entropy
from tests.helpers import random_images, small_model

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "alpha, penalty, steps", [(0.1, 0.3, 1), (0.5, 1.5, 7), (0.1, 10.0, 7), (1.0, 1.9, 40)]
)
def test_constant_gradient_gives_the_closed_form(alpha, penalty, steps):
    """δₙ = −(g/λ)(1 − (1 − αλ)ⁿ), while no pixel is clipped."""
    slope = 0.1 * (random_images(2, seed=1) - 0.5)
    images = jnp.full((2, 16, 16, 3), 0.5)

    def linear(images, key):
        return jnp.sum(slope * images, axis=(1, 2, 3)), jnp.ones(2, bool)

    config = PFGVMConfig(step_size=alpha, penalty_weight=penalty, num_steps=steps)
    result = pfgvm(linear, images, config, KEY)
    g = np.asarray(slope, np.float64)
    delta = -(g / penalty) * (1 - (1 - alpha * penalty) ** steps)
    assert np.abs(delta).max() < 0.5
    np.testing.assert_allclose(result.images - images, delta, atol=2e-6)


@pytest.mark.slow
def test_unpenalised_equals_unbounded_ifgvm_bit_for_bit():
    logits_fn, _, _ = small_model()
    objective = cross_entropy(logits_fn, jnp.array([0, 3, 4]), targeted=True)
    images = random_images(3)

    @jax.jit
    def both(images, penalised, bounded):
        return (
            pfgvm(objective, images, penalised, KEY).images,
            ifgvm(objective, images, bounded, KEY).images,
        )

    ours, theirs = both(
        images,
        PFGVMConfig(step_size=0.2, penalty_weight=0.0, num_steps=12),
        IFGVMConfig(step_size=0.2, epsilon=np.inf, num_steps=12),
    )
    assert float(jnp.abs(ours - images).max()) > 0.05
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_larger_penalty_stays_closer():
    logits_fn, _, _ = small_model()
    objective = cross_entropy(logits_fn, jnp.array([0, 3, 4]), targeted=True)
    images = random_images(3)
    attack = jax.jit(functools.partial(pfgvm, objective))
    distances = []
    for weight in (0.0, 0.1, 0.5, 2.0):
        result = attack(images, PFGVMConfig(penalty_weight=weight), KEY)
        distances.append(float(jnp.linalg.norm(result.images - images)))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * distances[0]


def test_noise_is_forgotten_as_the_penalty_says():
    """What remains of the start shrinks by (1 − αλ) a step."""
    images, start = jnp.full((1, 8, 8, 3), 0.5), random_images(1, size=8)

    def flat(images, key):
        return jnp.zeros(1), jnp.ones(1, bool)

    config = PFGVMConfig(step_size=0.1, penalty_weight=2.0, num_steps=10)
    result = pfgvm(flat, images, config, KEY, initial=start)
    np.testing.assert_allclose(result.images - images, (start - images) * 0.8**10, atol=1e-6)


def test_divergent_settings_warn_and_go_on():
    with pytest.warns(UserWarning, match="diverges"):
        config = PFGVMConfig(step_size=1.0, penalty_weight=2.0)
    assert config.num_steps == 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PFGVMConfig(step_size=1.0, penalty_weight=1.99)
