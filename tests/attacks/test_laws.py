"""The table of laws that every method meets.

All laws of a method share one compiled program where they can. Its objective is smooth, so that
laws hold to 1e-5, or bit for bit where that is promised.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import ATTACKS, METHODS, FixedSize, LeastPerturbation, of_kind
from deid_jax.errors import InputError
from deid_jax.objectives import cross_entropy
from deid_jax.pixels import on_grid
from tests.helpers import random_images, small_model

STEPS = 6
IMAGES = random_images(3)
KEYS = jax.random.split(jax.random.key(7), 3)
# Start at a random point unless told where.
RANDOM_START = ("pgd", "pgd_l2")
FORWARDS = dict.fromkeys(METHODS, 1) | dict.fromkeys(of_kind(METHODS, LeastPerturbation), 2)
FORWARDS["apfgvm"] += 6


def bowl(images):
    """Half the squared distance to a gradient image."""
    centre = jnp.linspace(-0.5, 1.5, images.shape[2])[None, None, :, None]
    return 0.5 * jnp.sum(jnp.square(images - centre), axis=(1, 2, 3))


def swaying(images, key):
    """The bowl, steeper by a factor from 1 to 1.5 that each image's key decides."""
    assert key.shape == (len(images),)
    factor = 1 + 0.5 * jax.vmap(jax.random.uniform)(key)
    return factor * bowl(images), bowl(images) < 10


def config_of(name, **settings):
    """A method's settings, with few steps."""
    steps = {"num_steps": STEPS} if name in ATTACKS else {}
    return METHODS[name].config(**(steps | settings))


@functools.cache
def program(name):
    """The method, compiled; images, settings, keys and first iterate are arguments."""
    return jax.jit(functools.partial(METHODS[name].function, swaying))


def run(name, images=IMAGES, key=KEYS, *, initial=None, **settings):
    return program(name)(images, config_of(name, **settings), key, initial=initial)


def leaves(name):
    """The settings of a method that are traced: swept, never compiled in."""
    fields = dataclasses.fields(METHODS[name].config)
    return [field.name for field in fields if not field.metadata.get("static")]


def lengths(perturbation, order=2):
    flat = np.reshape(perturbation, (len(perturbation), -1))
    return np.linalg.norm(flat, order, axis=1)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_result_is_a_batch_of_images_and_the_objectives_answer(self, name):
        images = jnp.round(IMAGES)  # Every pixel on the border.
        result = run(name, images)
        assert result.images.shape == images.shape
        assert result.images.dtype == images.dtype
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1
        factors = result.loss / bowl(result.images)
        assert np.all((factors > 1 - 1e-5) & (factors < 1.5 + 1e-5))
        assert len(set(factors.tolist())) == 3
        np.testing.assert_array_equal(result.success, bowl(result.images) < 10)
        steps = STEPS if name in ATTACKS else 0
        np.testing.assert_array_equal(result.num_gradients, [steps] * 3)
        np.testing.assert_array_equal(result.num_forwards, [FORWARDS[name]] * 3)

    def test_an_image_depends_on_no_other_one(self, name):
        together = run(name).images
        padded = run(name, IMAGES.at[2].set(0), KEYS.at[2].set(KEYS[0])).images
        np.testing.assert_array_equal(padded[:2], together[:2])
        for i in range(3):
            alone = run(name, IMAGES[i : i + 1], KEYS[i : i + 1]).images
            np.testing.assert_allclose(together[i], alone[0], atol=1e-5)

    def test_same_key_same_images(self, name):
        key = jax.random.key(3)
        one = run(name, key=jax.random.split(key, 3)).images
        np.testing.assert_array_equal(one, run(name, key=jax.random.split(key, 3)).images)

    def test_one_compilation_across_settings_and_vmap_equals_a_loop(self, name):
        values = {setting: jnp.array([0.0, 0.05, 0.3]) for setting in leaves(name)}
        if not values:
            return
        configs = [
            config_of(name, **{setting: float(v[i]) for setting, v in values.items()})
            for i in range(3)
        ]
        looped = [program(name)(IMAGES, config, KEYS).images for config in configs[:1]]
        compilations = program(name)._cache_size()
        looped += [program(name)(IMAGES, config, KEYS).images for config in configs[1:]]
        assert program(name)._cache_size() == compilations
        stacked = dataclasses.replace(config_of(name), **values)
        swept = jax.vmap(lambda config: program(name)(IMAGES, config, KEYS).images)(stacked)
        np.testing.assert_allclose(swept, jnp.stack(looped), atol=1e-5)

    @pytest.mark.parametrize(
        "images, message",
        [
            (np.full((1, 8, 8, 3), np.nan, np.float32), "images must be finite"),
            (np.full((1, 8, 8, 3), 1.5, np.float32), "images must lie in"),
            (np.zeros((8, 8, 3), np.float32), r"images must be \[B, H, W, C\]"),
            (np.zeros((1, 8, 8, 3), np.uint8), "images must be floating point"),
        ],
    )
    def test_bad_images_are_refused(self, name, images, message):
        with pytest.raises(InputError, match=message):
            METHODS[name].function(swaying, images, config_of(name), KEYS[:1])

    def test_whatever_numpy_reads_is_taken(self, name):
        expected = METHODS[name].function(swaying, IMAGES, config_of(name), KEYS).images
        for images in (np.asarray(IMAGES, np.float64), IMAGES.tolist()):
            found = METHODS[name].function(swaying, images, config_of(name), KEYS).images
            np.testing.assert_array_equal(found, expected)

    def test_no_images_give_no_results(self, name):
        result = run(name, IMAGES[:0], KEYS[:0])
        assert result.images.shape == (0, *IMAGES.shape[1:])
        assert {len(entry) for entry in result} == {0}


