"""Training data, training settings, and the recipe of each model."""

import dataclasses

from deid_jax import checks
from deid_jax.data import DataOptions, FaceDataset, load_dataset
from deid_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train: Adam, mean cross-entropy, L2 penalty, random horizontal flips.

    The learning rate is constant and then falls linearly to zero in the last quarter. `flips`
    is off where labels distinguish left from right.

    Raises:
      InputError: the number of epochs or the batch size is below 1, or the learning rate is
        negative or NaN.
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


# (model, data set) -> its recipe; "any" for data sets without an entry.
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
    """The recipe of a model on a data set, overridden by the values given."""
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
    """The images to train on, and those to evaluate on after every epoch."""

    train: FaceDataset
    held_out: FaceDataset | None = None


def load_training_data(
    name: str, options: DataOptions, *, test: FaceDataset | None = None
) -> TrainingData:
    """Loads the images to train on, and the test split to hold out, unless given as `test`.

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
