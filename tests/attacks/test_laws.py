"""The table of laws that every method meets.

The smooth objective is a quadratic bowl around another picture: its gradient is exact, so
that laws hold to 1e-5 (or bit for bit where that is promised).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.errors import InputError
from deid_jax.objectives import cross_entropy
from deid_jax.pixels import on_grid
from tests.helpers import pictures, small_model

KEY = jax.random.key(7)
STEPS = 6
# Return the nearest success, for which they judge their last iterate by a forward pass.
MINIMAL_NORM = ("ddn", "fmn", "cw")
# Start at a point of their own, where they are told none.
RANDOM_START = ("pgd", "pgd_l2")
FORWARDS = dict.fromkeys(METHODS, 1) | dict.fromkeys(MINIMAL_NORM, 2) | {"apfgvm": 8}


def bowl(images, key):
    """Half the squared distance to a gradient picture; success close to it."""
    centre = jnp.linspace(-0.5, 1.5, images.shape[2])[None, None, :, None]
    loss = 0.5 * jnp.sum(jnp.square(images - centre), axis=(1, 2, 3))
    return loss, loss < 10


def config_of(name, **changes):
    """A method's config, with few steps."""
    cls = METHODS[name].config
    steps = {"num_steps": STEPS} if name in ATTACKS else {}
    return cls(**(steps | changes))


def run(name, images, config=None, objective=bowl, key=KEY, **options):
    return METHODS[name].function(objective, images, config or config_of(name), key, **options)


def float_settings(name):
    """The settings of a method that are leaves: traced, swept, never compiled in."""
    fields = dataclasses.fields(METHODS[name].config)
    return [field.name for field in fields if not field.metadata.get("static")]


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_stays_in_the_unit_interval_and_keeps_shape_and_dtype(self, name):
        images = jnp.round(pictures(3))  # Every pixel on the border.
        result = run(name, images)
        assert result.images.shape == images.shape
        assert result.images.dtype == images.dtype
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1

    def test_result_is_the_objectives_verdict_on_its_pictures(self, name):
        result = run(name, pictures(3))
        loss, success = bowl(result.images, KEY)
        np.testing.assert_allclose(result.loss, loss, rtol=1e-6)
        np.testing.assert_array_equal(result.success, success)

    def test_counts_its_evaluations(self, name):
        result = run(name, pictures(3))
        expected = STEPS if name in ATTACKS else 0
        np.testing.assert_array_equal(result.num_gradients, [expected] * 3)
        np.testing.assert_array_equal(result.num_forwards, [FORWARDS[name]] * 3)

    def test_jit_equals_eager(self, name):
        images, config = pictures(2), config_of(name)
        eager = run(name, images, config)
        compiled = jax.jit(functools.partial(run, name))(images, config)
        np.testing.assert_allclose(compiled.images, eager.images, atol=1e-5)

    def test_batch_equals_batches_of_one(self, name):
        images, keys = pictures(3), jax.random.split(KEY, 3)
        together = run(name, images, key=keys)
        for i in range(3):
            alone = run(name, images[i : i + 1], key=keys[i : i + 1])
            np.testing.assert_allclose(together.images[i], alone.images[0], atol=1e-5)

    def test_padding_changes_nothing(self, name):
        images = pictures(3)
        padded = jnp.concatenate([images, jnp.zeros_like(images[:2])])
        keys = jax.random.split(KEY, 5)
        np.testing.assert_allclose(
            run(name, padded, key=keys).images[:3],
            run(name, images, key=keys[:3]).images,
            atol=1e-5,
        )

    def test_one_compilation_across_settings_and_vmap_equals_a_loop(self, name):
        images, compilations = pictures(2), 0

        def counted(config):
            nonlocal compilations
            compilations += 1
            return run(name, images, config).images

        attack = jax.jit(counted)
        for setting in float_settings(name):
            values = jnp.array([0.0, 0.05, 0.3])
            configs = [config_of(name, **{setting: value}) for value in values]
            looped = [attack(jax.tree.map(jnp.float32, config)) for config in configs]
            stacked = jax.tree.map(lambda leaf: jnp.full(3, leaf, jnp.float32), config_of(name))
            stacked = dataclasses.replace(stacked, **{setting: values})
            swept = jax.vmap(lambda config: run(name, images, config).images)(stacked)
            np.testing.assert_allclose(swept, jnp.stack(looped), atol=1e-5)
        assert compilations == (1 if float_settings(name) else 0)

    def test_objective_is_given_a_key_per_picture(self, name):
        def objective(images, key):
            assert key.shape == (len(images),)
            loss = jax.vmap(jax.random.uniform)(key) + 0 * images.sum(axis=(1, 2, 3))
            return loss, loss > 0

        assert len(set(run(name, pictures(3), objective=objective).loss.tolist())) == 3

    def test_same_key_same_pictures(self, name):
        images = pictures(2)
        np.testing.assert_array_equal(run(name, images).images, run(name, images).images)

    @pytest.mark.parametrize(
        "images, message",
        [
            (np.full((1, 8, 8, 3), np.nan, np.float32), "images must be finite"),
            (np.full((1, 8, 8, 3), 1.5, np.float32), "images must lie in"),
            (np.full((1, 8, 8, 3), -0.1, np.float32), "images must lie in"),
            (np.zeros((8, 8, 3), np.float32), r"images must be \[B, H, W, C\]"),
            (np.zeros((1, 8, 8, 3), np.uint8), "images must be floating point"),
        ],
    )
    def test_bad_pictures_are_refused(self, name, images, message):
        with pytest.raises(InputError, match=message):
            run(name, images)


