"""Attacks of a fixed length against torchattacks, foolbox and a plain PyTorch loop."""

import jax
import numpy as np
import pytest

from deid_jax.attacks import ATTACKS, IFGSMConfig, ifgsm
from deid_jax.objectives import cross_entropy
from tests.helpers import pictures, small_model

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")

LABELS = np.array([0, 3, 4, 1, 1, 2])
ALPHA, EPSILON, STEPS = 0.004, 0.02, 12


@pytest.fixture(scope="module")
def problem():
    from experiments._peers import twins

    logits_fn, _, variables = small_model()
    images = np.asarray(pictures(6))
    return logits_fn, twins.twin("model_a", variables), images


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
    from experiments._peers import twins

    logits_fn, twin, images = problem
    attack = torchattacks.BIM(twin, eps=EPSILON, alpha=ALPHA, steps=STEPS)
    theirs = attack(twins.to_torch(images), torch.from_numpy(LABELS))
    ours = _untargeted_sign_attack(logits_fn, images, LABELS)
    _assert_same_attack(ours, twins.to_numpy(theirs), images)


def test_ifgsm_equals_foolbox_linf_bim(problem):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    from experiments._peers import twins

    logits_fn, twin, images = problem
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=ALPHA, steps=STEPS, random_start=False
    )
    model = foolbox.PyTorchModel(twin, bounds=(0, 1), device="cpu")
    inputs = twins.to_torch(images).contiguous()
    theirs, _, _ = attack(model, inputs, torch.from_numpy(LABELS), epsilons=EPSILON)
    ours = _untargeted_sign_attack(logits_fn, images, LABELS)
    _assert_same_attack(ours, twins.to_numpy(theirs), images)


SETTINGS = {
    "pfgvm": {"step_size": 0.2, "penalty_weight": 0.5},
    "ifgvm": {"step_size": 0.2, "epsilon": 0.05},
    "ifgsm": {"step_size": ALPHA, "epsilon": EPSILON},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_attacks_equal_a_plain_pytorch_loop(name):
    """In float64, where rounding does not push ReLUs and maxima over their kinks."""
    from experiments._peers import twins
    from experiments._peers.fixed_steps import torch_descent

    settings = SETTINGS[name]
    _, model, variables = small_model()
    images = np.asarray(pictures(6), np.float64)
    inputs = twins.to_torch(images)

    def update(adversarial, gradient):
        alpha = settings["step_size"]
        if name == "pfgvm":
            pull = settings["penalty_weight"] * (adversarial - inputs)
            return adversarial - alpha * (gradient + pull)
        moved = adversarial - alpha * (gradient.sign() if name == "ifgsm" else gradient)
        return torch.clamp(moved, inputs - settings["epsilon"], inputs + settings["epsilon"])

    twin = twins.twin("model_a", variables).double()
    labels = torch.from_numpy(LABELS)
    theirs = twins.to_numpy(torch_descent(twin, inputs, labels, update=update, num_steps=STEPS))
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


def _fixed_length_case(name):
    """Our settings and first iterate, and the peer: a function of model, images, labels."""
    import foolbox
    import torchattacks

    def of_torchattacks(make):
        return lambda twin, inputs, labels: make(twin)(inputs, labels)

    def of_foolbox(attack, epsilon):
        def run(twin, inputs, labels):
            model = foolbox.PyTorchModel(twin, bounds=(0, 1), device="cpu")
            criterion = foolbox.criteria.Misclassification(labels)
            return attack.run(model, inputs.contiguous(), criterion, epsilon=epsilon)

        return run

    linf = {"step_size": ALPHA, "epsilon": EPSILON}
    l2 = {"step_size": 0.15, "epsilon": 0.8}
    arguments = {"eps": EPSILON, "alpha": ALPHA, "steps": STEPS}
    exact = {"abs_stepsize": 0.15, "steps": STEPS, "random_start": False}
    make = torchattacks.MIFGSM
    cases = {
        "mifgsm": (linf, lambda twin: make(twin, decay=1.0, **arguments)),
        "mifgsm 0.7": (
            linf | {"momentum": 0.7},
            lambda twin: make(twin, decay=0.7, **arguments),
        ),
        "pgd": (linf, lambda twin: torchattacks.PGD(twin, random_start=False, **arguments)),
    }
    if name in cases:
        return cases[name][0], of_torchattacks(cases[name][1])
    if name == "pgd foolbox":
        attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
            **(exact | {"abs_stepsize": ALPHA})
        )
        return linf, of_foolbox(attack, EPSILON)
    return l2, of_foolbox(foolbox.attacks.L2ProjectedGradientDescentAttack(**exact), 0.8)


@pytest.mark.parametrize(
    "case", ["mifgsm", "mifgsm 0.7", "pgd", "pgd foolbox", "pgd_l2 foolbox"]
)
def test_fixed_length_attacks_equal_their_peers(case):
    """In float64 and from the originals: no random start."""
    for library in ("torchattacks", "foolbox"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    from experiments._peers import twins

    settings, peer = _fixed_length_case(case)
    _, model, variables = small_model()
    images = np.asarray(pictures(6), np.float64)
    twin = twins.twin("model_a", variables).double()
    theirs = twins.to_numpy(peer(twin, twins.to_torch(images), torch.from_numpy(LABELS)))
    method = ATTACKS[case.split()[0]]
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        ours = method.function(
            cross_entropy(lambda x: model.apply(variables, x), LABELS, targeted=False),
            images,
            method.config(**settings, num_steps=STEPS),
            jax.random.key(0),
            initial=images,
        )
    assert np.linalg.norm(theirs - images) > 0.5
    np.testing.assert_allclose(ours.images, theirs, atol=1e-6)
