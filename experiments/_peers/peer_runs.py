"""Runs a least-distortion peer on a batch, and counts its work. Imports PyTorch."""

import dataclasses
import time

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from experiments._peers.least_distortion import PEERS, PeerTask
from experiments._peers.twins import to_numpy, to_torch, torch_device


@dataclasses.dataclass(frozen=True)
class PeerResult:
    """The result of a peer on a batch.

    Attributes:
      images: float32[B, H, W, 3] in [0, 1]; the original where the attack failed.
      success: bool[B], as judged by the twin.
      num_gradients: counted backward passes through the recogniser.
      num_forwards: counted forward passes without a gradient.
      seconds: wall time of the attack.
    """

    images: npt.NDArray[np.float32]
    success: npt.NDArray[np.bool]
    num_gradients: int
    num_forwards: int
    seconds: float


class Counter(nn.Module):
    """A recogniser that counts its forward passes, and gradients from its logits to images."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.num_forwards = 0
        self.num_gradients = 0
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The recogniser's logits."""
        self.num_forwards += 1
        logits = self.network(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: torch.Tensor) -> None:
        self.num_gradients += 1


def run_peer(
    name: str,
    network: nn.Module,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int32],
    *,
    targeted: bool,
    num_steps: int,
    seed: int = 0,
) -> PeerResult:
    """Runs a peer on one batch.

    Args:
      name: a key of `PEERS`.
      network: a twin, on its device.
      images: float32[B, H, W, 3] in [0, 1].
      labels: int[B], the targets, or the true labels if the attack is untargeted.
      targeted: whether the attack is targeted.
      num_steps: number of gradients that it may spend on an image.
      seed: decides its random choices.
    """
    counter = Counter(network)
    # Some attacks use views that the channels_last layout does not allow.
    given = to_torch(images).contiguous().to(torch_device())
    aims = torch.from_numpy(np.asarray(labels, np.int64)).to(torch_device())
    task = PeerTask(counter, given, aims, targeted, num_steps)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = time.perf_counter()
        found = PEERS[name].attack(task).detach()
        if found.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    finite = found.isfinite().flatten(1).all(dim=1)
    found = torch.where(finite[:, None, None, None], found.clamp(0, 1), given)
    with torch.no_grad():
        hit = network(found).argmax(dim=1) == aims
    return PeerResult(
        images=np.ascontiguousarray(to_numpy(found)),
        success=(hit if targeted else ~hit).cpu().numpy(),
        num_gradients=counter.num_gradients,
        num_forwards=counter.num_forwards - counter.num_gradients,
        seconds=seconds,
    )
