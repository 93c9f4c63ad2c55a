"""Training data, training settings, and the recipe of each model."""

import dataclasses

from deid_jax import checks
from deid_jax.data import DataOptions, FaceDataset, load_dataset
from deid_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train: Adam, mean cross-entropy, L2 penalty, random horizontal flips.

    The learning rate is `learning_rate`, and falls linearly to zero in the last quarter.
    `flips` is off where labels tell left from right.

    Raises:
      InputError: an epoch or batch size below 1, or a learning rate that is negative or NaN.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 32
    seed: int = 0
    flips: bool = True

    def __post_init__(self) -> None:
        checks.count("epochs", self.epochs, least=1)
        checks.count("batch_size", self.batch_size, least=1)
        checks.finite_non_negative("learning_rate", self.learning_rate)


# (model, data set) -> what serves it; "any" where a data set has no row of its own.
RECIPES = {
    ("model_a", "any"): TrainConfig(epochs=24, learning_rate=1e-3),
    ("model_a", "synthetic"): TrainConfig(epochs=14, learning_rate=1e-3),
    ("vgg16", "any"): TrainConfig(epochs=40, learning_rate=1e-4),
}


def train_config(
    model: str,
    dataset: str,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> TrainConfig:
    """The recipe of a model on a data set, with the values given in place of its own."""
    recipe = RECIPES.get((model, dataset), RECIPES[model, "any"])
    return dataclasses.replace(
        recipe,
        epochs=recipe.epochs if epochs is None else epochs,
        learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
        batch_size=batch_size,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The images to train on, and those to measure on after every epoch."""

    train: FaceDataset
    held_out: FaceDataset | None = None


def load_training_data(
    name: str, options: DataOptions, *, test: FaceDataset | None = None
) -> TrainingData:
    """The images to train on and to hold out, by `options.split`.

    Args:
      name: a key of `deid_jax.data.DATASETS`.
      options: what to load, for training.
      test: the test split, if it is loaded already.

    Raises:
      InputError: the split is "test": training on it would leave nothing to test on.
    """
    if options.split == "test":
        raise InputError("split must be train or all for training, got test")
    dataset = load_dataset(name, options)
    if options.split == "all":
        return TrainingData(dataset)
    test = test or load_dataset(name, dataclasses.replace(options, split="test"))
    return TrainingData(dataset, test)
