"""MI-FGVM against a float64 NumPy loop, closed forms, and projected gradient descent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import MIFGVMConfig, PGDL2Config, mifgvm, pgd_l2
from deid_jax.errors import InputError
from tests.attacks.test_apfgvm import Bent, l2_norms

KEY = jax.random.key(0)


def twisted():
    """Each value curved in its own way, so that gradients turn as the image moves."""
    problem = Bent()
    problem.curvature = np.random.default_rng(4).uniform(0, 20, size=problem.images.shape)
    return problem


def _oracle(problem, num_steps, *, epsilon, momentum, reach, start=None):
    """The docstring's recurrence, written anew: in float64."""
    x = problem.images
    now = x.copy() if start is None else start.copy()
    direction = np.zeros_like(x)
    for _ in range(num_steps):
        gradient = problem.numpy(now)[2]
        for place in range(len(x)):
            length = np.linalg.norm(gradient[place])
            direction[place] *= momentum
            if length > 0:
                direction[place] += gradient[place] / length
            size = np.linalg.norm(direction[place])
            step = reach * epsilon / num_steps / size if size > 0 else 0.0
            change = now[place] - step * direction[place] - x[place]
            over = np.linalg.norm(change) / epsilon if epsilon > 0 else np.inf
            now[place] = np.clip(x[place] + change / max(1.0, over), 0, 1)
    return now


@pytest.mark.parametrize(
    "num_steps, epsilon, reach, momentum",
    [(1, 0.5, 0.7, 1.0), (9, 1.5, 2.5, 0.6), (25, 6, 1, 1.3), (25, 6, 1, 0.0)],
)
def test_equals_the_float64_loop(num_steps, epsilon, reach, momentum):
    problem = twisted()
    settings = {"epsilon": epsilon, "momentum": momentum, "reach": reach}
    start = np.clip(problem.images + 0.05 * problem.slope, 0, 1)
    for initial in (None, start):
        expected = _oracle(problem, num_steps, start=initial, **settings)
        assert l2_norms(expected - problem.images).min() > 0.1
        with jax.enable_x64(True):
            config = MIFGVMConfig(num_steps=num_steps, **settings)
            result = mifgvm(problem.objective, problem.images, config, KEY, initial=initial)
        np.testing.assert_allclose(result.images, expected, atol=1e-9)
        loss, success, _ = problem.numpy(expected)
        np.testing.assert_allclose(result.loss, loss, atol=1e-6)
        np.testing.assert_array_equal(result.success, success)


def test_momentum_changes_the_way():
    problem = twisted()
    ends = [_oracle(problem, 9, epsilon=1.5, momentum=m, reach=2.5) for m in (0.0, 1.0)]
    assert l2_norms(ends[0] - ends[1]).min() > 0.01


@pytest.mark.parametrize("num_steps", [8])
def test_without_momentum_it_is_projected_gradient_descent(num_steps):
    problem = twisted()
    images, objective = np.float32(problem.images), problem.objective
    config = MIFGVMConfig(epsilon=0.8, momentum=0.0, reach=2.0, num_steps=num_steps)
    ours = mifgvm(objective, images, config, KEY)
    config = PGDL2Config(epsilon=0.8, step_size=2.0 * 0.8 / num_steps, num_steps=num_steps)
    theirs = pgd_l2(objective, images, config, KEY, initial=images)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-6)
    assert l2_norms(ours.images - images).min() > 0.3


@pytest.mark.parametrize("reach, share", [(0.4, 0.4), (2.5, 1.0)])
def test_goes_along_a_constant_gradient_as_far_as_it_reaches(reach, share):
    """In closed form: x − min(reach, 1) ε w/‖w‖, and never out of the ball."""
    problem = Bent(curvature=0.0)
    images = np.float32(problem.images)
    config = MIFGVMConfig(epsilon=0.9, reach=reach, num_steps=7)
    result = mifgvm(problem.objective, images, config, KEY)
    lengths = l2_norms(problem.slope)[:, None, None, None]
    expected = problem.images - 0.9 * share * problem.slope / lengths
    np.testing.assert_allclose(result.images, expected, atol=2e-6)


def test_a_gradient_of_zero_adds_nothing_and_momentum_goes_on():
    """l = max(0, w·δ + m): once it is reached, d stays, and so does the direction."""
    problem = Bent(curvature=0.0)
    problem.margin = 0.3 * l2_norms(problem.slope)  # At a distance of 0.3.

    def objective(images, key):
        loss, success = problem.objective(images, key)
        return jnp.maximum(loss, 0), success

    images = np.float32(problem.images)
    for momentum, distance in ((1.0, 0.8), (0.0, 0.4)):
        config = MIFGVMConfig(epsilon=1.0, momentum=momentum, reach=0.8, num_steps=4)
        result = mifgvm(objective, images, config, KEY)
        np.testing.assert_allclose(l2_norms(result.images - images), distance, rtol=1e-4)

    def flat(images, key):
        return 0 * images.sum(axis=(1, 2, 3)), jnp.zeros(len(images), bool)

    np.testing.assert_array_equal(mifgvm(flat, images, MIFGVMConfig(), KEY).images, images)


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 3.0])
def test_stays_in_the_ball_wherever_it_starts(epsilon):
    problem = twisted()
    images = np.round(np.float32(problem.images))  # Clipping, too, must not lead out of it.
    attack = jax.jit(functools.partial(mifgvm, problem.objective))
    for initial in (images, np.float32(problem.images)):
        config = MIFGVMConfig(epsilon=epsilon, num_steps=5)
        result = attack(images, config, KEY, initial=initial)
        lengths = l2_norms(result.images - images)
        assert np.all(lengths <= epsilon * (1 + 1e-5)) and np.all(lengths >= 0.3 * epsilon)


def test_each_image_may_have_its_own_budget():
    problem = twisted()
    images = np.float32(problem.images)
    sizes = np.float32(np.linspace(0.1, 2, len(images)))
    attack = jax.jit(functools.partial(mifgvm, problem.objective))
    together = attack(images, MIFGVMConfig(epsilon=jnp.asarray(sizes), num_steps=5), KEY)
    for place, size in enumerate(sizes.tolist()):
        alone = attack(images, MIFGVMConfig(epsilon=size, num_steps=5), KEY)
        np.testing.assert_allclose(together.images[place], alone.images[place], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_no_scale_of_the_loss_matters(scale):
    problem = twisted()
    images, config = np.float32(problem.images), MIFGVMConfig(epsilon=0.7, num_steps=5)

    def scaled(x, key):
        loss, success = problem.objective(x, key)
        return scale * loss, success

    ours, theirs = (mifgvm(o, images, config, KEY) for o in (problem.objective, scaled))
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-5)


@pytest.mark.parametrize("setting", ["epsilon", "momentum", "reach"])
def test_infinite_settings_are_refused(setting):
    with pytest.raises(InputError, match=f"{setting} must be finite, got inf"):
        MIFGVMConfig(**{setting: float("inf")})
