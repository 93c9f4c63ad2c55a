"""Attacks of a fixed length against torchattacks, foolbox and a plain PyTorch loop."""

import jax
import numpy as np
import pytest

from deid_jax.attacks import ATTACKS
from deid_jax.objectives import cross_entropy
from tests.helpers import random_images, small_model

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")

LABELS = np.array([0, 3, 4, 1, 1, 2])
ALPHA, EPSILON, STEPS = 0.004, 0.02, 12


def _in_float64(name, images, settings, *, targeted, **options):
    """What our attack makes of the images of `_inputs`."""
    method = ATTACKS[name]
    _, model, variables = small_model()
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        return method.function(
            cross_entropy(lambda x: model.apply(variables, x), LABELS, targeted=targeted),
            images,
            method.config(**settings, num_steps=STEPS),
            jax.random.key(0),
            **options,
        ).images


def _inputs():
    """(float64 twin, its images, its labels, the same images in NumPy)."""
    from experiments._peers import twins

    images = np.asarray(random_images(6), np.float64)
    twin = twins.twin("model_a", small_model()[2]).double()
    return twin, twins.to_torch(images), torch.from_numpy(LABELS), images


def _assert_same(ours, theirs, images):
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    assert np.linalg.norm(theirs - images) > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


SETTINGS = {
    "pfgvm": {"step_size": 0.2, "penalty_weight": 0.5},
    "ifgvm": {"step_size": 0.2, "epsilon": 0.05},
    "ifgsm": {"step_size": ALPHA, "epsilon": EPSILON},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_attacks_equal_a_plain_pytorch_loop(name):
    """In float64, where rounding does not push ReLUs and maxima over their kinks."""
    from experiments._peers.fixed_steps import torch_descent

    settings = SETTINGS[name]
    twin, inputs, labels, images = _inputs()

    def update(adversarial, gradient):
        alpha = settings["step_size"]
        if name == "pfgvm":
            pull = settings["penalty_weight"] * (adversarial - inputs)
            return adversarial - alpha * (gradient + pull)
        moved = adversarial - alpha * (gradient.sign() if name == "ifgsm" else gradient)
        return torch.clamp(moved, inputs - settings["epsilon"], inputs + settings["epsilon"])

    theirs = torch_descent(twin, inputs, labels, update=update, num_steps=STEPS)
    _assert_same(_in_float64(name, images, settings, targeted=True), theirs, images)


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
        "ifgsm": (linf, lambda twin: torchattacks.BIM(twin, **arguments)),
        "mifgsm": (linf, lambda twin: make(twin, decay=1.0, **arguments)),
        "mifgsm 0.7": (
            linf | {"momentum": 0.7},
            lambda twin: make(twin, decay=0.7, **arguments),
        ),
        "pgd": (linf, lambda twin: torchattacks.PGD(twin, random_start=False, **arguments)),
    }
    if name in cases:
        return cases[name][0], of_torchattacks(cases[name][1])
    if name != "pgd_l2 foolbox":
        attacks = foolbox.attacks
        make = attacks.LinfProjectedGradientDescentAttack
        if name == "ifgsm foolbox":
            make = attacks.LinfBasicIterativeAttack
        attack = make(**(exact | {"abs_stepsize": ALPHA}))
        return linf, of_foolbox(attack, EPSILON)
    return l2, of_foolbox(foolbox.attacks.L2ProjectedGradientDescentAttack(**exact), 0.8)


@pytest.mark.parametrize(
    "case",
    ["ifgsm", "ifgsm foolbox", "mifgsm", "mifgsm 0.7", "pgd", "pgd foolbox", "pgd_l2 foolbox"],
)
def test_fixed_length_attacks_equal_their_peers(case):
    """In float64 and from the originals: no random start."""
    for library in ("torchattacks", "foolbox"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    settings, peer = _fixed_length_case(case)
    twin, inputs, labels, images = _inputs()
    theirs = peer(twin, inputs, labels).detach()
    ours = _in_float64(case.split()[0], images, settings, targeted=False, initial=images)
    _assert_same(ours, theirs, images)
