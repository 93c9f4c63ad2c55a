"""Least-distortion attacks of other libraries: a table of them, and how to call each.

Each runs with its library's default settings, except for the number of steps; every step costs
one gradient. PyTorch and the libraries are imported when an attack runs.

adv-lib imports torchvision and visdom, which only its LPIPS distance and its plots use. If they
are missing, empty modules replace them during the import (`adv_lib_attacks`).
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeAlias

from deid_jax.errors import InputError
from experiments._common import machine

if TYPE_CHECKING:
    import torch
    from torch import nn

_INSTALL = "pip install --no-deps -r tests/requirements-peers.txt"
_FOOLBOX = ("torch", "foolbox", "eagerpy")
_ADV_LIB = ("torch", "adv-lib")


@dataclasses.dataclass(frozen=True)
class PeerTask:
    """The arguments of an attack on a batch; `labels` are the targets, or the true ones."""

    network: "nn.Module"
    images: "torch.Tensor"
    labels: "torch.Tensor"
    targeted: bool
    num_steps: int


PeerAttack: TypeAlias = Callable[[PeerTask], "torch.Tensor"]


@dataclasses.dataclass(frozen=True)
class LeastDistortionPeer:
    """A peer: its library and its attack, required packages, the fewest steps and persons."""

    library: str
    attack: PeerAttack
    packages: tuple[str, ...]
    least_steps: int = 1
    least_persons: int = 2


class _FoolboxAttack(Protocol):
    def run(
        self, model: object, inputs: "torch.Tensor", criterion: object
    ) -> "torch.Tensor": ...


def search_split(num_steps: int) -> tuple[int, int]:
    """How foolbox's Carlini-Wagner attack spends K gradients: (searches, steps of each).

    Its search for the weight of the loss begins at 0.001 and multiplies it by ten, so that
    fewer than four searches hardly move an image, and fewer than five steps do not get far. Of
    the splits that were tried, five searches of 10 steps (K = 50) or 20 steps (K = 100) gave
    the best results; foolbox's default is nine searches.
    """
    searches = min(9, max(1, min(5, num_steps // 5), num_steps // 20))
    return searches, num_steps // searches


def _foolbox(make: Callable[[ModuleType, int], _FoolboxAttack]) -> PeerAttack:
    """An attack of `foolbox.attacks`, made from that module and a number of steps."""

    def attack(task: PeerTask) -> "torch.Tensor":
        import foolbox

        goals = foolbox.criteria
        goal = goals.TargetedMisclassification if task.targeted else goals.Misclassification
        peer = make(foolbox.attacks, task.num_steps)
        device = task.images.device
        bounded = foolbox.PyTorchModel(task.network, bounds=(0, 1), device=device)
        # Calling the attack directly would add a forward pass to judge its result.
        return peer.run(bounded, task.images, goal(task.labels))

    return attack


def _foolbox_cw(task: PeerTask) -> "torch.Tensor":
    """Foolbox's Carlini-Wagner attack, whose result is black if it fails."""
    import torch

    searches, steps = search_split(task.num_steps)
    attack = _foolbox(
        lambda attacks, _: attacks.L2CarliniWagnerAttack(
            binary_search_steps=searches, steps=steps, abort_early=False
        )
    )
    found = attack(task)
    nothing = (found == 0).flatten(1).all(dim=1)
    return torch.where(nothing[:, None, None, None], task.images, found)


def _adv_lib(name: str, steps: str, **settings: object) -> PeerAttack:
    """A function of `adv_lib.attacks`; `steps` is its name for the number of steps."""

    def attack(task: PeerTask) -> "torch.Tensor":
        peer = getattr(adv_lib_attacks(), name)
        given = settings | {"targeted": task.targeted, steps: task.num_steps}
        return peer(task.network, task.images, task.labels, **given)

    return attack


PEERS = {
    "foolbox_ddn": LeastDistortionPeer(
        "foolbox", _foolbox(lambda attacks, steps: attacks.DDNAttack(steps=steps)), _FOOLBOX
    ),
    "foolbox_fmn": LeastDistortionPeer(
        "foolbox", _foolbox(lambda attacks, steps: attacks.L2FMNAttack(steps=steps)), _FOOLBOX
    ),
    "foolbox_cw": LeastDistortionPeer("foolbox", _foolbox_cw, _FOOLBOX),
    "adv_lib_ddn": LeastDistortionPeer("adv-lib", _adv_lib("ddn", "steps"), _ADV_LIB),
    "adv_lib_fmn": LeastDistortionPeer("adv-lib", _adv_lib("fmn", "steps", norm=2), _ADV_LIB),
    # Its loss uses four logits.
    "adv_lib_alma": LeastDistortionPeer(
        "adv-lib", _adv_lib("alma", "num_steps", distance="l2"), _ADV_LIB, least_persons=4
    ),
    # These divide by the number of steps less one.
    "adv_lib_pdgd": LeastDistortionPeer(
        "adv-lib", _adv_lib("pdgd", "num_steps"), _ADV_LIB, least_steps=2
    ),
    "adv_lib_pdpgd": LeastDistortionPeer(
        "adv-lib", _adv_lib("pdpgd", "num_steps", norm=2), _ADV_LIB, least_steps=2
    ),
}


def check_peers(names: Sequence[str], model: str, num_steps: int) -> None:
    """Refuses peers that cannot run here, at the smallest requested number of steps.

    Raises:
      InputError: a peer is not installed, has no twin of the model, or needs more steps.
    """
    packages = dict.fromkeys(package for name in names for package in PEERS[name].packages)
    missing = [package for package in packages if not machine.version(package)]
    if missing:
        raise InputError(
            f"peers need {', '.join(missing)}: {_INSTALL}, or leave them out with --peers=none"
        )
    for name in names:
        least = PEERS[name].least_steps
        if num_steps < least:
            raise InputError(f"{name} needs num_steps of at least {least}, got {num_steps}")
    if names:
        from experiments._peers import twins

        if model not in twins.TWINS:
            raise InputError(f"no PyTorch twin of {model} for the peers: give --peers=none")
        if not twins.has_torch_device():
            raise InputError("PyTorch has no CUDA device here, as JAX has: give --peers=none")


def check_persons_for(names: Sequence[str], num_persons: int) -> None:
    """Refuses peers that need more persons than the recogniser knows.

    Raises:
      InputError: a peer needs more persons.
    """
    for name in names:
        least = PEERS[name].least_persons
        if num_persons < least:
            raise InputError(f"{name} needs at least {least} persons, got {num_persons}")


def import_libraries(names: Sequence[str]) -> None:
    """Imports the libraries of peers, so that imports are not timed later."""
    if any(name.startswith("foolbox") for name in names):
        importlib.import_module("foolbox")
    if any(name.startswith("adv_lib") for name in names):
        adv_lib_attacks()


def adv_lib_attacks() -> ModuleType:
    """Imports `adv_lib.attacks` even without torchvision and visdom, which we do not use."""
    with _stand_ins("torchvision.models", "visdom"):
        return importlib.import_module("adv_lib.attacks")


@contextlib.contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Substitutes empty modules, with their parent packages, for those not installed."""
    added = []
    for name in names:
        package, _, module = name.partition(".")
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            continue
        sys.modules[package] = ModuleType(package)
        if module:
            setattr(sys.modules[package], module, ModuleType(name))
        added.append(package)
    try:
        yield
    finally:
        for package in added:
            del sys.modules[package]
