"""The comparison of methods on paper: Markdown, tidy CSV, a page of HTML, and for the terminal.

`table.csv` has a line for each kind of picture, threshold of MR, recogniser and method. The
gains of P-FGVM over the line's method are columns of that line, fractions like all rates. No
output has dates or timings, and of places on the disk only the runs' names as they were given:
the same command gives the same bytes.
"""

import base64
import collections
import dataclasses
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from deid_jax.attacks import METHODS
from deid_jax.metrics.statistics import RESAMPLES
from deid_jax.reports import sheet
from deid_jax.reports.comparison import (
    FIGURES,
    KINDS,
    OTHERS,
    OURS,
    RECOGNISER_FACTS,
    Common,
    Entry,
    Estimate,
    Point,
    Run,
    Table,
    in_order,
)
from deid_jax.runs import run_folder

TITLE = "De-identification methods side by side"
# The paper's names; others go by their own.
_HEADINGS = {"l2": "L2", "mssim": "SI", "mr": "MR"}
_KINDS = {"uint8": "8-bit pictures", "float": "Float results"}
_SYMBOLS = {"step_size": "α {}", "penalty_weight": "λ {}", "epsilon": "ε {}"}
_SYMBOLS |= {"num_steps": "{} steps"}
_NOTHING = "–"
_LONG = re.compile(r"-?\d+\.\d{4,}")
_FIGURES = (
    "L2 is the mean of ‖x̂ − x‖₂ with pixels in [0, 1], SI the mean SSIM, MR the share of "
    "pictures that the recogniser misnames; the clean error is that share before anything is "
    "done, and part of MR."
)
_GAINS = (
    f" Gains of {METHODS[OURS].title}: (other − ours)/other in L2, (ours − other)/other in SI "
    "and MR."
)


@dataclasses.dataclass(frozen=True)
class Report:
    """All that is to be shown.

    Attributes:
      tables: from `deid_jax.reports.comparison.compare`.
      runs: what they were made of.
      common: what the runs share.
      confidence: of the intervals.
      seed: of the bootstrap.
      attributes: (folder, rows of its `attributes.csv`, the headings first).
    """

    tables: Sequence[Table]
    runs: Sequence[Run]
    common: Common
    confidence: float = 0.95
    seed: int = 0
    attributes: Sequence[tuple[str, Sequence[Sequence[str]]]] = ()

    @property
    def points(self) -> list[Point]:
        """The points of all runs, by model and method in the tables' order."""
        models, methods = self.tables[0].models, self.tables[0].methods
        return sorted(
            (point for run in self.runs for point in run.points),
            key=lambda point: (models.index(point.model), methods.index(point.method)),
        )


class Cell(NamedTuple):
    """What stands in a cell: a figure, and its interval in small print."""

    text: str
    interval: str = ""


class Row(NamedTuple):
    """A line of a table: for each model one cell per figure, and the point's settings."""

    label: str
    is_gain: bool
    cells: list[list[Cell]]
    settings: list[str]


def name_of(method: str) -> str:
    """A method's name for people."""
    return (METHODS[method].title if method in METHODS else "") or method


def title_of(table: Table) -> str:
    """What a table is a table of."""
    how = "as run" if table.min_mr is None else f"at MR ≥ {_number(100 * table.min_mr)} %"
    return f"{_KINDS[table.kind]}, {how}"


def settings_of(point: Point) -> str:
    """A point's settings in one line, in the method's order: "α 0.1, λ 1, 50 steps"."""
    known = METHODS[point.method].settings() if point.method in METHODS else ()
    return ", ".join(
        _SYMBOLS.get(name, name + " {}").format(_number(point.settings[name]))
        for name in in_order(point.settings, known)
    )


