"""The paper's three attacks against a float64 NumPy loop on a linear softmax recogniser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import ATTACKS
from deid_jax.objectives import cross_entropy

CLASSES, SHAPE, STEPS = 4, (6, 5, 3), 15
SETTINGS = {
    "pfgvm": {"step_size": 0.3, "penalty_weight": 0.7},
    "ifgvm": {"step_size": 0.3, "epsilon": 0.12},
    "ifgsm": {"step_size": 0.01, "epsilon": 0.06},
}


def _problem():
    random = np.random.default_rng(5)
    weights = random.normal(size=(np.prod(SHAPE), CLASSES))
    images = random.uniform(size=(7, *SHAPE))
    labels = random.integers(CLASSES, size=7)
    return weights, images, labels


def _gradient(weights, images, labels, targeted):
    """∇ of −log softmax(xᵀW)[y], by hand: W (p − e_y)."""
    logits = images.reshape(len(images), -1) @ weights
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    gradient = (probabilities - np.eye(CLASSES)[labels]) @ weights.T
    return (gradient if targeted else -gradient).reshape(images.shape)


def _oracle(name, images, gradient_of, step_size, penalty_weight=0.0, epsilon=np.inf):
    adversarial = images.copy()
    for _ in range(STEPS):
        gradient = gradient_of(adversarial)
        if name == "pfgvm":
            moved = adversarial - step_size * (
                gradient + penalty_weight * (adversarial - images)
            )
        else:
            direction = np.sign(gradient) if name == "ifgsm" else gradient
            moved = adversarial - step_size * direction
            moved = np.minimum(np.maximum(moved, images - epsilon), images + epsilon)
        adversarial = np.minimum(np.maximum(moved, 0.0), 1.0)
    return adversarial


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_attack_equals_the_float64_loop(name, targeted):
    weights, images, labels = _problem()
    expected = _oracle(
        name,
        images,
        lambda x: _gradient(weights, x, labels, targeted),
        **SETTINGS[name],
    )
    method = ATTACKS[name]
    objective = cross_entropy(
        lambda x: x.reshape(len(x), -1) @ jnp.asarray(weights, jnp.float32),
        jnp.asarray(labels),
        targeted=targeted,
    )
    result = method.function(
        objective,
        jnp.asarray(images, jnp.float32),
        method.config(**SETTINGS[name], num_steps=STEPS),
        jax.random.key(0),
    )
    assert np.abs(expected - images).max() > 0.05
    np.testing.assert_allclose(result.images, expected, atol=1e-5)
