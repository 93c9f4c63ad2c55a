"""Methods side by side: which points can be compared, and which point of each is the fair one.

L2 is in pixels of [0, 1], rates and gains are fractions. Every figure comes twice: of the 8-bit
picture that is kept ("uint8") and of the method's float result ("float").
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.errors import InputError
from deid_jax.metrics import statistics
from deid_jax.metrics.statistics import gain
from deid_jax.models import MODELS

# Kind of picture -> what its figures' names end in; what a user keeps comes first.
KINDS = {"uint8": "_uint8", "float": ""}
# The figures of a table -> whether lower is better.
FIGURES = {"l2": True, "mssim": False, "mr": False}
# The paper's gains: of the first over each of the others.
OURS, OTHERS = "pfgvm", ("ifgvm", "ifgsm")
# Least misclassification rates that methods are compared at.
MIN_MR = (0.99, 0.995)
RECOGNISER_FACTS = ("seed", "training", "accuracy", "split", "weights")


@dataclasses.dataclass(frozen=True)
class Point:
    """A method at one setting, measured on one set of pictures.

    Attributes:
      method: a key of `deid_jax.attacks.METHODS`.
      model: the recogniser.
      settings: the method's settings by name ("penalty_weight": 1.0), numbers.
      figures: by the names of `metrics.json` (l2, mssim, mr, l2_uint8, ...).
      records: one mapping per picture by the columns of `per_image.csv`; may be empty.
      source: the folder that it was read from.
      sheet: the bytes of a PNG of its pictures, if there is one.
    """

    method: str
    model: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]] = ()
    source: str = ""
    sheet: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder of points.

    Attributes:
      source: the folder's name.
      points: one of an attack run, a row each of a sweep.
      description: what `config.json` holds; empty where there is none.
    """

    source: str
    points: Sequence[Point]
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Estimate(NamedTuple):
    """A figure and its confidence interval, whose ends are None where nothing tells them."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method against a recogniser, in one table.

    Attributes:
      point: the point that stands for it; None where no point reaches the table's MR.
      best_mr: the highest MR of its points.
      figures: the point's l2, mssim and mr; empty without a point.
    """

    point: Point | None
    best_mr: float
    figures: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Table:
    """Methods beside each other.

    Attributes:
      kind: a key of `KINDS`.
      min_mr: the MR that every point reaches; None: the points as they were run.
      methods: the rows, in the order of `METHODS`, strangers last.
      models: the recognisers, in the order of `MODELS`, strangers last.
      entries: (method, model) -> entry; without those that no point is of.
      gains: (other, model) -> the gain of `OURS` over the other method in l2, mssim and mr,
        as far as there is one.
    """

    kind: str
    min_mr: float | None
    methods: tuple[str, ...]
    models: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]
    gains: Mapping[tuple[str, str], Mapping[str, Estimate]]


@dataclasses.dataclass(frozen=True)
class Common:
    """What all runs share.

    Attributes:
      facts: name -> value, of what is the same wherever it was recorded.
      unrecorded: run -> the facts that it does not tell, and that were not compared with it.
    """

    facts: Mapping[str, Any]
    unrecorded: Mapping[str, tuple[str, ...]]


def picture_of(record: Mapping[str, Any]) -> str:
    """The name of a record's picture: "person/name"."""
    return f"{record['person']}/{record['name']}"


def check_comparable(runs: Sequence[Run]) -> Common:
    """Refuses runs of which one differs from another in more than method and settings.

    All must be of the same data set, split, number of pictures, pictures, size, crop, persons,
    seed and rounding; attacks of the same kind of target and first iterate; and those against
    one recogniser of the same training of it. What a run does not record passes.

    Raises:
      InputError: two runs differ, or hold a point twice; names both.
    """
    # (fact, the model that it is a fact of, or "") -> (value, run)
    seen: dict[tuple[str, str], tuple[Any, str]] = {}
    unrecorded: dict[str, dict[str, None]] = {}
    for run in runs:
        for fact, scope, value in _facts(run):
            if value is None:
                unrecorded.setdefault(run.source, {})[fact] = None
                continue
            first, source = seen.setdefault((fact, scope), (value, run.source))
            if first != value:
                raise InputError(_difference(fact, scope, (source, first), (run.source, value)))
    check_no_point_twice([point for run in runs for point in run.points])
    facts = {fact: value for (fact, scope), (value, _) in seen.items() if scope == ""}
    return Common(facts, {source: tuple(names) for source, names in unrecorded.items()})


