"""Objectives on embeddings against closed forms in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.arrays import fold_in_all
from deid_jax.attacks.loop import differentiate
from deid_jax.errors import InputError
from deid_jax.metrics.verification import Distance
from deid_jax.objectives.embeddings import dodge, ensemble, expectation, similarity
from deid_jax.transforms.random_transforms import random_noise
from tests.helpers import random_images

KEYS = jax.random.split(jax.random.key(0), 4)
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(4 * 4 * 3, 6))
GALLERY = RANDOM.normal(size=(4, 6))
GALLERY /= np.linalg.norm(GALLERY, axis=1, keepdims=True)
IMAGES = RANDOM.uniform(size=(4, 4, 4, 3))
THRESHOLDS = np.array([0.1, -0.2, 0.3, 0.0])


def _embed(images):
    """Linear, so that the cosine's gradient has a short closed form."""
    return images.reshape(len(images), -1) @ jnp.asarray(WEIGHTS, images.dtype)


def _numpy_cosine(images, gallery=GALLERY):
    """The cosine and its gradient: Wᵀ(c − s e/‖e‖)/‖e‖."""
    embeddings = np.reshape(images, (len(images), -1)) @ WEIGHTS
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    score = np.sum(embeddings / length * gallery, axis=1, keepdims=True)
    slope = (gallery - score * embeddings / length) / length @ WEIGHTS.T
    return score[:, 0], slope.reshape(images.shape)


def test_cosine_equals_numpy_and_is_zero_without_direction():
    embeddings = np.float32(np.vstack([100 * RANDOM.normal(size=(3, 6)), np.zeros(6)]))
    expected = np.sum(embeddings[:3] * GALLERY[:3], axis=1, dtype=np.float64)
    expected /= np.linalg.norm(np.float64(embeddings[:3]), axis=1)
    found = similarity(embeddings, jnp.float32(GALLERY))
    np.testing.assert_allclose(found[:3], expected, atol=1e-6)
    assert found[3] == 0
    gradient = jax.grad(lambda e: similarity(e, jnp.float32(GALLERY)).sum())(embeddings)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("thresholds", [0.25, THRESHOLDS])
def test_loss_is_the_margin_with_the_closed_gradient(thresholds):
    score, slope = _numpy_cosine(IMAGES)
    with jax.enable_x64(True):
        point = differentiate(dodge(_embed, GALLERY, thresholds), jnp.asarray(IMAGES), KEYS)
        np.testing.assert_allclose(point.loss, score - thresholds, atol=1e-12)
        np.testing.assert_allclose(point.gradient, slope, atol=1e-12)
    np.testing.assert_array_equal(point.success, score < thresholds)
    assert 0 < np.sum(point.success) < 4


def test_gradient_equals_finite_differences_of_a_bent_recogniser():
    def bent(images):
        return jnp.tanh(_embed(images)) ** 2 + _embed(images)

    with jax.enable_x64(True):
        objective = dodge(bent, GALLERY, 0.1)
        gradient = differentiate(objective, jnp.asarray(IMAGES), KEYS).gradient
        direction = RANDOM.normal(size=IMAGES.shape)
        ends = [objective(jnp.asarray(IMAGES + h * direction), KEYS)[0] for h in (1e-5, -1e-5)]
        expected = (np.asarray(ends[0]) - np.asarray(ends[1])) / 2e-5
    np.testing.assert_allclose(
        np.sum(np.asarray(gradient) * direction, axis=(1, 2, 3)), expected, rtol=1e-7
    )


@pytest.mark.parametrize("score, dodged", [(0.5, False), (0.25, True), (0.75, False)])
def test_similarity_at_the_threshold_is_no_success(score, dodged):
    """As `verification` counts, s ≥ t; these scores are exact in float32."""

    def embed(images):
        return jnp.full((len(images), 1), 2.0)

    loss, success = dodge(embed, jnp.array([[score]]), 0.5)(random_images(1, 4), KEYS[:1])
    assert float(loss[0]) == score - 0.5
    assert bool(success[0]) is dodged


def _smooth(losses, axis):
    return 0.1 * np.log(np.mean(np.exp(losses / 0.1), axis=axis))


REDUCTIONS = [("mean", np.mean), ("max", np.max), ("smooth", _smooth)]


@pytest.mark.parametrize("reduction, reduce", REDUCTIONS)
def test_ensemble_reduces_losses_and_asks_for_all_successes(reduction, reduce):
    others = np.roll(GALLERY, 1, axis=0)
    parts = [
        dodge(_embed, jnp.float32(GALLERY), 0.1),
        dodge(_embed, jnp.float32(-others), 0.3),
        dodge(_embed, jnp.float32(-GALLERY), 0.4),
    ]
    own, other = (_numpy_cosine(IMAGES, gallery) for gallery in (GALLERY, others))
    losses = np.stack([own[0] - 0.1, -0.3 - other[0], -own[0] - 0.4])
    slopes = np.stack([own[1], -other[1], -own[1]])
    point = differentiate(ensemble(parts, reduction), jnp.float32(IMAGES), KEYS)
    np.testing.assert_allclose(point.loss, reduce(losses, axis=0), atol=1e-6)
    np.testing.assert_array_equal(point.success, np.all(losses < 0, axis=0))
    assert 0 < np.sum(point.success) < 4
    shares = {
        "mean": np.full(losses.shape, 1 / 3),
        "max": losses == losses.max(axis=0),
        "smooth": np.exp(losses / 0.1) / np.exp(losses / 0.1).sum(axis=0),
    }[reduction]
    expected = np.sum(shares[..., None, None, None] * slopes, axis=0)
    np.testing.assert_allclose(point.gradient, expected, atol=1e-5)


