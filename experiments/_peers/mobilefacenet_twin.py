"""MobileFaceNet in PyTorch, with the modules and names of the published weights.

Images are RGB [B, 3, 112, W] in [0, 1]. Imports PyTorch.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from deid_jax.types import Variables

# Expansion, channels, repeats, stride of the first repeat: the paper's table 1.
TABLE = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]


def _conv(inputs: int, outputs: int, size: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


def _whole(height: int, width: int) -> nn.Conv2d:
    """A depthwise convolution over all positions."""
    return nn.Conv2d(512, 512, (height, width), groups=512, bias=False)


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, layers: list[nn.Module]):
        super().__init__()
        self.residual = stride == 1 and inputs == channels
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def _bottlenecks(prelu: bool) -> nn.Sequential:
    def activation(channels: int) -> nn.Module:
        return nn.PReLU(channels) if prelu else nn.ReLU6(inplace=True)

    found: list[nn.Module] = []
    inputs = 64
    for expansion, channels, repeats, first in TABLE:
        for number in range(repeats):
            stride, wide = 1 if number else first, inputs * expansion
            expand = [_conv(inputs, wide), nn.BatchNorm2d(wide), activation(wide)]
            middle = [_depthwise(wide, stride), nn.BatchNorm2d(wide), activation(wide)]
            project = [_conv(wide, channels), nn.BatchNorm2d(channels)]
            if not prelu:  # This variant's weight files nest the layers.
                expand, middle = [nn.Sequential(*expand)], [nn.Sequential(*middle)]
            found.append(_Bottleneck(inputs, channels, stride, [*expand, *middle, *project]))
            inputs = channels
    return nn.Sequential(*found)


class _Named(nn.Module):
    """Applies its parts in order, each stored under its own name."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.children():
            x = part(x)
        return x


class Ms1mTwin(nn.Module):
    """The variant "ms1m": images [B, 3, 112, 112] -> embeddings [B, 128]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = self._part(_conv(3, 64, 3, 2))
        self.dw_conv = _Named(
            depthwise=_depthwise(64),
            bn1=nn.BatchNorm2d(64),
            relu1=nn.ReLU(inplace=True),
            pointwise=_conv(64, 64),
            bn2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(inplace=True),
        )
        self.features = _bottlenecks(prelu=False)
        self.conv2 = self._part(_conv(128, 512))
        self.gdconv = _Named(depthwise=_whole(7, 7), bn=nn.BatchNorm2d(512))
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm2d(128)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @staticmethod
    def _part(conv: nn.Conv2d) -> nn.Sequential:
        norm = nn.BatchNorm2d(conv.out_channels)
        return nn.Sequential(conv, norm, nn.ReLU6(inplace=True))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings, not normalised."""
        x = self.features(self.dw_conv(self.conv1((images - self.mean) / self.std)))
        return self.bn(self.conv3(self.gdconv(self.conv2(x)))).flatten(1)


class CasiaTwin(nn.Module):
    """The variant "casia": the middle 96 columns of the images -> embeddings [B, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = self._part(_conv(3, 64, 3, 2))
        self.dw_conv1 = self._part(_depthwise(64))
        self.blocks = _bottlenecks(prelu=True)
        self.conv2 = self._part(_conv(128, 512))
        self.linear7 = self._part(_whole(7, 6), activation=False)
        self.linear1 = self._part(_conv(512, 128), activation=False)

    @staticmethod
    def _part(conv: nn.Conv2d, activation: bool = True) -> _Named:
        parts: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(conv.out_channels)}
        if activation:
            parts["prelu"] = nn.PReLU(conv.out_channels)
        return _Named(**parts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings, not normalised, of images 112 or 96 wide."""
        edge = (images.shape[-1] - 96) // 2
        x = (255 * images[..., edge : edge + 96] - 127.5) / 128
        x = self.blocks(self.dw_conv1(self.conv1(x)))
        return self.linear1(self.linear7(self.conv2(x))).flatten(1)


def mobilefacenet_twin(variables: Variables) -> nn.Module:
    """The network with the weights of a Flax model, in which every BatchNorm is folded."""
    parameters = variables["params"]
    # The variant "casia" has no such layer.
    network: nn.Module = Ms1mTwin() if "stem_pointwise" in parameters else CasiaTwin()
    layers = (parameters[name] for name in _in_order(parameters))
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    slopes = [part for part in network.modules() if isinstance(part, nn.PReLU)]
    for convolution, layer in zip(convolutions, layers, strict=True):
        convolution.weight = _parameter(_kernel(np.asarray(layer["kernel"])))
        convolution.bias = _parameter(layer["bias"])
        if "slope" in layer:
            slopes.pop(0).weight = _parameter(layer["slope"])
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, nn.Identity())
    return network


def _in_order(parameters: Mapping[str, object]) -> Iterator[str]:
    """The layers of a Flax MobileFaceNet in the order of the forward pass."""
    blocks = range(sum(repeats for _, _, repeats, _ in TABLE))
    every = ["stem", "stem_depthwise", "stem_pointwise"]
    every += [f"block{n}_{part}" for n in blocks for part in ("expand", "depthwise", "project")]
    every += ["head_expand", "head_depthwise", "embedding"]
    return (name for name in every if name in parameters)


def _kernel(kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[K, C, h, w] from [h, w, C, K], from depthwise [h, w, C] or from pointwise [C, K]."""
    if kernel.ndim == 2:
        return kernel.T[:, :, None, None]
    if kernel.ndim == 3:
        return kernel.transpose(2, 0, 1)[:, None]
    return kernel.transpose(3, 2, 0, 1)


def _parameter(array: npt.ArrayLike) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(array, np.float32, order="C")))
