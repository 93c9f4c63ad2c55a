"""Recognisers by name. A new one is one file here and one line in `MODELS`.

A model is a Flax Linen module: images float32[B, H, W, 3] in [0, 1] -> logits float32[B, K].
It has `num_classes`, `min_image_size` and `regularised` (the names of the layers whose kernels
the training loss penalises).
"""

import importlib
from typing import Any

from deid_jax import checks
from deid_jax.errors import InputError
from deid_jax.models.preparing import prepare

# name -> module:class; imported only when asked for.
MODELS = {
    "model_a": "deid_jax.models.model_a:ModelA",
    "vgg16": "deid_jax.models.vgg16:VGG16",
}


def create_model(name: str, *, num_classes: int, image_size: int) -> Any:
    """The Flax module of a recogniser, without weights.

    Raises:
      InputError: unknown name, fewer than two classes, or pictures too small for the model.
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


__all__ = ["MODELS", "create_model", "prepare"]
