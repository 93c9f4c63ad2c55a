"""Single layers in PyTorch, timed against this project's layers. Imports PyTorch."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.grad import conv2d_input

from experiments._peers.fixed_steps import Run, until_ready
from experiments._peers.twins import to_torch, torch_device

Floats = npt.NDArray[np.float32]


def repeat_layer(
    parameters: Mapping[str, Floats],
    images: Floats,
    cotangent: Floats | None,
    *,
    times: int,
    dtype: str,
) -> Run:
    """Repeats a 'same' convolution or, without parameters, a 2×2 max-pooling.

    With a cotangent, it repeats the gradient with respect to the images; for a pooling this
    includes the forward pass.
    """
    inputs = _move(images, dtype)
    outputs = None if cotangent is None else _move(cotangent, dtype)
    run = _convolution(parameters, inputs, outputs) if parameters else _pool(inputs, outputs)
    return until_ready(lambda: [run() for _ in range(times)][-1])


def _pool(inputs: torch.Tensor, outputs: torch.Tensor | None) -> Run:
    if outputs is None:
        return lambda: nn.functional.max_pool2d(inputs, 2)
    inputs.requires_grad_(True)

    def gradient() -> torch.Tensor:
        pooled = nn.functional.max_pool2d(inputs, 2)
        return torch.autograd.grad(pooled, inputs, outputs)[0]

    return gradient


def _convolution(
    parameters: Mapping[str, Floats], inputs: torch.Tensor, outputs: torch.Tensor | None
) -> Run:
    kernel = parameters["kernel"]
    weight = _move(np.transpose(kernel, (3, 0, 1, 2)), inputs.dtype)
    bias = torch.from_numpy(parameters["bias"]).to(inputs)
    padding = len(kernel) // 2
    if outputs is None:
        return lambda: nn.functional.conv2d(inputs, weight, bias, padding=padding)
    return lambda: conv2d_input(inputs.shape, weight, outputs, padding=padding)


def _move(images: Floats, dtype: str | torch.dtype) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W] on the device, channels_last."""
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return to_torch(np.ascontiguousarray(images)).to(torch_device(), kind)
