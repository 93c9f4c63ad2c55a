"""PyTorch twins of the recognisers and the peers that tests and benchmarks compare with.

Everything here imports PyTorch, which the project itself never needs; install it and the
peer libraries from `tests/requirements-peers.txt`. Pictures are NCHW in [0, 1]. A run performs
one whole attack, and returns when its result is ready.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn.grad import conv2d_input
from torch.nn.utils import fusion

from deid_jax.attacks import IFGSMConfig
from deid_jax.models.vgg16 import BLOCKS, VGG_FACE_MEAN
from experiments._benchmark.mobilefacenet_twin import MobileFaceNetTwin
from experiments._common.timing import MOBILEFACENETS, Problem, Run

Variables = dict[str, Any]


class ModelATwin(nn.Module):
    """Model A in PyTorch, inference mode, with a Flax model's weights."""

    # Layers whose outputs go straight into a BatchNorm.
    normalised: ClassVar = (("conv1", "bn1"), ("conv2", "bn2"), ("fc1", "bn3"))

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


TWINS: dict[str, Any] = {
    "model_a": ModelATwin,
    "vgg16": VGG16Twin,
    **dict.fromkeys(MOBILEFACENETS, MobileFaceNetTwin),
}


def twin(name: str, variables: Variables) -> nn.Module:
    """The PyTorch twin of one of the recognisers `TWINS`, weights not trainable."""
    return TWINS[name](variables).eval().requires_grad_(False)


def to_torch(images: np.ndarray) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W], in PyTorch's channels_last memory layout."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]."""
    return images.detach().permute(0, 2, 3, 1).cpu().numpy()


def _tensor(array: Any) -> nn.Parameter:
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


