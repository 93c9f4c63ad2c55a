"""Flax modules and their fast layers; the only package that defines any.

To add a recogniser, add a file here and a line to `MODELS`. Imports `devices` and the layers
below it.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import jax

from deid_jax import checks
from deid_jax.errors import InputError
from deid_jax.models.preparing import prepare
from deid_jax.types import PyTree, Variables

# name -> module:class; imported only when used.
MODELS = {
    "model_a": "deid_jax.models.model_a:ModelA",
    "vgg16": "deid_jax.models.vgg16:VGG16",
}


class Network(Protocol):
    """A Flax Linen module that can be trained: images float32[B, H, W, 3] in [0, 1] to logits.

    Attributes:
      regularised: the names of the layers whose kernels the training loss penalises.
      min_image_size: the least height and width in pixels.
    """

    regularised: ClassVar[tuple[str, ...]]
    min_image_size: ClassVar[int]

    @property
    def num_classes(self) -> int | tuple[int, ...]:
        """K, or K₁, ..., K_A for a network with A heads."""

    def init(self, key: jax.Array, images: jax.Array, /) -> Variables:
        """Draws the weights: a dict of collections, including "params"."""

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        /,
        *,
        train: bool = False,
        mutable: Sequence[str] | bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> PyTree:
        """Logits float32[B, K] or [B, A, K]; with `mutable` also the updated collections."""


def create_model(name: str, *, num_classes: int, image_size: int) -> Network:
    """The Flax module of a recogniser, without weights.

    Raises:
      InputError: the name is unknown, there are fewer than two classes, or the images are too
        small for the model.
    """
    if name not in MODELS:
        raise InputError(f"model must be one of {', '.join(MODELS)}, got {name}")
    checks.count("num_classes", num_classes, least=2)
    module, attribute = MODELS[name].split(":")
    model = getattr(importlib.import_module(module), attribute)(num_classes=num_classes)
    if image_size < model.min_image_size:
        raise InputError(
            f"image_size must be at least {model.min_image_size} for {name}, got {image_size}"
        )
    return model


__all__ = ["MODELS", "Network", "create_model", "prepare"]