def _number(value: Any) -> str:
    """The shortest text that means the number, up to what rounding of ×100 leaves behind."""
    if not isinstance(value, int | float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else f"{value:.12g}"


def rows_of(table: Table) -> list[Row]:
    """A table as text: a row a method, then a row a gain that any model has."""
    rows = []
    for method in table.methods:
        entries = [table.entries.get((method, model)) for model in table.models]
        settings = [
            (settings_of(entry.point) or "not recorded") if entry and entry.point else ""
            for entry in entries
        ]
        rows.append(Row(name_of(method), False, [_cells(entry) for entry in entries], settings))
    for other in OTHERS:
        gains = [table.gains.get((other, model), {}) for model in table.models]
        if any(gains):
            cells = [[_gain(gain.get(figure)) for figure in FIGURES] for gain in gains]
            label = f"gain over {name_of(other)}"
            rows.append(Row(label, True, cells, [""] * len(gains)))
    return rows


def _cells(entry: Entry | None) -> list[Cell]:
    nothing = [Cell(_NOTHING)] * len(FIGURES)
    if entry is None:
        return [Cell("not run"), *nothing[1:]]
    if entry.point is None:
        return [Cell(f"{_NOTHING} (best MR {_percent(entry.best_mr)})"), *nothing[1:]]
    forms = {"l2": "{:.2f}".format, "mssim": "{:.3f}".format, "mr": _percent}
    return [_cell(entry.figures[figure], forms[figure]) for figure in FIGURES]


def _gain(estimate: Estimate | None) -> Cell:
    return _cell(estimate, _percent) if estimate else Cell(_NOTHING)


def _cell(estimate: Estimate, form: Any) -> Cell:
    text = form(estimate.value)
    if estimate.low is None or estimate.high is None:
        return Cell(text)
    low, high = (form(end).removesuffix(" %") for end in estimate[1:])
    return Cell(text, f"{low}, {high}")


def _percent(fraction: float) -> str:
    # Adding 0 makes 0 of -0.
    return f"{round(100 * fraction, 1) + 0:.1f} %"


def lead(report: Report) -> list[str]:
    """What is compared and how to read it: sentences, a paragraph each."""
    facts = report.common.facts

    def told(name: str, form: str) -> list[str]:
        return [form.format(facts[name])] if name in facts else []

    folder = facts.get("data_dir", "none")
    where = facts["dataset"] + (f" ({folder})" if folder != "none" else "")
    pictures = [f"{facts['num_images']} pictures of {where}", f"split {facts['split']}"]
    pictures += told("image_size", "{} px") + told("crop", "crop {}") + told("seed", "seed {}")
    attacks = told("target", "attacks: target {}") + told("init", "init {}")
    attacks += told("precision", "{}") if facts.get("precision") != "float32" else []
    rounded = ["rounded to 8 bits before they are measured"] * bool(facts.get("quantize"))
    what = filter(None, map(", ".join, (pictures, attacks, rounded)))
    gains = _GAINS if any(table.gains for table in report.tables) else ""
    return [
        f"{'; '.join(what)}; clean error: {_clean_errors(report.points)}.",
        _FIGURES + gains,
        _about_intervals(report),
        *_about_choice(report),
        *_about_unrecorded(report.common),
    ]


def _clean_errors(points: Sequence[Point]) -> str:
    known: dict[str, list[float]] = {}
    for point in points:
        error = point.figures["clean_error"]
        known.setdefault(point.model, []).extend([] if error is None else [error])
    texts = []
    for model, errors in known.items():
        # More than one where devices round differently.
        ends = dict.fromkeys(map(_percent, (min(errors), max(errors)) if errors else ()))
        texts.append(f"{model} {' to '.join(ends) or 'not recorded'}")
    return ", ".join(texts)


def _about_intervals(report: Report) -> str:
    means = (
        f"for L2, SI and their gains percentile bootstrap over pictures ({RESAMPLES} "
        f"resamples, seed {report.seed}; gains in pairs, where both methods have a "
        "per_image.csv)"
    )
    if not any(point.records for point in report.points):
        means = "none for L2 and SI, as no run has a per_image.csv"
    return f"{_number(100 * report.confidence)} % intervals: Wilson's for MR; {means}."


def _about_choice(report: Report) -> list[str]:
    if report.tables[0].min_mr is None:
        return []
    counts = collections.Counter((point.model, point.method) for point in report.points)
    numbers = "; ".join(
        f"{model}: "
        + ", ".join(f"{name_of(own)} {n}" for (of, own), n in counts.items() if of == model)
        for model in report.tables[0].models
    )
    return [
        "Every method stands at the setting of least L2 whose MR, on the table's kind of "
        "picture, reaches the table's. The setting is chosen on the pictures that are shown, "
        f"which the intervals do not cover. Settings tried against {numbers}."
    ]


def _about_unrecorded(common: Common) -> list[str]:
    whole = {f"recogniser's {name}" for name in RECOGNISER_FACTS}
    groups: dict[tuple[str, ...], list[str]] = {}
    for source, facts in common.unrecorded.items():
        if whole <= set(facts):
            facts = (*(fact for fact in facts if fact not in whole), "recogniser")
        groups.setdefault(facts, []).append(source)
    return [
        f"Not recorded, and so not checked to be the same: {', '.join(facts)} "
        f"(in {', '.join(sources)})."
        for facts, sources in groups.items()
    ]


def markdown(report: Report) -> str:
    """`table.md`."""
    parts = [f"# {TITLE}", *map(_in_markdown, lead(report))]
    for table in report.tables:
        header = [""]
        for model in table.models:
            header += [f"{model}: {heading}" for heading in _HEADINGS.values()]
            header.append(f"{model}: settings")
        lines = [header]
        for row in rows_of(table):
            line = [row.label]
            for cells, settings in zip(row.cells, row.settings, strict=True):
                line += [_inline(cell) for cell in cells] + [settings]
            lines.append(line)
        parts += [f"## {title_of(table)}", _aligned(lines)]
    return "\n\n".join(parts) + "\n"


def _inline(cell: Cell) -> str:
    return f"{cell.text} [{cell.interval}]" if cell.interval else cell.text


def _in_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown whose columns line up in plain text, figures to the right."""
    lines = [[_in_markdown(text) for text in line] for line in lines]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    to_left = [column % (len(FIGURES) + 1) == 0 for column in range(len(widths))]
    rule = [
        ":" + "-" * (width - 1) if left else "-" * (width - 1) + ":"
        for width, left in zip(widths, to_left, strict=True)
    ]
    padded = [
        [
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(line, widths, to_left, strict=True)
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def records(report: Report) -> list[dict[str, Any]]:
    """`table.csv`: a record for each kind, threshold, model and method that was run.

    Where no point reaches the threshold, all of it but `best_mr` is empty.
    """
    known = [name for method in METHODS.values() for name in method.settings()]
    names = in_order((name for point in report.points for name in point.settings), known)
    return [
        _record(table, method, model, names)
        for table in report.tables
        for model in table.models
        for method in table.methods
        if (method, model) in table.entries
    ]


def _record(table: Table, method: str, model: str, names: Iterable[str]) -> dict[str, Any]:
    entry, gains = table.entries[method, model], table.gains.get((method, model), {})
    point = entry.point
    settings, figures = (point.settings, point.figures) if point else ({}, {})
    record = {"kind": table.kind, "min_mr": table.min_mr, "model": model, "method": method}
    record |= {name: settings.get(name) for name in names}
    record["num_images"] = figures.get("num_images")
    for prefix, estimates in (("", entry.figures), ("gain_", gains)):
        for figure in FIGURES:
            estimate = estimates.get(figure)
            # Bootstrap intervals say nothing of rates near 1.
            for end in ("value",) if prefix + figure == "gain_mr" else Estimate._fields:
                column = prefix + figure + ("" if end == "value" else f"_{end}")
                record[column] = getattr(estimate, end) if estimate else None
    return record | {
        "best_mr": entry.best_mr,
        "target_rate": figures.get("target_rate" + KINDS[table.kind]),
        "clean_error": figures.get("clean_error"),
        "source": point.source if point else None,
    }


def html(report: Report, *, frontier: bytes) -> str:
    """`report.html`: one file that needs no other, and no script.

    Args:
      report: what to show.
      frontier: a PNG, see `deid_jax.reports.frontier.draw`.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "smaller": sheet.as_webp,
        "name": name_of,
        "settings": lambda point: settings_of(point) or "not recorded",
        "percent": _percent,
        "short": lambda text: f"{float(text):.3f}" if _LONG.fullmatch(text) else text,
    }
    template = importlib.resources.files("deid_jax.reports").joinpath("report.html.j2")
    return environment.from_string(template.read_text("utf-8")).render(
        title=TITLE,
        lead=lead(report),
        headings=list(_HEADINGS.values()),
        tables=[(title_of(table), table.models, rows_of(table)) for table in report.tables],
        frontier=frontier,
        points=report.points,
        ours=name_of(OURS),
        attributes=report.attributes,
        versions=_versions(report.runs),
    )


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(whose, versions): of the runs, those of equal versions together, and of the report."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        versions = run.description.get("versions")
        groups.setdefault(_listed(versions), []).append(run.source)
    own = _listed(run_folder.describe()["versions"])
    return [*((", ".join(sources), text) for text, sources in groups.items()), ("report", own)]


def _listed(versions: Any) -> str:
    if not isinstance(versions, Mapping):
        return "not recorded"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def terminal(table: Table) -> Any:
    """A table for the terminal, the models one below the other so that it stays narrow."""
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=title_of(table), title_justify="left")
    for heading in ("", *_HEADINGS.values(), "settings"):
        shown.add_column(heading, justify="right" if heading in _HEADINGS.values() else "left")
    for number, model in enumerate(table.models):
        shown.add_row(Text(model, style="bold"))
        for row in rows_of(table):
            cells = ["\n".join(filter(None, cell)) for cell in row.cells[number]]
            shown.add_row(*map(Text, (row.label, *cells, row.settings[number])))
        shown.add_section()
    return shown