def descend(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    update: Any,
    num_steps: int,
) -> torch.Tensor:
    """A plain PyTorch attack loop: x̂ ← clip₀₁(update(x̂, ∇l(x̂))), targeted cross-entropy."""
    adversarial = images.clone()
    for _ in range(num_steps):
        adversarial.requires_grad_(True)
        loss = nn.functional.cross_entropy(model(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        with torch.no_grad():
            adversarial = update(adversarial.detach(), gradient).clamp(0, 1)
    return adversarial.detach()


class Variant(NamedTuple):
    """One way to run a PyTorch loop.

    Attributes:
      layout: of pictures and kernels in memory, "channels_last" or "NCHW".
      folded: whether BatchNorm is folded into the layers before it.
      bfloat16: "autocast", or "weights" for a network wholly in bfloat16; empty: float32.
      compiled: whether `torch.compile` gets the network; may fail.
    """

    layout: str = "channels_last"
    folded: bool = False
    bfloat16: str = ""
    compiled: bool = False

    @property
    def name(self) -> str:
        """What tables say."""
        parts = [self.layout]
        parts += ["BatchNorm folded"] if self.folded else []
        parts += [f"bfloat16 {self.bfloat16}"] if self.bfloat16 else []
        parts += ["compiled"] if self.compiled else []
        return ", ".join(parts)


def variants(problem: Problem) -> list[Variant]:
    """The variants of the plain loop worth a try for a problem on this device."""
    bfloat16 = "autocast" if problem.precision == "bf16" else ""
    found = [
        Variant(bfloat16=bfloat16),
        Variant("NCHW", bfloat16=bfloat16),
        Variant(folded=True, bfloat16=bfloat16),
    ]
    if not TWINS[problem.case.model].normalised:  # the weights come folded
        found = [variant._replace(folded=True) for variant in found[:2]]
    if bfloat16:
        found.append(Variant(folded=True, bfloat16="weights"))
    if device().type == "cuda":
        found += [variant._replace(compiled=True) for variant in found if variant.folded]
    return found


def device() -> torch.device:
    """The device that stands for JAX's: CUDA where JAX has an accelerator."""
    return torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")


def configure(precision: str, threads: int) -> None:
    """Sets the threads and the precision of all that PyTorch runs from here on."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


class Bfloat16(nn.Module):
    """A network computed in bfloat16 under autocast, or with all its weights in bfloat16."""

    def __init__(self, model: nn.Module, way: str):
        super().__init__()
        self.model = model.bfloat16() if way == "weights" else model
        self.way = way

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32[B, K] of images float32[B, 3, H, W] in [0, 1]."""
        if self.way == "weights":
            return self.model(images.bfloat16()).float()
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images).float()


def fold(model: Any) -> None:
    """Folds each BatchNorm of a twin into the layer before it, in place."""
    for layer, norm in model.normalised:
        before, batch_norm = getattr(model, layer), getattr(model, norm)
        is_dense = isinstance(before, nn.Linear)
        fuse = fusion.fuse_linear_bn_eval if is_dense else fusion.fuse_conv_bn_eval
        setattr(model, layer, fuse(before, batch_norm))
        setattr(model, norm, nn.Identity())


def plain_loop(problem: Problem, variant: Variant) -> Run:
    """P-FGVM as a plain PyTorch loop."""
    model = _model(problem, variant)
    images, labels = _inputs(problem)
    if variant.layout == "NCHW":
        images = images.contiguous()
    config: Any = problem.config
    alpha, penalty = config.step_size, config.penalty_weight

    def update(adversarial: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return adversarial - alpha * (gradient + penalty * (adversarial - images))

    steps = problem.num_steps
    return _until_ready(lambda: descend(model, images, labels, update=update, num_steps=steps))


def torchattacks_bim(problem: Problem) -> Run:
    """BIM of torchattacks."""
    import torchattacks

    epsilon, alpha = _sign_settings()
    attack = torchattacks.BIM(_model(problem), epsilon, alpha, problem.num_steps)
    attack.set_mode_targeted_by_label(quiet=True)
    images, labels = _inputs(problem)
    return _until_ready(lambda: attack(images, labels))


def foolbox_bim(problem: Problem) -> Run:
    """Foolbox's LinfBasicIterativeAttack."""
    import foolbox

    epsilon, alpha = _sign_settings()
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=alpha, steps=problem.num_steps, random_start=False
    )
    model = foolbox.PyTorchModel(_model(problem), bounds=(0, 1), device=device())
    images, labels = _inputs(problem)
    # It takes views that the channels_last layout does not allow.
    images, criterion = images.contiguous(), foolbox.criteria.TargetedMisclassification(labels)
    return _until_ready(lambda: attack(model, images, criterion, epsilons=epsilon)[0])


def art_bim(problem: Problem) -> Run:
    """The Adversarial Robustness Toolbox's BasicIterativeMethod: NumPy arrays in and out."""
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    epsilon, alpha = _sign_settings()
    images = np.ascontiguousarray(problem.images.transpose(0, 3, 1, 2))
    classifier = PyTorchClassifier(
        model=_model(problem),
        loss=nn.CrossEntropyLoss(),
        input_shape=images.shape[1:],
        nb_classes=problem.case.num_outputs,
        clip_values=(0, 1),
        device_type="cpu" if device().type == "cpu" else "gpu",
    )
    attack = BasicIterativeMethod(
        classifier,
        eps=epsilon,
        eps_step=alpha,
        max_iter=problem.num_steps,
        targeted=True,
        batch_size=len(images),
        verbose=False,
    )
    return _until_ready(lambda: torch.from_numpy(attack.generate(images, problem.labels)))


def repeat_layer(
    parameters: dict[str, np.ndarray],
    images: np.ndarray,
    cotangent: np.ndarray | None,
    *,
    times: int,
    dtype: str,
) -> Run:
    """A 'same' convolution, or without parameters a 2×2 max-pooling, several times.

    Given a cotangent, its gradient to the images, a pooling's with the forward pass.
    """
    inputs = _move(images, dtype)
    outputs = None if cotangent is None else _move(cotangent, dtype)
    if not parameters:
        if outputs is None:
            return _repeated(lambda: nn.functional.max_pool2d(inputs, 2), times)
        inputs.requires_grad_(True)
        return _repeated(
            lambda: torch.autograd.grad(nn.functional.max_pool2d(inputs, 2), inputs, outputs)[
                0
            ],
            times,
        )
    kernel, bias = parameters["kernel"], torch.from_numpy(parameters["bias"])
    weight, bias = _move(np.transpose(kernel, (3, 0, 1, 2)), dtype), bias.to(inputs)
    padding = len(kernel) // 2
    if outputs is None:
        return _repeated(
            lambda: nn.functional.conv2d(inputs, weight, bias, padding=padding), times
        )
    return _repeated(
        lambda: conv2d_input(inputs.shape, weight, outputs, padding=padding), times
    )


def _move(images: np.ndarray, dtype: str) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W] on the device, channels_last."""
    return to_torch(np.ascontiguousarray(images)).to(device(), getattr(torch, dtype))


def _repeated(run: Run, times: int) -> Run:
    return _until_ready(lambda: [run() for _ in range(times)][-1])


def _until_ready(run: Run) -> Run:
    def whole() -> Any:
        result = run()
        if device().type == "cuda":
            torch.cuda.synchronize()
        return result

    return whole


def _model(problem: Problem, variant: Variant | None = None) -> nn.Module:
    """A problem's recogniser, on the device, ready for an attack."""
    if variant is None:
        variant = Variant(bfloat16="autocast" if problem.precision == "bf16" else "")
    model = twin(problem.case.model, problem.variables)
    if variant.folded:
        fold(model)
    if variant.layout == "channels_last":
        # mypy finds no overload of `to` with a memory format alone.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = model.to(device())
    if variant.bfloat16:
        model = Bfloat16(model, variant.bfloat16).eval()
    if variant.compiled:
        model.compile()
    return model


def _inputs(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = to_torch(problem.images), torch.from_numpy(problem.labels)
    return images.to(device()), labels.to(device())


def _sign_settings() -> tuple[float, float]:
    """ε and α of the peers' sign attacks: this project's own defaults."""
    config: Any = IFGSMConfig()
    return config.epsilon, config.step_size
