"""Attacks of a fixed number of steps: a plain PyTorch loop, and three libraries.

Imports PyTorch. A run performs one whole attack, and returns when its result is ready.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from deid_jax.attacks import IFGSMConfig
from experiments._peers.problem import MOBILEFACENETS, Problem
from experiments._peers.twins import fold_batch_norms, to_torch, torch_device, twin

Run: TypeAlias = Callable[[], object]


def torch_descent(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    update: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
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


@dataclasses.dataclass(frozen=True)
class LoopVariant:
    """One way to run the plain PyTorch loop.

    Attributes:
      layout: memory layout of images and kernels, "channels_last" or "NCHW".
      folded: whether BatchNorm is folded into the layers before it.
      bfloat16: "autocast", or "weights" for a network entirely in bfloat16; empty: float32.
      compiled: with `torch.compile`, which may fail.
    """

    layout: str = "channels_last"
    folded: bool = False
    bfloat16: str = ""
    compiled: bool = False

    @property
    def name(self) -> str:
        """The name in tables."""
        parts = [self.layout]
        parts += ["BatchNorm folded"] if self.folded else []
        parts += [f"bfloat16 {self.bfloat16}"] if self.bfloat16 else []
        parts += ["compiled"] if self.compiled else []
        return ", ".join(parts)


def loop_variants(problem: Problem) -> list[LoopVariant]:
    """The variants of the plain loop worth trying for a problem on this device."""
    bfloat16 = "autocast" if problem.precision == "bf16" else ""
    found = [
        LoopVariant(bfloat16=bfloat16),
        LoopVariant("NCHW", bfloat16=bfloat16),
        LoopVariant(folded=True, bfloat16=bfloat16),
    ]
    if problem.case.model in MOBILEFACENETS:  # BatchNorm is already folded into their weights.
        found = [dataclasses.replace(variant, folded=True) for variant in found[:2]]
    if bfloat16:
        found.append(LoopVariant(folded=True, bfloat16="weights"))
    if torch_device().type == "cuda":
        folded = [variant for variant in found if variant.folded]
        found += [dataclasses.replace(variant, compiled=True) for variant in folded]
    return found


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


def plain_loop(problem: Problem, variant: LoopVariant) -> Run:
    """P-FGVM as a plain PyTorch loop."""
    model = _model(problem, variant)
    images, labels = _inputs(problem)
    if variant.layout == "NCHW":
        images = images.contiguous()
    alpha = float(problem.config.step_size)
    penalty = float(problem.config.penalty_weight)

    def update(adversarial: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return adversarial - alpha * (gradient + penalty * (adversarial - images))

    steps = problem.num_steps
    return until_ready(
        lambda: torch_descent(model, images, labels, update=update, num_steps=steps)
    )


def torchattacks_bim(problem: Problem) -> Run:
    """BIM of torchattacks."""
    import torchattacks

    epsilon, alpha = _sign_settings()
    attack = torchattacks.BIM(_model(problem), epsilon, alpha, problem.num_steps)
    attack.set_mode_targeted_by_label(quiet=True)
    images, labels = _inputs(problem)
    return until_ready(lambda: attack(images, labels))


def foolbox_bim(problem: Problem) -> Run:
    """Foolbox's LinfBasicIterativeAttack."""
    import foolbox

    epsilon, alpha = _sign_settings()
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=alpha, steps=problem.num_steps, random_start=False
    )
    model = foolbox.PyTorchModel(_model(problem), bounds=(0, 1), device=torch_device())
    images, labels = _inputs(problem)
    # The attack uses views that the channels_last layout does not allow.
    images, criterion = images.contiguous(), foolbox.criteria.TargetedMisclassification(labels)
    return until_ready(lambda: attack(model, images, criterion, epsilons=epsilon)[0])


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
        device_type="cpu" if torch_device().type == "cpu" else "gpu",
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
    return until_ready(lambda: torch.from_numpy(attack.generate(images, problem.labels)))


def until_ready(run: Run) -> Run:
    """The run, followed by a wait for the accelerator."""

    def whole() -> object:
        result = run()
        if torch_device().type == "cuda":
            torch.cuda.synchronize()
        return result

    return whole


def _model(problem: Problem, variant: LoopVariant | None = None) -> nn.Module:
    """A problem's recogniser, on the device, ready for an attack."""
    if variant is None:
        variant = LoopVariant(bfloat16="autocast" if problem.precision == "bf16" else "")
    model = twin(problem.case.model, problem.variables)
    if variant.folded:
        fold_batch_norms(model)
    if variant.layout == "channels_last":
        # mypy finds no overload of `to` with a memory format alone.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = model.to(torch_device())
    if variant.bfloat16:
        model = Bfloat16(model, variant.bfloat16).eval()
    if variant.compiled:
        model.compile()
    return model


def _inputs(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = to_torch(problem.images), torch.from_numpy(problem.labels)
    return images.to(torch_device()), labels.to(torch_device())


def _sign_settings() -> tuple[float, float]:
    """ε and α of the peers' sign attacks: this project's own defaults."""
    config = IFGSMConfig()
    return float(config.epsilon), float(config.step_size)
