"""Recognisers: networks with weights.

Training, checkpoints, published weights, file formats, embedders and galleries. Imports
`models` and the layers below it.
"""

from deid_jax.recognisers.checkpoints import (
    CHECKPOINTS,
    CheckpointInfo,
    Recogniser,
    default_path,
    load,
    load_matching,
    load_recogniser,
)
from deid_jax.recognisers.recipes import (
    TrainConfig,
    TrainingData,
    load_training_data,
    train_config,
)
from deid_jax.recognisers.training import EpochRecord, fit

__all__ = [
    "CHECKPOINTS",
    "CheckpointInfo",
    "EpochRecord",
    "Recogniser",
    "TrainConfig",
    "TrainingData",
    "default_path",
    "fit",
    "load",
    "load_matching",
    "load_recogniser",
    "load_training_data",
    "train_config",
]
