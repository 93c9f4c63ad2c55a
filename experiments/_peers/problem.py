"""The problem that every timed attack solves: a recogniser, its weights, images and targets."""

import dataclasses
import functools
import math
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from deid_jax.attacks import PFGVMConfig
from deid_jax.errors import InputError
from deid_jax.models import MODELS, create_model
from deid_jax.models.mobilefacenet import FEATURES, VARIANTS, MobileFaceNet
from deid_jax.types import Variables

NUM_CLASSES = 30

# Recognisers without classes, and the only image size that they accept.
MOBILEFACENETS = {f"mobilefacenet_{variant}": variant for variant in VARIANTS}
MOBILEFACENET_SIZE = 112


@dataclasses.dataclass(frozen=True)
class Case:
    """A recogniser, an image size and a batch size."""

    model: str
    image_size: int
    batch: int

    @property
    def num_outputs(self) -> int:
        """Logits per image, or dimensions of an embedding, which is attacked like logits."""
        return FEATURES if self.model in MOBILEFACENETS else NUM_CLASSES

    def __str__(self) -> str:
        return f"{self.model} {self.image_size} px, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One case with its weights, images float32[B, H, W, 3], targets, steps and precision."""

    case: Case
    variables: Variables
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    num_steps: int
    precision: str = "float32"

    @property
    def config(self) -> PFGVMConfig:
        """The settings of P-FGVM."""
        return PFGVMConfig(num_steps=self.num_steps)


def model_of(case: Case) -> nn.Module:
    """The module of a case's recogniser, without weights.

    Raises:
      InputError: an unknown name, or images of a size that the recogniser does not take.
    """
    if case.model in MODELS:
        # Every `Network` is a Linen module.
        return cast(
            nn.Module,
            create_model(case.model, num_classes=NUM_CLASSES, image_size=case.image_size),
        )
    if case.model not in MOBILEFACENETS:
        names = ", ".join([*MODELS, *MOBILEFACENETS])
        raise InputError(f"model must be one of {names}, got {case.model}")
    if case.image_size != MOBILEFACENET_SIZE:
        raise InputError(
            f"image_size must be {MOBILEFACENET_SIZE} for {case.model}, got {case.image_size}"
        )
    return MobileFaceNet(MOBILEFACENETS[case.model])


def make_problem(case: Case, num_steps: int, seed: int, precision: str = "float32") -> Problem:
    """Weights, images and targets of a case, drawn from the seed."""
    shape = (case.batch, case.image_size, case.image_size, 3)
    random = np.random.default_rng(seed)
    images = random.uniform(size=shape).astype(np.float32)
    initialise = jax.jit(model_of(case).init_with_output)
    outputs, variables = jax.device_get(initialise(jax.random.key(seed), images[:1]))
    if case.model in MOBILEFACENETS:
        # With BatchNorm folded, random weights would give embeddings much larger than logits.
        last = variables["params"]["embedding"]
        last["kernel"] = last["kernel"] / outputs.std()
    labels = random.integers(case.num_outputs, size=case.batch)
    return Problem(case, variables, images, labels, num_steps, precision)


def forward_multiply_adds(case: Case) -> int:
    """Multiply-adds of one image's forward pass, in convolutions and dense layers only.

    Convolutions are counted by their definition, whatever the algorithm: every number of a
    kernel once per position of the layer's outputs [1, ..., K].
    """
    images = jnp.zeros((1, case.image_size, case.image_size, 3))
    initialise = functools.partial(model_of(case).init_with_output, capture_intermediates=True)
    _, variables = jax.eval_shape(initialise, jax.random.key(0), images)
    total = 0
    for name, layer in variables["params"].items():
        outputs = variables["intermediates"][name]["__call__"][0]
        if "kernel" in layer:
            total += math.prod((*layer["kernel"].shape, *outputs.shape[1:-1]))
    return total
