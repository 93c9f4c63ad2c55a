"""The classifiers among the judges of `experiments.transfer`: they name persons outright.

Embedding recognisers compare a photo with galleries; a classifier was trained on the very
persons. It is trained here on the protocol's galleries and probes: a photo in no list may be a
near-duplicate of a protected one, which would flatter it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.data import FaceDataset
from deid_jax.metrics import verification
from deid_jax.models import create_model
from deid_jax.pixels import LEVELS
from deid_jax.recognisers.predicting import predict
from deid_jax.recognisers.training import recipe, train
from deid_jax.transfer import Faces, Verdict

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

    def verdict(self, photos: np.ndarray, labels: np.ndarray) -> Verdict:
        """On photos uint8[N, H, W, 3] of persons int[N]: protected where it names another.

        There is no threshold, so no false accept rate (""), and no score.
        """
        found, variables = [], jax.device_put(self.variables)
        for first in range(0, len(photos), _BATCH_SIZE):
            images = jnp.asarray(LEVELS[photos[first : first + _BATCH_SIZE]])
            found.append(np.asarray(predict(variables, images, model=self.model)))
        logits = np.concatenate(found)
        ranks = verification.rank(logits, labels)
        return Verdict(logits, labels, {}, ranks, {}, {("", COMPARED): ranks > 1})


def train_classifiers(
    names: Sequence[str], dataset: FaceDataset, faces: Faces, seed: int
) -> dict[str, Classifier]:
    """Trains a model of each name by its recipe, on all photos of galleries and probes."""
    known = np.sort(np.concatenate([*faces.lists.gallery, faces.lists.probes]))
    trained = {}
    for name in names:
        model = create_model(
            name, num_classes=len(dataset.persons), image_size=dataset.image_size
        )
        config = dataclasses.replace(recipe(name, dataset.name), seed=seed)
        variables, _ = train(model, dataset.take(known), config)
        new = Classifier(model, variables, 0.0)
        clean = new.verdict(faces.protected, faces.protected_labels)
        wrong = clean.protected["", COMPARED]
        trained[name] = new._replace(clean_error=float(np.mean(wrong)))
    return trained
