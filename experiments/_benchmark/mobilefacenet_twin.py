"""MobileFaceNet in PyTorch, with the weights of `deid_jax.models.mobilefacenet`.

Pictures are NCHW in [0, 1]. As in ours, every BatchNorm is folded into the convolution before
it.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from deid_jax.models.mobilefacenet import BOTTLENECKS


class MobileFaceNetTwin(nn.Module):
    """MobileFaceNet in PyTorch, of the variant that the weights are of."""

    mean: torch.Tensor
    deviation: torch.Tensor
    # No BatchNorm is left to fold.
    normalised: ClassVar = ()

    def __init__(self, variables: dict[str, Any]):
        super().__init__()
        parameters = variables["params"]
        # The variant "casia" has no such layer.
        self.columns = slice(None) if "stem_pointwise" in parameters else slice(8, 104)
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if self.columns.start:
            mean, deviation = (0.5,) * 3, (128 / 255,) * 3
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1))
        layers = _layers(parameters["stem"], nn.ReLU6, stride=2)
        for name in ("stem_depthwise", "stem_pointwise"):
            layers += _layers(parameters[name], nn.ReLU) if name in parameters else []
        layers += [_Bottleneck(parameters, number) for number in range(len(BOTTLENECKS))]
        layers += _layers(parameters["head_expand"], nn.ReLU6)
        for name in ("head_depthwise", "embedding"):
            layers += _layers(parameters[name])
        self.body = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128] of images [B, 3, 112, 112] in [0, 1]."""
        x = (images[..., self.columns] - self.mean) / self.deviation
        return self.body(x).flatten(1)


class _Bottleneck(nn.Module):
    """1×1, depthwise 3×3, 1×1; its input is added where the sizes are the same."""

    def __init__(self, parameters: dict[str, Any], number: int):
        super().__init__()
        block, name = BOTTLENECKS[number], f"block{number}"
        self.residual = block.residual
        self.body = nn.Sequential(
            *_layers(parameters[f"{name}_expand"], nn.ReLU6),
            *_layers(parameters[f"{name}_depthwise"], nn.ReLU6, stride=block.stride),
            *_layers(parameters[f"{name}_project"]),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def _layers(
    parameters: dict[str, Any], activation: Any = None, *, stride: int = 1
) -> list[nn.Module]:
    """A convolution and its activation, PReLU where the parameters have slopes."""
    kernel = np.asarray(parameters["kernel"], np.float32)
    groups = 1
    if kernel.ndim == 2:  # pointwise: [C, K]
        kernel = kernel.T[:, :, None, None]
    elif kernel.ndim == 3:  # depthwise: [h, w, C]
        kernel, groups = kernel.transpose(2, 0, 1)[:, None], kernel.shape[2]
    else:
        kernel = kernel.transpose(3, 2, 0, 1)
    features, inputs, *size = kernel.shape
    convolution = nn.Conv2d(
        groups * inputs,
        features,
        (size[0], size[1]),
        stride,
        padding=1 if size == [3, 3] else 0,
        groups=groups,
    )
    state = {"weight": kernel, "bias": parameters["bias"]}
    layers = [_loaded(convolution, state)]
    if "slope" in parameters:
        layers.append(_loaded(nn.PReLU(features), {"weight": parameters["slope"]}))
    elif activation is not None:
        layers.append(activation(inplace=True))
    return layers


def _loaded(layer: nn.Module, state: dict[str, Any]) -> nn.Module:
    """A layer with these weights."""
    layer.load_state_dict(
        {name: torch.from_numpy(np.array(value, np.float32)) for name, value in state.items()}
    )
    return layer