@pytest.mark.parametrize("name", ATTACKS)
class TestEveryAttack:
    def test_zero_steps_are_the_identity(self, name):
        images = pictures(2)
        result = run(name, images, config_of(name, num_steps=0))
        np.testing.assert_array_equal(result.images, images)
        np.testing.assert_array_equal(result.num_gradients, [0, 0])

    def test_zero_step_size_is_the_identity(self, name):
        images = on_grid(pictures(2))
        options = {"initial": images} if name in RANDOM_START else {}
        step = {"apfgvm": "max_step", "mifgvm": "reach"}.get(name, "step_size")
        result = run(name, images, config_of(name, **{step: 0.0}), **options)
        if name == "cw":  # There and back through artanh, in float32.
            np.testing.assert_allclose(result.images, images, atol=1e-6)
        else:
            np.testing.assert_array_equal(result.images, images)

    def test_descends_on_a_smooth_objective(self, name):
        images = pictures(2)
        before, _ = bowl(images, KEY)
        assert np.all(run(name, images).loss < before)

    def test_is_one_scan_without_unrolled_steps(self, name):
        def size(num_steps):
            config = config_of(name, num_steps=num_steps)
            return len(str(jax.make_jaxpr(lambda x: run(name, x, config).images)(pictures(1))))

        assert "scan" in str(jax.make_jaxpr(lambda x: run(name, x).images)(pictures(1)))
        assert abs(size(1000) - size(10)) < 50

    def test_several_numbers_of_steps_are_moments_of_one_run(self, name):
        """Each gets its own pictures, verdict and counts, though the objective is random."""

        def noisy(images, key):
            loss, success = bowl(images, key)
            shift = jax.vmap(jax.random.normal)(key)
            slope = 1 + 0.5 * jax.vmap(jax.random.uniform)(key)
            return slope * loss + shift, success

        images, counts = pictures(2), (0, 1, 4, STEPS)
        several = run(name, images, config_of(name, num_steps=counts), noisy)
        assert several.images.shape == (len(counts), *images.shape)
        for place, count in enumerate(counts):
            alone = run(name, images, config_of(name, num_steps=count), noisy)
            np.testing.assert_allclose(several.images[place], alone.images, atol=1e-5)
            np.testing.assert_allclose(several.loss[place], alone.loss, rtol=1e-4)
            np.testing.assert_array_equal(several.success[place], alone.success)
            np.testing.assert_array_equal(several.num_gradients[place], [count] * 2)
            np.testing.assert_array_equal(several.num_forwards[place], [FORWARDS[name]] * 2)

    def test_starts_where_it_is_told(self, name):
        images, start = pictures(2), jnp.full((2, 16, 16, 3), 0.25)
        result = run(name, images, config_of(name, num_steps=0), initial=start)
        np.testing.assert_array_equal(result.images, start)

    def test_initial_of_another_shape_is_refused(self, name):
        with pytest.raises(InputError, match="initial must have the images' shape"):
            run(name, pictures(2), initial=pictures(1))

    @pytest.mark.parametrize("value", [-0.1, float("nan"), -1e-9])
    def test_bad_settings_are_refused(self, name, value):
        for setting in float_settings(name):
            with pytest.raises(
                InputError, match=f"{setting} must be a number >= 0, got {value}"
            ):
                config_of(name, **{setting: value})

    @pytest.mark.parametrize("value", [-1, 2.5, True])
    def test_bad_numbers_of_steps_are_refused(self, name, value):
        with pytest.raises(InputError, match=f"num_steps must be an integer >= 0, got {value}"):
            config_of(name, num_steps=value)

    @pytest.mark.parametrize("value", [(), (3, 3), (5, 2)])
    def test_bad_lists_of_steps_are_refused(self, name, value):
        with pytest.raises(InputError, match="num_steps must be one number or increasing ones"):
            config_of(name, num_steps=value)

    def test_padding_changes_little_on_a_real_network(self, name):
        """Rounding flips sign steps at zero, so means and shares are compared (see DESIGN)."""
        logits_fn, _, _ = small_model()
        images, labels = pictures(4), jnp.array([0, 1, 2, 3])
        keys = jax.random.split(KEY, 6)

        def attack(images, labels):
            objective = cross_entropy(logits_fn, labels, targeted=True)
            return run(name, images, objective=objective, key=keys[: len(images)])

        small = attack(images, labels).images
        padded = jnp.concatenate([images, images[:1], images[:1]])
        large = attack(padded, jnp.array([0, 1, 2, 3, 0, 0])).images[:4]
        norms = [np.linalg.norm(np.ravel(x - images)) for x in (small, large)]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)
        assert np.mean(np.abs(small - large) > 1e-3) < 1e-3


