"""PyTorch twins of the recognisers, and PyTorch's setup for them.

Images are NCHW in [0, 1]. Imports PyTorch; `tests/requirements-peers.txt` lists everything that
peers need.
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import fusion

from deid_jax.models.vgg16 import BLOCKS, VGG_FACE_MEAN
from deid_jax.types import Variables
from experiments._peers.mobilefacenet_twin import mobilefacenet_twin
from experiments._peers.problem import MOBILEFACENETS


class ModelATwin(nn.Module):
    """Model A in PyTorch, inference mode, with a Flax model's weights."""

    # Layers that are followed directly by a BatchNorm.
    normalised: ClassVar = (
        ("conv1", "bn1"),
        ("conv2", "bn2"),
        ("fc1", "bn3"),
    )

    def __init__(self, variables: Variables):
        super().__init__()
        self.conv1, self.conv2 = _conv(variables, "conv1"), _conv(variables, "conv2")
        self.bn1, self.bn2 = _batch_norm(variables, "bn1", 2), _batch_norm(variables, "bn2", 2)
        self.fc1, self.fc2 = _dense(variables, "fc1"), _dense(variables, "fc2")
        self.bn3 = _batch_norm(variables, "bn3", 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of images [B, 3, H, W] in [0, 1]."""
        x = images - 0.5
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = torch.relu(self.bn3(self.fc1(_flatten(x))))
        return self.fc2(x)


class VGG16Twin(nn.Module):
    """Model B in PyTorch, inference mode, with a Flax model's weights."""

    mean: torch.Tensor
    normalised: ClassVar = (("fc8", "bn8"),)

    def __init__(self, variables: Variables):
        super().__init__()
        self.register_buffer("mean", torch.tensor(VGG_FACE_MEAN).view(1, 3, 1, 1))
        layers: list[nn.Module] = []
        for block, (depth, _) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                layers += [_conv(variables, f"conv{block}_{layer}"), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.fc6, self.fc7 = _dense(variables, "fc6"), _dense(variables, "fc7")
        self.fc8, self.bn8 = _dense(variables, "fc8"), _batch_norm(variables, "bn8", 1)
        self.fc9 = _dense(variables, "fc9")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of images [B, 3, H, W] in [0, 1]."""
        x = _flatten(self.body(255 * images - self.mean))
        x = torch.relu(self.fc7(torch.relu(self.fc6(x))))
        return self.fc9(torch.relu(self.bn8(self.fc8(x))))


TWINS: dict[str, Callable[[Variables], nn.Module]] = {
    "model_a": ModelATwin,
    "vgg16": VGG16Twin,
    **dict.fromkeys(MOBILEFACENETS, mobilefacenet_twin),
}


def twin(name: str, variables: Variables) -> nn.Module:
    """The PyTorch twin of one of the recognisers `TWINS`, weights not trainable."""
    return TWINS[name](variables).eval().requires_grad_(False)


def fold_batch_norms(network: nn.Module) -> None:
    """Folds each BatchNorm of a twin into the layer before it, in place."""
    if not isinstance(network, ModelATwin | VGG16Twin):
        return  # BatchNorm is already folded into the others' weights.
    for layer, norm in network.normalised:
        before, batch_norm = getattr(network, layer), getattr(network, norm)
        is_dense = isinstance(before, nn.Linear)
        fuse = fusion.fuse_linear_bn_eval if is_dense else fusion.fuse_conv_bn_eval
        setattr(network, layer, fuse(before, batch_norm))
        setattr(network, norm, nn.Identity())


def torch_device() -> torch.device:
    """The PyTorch device that corresponds to JAX's: CUDA if JAX has an accelerator."""
    return torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")


def has_torch_device() -> bool:
    """Whether PyTorch has the kind of device that JAX uses."""
    return torch_device().type == "cpu" or torch.cuda.is_available()


def configure_torch(precision: str, threads: int) -> None:
    """Sets PyTorch's number of threads and its precision for the whole process."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


def to_torch(images: npt.NDArray[np.float32]) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W], in PyTorch's channels_last memory layout."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def to_numpy(images: torch.Tensor) -> npt.NDArray[np.float32]:
    """[B, C, H, W] -> [B, H, W, C]."""
    return images.detach().permute(0, 2, 3, 1).cpu().numpy()


def _tensor(array: npt.ArrayLike) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(array, np.float32, order="C")))


def _flatten(x: torch.Tensor) -> torch.Tensor:
    """Flattens as Flax does: height, width, channels."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _conv(variables: Variables, name: str) -> nn.Conv2d:
    kernel = np.transpose(variables["params"][name]["kernel"], (3, 2, 0, 1))
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding="same")
    layer.weight, layer.bias = _tensor(kernel), _tensor(variables["params"][name]["bias"])
    return layer


def _dense(variables: Variables, name: str) -> nn.Linear:
    kernel = np.transpose(variables["params"][name]["kernel"])
    layer = nn.Linear(kernel.shape[1], kernel.shape[0])
    layer.weight, layer.bias = _tensor(kernel), _tensor(variables["params"][name]["bias"])
    return layer


def _batch_norm(variables: Variables, name: str, dimensions: int) -> nn.Module:
    parameters, statistics = variables["params"][name], variables["batch_stats"][name]
    layer = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions](len(parameters["scale"]))
    layer.weight, layer.bias = _tensor(parameters["scale"]), _tensor(parameters["bias"])
    layer.running_mean = _tensor(statistics["mean"]).data
    layer.running_var = _tensor(statistics["var"]).data
    return layer
