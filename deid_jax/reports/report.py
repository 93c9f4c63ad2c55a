"""The text of a comparison: names, table cells, and an explanation of the tables.

Texts contain no dates, timings or paths other than the runs' names as the user gave them, so
that the same command gives the same bytes.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

from deid_jax.attacks import METHODS
from deid_jax.metrics.statistics import RESAMPLES
from deid_jax.reports.comparable import RECOGNISER_FACTS, SharedFacts
from deid_jax.reports.comparison import (
    OTHERS,
    OURS,
    ComparisonTable,
    Entry,
    Estimate,
    Estimates,
)
from deid_jax.reports.finished_runs import AttributesTable
from deid_jax.reports.measured import FinishedRun, MeasuredPoint, known_first
from deid_jax.reports.tables import percent

TITLE = "De-identification methods side by side"
HEADINGS = ("L2", "MSSIM", "MR")
_KINDS = {"uint8": "8-bit images", "float": "Float results"}
_SYMBOLS = {"step_size": "α {}", "penalty_weight": "λ {}", "epsilon": "ε {}"}
_SYMBOLS |= {"num_steps": "{} steps"}
_NOTHING = "–"
_METRICS = (
    "L2 is the mean of ‖x̂ − x‖₂ with pixels in [0, 1], MSSIM the mean SSIM (the paper's SI), "
    "MR the share of misclassified images; the clean error is that share before the attack, "
    "and part of MR."
)
_GAINS = (
    f" Gains of {METHODS[OURS].title}: (other − ours)/other in L2, (ours − other)/other in "
    "MSSIM and MR."
)


@dataclasses.dataclass(frozen=True)
class ComparisonReport:
    """Everything that a comparison shows.

    `confidence` is the level of the intervals, `seed` the bootstrap's; `attributes` are tables
    of attributes that survive de-identification.
    """

    tables: Sequence[ComparisonTable]
    runs: Sequence[FinishedRun]
    shared: SharedFacts
    confidence: float = 0.95
    seed: int = 0
    attributes: Sequence[AttributesTable] = ()

    @property
    def points(self) -> list[MeasuredPoint]:
        """The points of all runs, by model and method in the tables' order."""
        models, methods = self.tables[0].models, self.tables[0].methods
        return sorted(
            (point for run in self.runs for point in run.points),
            key=lambda point: (models.index(point.model), methods.index(point.method)),
        )


@dataclasses.dataclass(frozen=True)
class TableCell:
    """A number and its interval, as text."""

    text: str
    interval: str = ""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A table row: for each model, one cell per heading and the point's settings."""

    label: str
    is_gain: bool
    cells: Sequence[Sequence[TableCell]]
    settings: Sequence[str]


def title_of_method(method: str) -> str:
    """A method's name as shown to readers."""
    return (METHODS[method].title if method in METHODS else "") or method


def title_of(table: ComparisonTable) -> str:
    """The heading of a table."""
    how = "as run" if table.min_mr is None else f"at MR ≥ {_number(100 * table.min_mr)} %"
    return f"{_KINDS[table.kind]}, {how}"


def settings_of(point: MeasuredPoint) -> str:
    """A point's settings on one line, in the method's order: "α 0.1, λ 1, 50 steps"."""
    known = METHODS[point.method].settings() if point.method in METHODS else ()
    return ", ".join(
        _SYMBOLS.get(name, name + " {}").format(_number(point.settings[name]))
        for name in known_first(point.settings, known)
    )


def _number(value: float | str) -> str:
    """The shortest text of a number, without the rounding error of multiplying by 100."""
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return short if float(short) == value else f"{value:.12g}"


def rows_of(table: ComparisonTable) -> list[TableRow]:
    """A table's rows as text: one per method, then one per gain that any model has."""
    rows = []
    for method in table.methods:
        entries = [table.entries.get((method, model)) for model in table.models]
        settings = [
            (settings_of(entry.point) or "not recorded") if entry and entry.point else ""
            for entry in entries
        ]
        cells = [_cells_of(entry) for entry in entries]
        rows.append(TableRow(title_of_method(method), False, cells, settings))
    for other in OTHERS:
        gains = [table.gains.get((other, model), Estimates()) for model in table.models]
        if any(gain != Estimates() for gain in gains):
            cells = [_cells(gain, (percent, percent, percent)) for gain in gains]
            label = f"gain over {title_of_method(other)}"
            rows.append(TableRow(label, True, cells, [""] * len(gains)))
    return rows


