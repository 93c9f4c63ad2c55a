"""One record per image, and the means of a run, converted to rows of CSV and JSON and back.

In files, the metrics of the float32 image have plain column names (`l2`); those of the 8-bit
image end in `_uint8`.
"""

import array
import dataclasses
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import jax
import numpy as np

from deid_jax.data.dataset import FaceDataset
from deid_jax.errors import InputError
from deid_jax.evaluation.measuring import BatchMetrics, Measurements
from deid_jax.runs.reading import RowReader
from deid_jax.types import Batch, Json

# A line of a CSV file, or a flat JSON object.
Row = dict[str, Json]

# Result -> the suffix of its columns.
SUFFIXES = {"float_result": "", "uint8_result": "_uint8"}


@dataclasses.dataclass(frozen=True)
class ImageMetrics:
    """Distortion of a de-identified image, and the recogniser's prediction for it.

    `confidence` is the softmax probability of `prediction`; `hit_target` is None where the
    attack is untargeted.
    """

    prediction: str
    confidence: float
    misclassified: bool
    hit_target: bool | None
    l2: float
    linf: float
    mssim: float


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One image of a run: a line of `per_image.csv`.

    `name` is unique among the images of the person; `target` is None where the attack is
    untargeted. `loss` is the objective's at the result, and `num_forwards` counts forward
    passes other than those of gradients.
    """

    person: str
    name: str
    target: str | None
    clean_prediction: str
    clean_confidence: float
    clean_misclassified: bool
    float_result: ImageMetrics
    uint8_result: ImageMetrics
    loss: float
    num_gradients: int
    num_forwards: int

    @property
    def image(self) -> str:
        """The image's name in its data set: person/name."""
        return f"{self.person}/{self.name}"

    def to_row(self) -> Row:
        """The columns of `per_image.csv`."""
        return {name: "" if value is None else value for name, value in _flat(self).items()}

    @classmethod
    def from_row(cls, row: Mapping[str, object], where: str) -> "ImageRecord":
        """Reads what `to_row` wrote, including after a round trip through a CSV file.

        Raises:
          InputError: a column is missing or has a value of the wrong kind; the message begins
          with
            `where`.
        """
        read = RowReader(row, where)
        float_result, uint8_result = (
            ImageMetrics(
                prediction=read.text("prediction" + suffix),
                confidence=read.number("confidence" + suffix),
                misclassified=read.flag("misclassified" + suffix),
                hit_target=read.optional(read.flag, "hit_target" + suffix),
                l2=read.number("l2" + suffix),
                linf=read.number("linf" + suffix),
                mssim=read.number("mssim" + suffix),
            )
            for suffix in SUFFIXES.values()
        )
        return cls(
            person=read.text("person"),
            name=read.text("name"),
            target=read.optional(read.text, "target"),
            clean_prediction=read.text("clean_prediction"),
            clean_confidence=read.number("clean_confidence"),
            clean_misclassified=read.flag("clean_misclassified"),
            float_result=float_result,
            uint8_result=uint8_result,
            loss=read.number("loss", finite=False),
            num_gradients=read.integer("num_gradients"),
            num_forwards=read.integer("num_forwards"),
        )


@dataclasses.dataclass(frozen=True)
class MeanMetrics:
    """Means over the images of a run.

    `mr` is the misclassification rate, which includes images misclassified before the attack;
    `target_rate` the share predicted as their targets, None where the attack is untargeted.
    """

    l2: float
    linf: float
    mssim: float
    mr: float
    target_rate: float | None


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """The means of a run, in `metrics.json` and in a line of `sweep.csv`.

    `clean_error` is the share misclassified before the attack, None if it was not measured; the
    last two are numbers per image, see `ImageRecord`.
    """

    num_images: int
    clean_error: float | None
    float_result: MeanMetrics
    uint8_result: MeanMetrics
    num_gradients: float
    num_forwards: float

    def to_row(self) -> Row:
        """The entries of `metrics.json`."""
        return _flat(self)

    @classmethod
    def from_row(cls, row: Mapping[str, object], where: str) -> "RunMetrics":
        """Reads what `to_row` wrote, including after a round trip through a CSV file.

        `linf_uint8` and `num_forwards`, which no comparison needs, may be missing from files
        written by other programs; they are NaN then.

        Raises:
          InputError: an entry is missing, not a number or out of range; the message begins with
            `where`.
        """
        read = RowReader({"linf_uint8": math.nan, "num_forwards": math.nan, **row}, where)
        float_result, uint8_result = (
            MeanMetrics(
                l2=read.number("l2" + suffix, least=0),
                linf=read.number("linf" + suffix, least=0, finite=not suffix),
                mssim=read.number("mssim" + suffix, least=-1, most=1),
                mr=read.rate("mr" + suffix),
                target_rate=read.optional(read.rate, "target_rate" + suffix),
            )
            for suffix in SUFFIXES.values()
        )
        return cls(
            num_images=read.integer("num_images", least=1),
            clean_error=read.optional(read.rate, "clean_error"),
            float_result=float_result,
            uint8_result=uint8_result,
            num_gradients=read.number("num_gradients", least=0),
            num_forwards=read.number("num_forwards", least=0, finite=False),
        )


