"""Cross-entropy against float64 NumPy, and what counts as success."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.objectives import cross_entropy, margin

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 300.0], [1.0, 1.5, -2.0]], np.float32)
LABELS = jnp.array([0, 1, 1])


def _objective(targeted):
    return cross_entropy(lambda images: images[:, 0, 0, :], LABELS, targeted=targeted)


@pytest.mark.parametrize("targeted, sign", [(True, 1), (False, -1)])
@pytest.mark.slow
def test_loss_is_the_cross_entropy_per_image(targeted, sign):
    loss, _ = _objective(targeted)(jnp.asarray(LOGITS)[:, None, None, :], jax.random.key(0))
    logits = LOGITS.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(loss, -sign * log_probabilities[range(3), LABELS], rtol=1e-6)


@pytest.mark.parametrize("targeted", [True, False])
def test_success_is_being_named_as_asked(targeted):
    _, success = _objective(targeted)(jnp.asarray(LOGITS)[:, None, None, :], jax.random.key(0))
    named_as_label = np.array([True, False, True])
    np.testing.assert_array_equal(success, named_as_label if targeted else ~named_as_label)


@pytest.mark.parametrize("targeted", [True, False])
def test_margin_is_the_difference_to_the_best_other_and_its_sign_the_verdict(targeted):
    objective = margin(lambda images: images[:, 0, 0, :], LABELS, targeted=targeted)
    loss, success = objective(jnp.asarray(LOGITS)[:, None, None, :], jax.random.key(0))
    expected = np.array([0.5 - 2.0, 300.0 - 3.0, 1.0 - 1.5])
    np.testing.assert_allclose(loss, expected if targeted else -expected, rtol=1e-6)
    np.testing.assert_array_equal(success, np.asarray(loss) < 0)