@pytest.mark.parametrize("name", ATTACKS)
class TestEveryAttack:
    def test_zero_steps_are_the_identity(self, name):
        result = run(name, num_steps=0)
        np.testing.assert_array_equal(result.images, IMAGES)
        np.testing.assert_array_equal(result.num_gradients, [0, 0, 0])
        start = jnp.full_like(IMAGES, 0.25)
        np.testing.assert_array_equal(run(name, num_steps=0, initial=start).images, start)

    def test_zero_step_size_is_the_identity(self, name):
        images = on_grid(IMAGES)
        initial = images if name in RANDOM_START else None
        step = {"apfgvm": "max_step", "mifgvm": "reach"}.get(name, "step_size")
        result = run(name, images, initial=initial, **{step: 0.0})
        # C&W goes there and back through artanh, in float32.
        np.testing.assert_allclose(result.images, images, atol=1e-6 if name == "cw" else 0)

    def test_descends_on_a_smooth_objective(self, name):
        assert np.all(bowl(run(name).images) < bowl(IMAGES))

    def test_is_one_scan_without_unrolled_steps(self, name):
        def jaxpr(num_steps):
            config = config_of(name, num_steps=num_steps)
            attack = functools.partial(METHODS[name].function, swaying, config=config, key=KEYS)
            return str(jax.make_jaxpr(lambda images: attack(images).images)(IMAGES))

        assert "scan" in jaxpr(10)
        assert abs(len(jaxpr(1000)) - len(jaxpr(10))) < 50

    def test_initial_of_another_shape_is_refused(self, name):
        with pytest.raises(InputError, match="initial must have the images' shape"):
            run(name, initial=IMAGES[:1])

    def test_bad_settings_are_refused(self, name):
        for setting in leaves(name):
            for value in (float("nan"), -1e-9):
                message = f"{setting} must be a number >= 0, got {value}"
                with pytest.raises(InputError, match=message):
                    config_of(name, **{setting: value})
        for value in (-1, 2.5, True):
            with pytest.raises(InputError, match=f"num_steps must be .* >= 0, got {value}"):
                config_of(name, num_steps=value)
        for value in ((), (3, 3), (5, 2)):
            with pytest.raises(InputError, match="num_steps must be one number or increasing"):
                config_of(name, num_steps=value)


@pytest.mark.parametrize("name", ["pfgvm", "pgd_l2", "cw", "noise"])
def test_jit_equals_eager(name):
    eager = METHODS[name].function(swaying, IMAGES, config_of(name), KEYS)
    np.testing.assert_allclose(run(name).images, eager.images, atol=1e-5)


