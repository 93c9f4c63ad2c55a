"""Finished runs in memory: methods, their settings, and the metrics of each.

L2 is for pixels in [0, 1]; rates are fractions. Every metric exists twice: for the 8-bit image
that is written ("uint8") and for the attack's float32 result ("float").
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from deid_jax.evaluation.records import ImageMetrics, ImageRecord, MeanMetrics, RunMetrics
from deid_jax.types import Json

# The kinds of images that are measured; the one that a user keeps comes first.
KINDS = ("uint8", "float")

Setting = float | str


# Compared by identity, because mappings cannot be hashed and each point is read only once.
@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredPoint:
    """A method at one setting, measured on one set of images.

    There may be no records; `source` is the folder that it was read from.
    """

    method: str
    model: str
    dataset: str
    split: str
    settings: Mapping[str, Setting]
    metrics: RunMetrics
    records: Sequence[ImageRecord] = ()
    source: str = ""

    def means(self, kind: str) -> MeanMetrics:
        """The mean metrics for one kind of image; see `KINDS`."""
        return self.metrics.uint8_result if kind == "uint8" else self.metrics.float_result

    def images(self, kind: str) -> list[ImageMetrics]:
        """The metrics of every image, for one kind of image."""
        return [r.uint8_result if kind == "uint8" else r.float_result for r in self.records]


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run: its measured points and its `config.json`, empty if there is none.

    An attack run has a single point, a sweep one per row. `sheets` are PNG files with images at
    some of the points.
    """

    source: str
    points: Sequence[MeasuredPoint]
    description: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    sheets: Mapping[MeasuredPoint, bytes] = dataclasses.field(default_factory=dict)


def known_first(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Each name once: known names in their order, then the others alphabetically."""
    given, order = set(names), dict.fromkeys(known)
    return (*(name for name in order if name in given), *sorted(given - order.keys()))


def choose(
    points: Sequence[MeasuredPoint], kind: str, min_mr: float | None
) -> MeasuredPoint | None:
    """The point of smallest L2 among those whose MR reaches `min_mr`; None if none does."""
    # Rates are sums divided by counts: 1e-9 is below any 1/N and above rounding errors.
    eligible = [p for p in points if min_mr is None or p.means(kind).mr >= min_mr - 1e-9]
    return min(eligible, key=lambda p: (p.means(kind).l2, -p.means(kind).mr), default=None)


def best_point(points: Sequence[MeasuredPoint], kind: str, min_mr: float) -> MeasuredPoint:
    """The point of smallest L2 that reaches `min_mr`, or else among those of highest MR."""
    highest = max(point.means(kind).mr for point in points)
    chosen = choose(points, kind, min(min_mr, highest))
    assert chosen is not None
    return chosen
