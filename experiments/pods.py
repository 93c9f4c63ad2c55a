"""Forecasts a run over many devices: pictures/s, hours and cost for 1 to 1,024 of them.

    python -m experiments.pods --run=runs/attack/RUN --price=2.5

A model, not a measurement: rates that experiments.attack has measured on few devices, and
what reading, writing, starting and failing devices take of them. Flags stand in for any of
the measured rates, and for all without --run. Prints the figures used and where each is from,
the forecast, and what it assumes; with --output_dir also writes `pods.csv`, `pods.md`,
`pods.png` and `config.json`.
"""

import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax import pods, reporting
from deid_jax._validate import InputError, count
from deid_jax.pods import Forecast, Job, Rates
from deid_jax.reporting import RunFolder
from experiments import cli
from experiments.cli import setting
from experiments.growth import parse_counts

_CONTENTS = ("pods.csv", "pods.md", "pods.png")
_MOST_DEVICES = 1024
# What needs a flag where there is no run.
_MEASURED = ("device_rate", "read_rate", "write_rate", "startup_seconds", "shard_size")
_UNITS = {
    "device_rate": "pictures/s a device",
    "read_rate": "pictures/s a host",
    "write_rate": "pictures/s a host",
    "core_rate": "pictures/s a host",
    "startup_seconds": "seconds",
    "shard_size": "pictures",
}
_RESULTS = ("devices", "hosts", "pictures/s", "efficiency", "hours", "device hours")
_SHARES = ("devices", "useful", "waiting", "uneven", "start-up", "redone", "failures")
_LEGEND = (
    "Efficiency: pictures/s over those of one device times their number. Shares of the wall "
    "time: useful, of attacking at full rate; waiting, for files; uneven, of hosts with less "
    "to do than others; start-up, the first; redone, lost to failures and starting again. "
    "Failures: their expected number."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodsSettings:
    """Settings of `experiments.pods`."""

    run: str | None = setting(
        None, "Folder of a run of experiments.attack, to take the measured figures from."
    )
    device_rate: float | None = setting(
        None, "Pictures/s that a device attacks; default: the run's."
    )
    read_rate: float | None = setting(None, "Pictures/s that a host reads; default: the run's.")
    write_rate: float | None = setting(
        None, "Pictures/s that a host writes; default: the run's."
    )
    core_rate: float | None = setting(
        None,
        "Pictures/s that a host's cores can both read and write; default: the run's, and no "
        "bound where --read_rate or --write_rate is given.",
    )
    startup_seconds: float | None = setting(
        None, "From the start of the processes to the first batch; default: the run's."
    )
    restart_seconds: float = setting(
        pods.NOTICE_SECONDS,
        "From a failure to the next start of the processes: until the others notice, and what "
        "the scheduler takes.",
    )
    host_cores: int | None = setting(
        None,
        "Cores of a host; the run's rates of reading and writing grow in proportion. "
        "Default: as many as the run's.",
    )
    storage_rate: float | None = setting(
        None,
        "Pictures/s that the shared file system serves to all hosts, read and written; "
        "default: no bound.",
    )
    num_images: int = setting(200_000, "Pictures to de-identify.")
    shard_size: int | None = setting(None, "Pictures of a shard; default: the run's.")
    devices_per_host: int = setting(8, "Devices of a host.")
    devices: str | None = setting(
        None,
        "Numbers of devices, by commas; default: 1, 2, 4 and so on up to 1,024, whole hosts "
        "beyond the first.",
    )
    mtbf_hours: float = setting(
        pods.MTBF_HOURS,
        "Mean time between failures of one device, any that stops the run; inf for none. The "
        "default is what 16,384 H100 had in 54 days of training Llama 3: 419 interruptions.",
    )
    price: float | None = setting(None, "Of a device for an hour; default: no costs.")
    output_dir: str | None = setting(None, "Where to write; default: nothing is written.")

    def device_counts(self) -> tuple[int, ...]:
        """The numbers of --devices.

        Raises:
          InputError: anything but increasing integers >= 1.
        """
        if self.devices is not None:
            return parse_counts("devices", self.devices)
        below = [2**k for k in range(11) if 2**k < self.devices_per_host]
        whole = [self.devices_per_host * 2**k for k in range(11)]
        return tuple(n for n in below + whole if n <= _MOST_DEVICES)


class Figure(NamedTuple):
    """A figure that the forecast rests on: its value, and where that is from."""

    value: float
    source: str


class _Run:
    """The figures of a finished run.

    Args:
      folder: a folder that experiments.attack has written.

    Raises:
      InputError: it is none, or its `metrics.json` is broken.
    """

    def __init__(self, folder: Path):
        self.path = folder / "metrics.json"
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "does not exist"
            raise InputError(f"run: {folder} {what}")
        if not self.path.is_file():
            raise InputError(f"run: {folder} has no metrics.json: experiments.attack writes it")
        try:
            self._figures = json.loads(self.path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path} is broken: {error}") from error
        if not isinstance(self._figures, dict):
            raise InputError(f"{self.path} is broken: it must be a JSON object")

    def __call__(self, name: str, flag: str) -> float:
        """The figure of a name, > 0; `flag` is what can be given instead."""
        value = self._figures.get(name)
        if value is None:
            raise InputError(
                f"{self.path} has no {name}: run experiments.attack again, which writes it, "
                f"or give --{flag}"
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            raise InputError(
                f"{self.path}: {name} must be a number > 0, got {value!r}; or give --{flag}"
            )
        return value


def figures_used(settings: PodsSettings) -> dict[str, Figure]:
    """The measured figures, by the name of the flag that can stand in for each.

    Raises:
      InputError: one is neither given nor in the run, or the run is broken.
    """
    given = {
        name: Figure(value, f"--{name}")
        for name in _UNITS
        if (value := getattr(settings, name)) is not None
    }
    missing = [name for name in _MEASURED if name not in given]
    if settings.run is None:
        if missing:
            flags = ", ".join(f"--{name}" for name in missing)
            raise InputError(f"without --run the figures are to be given: {flags}")
        if settings.host_cores is not None:
            raise InputError("--host_cores means nothing without --run: no rate to scale")
        return given
    if settings.host_cores is not None and not {"read_rate", "write_rate"} & set(missing):
        raise InputError(
            "--host_cores means nothing where --read_rate and --write_rate are given"
        )
    run = _Run(Path(settings.run))
    wanted = list(missing)
    if not {"read_rate", "write_rate", "core_rate"} & set(given):
        wanted.append("core_rate")
    measured = {name: _measured(run, name, settings.host_cores) for name in wanted}
    found = given | measured
    return {name: found[name] for name in _UNITS if name in found}


def _measured(run: _Run, name: str, host_cores: int | None) -> Figure:
    """A figure as the run has it, brought to `host_cores` cores."""
    if name in ("startup_seconds", "shard_size"):
        return Figure(run(name, name), name)
    attacked = run("num_attacked", name)
    if name == "device_rate":
        seconds = run("num_devices", name) * run("attack_seconds", name)
        return Figure(attacked / seconds, "num_attacked / (num_devices × attack_seconds)")
    both = "read_rate and --write_rate"
    cores = run("host_cores", both)
    scale, scaled = 1.0, ""
    if host_cores is not None:
        scale, scaled = host_cores / cores, f" × {host_cores} / {cores} cores"
    if name == "core_rate":
        seconds = run("read_seconds", both) + run("write_seconds", both)
        source = f"{cores} cores × num_attacked / (read_seconds + write_seconds)"
        return Figure(scale * cores * attacked / seconds, source + scaled)
    part = name.removesuffix("_rate")
    threads = min(run(f"{part}_threads", name), cores)
    source = f"{threads} threads × num_attacked / {part}_seconds"
    return Figure(scale * threads * attacked / run(f"{part}_seconds", name), source + scaled)


def run(settings: PodsSettings) -> list[Forecast]:
    """Forecasts, writes where --output_dir is given, prints; returns the forecasts.

    Raises:
      InputError: bad settings, or a run without the figures; nothing is written then.
    """
    if settings.host_cores is not None:
        count("host_cores", settings.host_cores, least=1)
    counts = settings.device_counts()
    folder = None
    if settings.output_dir is not None:
        folder = RunFolder(Path(settings.output_dir), _CONTENTS)
        folder.check()
    used = figures_used(settings)
    rates, job = _rates(settings, used), _job(settings, used)
    forecasts = [pods.forecast(rates, job, number) for number in counts]
    page = _Page(settings, used, rates, job, forecasts)
    if folder:
        with folder:
            folder.write_csv("pods.csv", [one._asdict() for one in forecasts])
            folder.write_text("pods.md", page.markdown())
            folder.write_bytes("pods.png", pods.draw(forecasts, title=page.what()))
            folder.write_json(reporting.DESCRIPTION, reporting.describe(settings))
    page.show()
    if folder:
        print(f"Table and figure: {folder.path / 'pods.md'}, {folder.path / 'pods.png'}")
    return forecasts


def _rates(settings: PodsSettings, used: Mapping[str, Figure]) -> Rates:
    rates = {name: figure.value for name, figure in used.items() if name != "shard_size"}
    if settings.storage_rate is not None:
        rates["storage_rate"] = settings.storage_rate
    return Rates(restart_seconds=settings.restart_seconds, **rates)


def _job(settings: PodsSettings, used: Mapping[str, Figure]) -> Job:
    size: Any = used["shard_size"].value
    return Job(
        num_images=settings.num_images,
        shard_size=size,
        devices_per_host=settings.devices_per_host,
        mtbf_hours=settings.mtbf_hours,
        price=settings.price,
    )


class _Grid(NamedTuple):
    """A table of texts: numbers to the right, the columns in `words` to the left."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()

    def rich(self) -> Table:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        for name in self.columns:
            justify: Any = "left" if name in self.words else "right"
            # Two lines of two words, so that eight columns fit on a narrow terminal.
            table.add_column(name.replace(" ", "\n"), justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        rules = [":--" if name in self.words else "--:" for name in self.columns]
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, rules, *self.rows)]
        return "\n".join([f"## {self.heading}", "", *lines])


@dataclasses.dataclass(frozen=True)
class _Page:
    """The forecast in words and tables, for the terminal and for Markdown."""

    settings: PodsSettings
    used: Mapping[str, Figure]
    rates: Rates
    job: Job
    forecasts: Sequence[Forecast]

    def what(self) -> str:
        """What is forecast, in a line."""
        return (
            f"{self.job.num_images:,} pictures in shards of {self.job.shard_size:,}, "
            f"{self.job.devices_per_host} devices a host"
        )

    def grids(self) -> list[_Grid]:
        """The figures used, what the run comes to, and where its time goes."""
        run = f" (run: {self.settings.run})" if self.settings.run else ""
        used = [
            (name, _number(figure.value), _UNITS[name], figure.source)
            for name, figure in self.used.items()
        ]
        costs = [] if self.job.price is None else ["cost"]
        results = []
        for one in self.forecasts:
            numbers = (one.images_per_second, one.seconds / 3600, one.device_hours, one.cost)
            rate, hours, device_hours, *cost = (_number(n) for n in numbers if n is not None)
            head = f"{one.num_devices:,}", f"{one.num_hosts:,}", rate, _share(one.efficiency)
            results.append([*head, hours, device_hours, *cost, one.bottleneck])
        return [
            _Grid(
                f"Measured figures{run}",
                ("figure", "value", "unit", "from"),
                used,
                ("figure", "unit", "from"),
            ),
            _Grid(
                "Forecast",
                (*_RESULTS, *costs, "slowest part"),
                results,
                ("slowest part",),
            ),
            _Grid("Where the time goes", _SHARES, [_shares(one) for one in self.forecasts]),
        ]

    def assumptions(self) -> list[str]:
        """What the forecast rests on."""
        lines = pods.assumptions(self.rates, self.job)
        if self.settings.host_cores is not None:
            lines.insert(2, "Reading and writing grow in proportion to the cores of a host.")
        return lines

    def markdown(self) -> str:
        """The page as a file."""
        lines = [f"- {line}" for line in self.assumptions()]
        tables = "\n\n".join(grid.markdown() for grid in self.grids())
        assumed = "\n".join(["## Assumptions", "", *lines])
        return f"# {self.what()}\n\n{tables}\n\n{_LEGEND}\n\n{assumed}\n"

    def show(self) -> None:
        """The page on the terminal."""
        console = Console()
        wrap = textwrap.TextWrapper(width=console.width, break_on_hyphens=False)
        print(wrap.fill(f"{self.what()}: a forecast, not a measurement."))
        for grid in self.grids():
            print(f"\n{grid.heading}:")
            console.print(grid.rich())
        print("\n" + wrap.fill(_LEGEND))
        print("\nAssumptions:")
        wrap.initial_indent, wrap.subsequent_indent = "- ", "  "
        for line in self.assumptions():
            print(wrap.fill(line))


def _shares(one: Forecast) -> list[str]:
    shares = (
        one.useful_share,
        one.waiting_share,
        one.uneven_share,
        one.startup_share,
        one.failure_share,
    )
    failures = "<0.001" if 0 < one.num_failures < 0.001 else _number(one.num_failures)
    return [f"{one.num_devices:,}", *map(_share, shares), failures]


def _share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _number(value: float) -> str:
    """Three digits, or all of those before the point unless they are many."""
    if math.isinf(value):
        return "∞"
    if abs(value) >= 1e9:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


main = cli.binary(run, PodsSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
