"""Attributes of images, predicted by a classifier that was trained on other persons.

Attributes are encoded as classes: int32[N, A] for N images, one column per attribute; -1 stands
for a value outside an attribute's classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import recognisers
from deid_jax.data import DataOptions, FaceDataset, loader
from deid_jax.data.dataset import Example
from deid_jax.errors import InputError
from deid_jax.evaluation.agreement import chance_of, cohen_kappa
from deid_jax.models import Network
from deid_jax.models.attribute_net import AttributeNet
from deid_jax.recognisers import TrainConfig, TrainingData, predicting, storage, training
from deid_jax.types import Json, NumpyArray, Variables

# Numeric attributes with meaningful bounds (degrees, see `data.synthetic.variation`): classes
# in ascending order, and the bounds between them. Other numbers are divided into terciles.
BANDS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "yaw": (("left", "ahead", "right"), (-5.0, 5.0)),
    "pitch": (("down", "level", "up"), (-2.5, 2.5)),
    "roll": (("clockwise", "upright", "counter-clockwise"), (-2.0, 2.0)),
    "light_direction": (("left", "front", "right"), (-20.0, 20.0)),
}
# Left out where the other attribute, a finer version of the same, is present.
DUPLICATES = {"looking_left": "yaw", "light_from_left": "light_direction"}

# Attributes whose first and last classes are swapped when an image is mirrored.
MIRRORED = ("yaw", "roll", "light_direction", *DUPLICATES)

# The kappa that the classifier must reach on held-out persons for an attribute to count as
# predictable: 0 is chance, 1 perfect.
LEAST_KAPPA = 0.4

# The trainer's flips ignore `MIRRORED`; instead it trains on every image and its mirror image.
RECIPE = TrainConfig(epochs=6, learning_rate=2e-3, batch_size=32, flips=False)

_HELD_OUT = 8  # One person in this many is held out to measure the classifier.


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute of `FaceDataset.attributes` as classes.

    The classes of a boolean are "no" and "yes". Class k of a number holds the values in
    [bounds[k - 1], bounds[k]).
    """

    name: str
    classes: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    def encode(self, values: NumpyArray) -> NumpyArray:
        """Values [N] as classes int32[N]; -1 for a text outside the classes."""
        if self.bounds:
            return np.digitize(values, self.bounds).astype(np.int32)
        if values.dtype == bool:
            return values.astype(np.int32)
        positions = {name: number for number, name in enumerate(self.classes)}
        return np.array([positions.get(str(value), -1) for value in values], np.int32)


def attributes_in(values: Mapping[str, NumpyArray]) -> tuple[Attribute, ...]:
    """The attributes to train on, as classes, from values by attribute, each array[N].

    Booleans have two classes, texts one for each value that occurs, numbers three: those of
    `BANDS`, else terciles. `DUPLICATES` and attributes with a single class are left out.
    """
    found = []
    for name, column in values.items():
        if DUPLICATES.get(name) in values:
            continue
        if column.dtype == bool:
            attribute = Attribute(name, ("no", "yes"))
        elif np.issubdtype(column.dtype, np.number):
            low, high = map(float, np.quantile(column, [1 / 3, 2 / 3]))
            attribute = Attribute(
                name, *BANDS.get(name, (("low", "middle", "high"), (low, high)))
            )
        else:
            attribute = Attribute(name, tuple(sorted({str(value) for value in column})))
        if len(np.unique(attribute.encode(column))) > 1:
            found.append(attribute)
    return tuple(found)


def encode(attributes: Sequence[Attribute], faces: FaceDataset) -> NumpyArray:
    """The true classes of a data set's images, int32[N, A].

    Raises:
      InputError: the data set lacks one of the attributes.
    """
    missing = [one.name for one in attributes if one.name not in faces.attributes]
    if missing:
        raise InputError(f"data set {faces.name} has no attribute {missing[0]}")
    return np.stack([one.encode(faces.attributes[one.name]) for one in attributes], axis=1)


