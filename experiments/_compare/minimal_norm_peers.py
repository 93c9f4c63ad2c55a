"""Least-distortion attacks of other libraries, against the PyTorch twins of the recognisers.

Everything here imports PyTorch, which the project itself never needs. Every attack runs with
its library's own settings but for the number of steps, of which each costs one gradient;
pictures are float32 in [0, 1].

adv-lib asks for torchvision and visdom, which only its LPIPS distance and its plots use: where
they are missing, empty modules stand in for them while it is imported (`adv_lib_attacks`).
"""

import contextlib
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from experiments._benchmark.peers import device, to_numpy, to_torch
from experiments._compare.compare_peers import search_split


class PeerResult(NamedTuple):
    """What a peer makes of a batch.

    Attributes:
      images: float32[B, H, W, 3] in [0, 1]; the originals where it found nothing.
      success: bool[B], the twin's own verdict.
      loss: float32[B], the twin's cross-entropy with the labels given.
      num_gradients: how often a gradient went back through the recogniser, as counted.
      num_forwards: forward passes beside those of gradients, as counted.
      seconds: wall time of the attack.
    """

    images: np.ndarray
    success: np.ndarray
    loss: np.ndarray
    num_gradients: int
    num_forwards: int
    seconds: float


class Counter(nn.Module):
    """A recogniser that counts how often it is run and differentiated.

    Attributes:
      num_forwards: forward passes of all kinds.
      num_gradients: gradients that reached its logits on the way to the pictures.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.num_forwards = 0
        self.num_gradients = 0
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The recogniser's logits."""
        self.num_forwards += 1
        logits = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: torch.Tensor) -> None:
        self.num_gradients += 1


# (recogniser, images [B, 3, H, W], labels [B], whether they are targets, gradients) -> images.
PeerAttack = Callable[[nn.Module, torch.Tensor, torch.Tensor, bool, int], torch.Tensor]


def attack(
    name: str,
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    targeted: bool,
    num_steps: int,
    seed: int = 0,
) -> PeerResult:
    """Runs a peer on one batch.

    Args:
      name: a key of `ATTACKS`.
      model: a twin of `experiments._benchmark.peers`, on its device.
      images: float32[B, H, W, 3] in [0, 1].
      labels: int[B], the targets, or the true labels where the attack is untargeted.
      targeted: which of them.
      num_steps: gradients that it may spend on a picture.
      seed: decides what it draws.
    """
    counter = Counter(model)
    # Some take views that the channels_last layout does not allow.
    given = to_torch(images).contiguous().to(device())
    aims = torch.from_numpy(np.asarray(labels, np.int64)).to(device())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = time.perf_counter()
        found = ATTACKS[name](counter, given, aims, targeted, num_steps).detach()
        if found.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    finite = found.isfinite().flatten(1).all(dim=1)
    found = torch.where(finite[:, None, None, None], found.clamp(0, 1), given)
    with torch.no_grad():
        logits = model(found)
    loss = nn.functional.cross_entropy(logits, aims, reduction="none")
    hit = logits.argmax(dim=1) == aims
    return PeerResult(
        images=np.ascontiguousarray(to_numpy(found)),
        success=(hit if targeted else ~hit).cpu().numpy(),
        loss=loss.cpu().numpy(),
        num_gradients=counter.num_gradients,
        num_forwards=counter.num_forwards - counter.num_gradients,
        seconds=seconds,
    )


def _foolbox(build: Callable[[Any, int], Any]) -> PeerAttack:
    """An attack of `foolbox.attacks`, made from that module and a number of steps."""

    def run(
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        targeted: bool,
        num_steps: int,
    ) -> torch.Tensor:
        import foolbox

        goals = foolbox.criteria
        goal = goals.TargetedMisclassification if targeted else goals.Misclassification
        peer = build(foolbox.attacks, num_steps)
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        # `run` is the attack; calling it would judge its result with one more forward pass.
        return peer.run(bounded, images, goal(labels))

    return run


def _foolbox_cw(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    targeted: bool,
    num_steps: int,
) -> torch.Tensor:
    """The Carlini-Wagner attack of foolbox, whose result is black where it found nothing."""
    searches, steps = search_split(num_steps)
    run = _foolbox(
        lambda attacks, _: attacks.L2CarliniWagnerAttack(
            binary_search_steps=searches, steps=steps, abort_early=False
        )
    )
    found = run(model, images, labels, targeted, num_steps)
    nothing = (found == 0).flatten(1).all(dim=1)
    return torch.where(nothing[:, None, None, None], images, found)


def _adv_lib(name: str, steps: str, **settings: Any) -> PeerAttack:
    """A function of `adv_lib.attacks`; `steps` is what it calls the number of steps."""

    def run(
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        targeted: bool,
        num_steps: int,
    ) -> torch.Tensor:
        peer = getattr(adv_lib_attacks(), name)
        return peer(model, images, labels, targeted=targeted, **{steps: num_steps}, **settings)

    return run


ATTACKS: dict[str, PeerAttack] = {
    "foolbox_ddn": _foolbox(lambda attacks, steps: attacks.DDNAttack(steps=steps)),
    "foolbox_fmn": _foolbox(lambda attacks, steps: attacks.L2FMNAttack(steps=steps)),
    "foolbox_cw": _foolbox_cw,
    "adv_lib_ddn": _adv_lib("ddn", "steps"),
    "adv_lib_fmn": _adv_lib("fmn", "steps", norm=2),
    "adv_lib_alma": _adv_lib("alma", "num_steps", distance="l2"),
    "adv_lib_pdgd": _adv_lib("pdgd", "num_steps"),
    "adv_lib_pdpgd": _adv_lib("pdpgd", "num_steps", norm=2),
}


def import_libraries(names: Sequence[str]) -> None:
    """Imports what some peers need, so that no clock that runs later pays for it."""
    if any(name.startswith("foolbox") for name in names):
        importlib.import_module("foolbox")
    if any(name.startswith("adv_lib") for name in names):
        adv_lib_attacks()


def adv_lib_attacks() -> ModuleType:
    """`adv_lib.attacks`, also without torchvision and visdom, which no attack here touches.

    It imports both for a distance that needs trained networks (LPIPS) and for plots. Whichever
    is missing is stood in for by an empty module, and only while adv-lib is imported.
    """
    with _stand_ins("torchvision.models", "visdom"):
        return importlib.import_module("adv_lib.attacks")


@contextlib.contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Empty modules, with the packages around them, for those that are not installed."""
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