def _facts(run: Run) -> Iterator[tuple[str, str, Any]]:
    """(fact, what it is a fact of, value) of every point; None: not recorded."""
    for point in run.points:
        for name in ("dataset", "split", "num_images"):
            yield name, "", point.figures[name]
        pictures = frozenset(map(picture_of, point.records))
        yield "pictures", "", pictures or None
        yield from _facts_of_settings(run.description, point.method)
        recogniser = _section(run.description, "recogniser")
        if recogniser.get("model", point.model) != point.model:
            recogniser = {}
        for name in RECOGNISER_FACTS:
            yield f"recogniser's {name}", point.model, recogniser.get(name)


def _facts_of_settings(
    description: Mapping[str, Any], method: str
) -> Iterator[tuple[str, str, Any]]:
    settings, provenance = (_section(description, name) for name in ("settings", "dataset"))
    for name in ("image_size", "seed"):
        yield name, "", settings.get(name)
    yield from _rounding(settings, method)
    yield "crop", "", settings.get("crop") or provenance.get("crop")
    # Facts that not every data set has: "none" is a value, too.
    folder = settings.get("data_dir")
    name = PurePath(folder).name if isinstance(folder, str) else ""
    name = name or provenance.get("folder") or "none"
    yield "data_dir", "", name if "data_dir" in settings or provenance else None
    yield "persons_seed", "", provenance.get("persons_seed", "none") if provenance else None
    if method in ATTACKS:
        for name, default in (("target", "random"), ("init", "image")):
            value = settings.get(name) or default
            yield name, "", value if name in settings else None
        # Runs from before there was a choice computed in float32.
        precision = settings.get("precision") or "float32"
        yield "precision", "", precision if settings else None


def _rounding(settings: Mapping[str, Any], method: str) -> Iterator[tuple[str, str, Any]]:
    """Whether results are on the 8-bit grid; methods whose own way that is go with any."""
    quantize = settings.get("quantize")
    if quantize is None and "quantize" in settings:
        if method in METHODS and METHODS[method].quantizes:
            return
        quantize = False
    yield "quantize", "", quantize


def _section(description: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = description.get(name)
    return section if isinstance(section, Mapping) else {}


def _difference(fact: str, scope: str, first: tuple[str, Any], second: tuple[str, Any]) -> str:
    where = first[0] if first[0] == second[0] else f"{first[0]} and {second[0]}"
    of = f" of {scope}" if scope else ""
    if fact == "pictures":
        only = sorted(first[1] ^ second[1])[0]
        at = "first" if only in first[1] else "second"
        return f"{where} cannot be compared: their pictures differ, {only} is only in the {at}"
    values = [json.dumps(value, ensure_ascii=False) for _, value in (first, second)]
    return f"{where} cannot be compared: {fact}{of} is {values[0]} and {values[1]}"


def best(points: Sequence[Point], kind: str, min_mr: float) -> Point:
    """The point of least L2 that reaches `min_mr`, else of those that come nearest."""
    highest = max(point.figures["mr" + KINDS[kind]] for point in points)
    chosen = choose(points, kind, min(min_mr, highest))
    assert chosen is not None
    return chosen


def check_no_point_twice(points: Sequence[Point]) -> None:
    """Refuses two points of the same method, recogniser and settings.

    Raises:
      InputError: there are; names where they were read from.
    """
    seen: dict[tuple, Point] = {}
    for point in points:
        key = (point.method, point.model, tuple(sorted(point.settings.items())))
        first = seen.setdefault(key, point)
        if first is not point:
            where = sorted({first.source, point.source})
            settings = "".join(f", {name} {value}" for name, value in key[2])
            raise InputError(
                f"{' and '.join(where)} {'both hold' if where[1:] else 'holds twice'}: "
                f"{point.method} against {point.model}{settings}"
            )


def compare(
    points: Sequence[Point],
    *,
    min_mr: Sequence[float] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Table]:
    """The tables of some comparable points, 8-bit pictures first.

    Without `min_mr`, and where every method has one point against each recogniser, there is
    one table of each kind, of the points as they were run. Else there is a table for each
    entry of `min_mr`: every method stands at its point of least L2 (then of highest MR) among
    those whose MR reaches it, both judged on the table's kind of picture.

    Args:
      points: at least one; see `check_comparable`.
      min_mr: misclassification rates, 0 to 1; None: 0.99 and 0.995, or the points as run.
      confidence: of the intervals, between 0 and 1.
      seed: of the bootstrap.

    Raises:
      InputError: a parameter is out of range.
    """
    statistics.check_confidence(confidence)
    estimator = _Estimator(confidence, seed)
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, point.model), []).append(point)
    as_run = min_mr is None and all(len(group) == 1 for group in groups.values())
    thresholds: Sequence[float | None] = [None] if as_run else (min_mr or MIN_MR)
    return [
        _table(groups, kind, threshold, estimator) for kind in KINDS for threshold in thresholds
    ]