@dataclasses.dataclass(frozen=True)
class LabelledFaces(FaceDataset):
    """A data set whose examples have the classes of their attributes as "label", int32[A]."""

    classes: NumpyArray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))

    def __getitem__(self, index: int) -> Example:
        """One example: image float32[H, W, 3] in [0, 1], label int32[A], position int32."""
        return {**super().__getitem__(index), "label": self.classes[index]}


def label(faces: FaceDataset, attributes: Sequence[Attribute]) -> LabelledFaces:
    """The same images with the classes of their attributes as labels."""
    fields = {field.name: getattr(faces, field.name) for field in dataclasses.fields(faces)}
    return LabelledFaces(**fields, classes=encode(attributes, faces))


def with_mirrored(faces: LabelledFaces, attributes: Sequence[Attribute]) -> LabelledFaces:
    """The images, then the same images mirrored; `attributes` are dropped."""
    read, count, mirrored = faces.read, len(faces), faces.classes.copy()
    for place, attribute in enumerate(attributes):
        if attribute.name in MIRRORED:
            mirrored[:, place] = len(attribute.classes) - 1 - mirrored[:, place]
    return dataclasses.replace(
        faces,
        labels=np.tile(faces.labels, 2),
        names=(*faces.names, *(f"{name}-mirrored" for name in faces.names)),
        read=lambda index: read(index) if index < count else read(index - count)[:, ::-1],
        attributes={},
        classes=np.concatenate([faces.classes, mirrored]),
    )


def names_of_persons(faces: FaceDataset) -> tuple[str, ...]:
    """Unique names of the persons: each seed renders other persons under the same names."""
    seed = faces.provenance.get("persons_seed")
    return faces.persons if seed is None else tuple(f"{seed}/{who}" for who in faces.persons)


@dataclasses.dataclass(frozen=True)
class Skill:
    """How well a classifier predicts an attribute, on persons that it was not trained on.

    `chance` is the share of the most common class, `kappa` the `cohen_kappa` of predictions and
    truth.
    """

    accuracy: float
    chance: float
    kappa: float

    @property
    def is_told(self) -> bool:
        """Whether the attribute is predictable: κ >= `LEAST_KAPPA`."""
        return self.kappa >= LEAST_KAPPA


@dataclasses.dataclass(frozen=True)
class ClassifierInfo:
    """Data and settings that an attribute classifier was trained with.

    `attributes` and `skills` have one entry per head; `persons`, named as by
    `names_of_persons`, are those that it was trained or measured on.
    """

    dataset: str
    image_size: int
    crop: str
    seed: int
    attributes: tuple[Attribute, ...]
    skills: tuple[Skill, ...]
    persons: tuple[str, ...]
    num_images: int
    training: Mapping[str, Json]


class AttributeClassifier(NamedTuple):
    """A model that predicts the attributes of faces.

    `model.apply(variables, images)` gives logits float32[B, A, max K].
    """

    model: AttributeNet
    variables: Variables
    info: ClassifierInfo

    def classify(self, faces: FaceDataset, *, batch_size: int = 64) -> NumpyArray:
        """The predicted classes of images of its size, int32[N, A]."""
        predicted, variables = [], jax.device_put(self.variables)
        for batch in loader.in_order(faces, loader.even_batch_size(len(faces), batch_size)):
            logits = predicting.predict(variables, batch.image, model=self.model)
            predicted.append(np.argmax(logits, axis=-1)[batch.mask])
        return np.concatenate(predicted).astype(np.int32)


def _network(attributes: Sequence[Attribute]) -> AttributeNet:
    return AttributeNet(tuple(len(attribute.classes) for attribute in attributes))


def classifier_path(dataset: str, options: DataOptions) -> Path:
    """The checkpoint of the classifier for these settings, the same for every split."""
    return recognisers.default_path(
        "attributes", dataset, dataclasses.replace(options, split="train")
    )


