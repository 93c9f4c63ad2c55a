"""Peers spend the gradients that they are given, reach the goal, and stay in their place."""

import contextlib
import functools
import importlib.util
import sys
import warnings

import jax
import numpy as np
import pytest

from experiments._compare import compare_peers
from tests.helpers import pictures, small_model

torch = pytest.importorskip("torch", reason="torch, a peer, is not installed")
minimal_norm_peers = pytest.importorskip("experiments._compare.minimal_norm_peers")
peers = pytest.importorskip("experiments._benchmark.peers")

PEERS = list(compare_peers.PEERS)


@pytest.fixture(scope="module", autouse=True)
def _libraries():
    """Imports the libraries, which warn; leaves other tests a share of the processor."""
    for module in ("foolbox", "adv_lib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module}, a peer, is not installed")
    torch.set_num_threads(1)
    with warnings.catch_warnings(action="ignore"):
        minimal_norm_peers.import_libraries(PEERS)


@functools.cache
def _problem():
    """(logits function, twin, pictures, whom the recogniser names in them)."""
    logits_fn, _, variables = small_model()
    images = np.asarray(pictures(3))
    twin = peers.twin("model_a", jax.device_get(variables))
    return logits_fn, twin, images, np.asarray(logits_fn(images)).argmax(1)


def _attack(name, num_steps, *, targeted, **options):
    _, twin, images, named = _problem()
    labels = (named + 1) % 5 if targeted else named
    return minimal_norm_peers.attack(
        name, twin, images, labels, targeted=targeted, num_steps=num_steps, **options
    )


def test_every_peer_that_is_named_exists():
    assert list(minimal_norm_peers.ATTACKS) == PEERS


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_spends_its_gradients_and_reaches_the_goal(name, targeted):
    logits_fn, _, images, named = _problem()
    num_steps = 60 if name == "foolbox_cw" else 20
    result = _attack(name, num_steps, targeted=targeted)
    assert (result.num_gradients, result.num_forwards) == (num_steps, 0)
    assert result.seconds > 0
    assert (result.images.dtype, result.images.shape) == (np.float32, images.shape)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    # This project's recogniser says the same as the twin, and every picture changed.
    reached = np.asarray(logits_fn(result.images)).argmax(1)
    hit = reached == (named + 1) % 5 if targeted else reached != named
    np.testing.assert_array_equal(result.success, hit)
    assert hit.all()
    assert (np.abs(result.images - images).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", PEERS)
def test_spends_the_fewest_gradients_and_repeats_itself(name):
    least = compare_peers.PEERS[name].least_steps
    first = _attack(name, least, targeted=True)
    assert first.num_gradients == least
    np.testing.assert_array_equal(first.images, _attack(name, least, targeted=True).images)


@pytest.mark.parametrize(
    ("num_steps", "split"),
    [(1, (1, 1)), (10, (2, 5)), (20, (4, 5)), (50, (5, 10)), (100, (5, 20)), (1000, (9, 111))],
)
def test_searches_share_the_gradients(num_steps, split):
    assert compare_peers.search_split(num_steps) == split


def test_drawing_leaves_torchs_own_state_alone():
    before = torch.random.get_rng_state()
    _attack("adv_lib_ddn", 2, targeted=False, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_counter_tells_gradients_from_forward_passes():
    _, twin, images, _ = _problem()
    counter = minimal_norm_peers.Counter(twin)
    x = peers.to_torch(images)
    np.testing.assert_array_equal(counter(x), twin(x))
    x.requires_grad_(True)
    for _ in range(2):
        logits = counter(x)
        # A gradient that stops at the logits does not go through the recogniser.
        loss = logits.logsumexp(1)
        torch.autograd.grad(loss.exp().sum(), loss, retain_graph=True)
        torch.autograd.grad(loss.sum(), x)
    assert (counter.num_forwards, counter.num_gradients) == (3, 2)


def test_pictures_without_a_result_stay_as_they_are(monkeypatch):
    images = _problem()[2]

    def broken(model, images, labels, targeted, num_steps):
        found = images.clone()
        found[0, 0, 0, 0], found[1] = torch.nan, 2.0
        return found

    monkeypatch.setitem(minimal_norm_peers.ATTACKS, "foolbox_ddn", broken)
    result = _attack("foolbox_ddn", 1, targeted=False)
    np.testing.assert_array_equal(result.images[[0, 2]], images[[0, 2]])
    assert (result.images[1] == 1).all()


def test_black_pictures_are_no_result():
    """The Carlini-Wagner attack of foolbox finds nothing in one step, and returns black."""
    result = _attack("foolbox_cw", 1, targeted=False)
    np.testing.assert_array_equal(result.images, _problem()[2])
    assert not result.success.any()


def test_modules_that_stand_in_are_gone_afterwards():
    with minimal_norm_peers._stand_ins("no_such_package.models", "no_such_module", "numpy"):
        from no_such_package import models

        assert models.__name__ == "no_such_package.models"
        assert "no_such_module" in sys.modules
        assert sys.modules["numpy"] is np
    assert {"no_such_package", "no_such_module"}.isdisjoint(sys.modules)
    assert sys.modules["numpy"] is np
    with contextlib.suppress(ZeroDivisionError), minimal_norm_peers._stand_ins("no_such"):
        raise ZeroDivisionError
    assert "no_such" not in sys.modules


@pytest.mark.parametrize("package", ["torchvision", "visdom"])
def test_nothing_stands_in_for_long(package):
    assert minimal_norm_peers.adv_lib_attacks().ddn
    assert (package in sys.modules) <= (importlib.util.find_spec(package) is not None)