def _cells_of(entry: Entry | None) -> list[TableCell]:
    nothing = [TableCell(_NOTHING)] * (len(HEADINGS) - 1)
    if entry is None:
        return [TableCell("not run"), *nothing]
    if entry.point is None:
        return [TableCell(f"{_NOTHING} (best MR {percent(entry.best_mr)})"), *nothing]
    return _cells(entry.estimates, ("{:.2f}".format, "{:.3f}".format, percent))


def _cells(of: Estimates, forms: Sequence[Callable[[float], str]]) -> list[TableCell]:
    return [_cell(*pair) for pair in zip((of.l2, of.mssim, of.mr), forms, strict=True)]


def _cell(estimate: Estimate | None, form: Callable[[float], str]) -> TableCell:
    if estimate is None:
        return TableCell(_NOTHING)
    text = form(estimate.value)
    if estimate.low is None or estimate.high is None:
        return TableCell(text)
    low, high = (form(end).removesuffix(" %") for end in (estimate.low, estimate.high))
    return TableCell(text, f"{low}, {high}")


def lead(report: ComparisonReport) -> list[str]:
    """Introductory paragraphs: what is compared and how to read the tables."""
    gains = _GAINS if any(table.gains for table in report.tables) else ""
    return [
        f"{_measured(report.shared)}; clean error: {_clean_errors(report.points)}.",
        _METRICS + gains,
        _about_intervals(report),
        *_about_choice(report),
        *_about_unrecorded(report.shared),
    ]


def _measured(shared: SharedFacts) -> str:
    """The data and settings that all runs share."""
    facts = shared.known

    def known(name: str, form: str) -> list[str]:
        return [form.format(facts[name])] if name in facts else []

    folder = facts.get("data_dir", "none")
    where = f"{facts['dataset']}" + (f" ({folder})" if folder != "none" else "")
    images = [f"{facts['num_images']} images of {where}", f"split {facts['split']}"]
    images += known("image_size", "{} px") + known("crop", "crop {}") + known("seed", "seed {}")
    attacks = known("target", "attacks: target {}") + known("init", "init {}")
    attacks += known("precision", "{}") if facts.get("precision") != "float32" else []
    rounded = ["rounded to 8 bits before they are measured"] * bool(facts.get("quantize"))
    return "; ".join(filter(None, map(", ".join, (images, attacks, rounded))))


def _clean_errors(points: Sequence[MeasuredPoint]) -> str:
    errors: dict[str, list[float]] = {point.model: [] for point in points}
    for point in points:
        if point.metrics.clean_error is not None:
            errors[point.model].append(point.metrics.clean_error)
    texts = []
    for model, own in errors.items():
        # There are several if devices round differently.
        ends = dict.fromkeys(map(percent, (min(own), max(own)) if own else ()))
        texts.append(f"{model} {' to '.join(ends) or 'not recorded'}")
    return ", ".join(texts)


def _about_intervals(report: ComparisonReport) -> str:
    means = (
        f"for L2, MSSIM and their gains percentile bootstrap over images ({RESAMPLES} "
        f"resamples, seed {report.seed}; gains in pairs, where both methods have a "
        "per_image.csv)"
    )
    if not any(point.records for point in report.points):
        means = "none for L2 and MSSIM, as no run has a per_image.csv"
    return f"{_number(100 * report.confidence)} % intervals: Wilson's for MR; {means}."


def _about_choice(report: ComparisonReport) -> list[str]:
    if report.tables[0].min_mr is None:
        return []
    counts = collections.Counter((point.model, point.method) for point in report.points)
    numbers = "; ".join(
        f"{model}: "
        + ", ".join(
            f"{title_of_method(own)} {n}" for (of, own), n in counts.items() if of == model
        )
        for model in report.tables[0].models
    )
    return [
        "Every method stands at the setting of least L2 whose MR, on the table's kind of "
        "image, reaches the table's. The setting is chosen on the images that are shown, "
        f"which the intervals do not cover. Settings tried against {numbers}."
    ]


def _about_unrecorded(shared: SharedFacts) -> list[str]:
    whole = {f"recogniser's {name}" for name in RECOGNISER_FACTS}
    groups: dict[tuple[str, ...], list[str]] = {}
    for source, facts in shared.unrecorded.items():
        if whole <= set(facts):
            facts = (*(fact for fact in facts if fact not in whole), "recogniser")
        groups.setdefault(facts, []).append(source)
    return [
        f"Not recorded, and so not checked to be the same: {', '.join(facts)} "
        f"(in {', '.join(sources)})."
        for facts, sources in groups.items()
    ]
