"""Trials: one method, ours or a peer, at one target and number of gradients, image by image."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from deid_jax.data import FaceDataset
from deid_jax.evaluation.records import SUFFIXES, ImageMetrics, ImageRecord, Row
from deid_jax.reports.trial_statistics import Distances


@dataclasses.dataclass(frozen=True)
class TrialMetrics:
    """Whether a result reaches the goal, its distortion, whether it is misclassified."""

    success: bool
    l2: float
    mssim: float
    misclassified: bool

    @classmethod
    def of(cls, result: ImageMetrics, already: bool) -> "TrialMetrics":
        """Metrics of the result, or of the original if that already meets the goal."""
        if already:
            return cls(success=True, l2=0.0, mssim=1.0, misclassified=True)
        reached = result.misclassified if result.hit_target is None else result.hit_target
        return cls(reached, result.l2, result.mssim, result.misclassified)


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """One image of a trial: a line of `per_image.csv`.

    Attributes:
      aim: the target person; None if the attack is untargeted.
      already: whether the original already meets the goal.
      unconfirmed: whether a peer succeeds only against its twin; None for ours.
    """

    image: str
    aim: str | None
    already: bool
    float_result: TrialMetrics
    uint8_result: TrialMetrics
    unconfirmed: bool | None
    num_gradients: int
    num_forwards: int

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
      library: "deid_jax", or the peer's library.
      method: its name, unique among our methods and the peers.
      num_steps: K, the requested number of gradients.
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
        """Whether the method belongs to another library."""
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
      images: the images' names.
      labels: int32[N], the targets; the true labels if the attack is untargeted.
      aims: the target persons; None if the attack is untargeted.
      already: whether each original already meets the goal.
    """

    target: str
    images: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    aims: list[str | None]
    already: list[bool]

    @classmethod
    def of(cls, target: str, records: Sequence[ImageRecord], faces: FaceDataset) -> "Goal":
        """The goal of one of our runs, which drew the targets."""
        aims = [record.target for record in records]
        if target == "none":
            already = [record.clean_misclassified for record in records]
            return cls(target, faces.image_names, faces.labels, aims, already)
        labels = np.array([faces.persons.index(aim) for aim in aims if aim], np.int32)
        already = [record.clean_prediction == record.target for record in records]
        return cls(target, faces.image_names, labels, aims, already)

    @property
    def targeted(self) -> bool:
        """Whether the attack is targeted."""
        return self.target != "none"

    def record(
        self,
        place: int,
        results: tuple[ImageMetrics, ImageMetrics],
        num_gradients: int,
        num_forwards: int,
        claimed: bool | None = None,
    ) -> TrialRecord:
        """What was reached for one image: by its float result, by the 8-bit image.

        An original that already meets the goal counts as a success at distance 0. `claimed` is
        whether a peer succeeded against its twin; None for ours.
        """
        already = self.already[place]
        float_result, uint8_result = (TrialMetrics.of(result, already) for result in results)
        return TrialRecord(
            image=self.images[place],
            aim=self.aims[place],
            already=already,
            float_result=float_result,
            uint8_result=uint8_result,
            unconfirmed=None if claimed is None else claimed and not float_result.success,
            num_gradients=num_gradients,
            num_forwards=num_forwards,
        )