def in_order(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Each name once: those known in their order, then the others alphabetically."""
    given, order = set(names), dict.fromkeys(known)
    return (*(name for name in order if name in given), *sorted(given - order.keys()))


def choose(points: Sequence[Point], kind: str, min_mr: float | None) -> Point | None:
    """The point of least L2 among those whose MR reaches `min_mr`; None if none does."""
    suffix = KINDS[kind]
    # Rates are sums over counts: 1e-9 is below any 1/N and above what rounding does.
    least = -math.inf if min_mr is None else min_mr - 1e-9
    eligible = [point for point in points if point.figures["mr" + suffix] >= least]
    return min(
        eligible,
        key=lambda point: (point.figures["l2" + suffix], -point.figures["mr" + suffix]),
        default=None,
    )


def _table(
    groups: Mapping[tuple[str, str], Sequence[Point]],
    kind: str,
    min_mr: float | None,
    estimator: "_Estimator",
) -> Table:
    entries, gains = {}, {}
    for place, group in groups.items():
        point = choose(group, kind, min_mr)
        entries[place] = Entry(
            point=point,
            best_mr=max(point.figures["mr" + KINDS[kind]] for point in group),
            figures=estimator.figures(point, kind) if point else {},
        )
    models = in_order((model for _, model in groups), MODELS)
    for model in models:
        ours = entries.get((OURS, model))
        for other in OTHERS:
            entry = entries.get((other, model))
            if ours and entry and ours.point and entry.point:
                gains[other, model] = estimator.gains(ours.point, entry.point, kind)
    methods = in_order((method for method, _ in groups), METHODS)
    return Table(kind, min_mr, methods, models, entries, gains)


class _Estimator:
    """Figures and gains with their intervals; what several tables ask for is computed once."""

    def __init__(self, confidence: float, seed: int):
        self._options: dict[str, Any] = {"confidence": confidence, "seed": seed}
        # By identity: points hold mappings, which cannot be hashed.
        self._mean = functools.cache(self._mean_of)
        self._points: dict[int, Point] = {}

    def figures(self, point: Point, kind: str) -> dict[str, Estimate]:
        """The figures of `FIGURES`."""
        self._points[id(point)] = point
        mr, n = point.figures["mr" + KINDS[kind]], point.figures["num_images"]
        rate = statistics.wilson(round(mr * n), n, self._options["confidence"])
        means = {name: self._mean(id(point), name + KINDS[kind]) for name in ("l2", "mssim")}
        return {**means, "mr": Estimate(mr, *rate)}

    def _mean_of(self, point_id: int, name: str) -> Estimate:
        point = self._points[point_id]
        if not point.records:
            return Estimate(point.figures[name])
        values = [record[name] for record in point.records]
        return _estimate(
            point.figures[name], statistics.bootstrap_mean(values, **self._options)
        )

    def gains(self, ours: Point, other: Point, kind: str) -> dict[str, Estimate]:
        """The gain in each figure; without those in which the other method has 0."""
        gains = {}
        for figure, lower_is_better in FIGURES.items():
            name = figure + KINDS[kind]
            if not other.figures[name]:
                continue
            value = gain(
                ours.figures[name], other.figures[name], lower_is_better=lower_is_better
            )
            interval = (math.nan, math.nan)
            pairs = _pairs(ours, other, name) if figure != "mr" else []
            if pairs:
                interval = statistics.bootstrap_gain(
                    *zip(*pairs, strict=True), lower_is_better=lower_is_better, **self._options
                )
            gains[figure] = _estimate(value, interval)
        return gains


def _pairs(ours: Point, other: Point, name: str) -> list[tuple[float, float]]:
    """Both methods' values of each picture; none where their pictures differ."""
    theirs = {picture_of(record): record[name] for record in other.records}
    if {picture_of(record) for record in ours.records} != theirs.keys():
        return []
    return [(record[name], theirs[picture_of(record)]) for record in ours.records]


def _estimate(value: float, interval: statistics.Interval) -> Estimate:
    return Estimate(value) if math.isnan(interval[0]) else Estimate(value, *interval)
