"""Peers spend the gradients that they are given, reach the goal, and leave the rest alone."""

import dataclasses
import functools
import importlib.util
import sys
import warnings

import jax
import numpy as np
import pytest

from experiments._peers import least_distortion
from tests.helpers import random_images, small_model

torch = pytest.importorskip("torch", reason="torch, a peer, is not installed")
pytestmark = pytest.mark.slow

from experiments._peers import peer_runs, twins  # noqa: E402

PEERS = least_distortion.PEERS


@pytest.fixture(scope="module", autouse=True)
def _libraries():
    """Imports the libraries, which warn; leaves other tests a share of the processor."""
    for module in ("foolbox", "adv_lib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module}, a peer, is not installed")
    torch.set_num_threads(1)
    with warnings.catch_warnings(action="ignore"):
        least_distortion.import_libraries(list(PEERS))


@functools.cache
def _problem():
    """(logits function, twin, images, the recogniser's predictions)."""
    logits_fn, _, variables = small_model()
    images = np.asarray(random_images(3))
    twin = twins.twin("model_a", jax.device_get(variables))
    return logits_fn, twin, images, np.asarray(logits_fn(images)).argmax(1)


def _attack(name, num_steps, *, targeted, **options):
    _, twin, images, predicted = _problem()
    labels = (predicted + 1) % 5 if targeted else predicted
    return peer_runs.run_peer(
        name, twin, images, labels, targeted=targeted, num_steps=num_steps, **options
    )


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_spends_its_gradients_and_reaches_the_goal(name, targeted):
    logits_fn, _, images, predicted = _problem()
    num_steps = 60 if name == "foolbox_cw" else 20
    result = _attack(name, num_steps, targeted=targeted)
    assert (result.num_gradients, result.num_forwards) == (num_steps, 0)
    assert result.seconds > 0
    assert (result.images.dtype, result.images.shape) == (np.float32, images.shape)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    # This project's recogniser says the same as the twin, and no image is the original.
    reached = np.asarray(logits_fn(result.images)).argmax(1)
    hit = reached == (predicted + 1) % 5 if targeted else reached != predicted
    np.testing.assert_array_equal(result.success, hit)
    assert hit.all()
    assert (np.abs(result.images - images).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", PEERS)
def test_spends_the_fewest_gradients_and_repeats_itself(name):
    least = PEERS[name].least_steps
    before = torch.random.get_rng_state()
    first = _attack(name, least, targeted=True)
    assert first.num_gradients == least
    np.testing.assert_array_equal(first.images, _attack(name, least, targeted=True).images)
    # Random choices leave PyTorch's own state alone.
    assert torch.equal(before, torch.random.get_rng_state())


def test_counter_tells_gradients_from_forward_passes():
    _, twin, images, _ = _problem()
    counter = peer_runs.Counter(twin)
    x = twins.to_torch(images)
    np.testing.assert_array_equal(counter(x), twin(x))
    x.requires_grad_(True)
    for _ in range(2):
        logits = counter(x)
        # A gradient that stops at the logits does not go through the recogniser.
        loss = logits.logsumexp(1)
        torch.autograd.grad(loss.exp().sum(), loss, retain_graph=True)
        torch.autograd.grad(loss.sum(), x)
    assert (counter.num_forwards, counter.num_gradients) == (3, 2)


def test_images_without_a_result_stay_as_they_are(monkeypatch):
    images = _problem()[2]

    def broken(task):
        found = task.images.clone()
        found[0, 0, 0, 0], found[1] = torch.nan, 2.0
        return found

    peer = dataclasses.replace(PEERS["foolbox_ddn"], attack=broken)
    monkeypatch.setitem(PEERS, "foolbox_ddn", peer)
    result = _attack("foolbox_ddn", 1, targeted=False)
    np.testing.assert_array_equal(result.images[[0, 2]], images[[0, 2]])
    assert (result.images[1] == 1).all()


def test_black_images_are_no_result():
    """The Carlini-Wagner attack of foolbox finds nothing in one step, and returns black."""
    result = _attack("foolbox_cw", 1, targeted=False)
    np.testing.assert_array_equal(result.images, _problem()[2])
    assert not result.success.any()


def test_stand_ins_are_gone_afterwards():
    with least_distortion._stand_ins("no_such_package.models", "no_such_module", "numpy"):
        from no_such_package import models

        assert models.__name__ == "no_such_package.models"
        assert "no_such_module" in sys.modules
        assert sys.modules["numpy"] is np
    assert {"no_such_package", "no_such_module"}.isdisjoint(sys.modules)
    assert sys.modules["numpy"] is np
    assert least_distortion.adv_lib_attacks().ddn
    for package in ("torchvision", "visdom"):
        assert (package in sys.modules) <= (importlib.util.find_spec(package) is not None)
