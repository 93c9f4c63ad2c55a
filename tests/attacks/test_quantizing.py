"""Results on the 8-bit grid keep their success, at hardly more distance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.arrays import norms
from deid_jax.attacks import ATTACKS
from deid_jax.attacks.quantizing import finish_on_grid
from deid_jax.objectives import margin
from deid_jax.pixels import LEVELS, on_grid, to_uint8
from deid_jax.types import AttackResult
from tests.helpers import small_model

KEY = jax.random.key(5)
COUNT, SIZE = 40, 16
_GENERATOR = np.random.default_rng(0)
# Away from 0 and 255, so that no change is cut off.
PIXELS = _GENERATOR.integers(60, 196, (COUNT, SIZE, SIZE, 3))
IMAGES = jnp.asarray(LEVELS)[PIXELS]
# A slope per image; the boundary is where ⟨w, x̂ − x⟩ = −c, some a hundredth of a level
# per pixel away, some two levels.
SLOPES = jnp.asarray(_GENERATOR.normal(size=IMAGES.shape), jnp.float32)
AWAY = jnp.geomspace(0.01, 2, COUNT) / 255
GAINS = AWAY * jnp.sum(jnp.square(SLOPES), axis=(1, 2, 3))


def linear(images, key, *, slopes=SLOPES, originals=IMAGES, gains=GAINS):
    """l = ⟨w, x̂ − x⟩ + c; success below zero."""
    assert key.shape == (len(images),)
    loss = jnp.sum(slopes * (images - originals), axis=(1, 2, 3)) + gains
    return loss, loss < 0


def least_change(success=True):
    """Just beyond the boundary of `linear`, along the slope: the least distance there is."""
    images = IMAGES - 1.0001 * AWAY[:, None, None, None] * SLOPES
    counts = jnp.full(COUNT, 3, jnp.int32)
    verdict = jnp.full(COUNT, success)
    return AttackResult(images, jnp.zeros(COUNT), verdict, counts, counts)


def greedy_distance(slopes, gain):
    """‖q − x‖₂ of roundings taken one level after another by gain per cost, in float64."""
    slopes = np.abs(np.asarray(slopes, np.float64)).ravel()
    # A pixel's n-th level gains |w| and costs n² − (n − 1)².
    costs = np.tile(2.0 * np.arange(1, 40) - 1, len(slopes))
    gains = np.repeat(slopes, 39)
    order = np.argsort(costs / gains)
    needed = 1 + np.searchsorted(np.cumsum(gains[order]), 255 * float(gain))
    return np.sqrt(costs[order][:needed].sum()) / 255


@pytest.fixture(scope="module")
def finished():
    return finish_on_grid(linear, IMAGES, least_change(), KEY)


def test_rounding_loses_images_and_finishing_none(finished):
    _, rounded = linear(on_grid(least_change().images), jax.random.split(KEY, COUNT))
    assert 0.3 < np.mean(~rounded) < 0.9
    assert np.all(finished.success)
    loss, success = linear(finished.images, jax.random.split(KEY, COUNT))
    np.testing.assert_array_equal(finished.loss, loss)
    np.testing.assert_array_equal(finished.success, success)


def test_images_are_on_the_grid_bit_for_bit(finished):
    read_back = LEVELS[np.asarray(to_uint8(finished.images))]
    np.testing.assert_array_equal(np.asarray(finished.images), read_back)


def test_distance_is_nearly_the_least_of_the_grid(finished):
    distance = np.asarray(norms(finished.images - IMAGES))
    least = np.array([greedy_distance(SLOPES[i], GAINS[i]) for i in range(COUNT)])
    # Either may take one level more than it needs: that counts where there are but a few.
    level = 1 / 255
    assert np.all(least < np.hypot(distance, 1.01 * level))
    mended = np.asarray(finished.num_forwards) > 4
    assert np.all(distance[mended] < np.hypot(1.01 * least[mended], 1.01 * level))
    assert np.mean(distance[mended] / least[mended]) < 1.02


def test_what_was_spent_is_counted_per_image(finished):
    _, rounded = linear(on_grid(least_change().images), jax.random.split(KEY, COUNT))
    spent = np.asarray(finished.num_forwards) - 3
    np.testing.assert_array_equal(spent[rounded], 1)
    # One of q, up to 12 outwards, 6 between.
    assert spent[~rounded].min() >= 1 + 1 + 6
    assert spent.max() <= 1 + 12 + 6
    np.testing.assert_array_equal(finished.num_gradients, 3)


def test_counts_are_of_evaluations_that_took_place():
    calls = []

    def counting(images, key):
        jax.debug.callback(lambda: calls.append(1))
        return linear(images, key)

    result = least_change()
    _, kept = linear(on_grid(result.images), jax.random.split(KEY, COUNT))
    finished = finish_on_grid(counting, IMAGES, result._replace(success=kept), KEY)
    jax.effects_barrier()
    assert len(calls) == 1
    np.testing.assert_array_equal(finished.num_forwards, 4)
    np.testing.assert_array_equal(finished.images, on_grid(result.images))
    calls.clear()
    finished = finish_on_grid(counting, IMAGES, result, KEY)
    jax.effects_barrier()
    assert len(calls) == int(finished.num_forwards.max()) - 3


def test_failures_and_originals_are_rounded_only():
    failed = finish_on_grid(linear, IMAGES, least_change(success=False), KEY)
    np.testing.assert_array_equal(failed.images, on_grid(least_change().images))
    np.testing.assert_array_equal(failed.num_forwards, 4)
    untouched = least_change()._replace(images=IMAGES)
    easy = functools.partial(linear, gains=-GAINS)
    result = finish_on_grid(easy, IMAGES, untouched, KEY)
    np.testing.assert_array_equal(result.images, IMAGES)
    assert np.all(result.success)


@pytest.mark.slow
def test_a_image_hangs_on_no_other_one(finished):
    keys = jax.random.split(KEY, COUNT)
    for part in (slice(0, 1), slice(17, 18), slice(20, 27)):
        objective = functools.partial(
            linear, slopes=SLOPES[part], originals=IMAGES[part], gains=GAINS[part]
        )
        own = jax.tree.map(lambda entry, part=part: entry[part], least_change())
        alone = finish_on_grid(objective, IMAGES[part], own, keys[part])
        np.testing.assert_array_equal(alone.images, finished.images[part])
        np.testing.assert_array_equal(alone.num_forwards, finished.num_forwards[part])


@pytest.mark.slow
def test_jit_and_vmap_change_nothing(finished):
    finish = functools.partial(finish_on_grid, linear, IMAGES, key=KEY)
    compiled = jax.jit(finish)(least_change())
    two = jax.tree.map(lambda a, b: jnp.stack([a, b]), least_change(), least_change(False))
    mapped = jax.vmap(finish)(two)
    for other in (compiled, jax.tree.map(lambda entry: entry[0], mapped)):
        assert np.all(other.success)
        np.testing.assert_allclose(
            norms(other.images - IMAGES), norms(finished.images - IMAGES), rtol=0.01
        )
    np.testing.assert_array_equal(mapped.images[1], on_grid(least_change().images))
    np.testing.assert_array_equal(mapped.num_forwards[1], 4)


def test_where_nothing_lies_outwards_steps_go_downhill():
    """The change leads along the boundary, and a little way down the slope is success."""
    along = jnp.asarray(_GENERATOR.normal(size=IMAGES.shape), jnp.float32)
    inner = jnp.sum(along * SLOPES, axis=(1, 2, 3)) / jnp.sum(SLOPES**2, axis=(1, 2, 3))
    along = along - inner[:, None, None, None] * SLOPES
    images = jnp.clip(IMAGES + along / 255, 0, 1)

    def near_a_ray(images, key):
        """What is farther out than 1.2 ‖x̂ − x‖ fails, and what is not downhill enough."""
        loss, _ = linear(images, key, gains=0.02 * GAINS)
        return loss, (loss < 0) & (norms(images - IMAGES) < 1.2 * norms(along / 255))

    result = least_change()._replace(images=images)
    found = finish_on_grid(near_a_ray, IMAGES, result, KEY)
    steps = np.asarray(found.num_gradients) - 3
    assert np.all(found.success)
    assert steps.max() > 1
    assert steps.max() <= 20
    assert np.all(steps[np.asarray(found.num_forwards) == 4] == 0)


def test_hopeless_images_end_rounded_and_say_so():
    hopeless = jnp.arange(COUNT) % 3 == 0

    def objective(images, key):
        loss, success = linear(images, key)
        return loss, success & ~hopeless

    found = finish_on_grid(objective, IMAGES, least_change(), KEY)
    np.testing.assert_array_equal(found.success, ~hopeless)
    np.testing.assert_array_equal(found.images[::3], on_grid(least_change().images)[::3])
    np.testing.assert_array_equal(found.num_gradients, np.where(hopeless, 23, 3))
    np.testing.assert_array_equal(found.num_forwards[::3], 3 + 1 + 12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fmn", "ddn"])
def test_least_changes_of_a_network_keep_their_success(method):
    logits_fn, _, _ = small_model()
    labels = jnp.argmax(logits_fn(IMAGES), axis=-1)
    objective = margin(logits_fn, labels, targeted=False)
    config = ATTACKS[method].config(num_steps=20)
    attack = jax.jit(lambda key: ATTACKS[method].function(objective, IMAGES, config, key))
    result = attack(KEY)
    keys = jax.random.split(KEY, COUNT)
    _, rounded = objective(on_grid(result.images), keys)
    found = jax.jit(functools.partial(finish_on_grid, objective))(IMAGES, result, keys)
    assert np.all(result.success)
    assert np.all(found.success)
    if method == "fmn":
        assert np.mean(rounded) < 0.9
    ratio = norms(found.images - IMAGES).mean() / norms(result.images - IMAGES).mean()
    assert ratio < 1.01
