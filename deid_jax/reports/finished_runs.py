"""Finds, reads and checks finished runs on disk, before anything is compared.

A run is a folder written by `experiments.attack` (`metrics.json`) or `experiments.sweep`
(`sweep.csv`). Anything wrong with a run raises `InputError` with one line.
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from deid_jax.attacks import METHODS
from deid_jax.errors import InputError
from deid_jax.evaluation.records import ImageRecord, RunMetrics, summary
from deid_jax.reports.comparable import SharedFacts, check_no_point_twice
from deid_jax.reports.measured import FinishedRun, MeasuredPoint, Setting
from deid_jax.runs import DESCRIPTION
from deid_jax.runs.reading import (
    CsvLine,
    RowReader,
    number_in,
    read_csv,
    read_json,
    section,
)

_RECORDS = "per_image.csv"


@dataclasses.dataclass(frozen=True)
class AttributesTable:
    """The content of an `attributes.csv`: its folder, headings and lines."""

    source: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def kind_of(folder: Path) -> str | None:
    """The file that makes a folder a run; None if the folder is not a run.

    Raises:
      InputError: the folder has the files of both kinds of run.
    """
    kinds = [name for name in ("metrics.json", "sweep.csv") if (folder / name).is_file()]
    if len(kinds) > 1:
        raise InputError(f"{folder} holds metrics.json and sweep.csv: give each its own folder")
    return kinds[0] if kinds else None


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Finds runs, and folders with `attributes.csv`, in and below the given folders.

    Raises:
      InputError: a folder contains no run, or a run is found twice.
    """
    found: dict[Path, Path] = {}
    for given in folders:
        below = list(_walk(given, ()))
        if not below:
            raise InputError(f"runs: there is no run in {given}")
        for folder in below:
            first = found.setdefault(folder.resolve(), folder)
            if first is not folder:
                also = "" if first == folder else f" (as {first}, too)"
                raise InputError(f"runs: {folder} is given twice{also}")
    if not any(map(kind_of, found.values())):
        raise InputError(f"runs: there is no run in {folders[0]}")
    return list(found.values())


def _walk(folder: Path, above: Sequence[Path]) -> Iterator[Path]:
    """Runs and attribute folders in and below a folder, but not in hidden folders or runs."""
    if kind_of(folder) or (folder / "attributes.csv").is_file():
        yield folder
    inside = (*above, folder.resolve())
    if not kind_of(folder):
        for entry in sorted(folder.iterdir()):
            # A link may lead back to a folder above it.
            if entry.is_dir() and entry.name[0] != "." and entry.resolve() not in inside:
                yield from _walk(entry, inside)


def read_run(folder: Path) -> FinishedRun:
    """Reads an attack run or a sweep.

    Raises:
      InputError: a file is damaged or inconsistent with the others.
    """
    path = folder / DESCRIPTION
    description = read_json(path) if path.exists() else {}
    if kind_of(folder) == "metrics.json":
        point = _read_attack(folder)
        points, sheets = [point], {point: folder / "sheet.png"}
    else:
        points = _read_sweep(folder)
        shown = section(description, "shown")
        sheets = {
            point: folder / "sheets" / f"{point.method}.png"
            for point in points
            if _settings(section(shown, point.method), str(path)) == point.settings
        }
    drawn = {point: _png(path) for point, path in sheets.items() if path.exists()}
    return FinishedRun(str(folder), points, description, drawn)


def _read_attack(folder: Path) -> MeasuredPoint:
    path = folder / "metrics.json"
    metrics = read_json(path)
    config = metrics.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{path}: config must be an object, got {config!r}")
    records = [ImageRecord.from_row(line.entries, line.where) for line in _lines(folder)]
    return _with_records(
        _point(folder, metrics, _settings(config, str(path)), str(path)), records
    )


