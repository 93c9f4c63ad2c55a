"""dlib's face recogniser in PyTorch, with its layers unfolded. Imports PyTorch.

Images are RGB [B, 3, 150, 150] in [0, 1].
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

# Channels and blocks of each stage; the first block of each but the first one goes down.
_STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))


class _Affine(nn.Module):
    """A gain and a shift for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gains, shifts = self.values[:, None, :, None, None]
        return gains * x + shifts


class _Block(nn.Module):
    def __init__(self, inputs: int, channels: int, down: bool):
        super().__init__()
        self.down = down
        self.first = nn.Conv2d(inputs, channels, 3, 2 if down else 1, 0 if down else 1)
        self.first_affine = _Affine(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second_affine = _Affine(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first_affine(self.first(x)).relu()
        y = self.second_affine(self.second(y))
        if self.down:
            x = functional.avg_pool2d(x, 2)
            rows, columns = (max(x.shape[i], y.shape[i]) for i in (2, 3))
            larger = x.new_zeros(x.shape[0], y.shape[1], rows, columns)
            larger[:, : x.shape[1], : x.shape[2], : x.shape[3]] += x
            larger[:, :, : y.shape[2], : y.shape[3]] += y
            return larger.relu()
        return (x + y).relu()


class DlibResNetTwin(nn.Module):
    """Images [B, 3, 150, 150] -> descriptors [B, 128]."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_affine = nn.Conv2d(3, 32, 7, 2), _Affine(32)
        blocks: list[nn.Module] = []
        inputs = 32
        for stage, (channels, repeats) in enumerate(_STAGES):
            for number in range(repeats):
                blocks.append(_Block(inputs, channels, stage > 0 and number == 0))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Parameter(torch.zeros(inputs, 128))
        mean = torch.tensor((122.782, 117.001, 104.298))
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Descriptors, not normalised."""
        x = self.stem_affine(self.stem((255 * images - self.mean) / 256)).relu()
        x = self.blocks(functional.max_pool2d(x, 3, 2))
        return x.mean(dim=(2, 3)) @ self.last


def with_dlib_weights(arrays: Mapping[str, npt.NDArray[np.float32]]) -> DlibResNetTwin:
    """The network with the arrays of a file of dlib's, in evaluation mode."""
    network = DlibResNetTwin()
    parts = [*_numbered(arrays, "con"), *_numbered(arrays, "affine")]
    kinds = (nn.Conv2d, _Affine)
    modules = [m for kind in kinds for m in network.modules() if isinstance(m, kind)]
    with torch.no_grad():
        for module, part in zip(modules, parts, strict=True):
            values = torch.from_numpy(np.array(part))
            if isinstance(module, nn.Conv2d):
                count = module.weight.numel()
                module.weight.copy_(values[:count].view_as(module.weight))
                assert module.bias is not None
                module.bias.copy_(values[count:])
            else:
                module.values.copy_(values.view_as(module.values))
        network.last.copy_(torch.from_numpy(np.array(arrays["fc.0"])).view_as(network.last))
    return network.eval().requires_grad_(False)


def _numbered(
    arrays: Mapping[str, npt.NDArray[np.float32]], kind: str
) -> Iterator[npt.NDArray[np.float32]]:
    """The arrays `kind.0`, `kind.1`, ..."""
    for number in range(sum(name.startswith(f"{kind}.") for name in arrays)):
        yield arrays[f"{kind}.{number}"]
