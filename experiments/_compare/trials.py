"""Trials: one method, ours or a peer, at one target and number of gradients, image by image."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from deid_jax.data import FaceDataset
from deid_jax.evaluation.records import SUFFIXES, ImageMetrics, ImageRecord, Row
from deid_jax.reports.trial_statistics import Distances


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One image as a method left it.

    Attributes:
      float_result: of the float32 result.
      uint8_result: of the 8-bit image.
      num_gradients: spent on it.
      num_forwards: forward passes beside those of gradients.
      claimed: whether a peer succeeded by its twin; None for ours.
    """

    float_result: ImageMetrics
    uint8_result: ImageMetrics
    num_gradients: int
    num_forwards: int
    claimed: bool | None = None

    @classmethod
    def of(cls, record: ImageRecord) -> "Attempt":
        """An image of a run of ours."""
        results = record.float_result, record.uint8_result
        return cls(*results, record.num_gradients, record.num_forwards)


@dataclasses.dataclass(frozen=True)
class TrialMetrics:
    """Whether a result reaches the goal, its distortion, whether it is misclassified."""

    success: bool
    l2: float
    mssim: float
    misclassified: bool

    @classmethod
    def of(cls, result: ImageMetrics, already: bool) -> "TrialMetrics":
        """The result, or the original if that meets the goal by itself."""
        if already:
            return cls(success=True, l2=0.0, mssim=1.0, misclassified=True)
        reached = result.misclassified if result.hit_target is None else result.hit_target
        return cls(reached, result.l2, result.mssim, result.misclassified)


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """One image of a trial: a line of `per_image.csv`.

    Attributes:
      image: person/name.
      aim: the person aimed at; None where the attack is untargeted.
      already: whether the original meets the goal by itself.
      float_result: of the float32 result.
      uint8_result: of the 8-bit image.
      unconfirmed: whether only a peer's twin says success; None for ours.
      num_gradients: spent on it.
      num_forwards: forward passes beside those of gradients.
    """

    image: str
    aim: str | None
    already: bool
    float_result: TrialMetrics
    uint8_result: TrialMetrics
    unconfirmed: bool | None
    num_gradients: int
    num_forwards: int

    @classmethod
    def of(cls, attempt: Attempt, image: str, aim: str | None, already: bool) -> "TrialRecord":
        """An attempt, held to the goal.

        An original that meets the goal by itself counts as it is: success at distance 0.
        """
        float_result = TrialMetrics.of(attempt.float_result, already)
        claimed = attempt.claimed
        return cls(
            image=image,
            aim=aim,
            already=already,
            float_result=float_result,
            uint8_result=TrialMetrics.of(attempt.uint8_result, already),
            unconfirmed=None if claimed is None else claimed and not float_result.success,
            num_gradients=attempt.num_gradients,
            num_forwards=attempt.num_forwards,
        )

    def to_row(self) -> Row:
        """The columns of `per_image.csv`."""
        row: Row = {"picture": self.image, "aim": self.aim or "", "already": self.already}
        for name, suffix in SUFFIXES.items():
            result = vars(getattr(self, name))
            row |= {column + suffix: value for column, value in result.items()}
        unconfirmed = "" if self.unconfirmed is None else self.unconfirmed
        return row | {
            "unconfirmed": unconfirmed,
            "num_gradients": self.num_gradients,
            "num_forwards": self.num_forwards,
        }


@dataclasses.dataclass(frozen=True)
class Trial:
    """One method, ours or a peer, at one number of gradients and one target.

    Attributes:
      target: a choice of `deid_jax.evaluation.batch.TARGETS`.
      library: "deid_jax", or the peer's.
      method: its name, unique among ours and the peers.
      num_steps: K, the gradients asked for.
      records: one per image.
      seconds: wall time of the attack.
    """

    target: str
    library: str
    method: str
    num_steps: int
    records: list[TrialRecord]
    seconds: float

    @property
    def is_peer(self) -> bool:
        """Whether it is another library's."""
        return self.library != "deid_jax"

    @property
    def float_distances(self) -> Distances:
        """L2 of the float results, infinite where they fail."""
        return _distances(record.float_result for record in self.records)

    @property
    def uint8_distances(self) -> Distances:
        """L2 of the 8-bit images, infinite where they fail."""
        return _distances(record.uint8_result for record in self.records)

    def rows(self) -> list[Row]:
        """Its lines of `per_image.csv`."""
        named: Row = {
            "target": self.target,
            "method": self.method,
            "num_steps": self.num_steps,
        }
        return [named | record.to_row() for record in self.records]


def _distances(results: Iterable[TrialMetrics]) -> Distances:
    return np.array([result.l2 if result.success else np.inf for result in results])


@dataclasses.dataclass(frozen=True)
class Goal:
    """The goal of all methods at one target.

    Attributes:
      target: a choice of `deid_jax.evaluation.batch.TARGETS`.
      labels: int32[N], the labels aimed at; the true ones where the attack is untargeted.
      aims: the persons aimed at; None where the attack is untargeted.
      already: whether an original meets the goal by itself.
    """

    target: str
    labels: npt.NDArray[np.int32]
    aims: list[str | None]
    already: list[bool]

    @classmethod
    def of(cls, target: str, records: Sequence[ImageRecord], faces: FaceDataset) -> "Goal":
        """The goal of a run of ours, which drew the targets."""
        aims = [record.target for record in records]
        if target == "none":
            already = [record.clean_misclassified for record in records]
            return cls(target, faces.labels, aims, already)
        labels = np.array([faces.persons.index(aim) for aim in aims if aim], np.int32)
        already = [record.clean_prediction == record.target for record in records]
        return cls(target, labels, aims, already)

    @property
    def targeted(self) -> bool:
        """Whether the goal is a label."""
        return self.target != "none"

    def scored(self, attempts: Sequence[Attempt], faces: FaceDataset) -> list[TrialRecord]:
        """The records of a trial."""
        every = zip(attempts, faces.pictures, self.aims, self.already, strict=True)
        return [TrialRecord.of(*line) for line in every]
