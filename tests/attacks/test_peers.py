"""The paper's attacks against torchattacks, foolbox and a plain PyTorch loop."""

import jax
import numpy as np
import pytest

from deid_jax.attacks import ATTACKS, IFGSMConfig, ifgsm
from deid_jax.objectives import cross_entropy
from tests.helpers import pictures, small_model

torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")

LABELS = np.array([0, 3, 4, 1, 1, 2])
ALPHA, EPSILON, STEPS = 0.004, 0.02, 12


@pytest.fixture(scope="module")
def problem():
    from experiments import peers

    logits_fn, _, variables = small_model()
    images = np.asarray(pictures(6))
    return logits_fn, peers.twin("model_a", variables), images


def _assert_same_attack(ours, theirs, images):
    """Mean L2 to 1e-4; only pixels whose gradient rounds across zero may differ."""
    norms = [np.linalg.norm((x - images).reshape(6, -1), axis=1) for x in (ours, theirs)]
    assert norms[1].min() > 0.1
    np.testing.assert_allclose(norms[0].mean(), norms[1].mean(), rtol=1e-4)
    assert np.mean(np.abs(ours - theirs) > 1e-4) < 1e-3


def _untargeted_sign_attack(logits_fn, images, labels):
    objective = cross_entropy(logits_fn, labels, targeted=False)
    config = IFGSMConfig(step_size=ALPHA, epsilon=EPSILON, num_steps=STEPS)
    return np.asarray(ifgsm(objective, images, config, jax.random.key(0)).images)


def test_ifgsm_equals_torchattacks_bim(problem):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    from experiments import peers

    logits_fn, twin, images = problem
    attack = torchattacks.BIM(twin, eps=EPSILON, alpha=ALPHA, steps=STEPS)
    theirs = attack(peers.to_torch(images), torch.from_numpy(LABELS))
    ours = _untargeted_sign_attack(logits_fn, images, LABELS)
    _assert_same_attack(ours, peers.to_numpy(theirs), images)


def test_ifgsm_equals_foolbox_linf_bim(problem):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    from experiments import peers

    logits_fn, twin, images = problem
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=ALPHA, steps=STEPS, random_start=False
    )
    model = foolbox.PyTorchModel(twin, bounds=(0, 1), device="cpu")
    inputs = peers.to_torch(images).contiguous()
    theirs, _, _ = attack(model, inputs, torch.from_numpy(LABELS), epsilons=EPSILON)
    ours = _untargeted_sign_attack(logits_fn, images, LABELS)
    _assert_same_attack(ours, peers.to_numpy(theirs), images)


SETTINGS = {
    "pfgvm": {"step_size": 0.2, "penalty_weight": 0.5},
    "ifgvm": {"step_size": 0.2, "epsilon": 0.05},
    "ifgsm": {"step_size": ALPHA, "epsilon": EPSILON},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_attacks_equal_a_plain_pytorch_loop(name):
    """In float64, where rounding does not push ReLUs and maxima over their kinks."""
    from experiments import peers

    settings = SETTINGS[name]
    _, model, variables = small_model()
    images = np.asarray(pictures(6), np.float64)
    inputs = peers.to_torch(images)

    def update(adversarial, gradient):
        alpha = settings["step_size"]
        if name == "pfgvm":
            pull = settings["penalty_weight"] * (adversarial - inputs)
            return adversarial - alpha * (gradient + pull)
        moved = adversarial - alpha * (gradient.sign() if name == "ifgsm" else gradient)
        return torch.clamp(moved, inputs - settings["epsilon"], inputs + settings["epsilon"])

    twin = peers.twin("model_a", variables).double()
    labels = torch.from_numpy(LABELS)
    theirs = peers.to_numpy(peers.descend(twin, inputs, labels, update=update, num_steps=STEPS))
    method = ATTACKS[name]
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        ours = method.function(
            cross_entropy(lambda x: model.apply(variables, x), LABELS, targeted=True),
            images,
            method.config(**settings, num_steps=STEPS),
            jax.random.key(0),
        )
    assert np.linalg.norm(theirs - images) > 0.5
    np.testing.assert_allclose(ours.images, theirs, atol=1e-6)
