"""The classifiers among the judges of `experiments.transfer`: they name persons outright.

Embedding recognisers compare a photo with galleries; a classifier was trained on the very
persons. It is trained here on every clean photo that the protocol does not protect.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from deid_jax import statistics
from deid_jax.data import FaceDataset
from deid_jax.data.dataset import LEVELS
from deid_jax.models import create_model
from deid_jax.training import predict, recipe, train
from deid_jax.transfer import Faces

# What takes the place of "gallery" in rows of classifiers.
COMPARED = "names"
_BATCH_SIZE = 50


class Classifier(NamedTuple):
    """A recogniser trained on the persons of an evaluation.

    Attributes:
      model: its Flax module.
      variables: its weights.
      clean_error: the share of the protocol's protected photos that it names wrongly while
        they are clean; it never saw them.
    """

    model: Any
    variables: Any
    clean_error: float

    def names(self, photos: np.ndarray) -> np.ndarray:
        """int[N], the persons that it names on uint8[N, H, W, 3]."""
        named = []
        for first in range(0, len(photos), _BATCH_SIZE):
            images = jnp.asarray(LEVELS[photos[first : first + _BATCH_SIZE]])
            named.append(np.asarray(predict(self.variables, images, model=self.model)))
        return np.argmax(np.concatenate(named), axis=-1)


def train_classifiers(
    names: Sequence[str], dataset: FaceDataset, faces: Faces, seed: int
) -> dict[str, Classifier]:
    """Trains a model of each name by its recipe, on all photos but those to protect."""
    others = np.setdiff1d(np.arange(len(dataset)), faces.lists.protected)
    trained = {}
    for name in names:
        model = create_model(
            name, num_classes=len(dataset.persons), image_size=dataset.image_size
        )
        config = dataclasses.replace(recipe(name, dataset.name), seed=seed)
        variables, _ = train(model, dataset.take(others), config)
        new = Classifier(model, variables, 0.0)
        wrong = new.names(faces.protected) != faces.protected_labels
        trained[name] = new._replace(clean_error=float(np.mean(wrong)))
    return trained


def rows(
    classifiers: Mapping[str, Classifier], photos: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each classifier, with the columns of `transfer.figures`.

    `protected` is the misclassification rate, with Wilson's interval, and `accuracy` that on
    clean photos. There is no threshold and no score.
    """
    found = []
    for name, classifier in classifiers.items():
        wrong = int(np.sum(classifier.names(photos) != labels))
        low, high = statistics.wilson(wrong, len(photos), 0.95)
        found.append(
            {
                "test": name,
                "far": "",
                "threshold": "",
                "compared": COMPARED,
                "protected": wrong / len(photos),
                "low": low,
                "high": high,
                "num_images": len(photos),
                "score": "",
                "rank1": 1 - wrong / len(photos),
                "rank5": "",
                "accuracy": 1 - classifier.clean_error,
                "auc": "",
            }
        )
    return found
