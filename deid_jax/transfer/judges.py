"""Judges: recognisers that decide whether protected images still match their persons.

An embedder has a gallery of clean images per person. An image matches a person if its
similarity to that gallery reaches a threshold, which is set on clean images at a false accept
rate. A classifier is trained on the same persons. An image is protected if the judge no longer
recognises its person.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from deid_jax.data import FaceDataset
from deid_jax.data.pair_lists import Positions
from deid_jax.errors import InputError
from deid_jax.metrics import statistics, verification
from deid_jax.models import create_model
from deid_jax.pixels import LEVELS
from deid_jax.recognisers import TrainingData, train_config
from deid_jax.recognisers.embedders import Embedder
from deid_jax.recognisers.predicting import predict
from deid_jax.recognisers.training import train
from deid_jax.types import Model, NumpyArray, Variables

# What an image is compared with: clean images of the person, the person's other protected
# images, or, for classifiers, all persons.
GALLERY, OTHERS, BY_NAME = "gallery", "protected", "names"
_BATCH_SIZE = 50


@dataclasses.dataclass(frozen=True)
class Faces:
    """The images of an evaluation, uint8[N, H, W, 3], their persons and their roles.

    Names are "person/name".
    """

    images: NDArray[np.uint8]
    labels: NumpyArray
    lists: Positions
    names: Sequence[str]

    @property
    def protected(self) -> NDArray[np.uint8]:
        """The clean images to protect, uint8[M, H, W, 3]."""
        return self.images[self.lists.protected]

    @property
    def protected_labels(self) -> NumpyArray:
        """The labels of the images to protect, int32[M]."""
        return self.labels[self.lists.protected]

    @property
    def protected_names(self) -> list[str]:
        """The names of the images to protect."""
        return [self.names[place] for place in self.lists.protected]


@dataclasses.dataclass(frozen=True)
class ProtectionRates:
    """Rates over judged images, for one false accept rate and one comparison.

    Attributes:
      far: the false accept rate; None for classifiers, as is the threshold.
      compared: `GALLERY`, `OTHERS` or `BY_NAME`.
      protected: the share of images that are protected; `low` and `high` are Wilson's interval,
        `person_low` and `person_high` a bootstrap's over persons (None for one person).
      kept: the share still protected, of the images protected before; None if there were none.
      unprotected: the share of the same images that the judge misses even when clean.
      rank1: the share of images whose person ranks first (`rank5`: in the first five).
    """

    far: float | None
    threshold: float | None
    compared: str
    protected: float
    low: float
    high: float
    num_images: int
    person_low: float | None
    person_high: float | None
    kept: float | None
    unprotected: float
    score: float | None
    rank1: float | None
    rank5: float | None


@dataclasses.dataclass(frozen=True)
class JudgedImages:
    """Scores that a judge gives to images.

    Attributes:
      outputs: float[N, D], the images' embeddings, or a classifier's logits.
      labels: int[N], their persons.
      scores: comparison -> float64[N], similarities to the images' own persons.
      ranks: int[N], the rank of each image's person among all; None if not computed.
      thresholds: false accept rate -> the score from which a person is recognised.
      protected: (false accept rate, comparison) -> bool[N].
    """

    outputs: NumpyArray
    labels: NumpyArray
    scores: dict[str, NDArray[np.float64]]
    ranks: NDArray[np.int64] | None
    thresholds: dict[float, float]
    protected: dict[tuple[float | None, str], NDArray[np.bool_]]

    def rates(
        self, clean: "JudgedImages", before: "JudgedImages | None" = None
    ) -> list[ProtectionRates]:
        """The rates of these images, for each false accept rate and comparison.

        `clean` are the judge's results on the clean images, processed alike; `before` those on
        the same images before processing.
        """
        rows = []
        for (far, compared), protected in self.protected.items():
            low, high = statistics.wilson(int(np.sum(protected)), len(protected))
            by_person = statistics.bootstrap_groups(protected, self.labels)
            one_person = bool(np.isnan(by_person).any())
            # A comparison with other protected images gives no ranks among persons.
            ranks = None if compared == OTHERS else self.ranks
            earlier = () if before is None else np.flatnonzero(before.protected[far, compared])
            rows.append(
                ProtectionRates(
                    far=far,
                    threshold=None if far is None else self.thresholds[far],
                    compared=compared,
                    protected=float(np.mean(protected)),
                    low=low,
                    high=high,
                    num_images=len(protected),
                    person_low=None if one_person else by_person[0],
                    person_high=None if one_person else by_person[1],
                    kept=float(np.mean(protected[earlier])) if len(earlier) else None,
                    unprotected=float(np.mean(clean.protected[far, compared])),
                    score=float(np.mean(self.scores[compared])) if self.scores else None,
                    rank1=None if ranks is None else verification.rank_rate(ranks, 1),
                    rank5=None if ranks is None else verification.rank_rate(ranks, 5),
                )
            )
        return rows


@dataclasses.dataclass(frozen=True)
class GalleryJudge:
    """An embedder that judges by galleries of clean images of the persons.

    Attributes:
      galleries: float64[P, D], the centroid of each person's gallery.
      own: float64[P, D], the centroid of each person's probes, which is what a protector has,
        who does not know the galleries.
      thresholds: false accept rate -> threshold, from probes against other persons' galleries.
      own_thresholds: the same against other persons' `own`: a protector's estimate of them.
      accuracy: the best verification accuracy on clean pairs.
      auc: area under the ROC of clean pairs.
    """

    embedder: Embedder
    galleries: NDArray[np.float64]
    own: NDArray[np.float64]
    thresholds: dict[float, float]
    own_thresholds: dict[float, float]
    accuracy: float
    auc: float

    @classmethod
    def of(cls, embedder: Embedder, faces: Faces, fars: Sequence[float]) -> "GalleryJudge":
        """Embeds all clean images and sets galleries and thresholds.

        Raises:
          InputError: embeddings of length zero, or too few impostors for a rate.
        """
        try:
            return cls._of(embedder, faces, fars)
        except InputError as error:
            raise InputError(f"recogniser {embedder.name}: {error}") from error

    @classmethod
    def _of(cls, embedder: Embedder, faces: Faces, fars: Sequence[float]) -> "GalleryJudge":
        embeddings, distance = embedder.embed(faces.images), embedder.distance
        lists, labels = faces.lists, faces.labels
        probes = [lists.probes[labels[lists.probes] == p] for p in range(len(lists.gallery))]
        galleries = verification.centroids(embeddings, lists.gallery, distance)
        own = verification.centroids(embeddings, probes, distance)
        thresholds, own_thresholds = (
            verification.far_thresholds(
                verification.similarities(embeddings[lists.probes], known, distance),
                labels[lists.probes],
                fars,
            )
            for known in (galleries, own)
        )
        genuine, impostor = (
            verification.row_similarities(
                embeddings[pairs[:, 0]], embeddings[pairs[:, 1]], distance
            )
            for pairs in (lists.genuine, lists.impostor)
        )
        pairs = verification.accuracy_and_threshold(genuine, impostor)
        return cls(
            embedder, galleries, own, thresholds, own_thresholds, pairs.accuracy, pairs.auc
        )

    def judge(self, images: NDArray[np.uint8], labels: NumpyArray) -> JudgedImages:
        """Judges images uint8[N, H, W, 3] of persons int[N]; see `compare`."""
        return self.compare(self.embedder.embed(images), labels)

    def compare(self, embeddings: NumpyArray, labels: NumpyArray) -> JudgedImages:
        """Judges images with embeddings [N, D] of persons int[N].

        Images are also compared with each other if every person has two or more.
        """
        distance = self.embedder.distance
        scores = verification.similarities(embeddings, self.galleries, distance)
        own = {GALLERY: verification.genuine_scores(scores, labels)}
        if all(np.sum(labels == label) > 1 for label in labels):
            others = verification.leave_one_out_centroids(embeddings, labels, distance)
            own[OTHERS] = verification.row_similarities(embeddings, others, distance)
        return self.by_scores(embeddings, labels, own, verification.rank(scores, labels))

    def by_scores(
        self,
        embeddings: NumpyArray,
        labels: NumpyArray,
        scores: dict[str, NDArray[np.float64]],
        ranks: NDArray[np.int64] | None = None,
    ) -> JudgedImages:
        """Judges by the scores with the images' own persons, at every threshold."""
        protected: dict[tuple[float | None, str], NDArray[np.bool_]] = {
            (far, compared): values < threshold
            for far, threshold in self.thresholds.items()
            for compared, values in scores.items()
        }
        return JudgedImages(embeddings, labels, scores, ranks, self.thresholds, protected)


