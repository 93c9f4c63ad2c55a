"""Recognisers: networks with weights.

Training, checkpoints, published weights, file formats, embedders and galleries. Imports `models`
and what is below.
"""

from deid_jax.recognisers.trained import (
    CHECKPOINTS,
    Recogniser,
    default_path,
    fit,
    load,
    load_info,
    load_recogniser,
    load_train_and_test,
    train_config,
)

__all__ = [
    "CHECKPOINTS",
    "Recogniser",
    "default_path",
    "fit",
    "load",
    "load_info",
    "load_recogniser",
    "load_train_and_test",
    "train_config",
]