def records_of(
    measured: BatchMetrics, dataset: FaceDataset, batch: Batch, *, targeted: bool
) -> list[ImageRecord]:
    """One record per image of a batch, from entries [B] on the host, padding left out."""
    return [
        _record(
            jax.tree.map(operator.itemgetter(i), measured),
            dataset,
            int(batch.position[i]),
            targeted,
        )
        for i in np.flatnonzero(batch.mask)
    ]


def _record(
    measured: BatchMetrics, dataset: FaceDataset, index: int, targeted: bool
) -> ImageRecord:
    persons = dataset.persons
    target = int(measured.targets) if targeted else None
    return ImageRecord(
        person=persons[int(dataset.labels[index])],
        name=dataset.names[index],
        target=None if target is None else persons[target],
        clean_prediction=persons[int(measured.clean.label)],
        clean_confidence=float(measured.clean.confidence),
        clean_misclassified=bool(measured.clean.misclassified),
        float_result=image_metrics(measured.float_result, persons, target),
        uint8_result=image_metrics(measured.uint8_result, persons, target),
        loss=float(measured.effort.loss),
        num_gradients=int(measured.effort.num_gradients),
        num_forwards=int(measured.effort.num_forwards),
    )


def image_metrics(
    measured: Measurements, persons: Sequence[str], target: int | None
) -> ImageMetrics:
    """The metrics of one image, from entries without axes on the host.

    `target` is the label aimed at; None where the attack is untargeted.
    """
    label = int(measured.predictions.label)
    return ImageMetrics(
        prediction=persons[label],
        confidence=float(measured.predictions.confidence),
        misclassified=bool(measured.predictions.misclassified),
        hit_target=None if target is None else label == target,
        l2=float(measured.l2),
        linf=float(measured.linf),
        mssim=float(measured.mssim),
    )


def summary(records: Iterable[ImageRecord]) -> RunMetrics:
    """The means of a run, in float64; iterates over the records once.

    Raises:
      InputError: there are no records.
    """
    columns: dict[str, array.array[float]] = {}
    for record in records:
        for name, value in _flat(record).items():
            if isinstance(value, bool | int | float):
                columns.setdefault(name, array.array("d")).append(value)
    if not columns:
        raise InputError("no image could be read")
    mean = {name: float(np.mean(np.asarray(column))) for name, column in columns.items()}
    float_result, uint8_result = (
        MeanMetrics(
            l2=mean["l2" + suffix],
            linf=mean["linf" + suffix],
            mssim=mean["mssim" + suffix],
            mr=mean["misclassified" + suffix],
            target_rate=mean.get("hit_target" + suffix),
        )
        for suffix in SUFFIXES.values()
    )
    return RunMetrics(
        num_images=len(columns["l2"]),
        clean_error=mean["clean_misclassified"],
        float_result=float_result,
        uint8_result=uint8_result,
        num_gradients=mean["num_gradients"],
        num_forwards=mean["num_forwards"],
    )


def stored_rows(records: Iterable[ImageRecord]) -> Json:
    """Rows of records, as a store keeps them."""
    return [record.to_row() for record in records]


def read_stored(rows: Json) -> Iterator[ImageRecord]:
    """The records of `stored_rows`."""
    for row in cast(list[Row], rows):
        yield ImageRecord.from_row(row, "a stored record")


def _flat(record: ImageRecord | RunMetrics) -> Row:
    """The fields of a record by column name, in the order of the columns."""
    row: Row = {}
    for name, value in vars(record).items():
        if name in SUFFIXES:
            row |= {f"{own}{SUFFIXES[name]}": entry for own, entry in vars(value).items()}
        else:
            row[name] = value
    return row