@dataclasses.dataclass(frozen=True)
class ClassifierJudge:
    """A classifier trained on the persons of an evaluation; it gives no verification scores.

    Its accuracy is that on the clean images to protect, which it was not trained on.
    """

    model: Model
    variables: Variables
    accuracy: float = 1.0
    auc: None = None

    @classmethod
    def trained(
        cls, name: str, dataset: FaceDataset, faces: Faces, seed: int
    ) -> "ClassifierJudge":
        """Trains a model by its recipe on the protocol's galleries and probes.

        Images outside these lists are not used: near-duplicates of protected images would make
        the classifier look better than it is.
        """
        known = np.sort(np.concatenate([*faces.lists.gallery, faces.lists.probes]))
        model = create_model(
            name, num_classes=len(dataset.persons), image_size=dataset.image_size
        )
        config = train_config(name, dataset.name, seed=seed)
        variables, _ = train(model, TrainingData(dataset.take(known)), config)
        new = cls(model, variables)
        clean = new.judge(faces.protected, faces.protected_labels)
        wrong = float(np.mean(clean.protected[None, BY_NAME]))
        return dataclasses.replace(new, accuracy=1 - wrong)

    def judge(self, images: NDArray[np.uint8], labels: NumpyArray) -> JudgedImages:
        """Judges images uint8[N, H, W, 3] of persons int[N]: protected where misclassified.

        A classifier has no threshold, hence no false accept rate, and no score.
        """
        found, variables = [], jax.device_put(self.variables)
        for first in range(0, len(images), _BATCH_SIZE):
            batch = jnp.asarray(LEVELS[images[first : first + _BATCH_SIZE]])
            found.append(np.asarray(predict(variables, batch, model=self.model)))
        logits = np.concatenate(found)
        ranks = verification.rank(logits, labels)
        return JudgedImages(logits, labels, {}, ranks, {}, {(None, BY_NAME): ranks > 1})


ImageJudge = GalleryJudge | ClassifierJudge
