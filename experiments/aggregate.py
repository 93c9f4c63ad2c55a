"""Compares finished runs in the paper's table, with confidence intervals.

    python -m experiments.aggregate --runs=runs/attack
    python -m experiments.aggregate --runs=runs/sweep/a,runs/attack/b --min_mr=0.99

A run is a folder written by experiments.attack or experiments.sweep; any other folder is
searched for runs. Runs with different images, targets, seeds or recognisers cannot be compared
and are refused. If a method was run at several settings, the table shows the one with the
smallest L2 that reaches the required misclassification rate. Writes `table.md`, `table.csv`
(one line per kind of image, rate, model and method) and `report.html` into --output_dir.
"""

import dataclasses
import sys
from pathlib import Path

from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.metrics import statistics
from deid_jax.reports import report_files
from deid_jax.reports.comparable import check_comparable
from deid_jax.reports.comparison import ComparisonTable, tables_of
from deid_jax.reports.finished_runs import find_runs, kind_of, read_attributes, read_run
from deid_jax.reports.frontier import draw_frontier
from deid_jax.reports.report import ComparisonReport
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from deid_jax.runs.reading import number_in
from experiments._common import cli
from experiments._common.flags import setting

_CONTENTS = ("table.md", "table.csv", "report.html")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AggregateSettings:
    """Settings of `experiments.aggregate`."""

    runs: str | None = setting(None, "Folders of runs, separated by commas; required.")
    min_mr: str | None = setting(
        None,
        "Misclassification rates, separated by commas: a table for each, with every method at "
        "the least L2 that reaches it. Default: 0.99,0.995 if a method has several settings, "
        "else one table of the runs as they are.",
    )
    confidence: float = setting(0.95, "Share of intervals that contain the true value.")
    seed: int = setting(0, "Decides the bootstrap's resamples.")
    output_dir: str = setting("runs/aggregate", "Where to write.")

    def rates(self) -> list[float] | None:
        """The rates given by --min_mr; None without the flag."""
        if self.min_mr is None:
            return None
        rates = []
        for text in self.min_mr.split(","):
            rate = number_in(text)
            if rate is None or not 0 <= rate <= 1:
                raise InputError(
                    f"min_mr must be numbers from 0 to 1 by commas, got {self.min_mr}"
                )
            rates.append(rate)
        return list(dict.fromkeys(rates))

    def folders(self) -> list[Path]:
        """The folders given by --runs."""
        names = [name.strip() for name in (self.runs or "").split(",")]
        if not all(names):
            raise InputError("runs must be folders by commas: --runs=DIR,DIR...")
        for name in names:
            if not Path(name).is_dir():
                what = "is no folder" if Path(name).exists() else "does not exist"
                raise InputError(f"runs: {name} {what}")
        return [Path(name) for name in names]


def run(settings: AggregateSettings) -> list[ComparisonTable]:
    """Reads and compares the runs, writes and prints the tables, and returns them.

    Raises:
      InputError: bad settings, a broken run, or runs that cannot be compared. Nothing is
        written in that case.
    """
    from rich.console import Console

    rates, folders = settings.rates(), settings.folders()
    statistics.check_confidence(settings.confidence)
    count("seed", settings.seed)
    output = RunFolder(Path(settings.output_dir), _CONTENTS)
    output.check()
    found = find_runs(folders)
    if output.path.resolve() in (folder.resolve() for folder in found):
        raise InputError(f"output_dir {output.path} is one of the runs: name another folder")
    runs = [read_run(folder) for folder in found if kind_of(folder)]
    points = [point for run in runs for point in run.points]
    shared = check_comparable(runs)
    attributes = read_attributes(found, shared)
    confidence, seed = settings.confidence, settings.seed
    tables = tables_of(points, min_mr=rates, confidence=confidence, seed=seed)
    report = ComparisonReport(tables, runs, shared, confidence, seed, attributes)
    page = report_files.html(report, frontier=draw_frontier(points))
    with output:
        output.write_text("table.md", report_files.report_markdown(report))
        output.write_csv("table.csv", report_files.csv_rows(report))
        output.write_text("report.html", page)
        description = describe(settings, runs=[run.source for run in runs])
        output.write_json(DESCRIPTION, description)
    Console().print(report_files.for_terminal(tables[0]))
    print(f"Runs: {len(runs)}, points: {len(points)}. Tables and report: {output.path}")
    return tables


main = cli.binary(run, AggregateSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