def _read_sweep(folder: Path) -> list[MeasuredPoint]:
    path = folder / "sweep.csv"
    lines = read_csv(path)
    if not lines:
        raise InputError(f"{path} has no rows")
    known = dict.fromkeys(name for method in METHODS.values() for name in method.settings())
    names = [name for name in known if name in lines[0].entries]
    points = [
        _point(folder, line.entries, _settings_in(line, names), line.where) for line in lines
    ]
    check_no_point_twice(points)
    records: dict[_Key, list[ImageRecord]] = {
        _key(point.method, point.settings): [] for point in points
    }
    for line in _lines(folder, ("method", *names)):
        key = _key(line.entries["method"], _settings_in(line, names))
        if key not in records:
            raise InputError(f"{line.where} does not belong: {path} has no such point")
        records[key].append(ImageRecord.from_row(line.entries, line.where))
    return [_with_records(p, records[_key(p.method, p.settings)]) for p in points]


_Key = tuple[str, frozenset[tuple[str, Setting]]]


def _key(method: str, settings: Mapping[str, Setting]) -> _Key:
    return method, frozenset(settings.items())


def _point(
    folder: Path, row: Mapping[str, object], settings: Mapping[str, Setting], where: str
) -> MeasuredPoint:
    read = RowReader(row, where)
    return MeasuredPoint(
        method=read.text("method"),
        model=read.text("model"),
        dataset=read.text("dataset"),
        split=read.text("split"),
        settings=settings,
        metrics=RunMetrics.from_row(row, where),
        source=str(folder),
    )


def _lines(folder: Path, columns: Sequence[str] = ()) -> list[CsvLine]:
    """The lines of `per_image.csv`; empty if there is no such file."""
    path = folder / _RECORDS
    return read_csv(path, columns) if path.exists() else []


def _with_records(point: MeasuredPoint, records: Sequence[ImageRecord]) -> MeasuredPoint:
    """The point with its records, if the folder has any; they must have its means."""
    path, told = Path(point.source) / _RECORDS, point.metrics
    if not path.exists():
        return point
    if len(records) != told.num_images:
        raise InputError(
            f"{path} does not belong: {len(records)} images, not {told.num_images}"
        )
    seen: set[str] = set()
    for record in records:
        if record.image in seen:
            raise InputError(f"{path} has the image {record.image} twice")
        seen.add(record.image)
    means = summary(records).to_row()
    for name, expected in told.to_row().items():
        # Other programs need not have measured everything.
        if not isinstance(expected, float) or math.isnan(expected):
            continue
        own = means[name]
        mean = own if isinstance(own, float) else math.nan
        if not math.isclose(mean, expected, rel_tol=1e-4, abs_tol=1e-6):
            raise InputError(
                f"{path} does not belong: its mean {name} is {mean:g}, not {expected:g}"
            )
    return dataclasses.replace(point, records=records)


def _settings_in(line: CsvLine, names: Sequence[str]) -> dict[str, Setting]:
    return _settings({name: line.entries[name] for name in names}, line.where)


def _settings(values: Mapping[str, object], where: str) -> dict[str, Setting]:
    """A method's settings, from JSON (where infinity is a string) or CSV."""
    settings: dict[str, Setting] = {}
    for name, value in values.items():
        if isinstance(value, bool):
            value = str(value)  # The same form as in CSV.
        elif isinstance(value, str):
            number = number_in(value)
            value = value if number is None else number
        if value is None or value == "":
            continue
        if not isinstance(value, int | float | str) or value != value:
            raise InputError(f"{where}: {name} must be a number, got {value}")
        settings[name] = value
    return settings


def _png(path: Path) -> bytes:
    """The bytes of an image file, which can be read."""
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a PNG file") from error
    return content


def read_attributes(folders: Sequence[Path], facts: SharedFacts) -> list[AttributesTable]:
    """Reads every `attributes.csv` in the given folders.

    Raises:
      InputError: a table is damaged, empty, or about other images than the runs.
    """
    tables = []
    for path in (folder / "attributes.csv" for folder in folders):
        if not path.is_file():
            continue
        lines = read_csv(path)
        if not lines:
            raise InputError(f"{path} has no rows")
        beside = path.with_name(DESCRIPTION)
        data = section(read_json(beside), "data") if beside.exists() else {}
        for name in ("dataset", "split", "image_size", "seed"):
            one, other = data.get(name), facts.known.get(name)
            if None not in (one, other) and one != other:
                raise InputError(
                    f"{path.parent} and the runs cannot be compared: {name} is {one} and "
                    f"{other}"
                )
        rows = [list(line.entries.values()) for line in lines]
        tables.append(AttributesTable(str(path.parent), list(lines[0].entries), rows))
    return tables
