"""Compares methods at equal misclassification rates, with confidence intervals and gains."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from deid_jax.attacks import METHODS
from deid_jax.evaluation.records import ImageMetrics
from deid_jax.metrics import statistics
from deid_jax.metrics.statistics import gain
from deid_jax.models import MODELS
from deid_jax.reports.measured import KINDS, MeasuredPoint, choose, known_first

# The paper reports the gains of the first method over each of the others.
OURS, OTHERS = "pfgvm", ("ifgvm", "ifgsm")
# Methods are compared at settings that reach these misclassification rates.
MIN_MR = (0.99, 0.995)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval, whose ends are None if unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Metrics of a method, or gains in them; None where there is no value."""

    l2: Estimate | None = None
    mssim: Estimate | None = None
    mr: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method's result against one recogniser, in one table.

    `point` is the one that represents the method, None if no point reaches the table's MR;
    `best_mr` is the highest MR of the method's points.
    """

    point: MeasuredPoint | None
    best_mr: float
    estimates: Estimates


@dataclasses.dataclass(frozen=True)
class ComparisonTable:
    """One table that compares methods.

    `kind` is of `KINDS`; `min_mr` is what every point reaches, None if the points are shown as
    they were run. `entries` are by (method, model), `gains` of `OURS` over another by (other,
    model), each where there are any.
    """

    kind: str
    min_mr: float | None
    methods: tuple[str, ...]
    models: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]
    gains: Mapping[tuple[str, str], Estimates]


def tables_of(
    points: Sequence[MeasuredPoint],
    *,
    min_mr: Sequence[float] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[ComparisonTable]:
    """Makes the tables for comparable points, those of 8-bit images first.

    If `min_mr` is None and every method has one point against each recogniser, there is one
    table per kind of image, with the points as they were run. Otherwise there is one table per
    kind and entry of `min_mr`, where each method is represented by the point of smallest L2
    (then of highest MR) among those that reach this MR, measured on the table's kind of image.

    Args:
      points: at least one; see `comparable.check_comparable`.
      min_mr: misclassification rates, 0 to 1; None: 0.99 and 0.995, or the points as run.
      confidence: confidence level of the intervals, between 0 and 1.
      seed: seed of the bootstrap.

    Raises:
      InputError: a parameter is out of range.
    """
    statistics.check_confidence(confidence)
    estimator = _Estimator(confidence, seed)
    groups: dict[tuple[str, str], list[MeasuredPoint]] = {}
    for point in points:
        groups.setdefault((point.method, point.model), []).append(point)
    as_run = min_mr is None and all(len(group) == 1 for group in groups.values())
    rates: Sequence[float | None] = [None] if as_run else (min_mr or MIN_MR)
    return [_table(groups, kind, rate, estimator) for kind in KINDS for rate in rates]


def _table(
    groups: Mapping[tuple[str, str], Sequence[MeasuredPoint]],
    kind: str,
    min_mr: float | None,
    estimator: "_Estimator",
) -> ComparisonTable:
    entries, gains = {}, {}
    for place, group in groups.items():
        point = choose(group, kind, min_mr)
        entries[place] = Entry(
            point=point,
            best_mr=max(point.means(kind).mr for point in group),
            estimates=estimator.estimates(point, kind) if point else Estimates(),
        )
    models = known_first((model for _, model in groups), MODELS)
    for model in models:
        ours = entries.get((OURS, model))
        for other in OTHERS:
            entry = entries.get((other, model))
            if ours and entry and ours.point and entry.point:
                gains[other, model] = estimator.gains(ours.point, entry.point, kind)
    methods = known_first((method for method, _ in groups), METHODS)
    return ComparisonTable(kind, min_mr, methods, models, entries, gains)


class _Estimator:
    """Computes metrics and gains with their intervals, once for each point."""

    def __init__(self, confidence: float, seed: int):
        self._confidence = confidence
        self._seed = seed
        self._known: dict[tuple[MeasuredPoint, str], Estimates] = {}

    def estimates(self, point: MeasuredPoint, kind: str) -> Estimates:
        """The metrics of a point."""
        if (point, kind) not in self._known:
            means, images, n = point.means(kind), point.images(kind), point.metrics.num_images
            rate = statistics.wilson(round(means.mr * n), n, self._confidence)
            self._known[point, kind] = Estimates(
                l2=self._mean(means.l2, [image.l2 for image in images]),
                mssim=self._mean(means.mssim, [image.mssim for image in images]),
                mr=Estimate(means.mr, *rate),
            )
        return self._known[point, kind]

    def _mean(self, mean: float, values: Sequence[float]) -> Estimate:
        if not values:
            return Estimate(mean)
        interval = statistics.bootstrap_mean(
            values, confidence=self._confidence, seed=self._seed
        )
        return _estimate(mean, interval)

    def gains(self, ours: MeasuredPoint, other: MeasuredPoint, kind: str) -> Estimates:
        """The gains of `ours` over `other`; None where the other method's metric is 0."""
        one, two, pairs = ours.means(kind), other.means(kind), _pairs(ours, other, kind)
        return Estimates(
            l2=self._gain(one.l2, two.l2, [(a.l2, b.l2) for a, b in pairs], True),
            mssim=self._gain(one.mssim, two.mssim, [(a.mssim, b.mssim) for a, b in pairs]),
            # A bootstrap says nothing about rates near 1.
            mr=self._gain(one.mr, two.mr, []),
        )

    def _gain(
        self,
        ours: float,
        other: float,
        pairs: Sequence[tuple[float, float]],
        lower_is_better: bool = False,
    ) -> Estimate | None:
        if not other:
            return None
        value = gain(ours, other, lower_is_better=lower_is_better)
        if not pairs:
            return Estimate(value)
        interval = statistics.bootstrap_gain(
            [one for one, _ in pairs],
            [two for _, two in pairs],
            lower_is_better=lower_is_better,
            confidence=self._confidence,
            seed=self._seed,
        )
        return _estimate(value, interval)


def _pairs(
    ours: MeasuredPoint, other: MeasuredPoint, kind: str
) -> list[tuple[ImageMetrics, ImageMetrics]]:
    """Pairs of both methods' metrics for each image; empty if their images differ."""
    first, second = (
        dict(zip((r.image for r in point.records), point.images(kind), strict=True))
        for point in (ours, other)
    )
    same = first.keys() == second.keys()
    return [(metrics, second[image]) for image, metrics in first.items()] if same else []


def _estimate(value: float, interval: statistics.Interval) -> Estimate:
    return Estimate(value) if math.isnan(interval[0]) else Estimate(value, *interval)
