"""Attacks that seek the least change: closed forms, and foolbox's own in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.arrays import projected, scaled_to
from deid_jax.attacks import ATTACKS, CarliniWagnerConfig, DDNConfig, FMNConfig, carlini_wagner
from deid_jax.attacks.loop import annealed
from deid_jax.errors import InputError
from deid_jax.objectives import OBJECTIVES
from tests.helpers import random_images, small_model

METHODS = ("ddn", "fmn", "cw")
LABELS = np.array([1, 2, 3, 1, 4, 2])
KEYS = jax.random.split(jax.random.key(0), 6)
STEPS = 40


def _linear(targeted, seed=5):
    """Two classes that a plane divides, the originals on the side where attacks fail."""
    random = np.random.default_rng(seed)
    images = random.uniform(0.3, 0.7, size=(6, 6, 5, 3)).astype(np.float32)
    normal = random.normal(size=images[0].size).astype(np.float32)
    offsets = images.reshape(6, -1) @ normal + random.uniform(0.5, 4, size=6)

    def logits_fn(x):
        values = x.reshape(len(x), -1) @ normal - jnp.asarray(offsets, jnp.float32)[: len(x)]
        return jnp.stack([-values, values], axis=1)

    margins = offsets - images.reshape(6, -1) @ normal
    labels = np.full(6, 1 if targeted else 0)
    return images, logits_fn, labels, margins / np.linalg.norm(normal)


@pytest.mark.parametrize("name, targeted", [("ddn", True), ("fmn", False), ("cw", True)])
def test_finds_the_distance_to_a_plane(name, targeted):
    """It is |m|/‖w‖ in closed form, where no pixel meets black or white."""
    images, logits_fn, labels, expected = _linear(targeted)
    method = ATTACKS[name]
    descended = OBJECTIVES[method.objective](logits_fn, labels, targeted=targeted)
    margin = OBJECTIVES["margin"](logits_fn, labels, targeted=targeted)

    def objective(images, key):
        # FMN steps onto the plane itself, where rounding decides.
        return descended(images, key)[0], margin(images, key)[0] <= 1e-3

    config = method.config(num_steps=1800 if name == "cw" else 200)
    result = jax.jit(functools.partial(method.function, objective))(images, config, KEYS)
    distances = np.linalg.norm(np.reshape(result.images - images, (6, -1)), axis=1)
    assert result.success.all()
    assert np.all(distances >= (1 - 2e-3) * expected)
    np.testing.assert_allclose(distances, expected, rtol=0.03)


@pytest.mark.parametrize("name", METHODS)
def test_returns_what_succeeds_already(name):
    images, logits_fn, _, _ = _linear(targeted=False)
    objective = OBJECTIVES["margin"](logits_fn, np.zeros(6, int), targeted=True)
    result = ATTACKS[name].function(objective, images, ATTACKS[name].config(num_steps=5), KEYS)
    np.testing.assert_array_equal(result.images, images)
    assert result.success.all()


@pytest.mark.parametrize("name", [*METHODS, "apfgvm"])
def test_returns_the_last_iterate_where_none_succeeds(name):
    """Everything was tried in vain, so the result is the furthest descent."""

    def objective(images, key):
        del key
        loss = images.sum(axis=(1, 2, 3))
        return loss, loss < -1

    images = random_images(2)
    result = ATTACKS[name].function(
        objective, images, ATTACKS[name].config(num_steps=10), KEYS[:2]
    )
    assert not result.success.any()
    assert np.all(result.loss < images.sum(axis=(1, 2, 3)) - 1)


@pytest.mark.parametrize("name", METHODS)
def test_last_iterate_is_judged(name):
    """With one step, only the last iterate can succeed."""

    def objective(images, key):
        del key
        loss = images.sum(axis=(1, 2, 3)) - 0.5 * images[0].size
        return loss, loss < 1e-3

    images = jnp.full((2, 4, 4, 3), 0.503)
    config = ATTACKS[name].config(num_steps=1)
    result = ATTACKS[name].function(objective, images, config, KEYS[:2])
    assert result.success.all()


@pytest.mark.parametrize("cls", [DDNConfig, FMNConfig])
def test_gamma_of_one_is_refused(cls):
    with pytest.raises(InputError, match=r"gamma must be < 1, got 1\.0"):
        cls(gamma=1.0)


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_bad_numbers_of_searches_are_refused(value):
    with pytest.raises(InputError, match=f"binary_search_steps must be .* >= 1, got {value}"):
        CarliniWagnerConfig(binary_search_steps=value)


@pytest.mark.parametrize(
    ("num_steps", "searches", "expected"),
    [(12, 3, [4, 4, 4]), (11, 3, [4, 4, 3]), (3, 5, [1, 1, 1]), (5, 1, [5])],
)
@pytest.mark.slow
def test_searches_share_the_gradients(num_steps, searches, expected):
    """Every search begins at the first iterate, and no other iterate is there."""
    images, begins = jnp.full((1, 4, 4, 3), 0.5), []

    def objective(images, key):
        loss = images.sum(axis=(1, 2, 3))
        jax.debug.callback(lambda x: begins.append(bool(x)), jnp.all(images == 0.5))
        return loss, loss < 0

    config = CarliniWagnerConfig(
        initial_const=1.0, num_steps=num_steps, binary_search_steps=searches
    )
    carlini_wagner(objective, images, config, KEYS[:1]).images.block_until_ready()
    jax.effects_barrier()
    at = [place for place, begin in enumerate(begins[:num_steps]) if begin]
    assert np.diff([*at, num_steps]).tolist() == expected


def test_confidence_pushes_beyond_the_boundary():
    images, logits_fn, labels, _ = _linear(targeted=True)
    objective = OBJECTIVES["margin"](logits_fn, labels, targeted=True)
    for kappa in (0.0, 2.0):
        config = CarliniWagnerConfig(kappa=kappa, num_steps=600)
        result = jax.jit(functools.partial(carlini_wagner, objective))(images, config, KEYS)
        assert np.all(result.loss <= -kappa)
        assert np.all(result.loss > -kappa - 0.5)


def test_schedule_falls_along_half_a_cosine():
    values = [float(annealed(1.0, 0.01, jnp.int32(n), 4)) for n in range(4)]
    np.testing.assert_allclose(values, [1, 0.855018, 0.505, 0.154982], atol=1e-6)


def test_projection_and_scaling_by_hand():
    change = jnp.zeros((3, 1, 1, 2)).at[:, 0, 0].set(jnp.array([[3.0, 4], [0.3, 0.4], [0, 0]]))
    radius = jnp.array([1.0, 1, 1])
    np.testing.assert_allclose(
        projected(change, radius)[:, 0, 0], [[0.6, 0.8], [0.3, 0.4], [0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        scaled_to(change, radius)[:, 0, 0], [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6
    )


def _foolbox_attack(name):
    import eagerpy
    import foolbox

    class Projected(foolbox.attacks.L2FMNAttack):
        """With the projection that foolbox 3.3.4 leaves out: it scales by ‖x‖/‖x‖."""

        def project(self, x, x0, epsilon):
            change = x - x0
            size = eagerpy.maximum(change.flatten(start=1).norms.l2(axis=-1), 1e-12)
            return x0 + change * eagerpy.minimum(1, epsilon / size).reshape((-1, 1, 1, 1))

    cw = functools.partial(
        foolbox.attacks.L2CarliniWagnerAttack,
        binary_search_steps=5, steps=30, stepsize=0.02, initial_const=0.01, abort_early=False,
    )  # fmt: skip
    settings = {
        "step_size": 0.02, "initial_const": 0.01, "num_steps": 150, "binary_search_steps": 5
    }  # fmt: skip
    return {
        "ddn": (foolbox.attacks.DDNAttack(steps=STEPS), {"num_steps": STEPS}),
        "fmn": (Projected(steps=STEPS), {"num_steps": STEPS}),
        "cw": (cw(), settings),
        "cw confident": (cw(confidence=0.3), settings | {"kappa": 0.3}),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("case", [*METHODS, "cw confident"])
def test_equals_foolbox(case, targeted):
    """In float64, but for the last iterate, which foolbox does not judge."""
    torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    from experiments._peers import twins

    _, model, variables = small_model()
    images = np.asarray(random_images(6), np.float64)
    twin, inputs = twins.twin("model_a", variables).double(), twins.to_torch(images)
    labels = LABELS if targeted else twin(inputs).argmax(dim=1).numpy()
    criterion = foolbox.criteria.Misclassification
    if targeted:
        criterion = foolbox.criteria.TargetedMisclassification
    attack, settings = _foolbox_attack(case)
    recogniser = foolbox.PyTorchModel(twin, bounds=(0, 1), device="cpu")
    theirs = attack.run(recogniser, inputs.contiguous(), criterion(torch.from_numpy(labels)))
    theirs = twins.to_numpy(theirs)
    name = case.split()[0]
    method = ATTACKS[name]
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        judged = OBJECTIVES[method.objective](
            lambda x: model.apply(variables, x), labels, targeted=targeted
        )
        last = jax.vmap(jax.random.fold_in, (0, None))(KEYS, settings["num_steps"])

        def objective(images, key):
            loss, success = judged(images, key)
            of_last = jax.random.key_data(key) == jax.random.key_data(last)
            return loss, success & ~of_last.all(axis=1)

        config = method.config(**settings)
        attacks = [method.function(one, images, config, KEYS) for one in (objective, judged)]
        ours, best = (np.asarray(result.images) for result in attacks)
    norms = [np.linalg.norm((x - images).reshape(6, -1), axis=1) for x in (ours, theirs, best)]
    assert 0.1 < norms[1].min() < norms[1].max() < 5
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.all(norms[2] <= norms[0] + 1e-9)
