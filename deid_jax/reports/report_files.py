"""Writes a comparison as `table.md`, `table.csv` and `report.html`, and for the terminal.

`table.csv` has one line for each kind of image, required MR, recogniser and method. The gains
of P-FGVM over that method are further columns, as fractions like all rates.
"""

import base64
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from deid_jax.attacks import METHODS
from deid_jax.evaluation.records import Row
from deid_jax.reports.comparison import OURS, ComparisonTable, Estimates
from deid_jax.reports.measured import FinishedRun, known_first
from deid_jax.reports.report import (
    HEADINGS,
    TITLE,
    ComparisonReport,
    lead,
    rows_of,
    settings_of,
    title_of,
    title_of_method,
)
from deid_jax.reports.sheet import as_webp
from deid_jax.reports.tables import percent
from deid_jax.runs import package_versions
from deid_jax.runs.reading import section
from deid_jax.types import Json

if TYPE_CHECKING:
    from rich.table import Table

_LONG = re.compile(r"-?\d+\.\d{4,}")


def report_markdown(report: ComparisonReport) -> str:
    """The content of `table.md`."""
    parts = [f"# {TITLE}", *map(_in_markdown, lead(report))]
    for table in report.tables:
        header = [""]
        for model in table.models:
            header += [f"{model}: {heading}" for heading in (*HEADINGS, "settings")]
        lines = [header]
        for row in rows_of(table):
            line = [row.label]
            for cells, settings in zip(row.cells, row.settings, strict=True):
                line += [
                    f"{cell.text} [{cell.interval}]" if cell.interval else cell.text
                    for cell in cells
                ]
                line.append(settings)
            lines.append(line)
        parts += [f"## {title_of(table)}", _aligned(lines)]
    return "\n\n".join(parts) + "\n"


def _in_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text, with numbers right-aligned."""
    lines = [[_in_markdown(text) for text in line] for line in lines]
    columns = []
    for number, column in enumerate(zip(*lines, strict=True)):
        width = max(3, *map(len, column))
        to_left = number % (len(HEADINGS) + 1) == 0
        rule = ":" + "-" * (width - 1) if to_left else "-" * (width - 1) + ":"
        entries = (column[0], rule, *column[1:])
        columns.append([f"{text:{'<' if to_left else '>'}{width}}" for text in entries])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def csv_rows(report: ComparisonReport) -> list[Row]:
    """The lines of `table.csv`, one for each kind, required MR, model and method that was run.

    If no point reaches the required MR, only `best_mr` is filled in.
    """
    known = [name for method in METHODS.values() for name in method.settings()]
    names = known_first((name for point in report.points for name in point.settings), known)
    return [
        _csv_row(table, method, model, names)
        for table in report.tables
        for model in table.models
        for method in table.methods
        if (method, model) in table.entries
    ]


def _csv_row(table: ComparisonTable, method: str, model: str, names: Iterable[str]) -> Row:
    entry = table.entries[method, model]
    point = entry.point
    return {
        "kind": table.kind,
        "min_mr": table.min_mr,
        "model": model,
        "method": method,
        **{name: point.settings.get(name) if point else None for name in names},
        "num_images": point.metrics.num_images if point else None,
        **_csv_columns("", entry.estimates),
        **_csv_columns("gain_", table.gains.get((method, model), Estimates())),
        "best_mr": entry.best_mr,
        "target_rate": point.means(table.kind).target_rate if point else None,
        "clean_error": point.metrics.clean_error if point else None,
        "source": point.source if point else None,
    }


def _csv_columns(prefix: str, estimates: Estimates) -> Row:
    row: Row = {}
    for name, estimate in vars(estimates).items():
        row[prefix + name] = estimate.value if estimate else None
        if prefix + name != "gain_mr":  # It has no interval.
            row[f"{prefix}{name}_low"] = estimate.low if estimate else None
            row[f"{prefix}{name}_high"] = estimate.high if estimate else None
    return row


def html(report: ComparisonReport, *, frontier: bytes) -> str:
    """The content of `report.html`: a single self-contained file without scripts.

    `frontier` is a PNG file.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "smaller": as_webp,
        "name": title_of_method,
        "settings": lambda point: settings_of(point) or "not recorded",
        "percent": percent,
        "short": lambda text: f"{float(text):.3f}" if _LONG.fullmatch(text) else text,
    }
    template = importlib.resources.files("deid_jax.reports").joinpath("report.html.j2")
    return environment.from_string(template.read_text("utf-8")).render(
        title=TITLE,
        lead=lead(report),
        headings=HEADINGS,
        tables=[(title_of(table), table.models, rows_of(table)) for table in report.tables],
        frontier=frontier,
        points=report.points,
        sheets={point: png for run in report.runs for point, png in run.sheets.items()},
        ours=title_of_method(OURS),
        attributes=report.attributes,
        versions=_versions(report.runs),
    )


def _versions(runs: Sequence[FinishedRun]) -> list[tuple[str, str]]:
    """(runs, versions), grouping runs with equal versions; the report's own come last."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(_listed(section(run.description, "versions")), []).append(run.source)
    own = ("report", _listed(package_versions()))
    return [*((", ".join(sources), text) for text, sources in groups.items()), own]


def _listed(versions: Mapping[str, Json]) -> str:
    return (
        ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"
    )


def for_terminal(table: ComparisonTable) -> "Table":
    """A table for the terminal, with models below each other so that it stays narrow."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title_of(table), title_justify="left")
    for heading in ("", *HEADINGS, "settings"):
        shown.add_column(heading, justify="right" if heading in HEADINGS else "left")
    for number, model in enumerate(table.models):
        shown.add_row(Text(model, style="bold"))
        for row in rows_of(table):
            cells = [
                "\n".join(filter(None, (cell.text, cell.interval)))
                for cell in row.cells[number]
            ]
            shown.add_row(*map(Text, (row.label, *cells, row.settings[number])))
        shown.add_section()
    return shown