@pytest.mark.parametrize("name", ATTACKS)
def test_jit_and_vmap_change_little_on_a_real_network(name):
    """Through the convolution's own gradient and its barrier; compared as above."""
    logits_fn, _, _ = small_model()
    images, labels = pictures(4), jnp.array([0, 1, 2, 3])
    objective = cross_entropy(logits_fn, labels, targeted=True)
    setting = float_settings(name)[1]
    values = jnp.array([0.01, 0.1])

    def attack(value):
        return run(name, images, config_of(name, **{setting: value}), objective).images

    swept = {"eager": [attack(v) for v in values], "jit": [jax.jit(attack)(v) for v in values]}
    swept["vmap"] = list(jax.vmap(attack)(values))
    for other in ("jit", "vmap"):
        for ours, theirs in zip(swept["eager"], swept[other], strict=True):
            norms = [np.linalg.norm(np.ravel(x - images)) for x in (ours, theirs)]
            assert norms[0] > 0.01
            np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)
            assert np.mean(np.abs(ours - theirs) > 1e-3) < 2e-3


@pytest.mark.parametrize("name", ["ifgvm", "ifgsm", "mifgsm", "pgd"])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1])
def test_epsilon_is_respected(name, epsilon):
    images = pictures(3)
    config = config_of(name, epsilon=epsilon, step_size=0.3)
    change = np.abs(run(name, images, config).images - images)
    assert change.max() <= epsilon + 1e-6
    assert change.max() >= 0.9 * epsilon


@pytest.mark.parametrize("name, step", [("pgd_l2", {"step_size": 0.7}), ("mifgvm", {})])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_epsilon_in_l2_is_respected(name, step, epsilon):
    images = 0.5 * pictures(3) + 0.25
    config = config_of(name, epsilon=epsilon, **step)
    distance = np.linalg.norm(
        np.reshape(run(name, images, config).images - images, (3, -1)), axis=1
    )
    assert distance.max() <= epsilon + 1e-5
    assert distance.min() >= 0.9 * epsilon


@pytest.mark.parametrize("name", RANDOM_START)
class TestRandomStart:
    def start(self, name, images, epsilon, key=KEY):
        """The picture after one step of length zero."""
        return run(
            name, images, config_of(name, epsilon=epsilon, step_size=0.0, num_steps=1), key=key
        ).images

    def test_differs_between_keys_and_pictures_and_stays_in_the_ball(self, name):
        images = jnp.full((2, 8, 8, 3), 0.5)
        one, other = (self.start(name, images, 0.1, jax.random.key(n)) for n in (1, 2))
        assert np.abs(one - other).max() > 1e-3
        assert np.abs(one[0] - one[1]).max() > 1e-3
        order = np.inf if name == "pgd" else 2
        for change in np.reshape(one - images, (2, -1)):
            assert 0.05 < np.linalg.norm(change, order) <= 0.1 + 1e-6

    def test_is_that_of_the_picture_alone(self, name):
        images, keys = pictures(3), jax.random.split(KEY, 3)
        together = self.start(name, images, 0.1, keys)
        alone = self.start(name, images[2:], 0.1, keys[2:])
        np.testing.assert_allclose(together[2:], alone, atol=1e-6)

    def test_is_clipped_to_pictures(self, name):
        start = self.start(name, jnp.round(pictures(3)), 5.0)
        assert float(start.min()) == 0
        assert float(start.max()) == 1

    def test_is_uniform(self, name):
        """Pixels are uniform in L∞; in L2 the share of the volume within the radius is."""
        images = jnp.full((4000, 1, 2, 3), 0.5)
        change = np.reshape(self.start(name, images, 0.2) - images, (4000, 6)) / 0.2
        shares = (
            (np.ravel(change) + 1) / 2 if name == "pgd" else np.linalg.norm(change, axis=1) ** 6
        )
        expected = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(np.quantile(shares, expected), expected, atol=0.03)
        np.testing.assert_allclose(change.mean(axis=0), 0, atol=0.04)

    def test_gives_way_to_an_initial_one(self, name):
        images = pictures(2)
        config = config_of(name, step_size=0.0)
        result = run(name, images, config, initial=images)
        np.testing.assert_array_equal(result.images, images)