def train_classifier(
    others: FaceDataset,
    options: DataOptions,
    path: Path,
    *,
    config: TrainConfig = RECIPE,
    progress: training.TrainingProgress | None = None,
) -> AttributeClassifier:
    """Trains a classifier on seven persons in eight, measures it on the rest, and saves it.

    `others` are images with attributes of other persons than those to be evaluated, named as by
    `names_of_persons`; `options` are how those to be evaluated are loaded, and have the seed.

    Raises:
      InputError: the images are too small, no attribute varies, or `path` cannot be written.
    """
    size, least = others.image_size, AttributeNet.min_image_size
    if size < least:
        raise InputError(f"image_size must be at least {least} for attributes, got {size}")
    config = dataclasses.replace(config, seed=options.seed)
    first_held_out = len(others.persons) - -(-len(others.persons) // _HELD_OUT)
    seen = others.take(np.flatnonzero(others.labels < first_held_out))
    attributes = attributes_in(seen.attributes)
    if not attributes:
        raise InputError(f"no attribute of data set {others.name} varies between its images")
    unseen = label(others.take(np.flatnonzero(others.labels >= first_held_out)), attributes)
    shown, model = with_mirrored(label(seen, attributes), attributes), _network(attributes)
    variables, _ = training.train(
        # Linen's type of `apply` is wider than how a network is called.
        cast("Network", model),
        TrainingData(shown, unseen),
        config,
        progress=progress,
    )
    info = ClassifierInfo(
        dataset=others.name,
        image_size=size,
        crop=options.crop,
        seed=options.seed,
        attributes=attributes,
        skills=(),
        persons=others.persons,
        num_images=len(seen),
        training=dataclasses.asdict(config),
    )
    predicted = AttributeClassifier(model, variables, info).classify(unseen)
    info = dataclasses.replace(info, skills=tuple(map(_skill, unseen.classes.T, predicted.T)))
    storage.save(path, variables, dataclasses.asdict(info))
    return AttributeClassifier(model, variables, info)


def _skill(truth: NumpyArray, predicted: NumpyArray) -> Skill:
    accuracy = float(np.mean(truth == predicted))
    return Skill(accuracy, chance_of(truth), cohen_kappa(truth, predicted))


def load_classifier(
    path: Path, evaluated: FaceDataset, options: DataOptions
) -> AttributeClassifier:
    """Loads a classifier, and checks that it fits a data set.

    Raises:
      InputError: it is missing, damaged, made for something else, or was trained on persons
        of the data set.
    """
    facts = storage.load_description(path)
    try:
        facts["attributes"] = tuple(
            Attribute(one["name"], tuple(one["classes"]), tuple(one["bounds"]))
            for one in facts["attributes"]
        )
        facts["skills"] = tuple(Skill(**one) for one in facts["skills"])
        info = ClassifierInfo(**facts | {"persons": tuple(facts["persons"])})
    except (TypeError, KeyError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read: its description is of another kind"
        ) from error
    for what, theirs, ours in (
        ("the data set", info.dataset, evaluated.name),
        ("images of size", info.image_size, evaluated.image_size),
        ("seed", info.seed, options.seed),
        ("crop", info.crop, options.crop),
    ):
        if theirs != ours:
            raise InputError(
                f"checkpoint {path} does not fit: it was made for {what} {theirs}, not {ours}"
            )
    known = set(info.persons).intersection(names_of_persons(evaluated))
    if known:
        raise InputError(
            f"checkpoint {path} does not fit: it was trained on {len(known)} of the "
            f"{len(evaluated.persons)} persons evaluated"
        )
    model = _network(info.attributes)
    example = jax.ShapeDtypeStruct((1, info.image_size, info.image_size, 3), jnp.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), example)
    return AttributeClassifier(model, storage.load_arrays(path, expected), info)