def test_ensembles_default_is_the_hardest():
    parts = [dodge(_embed, jnp.float32(GALLERY), t) for t in (0.1, 0.3)]
    loss, _ = ensemble(parts)(jnp.float32(IMAGES), KEYS)
    np.testing.assert_allclose(loss, _numpy_cosine(IMAGES)[0] - 0.1, atol=1e-6)


class Observed:
    """x ↦ u x with u in [½, 1) from the key, and l = Σx + v with v from the objective's key."""

    def __init__(self):
        self.factors, self.shifts = [], []

    def transformation(self, images, key):
        assert key.shape == (len(images),)
        factor = 0.5 + 0.5 * jax.vmap(jax.random.uniform)(key)
        jax.debug.callback(lambda u: self.factors.append(np.array(u)), factor, ordered=True)
        return factor[:, None, None, None] * images

    def objective(self, images, key):
        shift = jax.vmap(jax.random.uniform)(key)
        jax.debug.callback(lambda v: self.shifts.append(np.array(v)), shift, ordered=True)
        loss = images.sum(axis=(1, 2, 3)) + shift
        return loss, loss < images.shape[1] ** 2 * 1.2


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("reduction, reduce", REDUCTIONS)
@pytest.mark.slow
def test_expectation_is_over_independent_draws(num_samples, reduction, reduce):
    seen = Observed()
    expected = expectation(seen.objective, seen.transformation, num_samples, reduction)
    images, found = jnp.float32(IMAGES), []
    for step in range(2):
        loss, success = expected(images, fold_in_all(KEYS, step))
        found.append((np.asarray(loss), np.asarray(success)))
    jax.effects_barrier()
    factors = np.reshape(seen.factors, (2, num_samples, 4))
    shifts = np.reshape(seen.shifts, (2, num_samples, 4))
    draws = np.concatenate([2 * (factors - 0.5), shifts])
    assert len(np.unique(draws.round(6))) == draws.size  # Nobody has another's.
    losses = factors * IMAGES.sum(axis=(1, 2, 3)) + shifts
    for step, (loss, success) in enumerate(found):
        np.testing.assert_allclose(loss, reduce(losses[step], axis=0), rtol=1e-5)
        np.testing.assert_array_equal(success, np.all(losses[step] < 16 * 1.2, axis=0))


def test_expectations_gradient_is_the_mean_of_the_draws_gradients():
    seen = Observed()
    expected = expectation(seen.objective, seen.transformation, 5)
    images = jnp.float32(IMAGES)
    expected(images, KEYS)
    jax.effects_barrier()
    factors = np.reshape(seen.factors, (5, 4)).mean(axis=0)
    gradient = differentiate(expected, images, KEYS).gradient
    np.testing.assert_allclose(
        gradient, np.broadcast_to(factors[:, None, None, None], IMAGES.shape), rtol=1e-5
    )


def test_expectation_of_a_batch_is_that_of_each_image_alone():
    def expected(rows):
        objective = dodge(_embed, jnp.float32(GALLERY[rows]), 0.1)
        return expectation(objective, random_noise, 3)

    together, _ = expected(slice(None))(jnp.float32(IMAGES), KEYS)
    without, _ = dodge(_embed, jnp.float32(GALLERY), 0.1)(jnp.float32(IMAGES), KEYS)
    assert np.all(np.abs(together - without) > 1e-6)
    for row in (0, 3):
        rows = slice(row, row + 1)
        alone, _ = expected(rows)(jnp.float32(IMAGES[rows]), KEYS[rows])
        np.testing.assert_allclose(alone, together[rows], atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda goal: ensemble([]), "objectives must be one or more, got none"),
        (
            lambda goal: ensemble([goal], "min"),
            "reduction must be one of mean, max, smooth, got min",
        ),
        (
            lambda goal: expectation(goal, random_noise, 2, "sum"),
            "reduction must be one of mean, max, smooth, got sum",
        ),
        (
            lambda goal: expectation(goal, random_noise, 0),
            "num_samples must be an integer >= 1, got 0",
        ),
        (
            lambda goal: expectation(goal, random_noise, 1.5),
            "num_samples must be an integer >= 1",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(dodge(_embed, jnp.float32(GALLERY), 0.1))


def test_distance_is_dodged_by_its_closed_gradient_and_is_flat_at_zero():
    """∂(τ' − ‖e − c‖)/∂e = −(e − c)/‖e − c‖; the threshold −0.6 is a distance of 0.6."""
    own = jnp.float32([[3.0, 4.0, 0.0], [1.0, 2.0, 3.0]])
    gallery = jnp.float32([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])

    def loss(embeddings):
        objective = dodge(lambda images: embeddings, gallery, -0.6, Distance.EUCLIDEAN)
        found, success = objective(jnp.zeros((2, 1, 1, 3)), KEYS[:2])
        return found.sum(), (found, success)

    (_, (found, success)), gradient = jax.value_and_grad(loss, has_aux=True)(own)
    np.testing.assert_allclose(found, [-5 + 0.6, 0.6], rtol=1e-6)
    assert success.tolist() == [True, False]
    np.testing.assert_allclose(gradient, [[-0.6, -0.8, 0], [0, 0, 0]], rtol=1e-6)