# One run for all where the rule does not know its end, with and without a state; one run each.
@pytest.mark.parametrize("name", ["pfgvm", "pgd_l2", "mifgsm", "apfgvm", "cw"])
def test_several_numbers_of_steps_are_moments_of_one_run(name):
    counts = (0, 2, STEPS)
    several = run(name, num_steps=counts)
    assert several.images.shape == (len(counts), *IMAGES.shape)
    for place, count in enumerate(counts):
        alone = run(name, num_steps=count)
        np.testing.assert_allclose(several.images[place], alone.images, atol=1e-5)
        np.testing.assert_allclose(several.loss[place], alone.loss, rtol=1e-4)
        np.testing.assert_array_equal(several.success[place], alone.success)
        np.testing.assert_array_equal(several.num_gradients[place], [count] * 3)
        np.testing.assert_array_equal(several.num_forwards[place], [FORWARDS[name]] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pfgvm", "mifgsm"])
def test_little_depends_on_compilation_and_padding_on_a_real_network(name):
    """Rounding flips signs at zero and ReLUs at kinks, so shares and means are compared."""
    logits_fn, _, _ = small_model()
    images, labels = random_images(4), jnp.array([0, 1, 2, 3])
    keys = jax.random.split(jax.random.key(7), 6)
    setting = leaves(name)[1]

    def attack(value, images=images, labels=labels):
        objective = cross_entropy(logits_fn, labels, targeted=True)
        config = config_of(name, **{setting: value})
        return METHODS[name].function(objective, images, config, keys[: len(images)]).images

    compiled, values = jax.jit(attack), jnp.array([0.01, 0.1])
    padded = compiled(values[0], jnp.concatenate([images, images[:2]]), jnp.arange(6) % 4)[:4]
    swept = jax.vmap(compiled)(values)
    eager = attack(values[0])
    alone = [compiled(value) for value in values]
    for one, other in ((eager, alone[0]), (padded, alone[0]), (swept[1], alone[1])):
        norms = [np.linalg.norm(np.ravel(x - images)) for x in (one, other)]
        assert norms[0] > 0.01
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)
        assert np.mean(np.abs(one - other) > 1e-3) < 2e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("name", of_kind(METHODS, FixedSize))
def test_epsilon_is_respected(name, epsilon):
    images, order = 0.5 * IMAGES + 0.25, 2
    if METHODS[name].bounds_pixels:
        epsilon, order = epsilon / 10, np.inf
    step = {"step_size": 0.7} if "step_size" in leaves(name) else {}
    sizes = lengths(run(name, images, epsilon=epsilon, **step).images - images, order)
    assert sizes.max() <= epsilon + 1e-5
    assert sizes.min() >= 0.9 * epsilon


@pytest.mark.parametrize("name", RANDOM_START)
class TestRandomStart:
    def start(self, name, images, epsilon, key=KEYS):
        """The images after one step of length zero."""
        return run(name, images, key, epsilon=epsilon, step_size=0.0, num_steps=1).images

    def test_differs_between_keys_and_images_and_stays_in_the_ball(self, name):
        images = jnp.full_like(IMAGES, 0.5)
        one, other = (self.start(name, images, 0.1, keys) for keys in (KEYS, KEYS[::-1]))
        assert np.abs(one - other).max(axis=(1, 2, 3))[0] > 1e-3
        assert np.abs(one[0] - one[1]).max() > 1e-3
        sizes = lengths(one - images, np.inf if name == "pgd" else 2)
        assert np.all((sizes > 0.05) & (sizes <= 0.1 + 1e-6))

    def test_is_clipped_to_images(self, name):
        start = self.start(name, jnp.round(IMAGES), 5.0)
        assert float(start.min()) == 0
        assert float(start.max()) == 1

    def test_is_uniform(self, name):
        """Pixels are uniform in L∞; in L2 the share of the volume within the radius is."""
        images, keys = jnp.full((4000, 1, 2, 3), 0.5), jax.random.split(KEYS[0], 4000)
        moved = np.reshape(self.start(name, images, 0.2, keys) - images, (4000, 6)) / 0.2
        shares = (np.ravel(moved) + 1) / 2 if name == "pgd" else lengths(moved) ** 6
        expected = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(np.quantile(shares, expected), expected, atol=0.03)
        np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.04)
