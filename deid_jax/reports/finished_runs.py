"""Finished runs as they lie on disk: found, read and checked, all before anything is compared.

A run is a folder that `experiments.attack` (`metrics.json`) or `experiments.sweep`
(`sweep.csv`) has written. Whatever is wrong with one raises `InputError` with one line.
"""

import csv
import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deid_jax.attacks import METHODS
from deid_jax.errors import InputError
from deid_jax.reports import comparison
from deid_jax.reports.comparison import Point, Run, picture_of
from deid_jax.runs import run_folder

_TEXTS = ("method", "model", "dataset", "split")
_DISTANCES = ("l2", "linf", "l2_uint8")
_SIMILARITIES = ("mssim", "mssim_uint8")
_RATES = ("mr", "mr_uint8", "target_rate", "clean_error")
# Untargeted attacks hit no target, and published figures come without the clean error.
_MAY_BE_ABSENT = ("target_rate", "clean_error")
_REQUIRED = (*_TEXTS, "num_images", *_DISTANCES, *_SIMILARITIES, *_RATES, "num_gradients")
_PER_IMAGE = ("l2", "mssim", "l2_uint8", "mssim_uint8")
_PNG = b"\x89PNG\r\n\x1a\n"


def kind_of(folder: Path) -> str | None:
    """The file that makes a folder a run; None if it is none.

    Raises:
      InputError: it is two.
    """
    kinds = [name for name in ("metrics.json", "sweep.csv") if (folder / name).is_file()]
    if len(kinds) > 1:
        raise InputError(f"{folder} holds metrics.json and sweep.csv: give each its own folder")
    return kinds[0] if kinds else None


def find(folders: Sequence[Path]) -> list[Path]:
    """The runs, and folders with `attributes.csv`, at and below the folders given.

    Raises:
      InputError: there is no run in one of them, or one is found twice.
    """
    found: dict[Path, Path] = {}
    for given in folders:
        below = list(_walk(given, ()))
        if not any(map(_is_of_use, below)):
            raise InputError(f"runs: there is no run in {given}")
        for folder in filter(_is_of_use, below):
            first = found.setdefault(folder.resolve(), folder)
            if first is not folder:
                also = "" if first == folder else f" (as {first}, too)"
                raise InputError(f"runs: {folder} is given twice{also}")
    if not any(map(kind_of, found.values())):
        raise InputError(f"runs: there is no run in {folders[0]}")
    return list(found.values())


def _is_of_use(folder: Path) -> bool:
    return bool(kind_of(folder)) or (folder / "attributes.csv").is_file()


def _walk(folder: Path, above: Sequence[Path]) -> Iterator[Path]:
    """A folder and those below it, in order; not below runs, nor into hidden ones."""
    yield folder
    inside = (*above, folder.resolve())
    if not kind_of(folder):
        for entry in sorted(folder.iterdir()):
            # Links may lead back to where they are.
            if entry.is_dir() and entry.name[0] != "." and entry.resolve() not in inside:
                yield from _walk(entry, inside)


def read_run(folder: Path) -> Run:
    """Reads an attack run or a sweep.

    Raises:
      InputError: a file is broken, or does not belong to the others.
    """
    path = folder / run_folder.DESCRIPTION
    description = _read_json(path) if path.exists() else {}
    read = _read_attack if kind_of(folder) == "metrics.json" else _read_sweep
    points = read(folder, description)
    return Run(str(folder), points, description)


def _sheet(path: Path) -> bytes | None:
    """The bytes of a picture, if it is there."""
    content = path.read_bytes() if path.exists() else None
    if content is None:
        return None
    if not content.startswith(_PNG):
        raise InputError(f"{path} is no PNG file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is broken: it cannot be read as a picture") from error
    return content


def _shown(description: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The settings that a sweep's sheet of a method was drawn at; empty if not recorded."""
    shown = description.get("shown")
    settings = shown.get(method) if isinstance(shown, Mapping) else None
    if not isinstance(settings, Mapping):
        return {}
    return {name: _value(value) for name, value in settings.items()}


def _read_attack(folder: Path, description: Mapping[str, Any]) -> list[Point]:
    path = folder / "metrics.json"
    figures = _figures(_read_json(path), path)
    config = figures.pop("config", None)
    if not isinstance(config, Mapping):
        raise InputError(f"{path}: config must be an object, got {config!r}")
    point = _point(figures, _settings(config, path), folder)
    point = dataclasses.replace(point, sheet=_sheet(folder / "sheet.png"))
    return [_with_records(point, [record for _, record in _read_records(folder)], folder)]


def _read_sweep(folder: Path, description: Mapping[str, Any]) -> list[Point]:
    path = folder / "sweep.csv"
    rows = _read_csv(path)
    if not rows:
        raise InputError(f"{path} has no rows")
    known = dict.fromkeys(name for method in METHODS.values() for name in method.settings())
    names = [name for name in known if name in rows[0]]
    points = []
    for row in rows:
        figures = _figures(row, path)
        settings = _settings({name: figures.pop(name) for name in names}, path)
        point = _point(figures, settings, folder)
        if _shown(description, point.method) == settings:
            sheet = _sheet(folder / "sheets" / f"{point.method}.png")
            point = dataclasses.replace(point, sheet=sheet)
        points.append(point)
    comparison.check_no_point_twice(points)
    records: dict[tuple, list[dict[str, Any]]] = {}
    for key, record in _read_records(folder, ("method", *names)):
        records.setdefault(key, []).append(record)
    keys = [(p.method, *(p.settings.get(name) for name in names)) for p in points]
    if not records.keys() <= set(keys):
        raise InputError(
            f"{folder / 'per_image.csv'} does not belong: sweep.csv has not its rows"
        )
    return [
        _with_records(point, records.get(key, []), folder)
        for point, key in zip(points, keys, strict=True)
    ]


def _point(figures: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> Point:
    return Point(figures["method"], figures["model"], settings, figures, (), str(folder))


def _with_records(point: Point, records: Sequence[Mapping[str, Any]], folder: Path) -> Point:
    """The point with its records, where the folder has any.

    Raises:
      InputError: they are not what the point's figures were made of.
    """
    path, expected = folder / "per_image.csv", point.figures["num_images"]
    if not path.exists():
        return point
    if len(records) != expected:
        raise InputError(f"{path} does not belong: {len(records)} pictures, not {expected}")
    pictures = [picture_of(record) for record in records]
    if len(set(pictures)) < len(pictures):
        twice = next(name for name in pictures if pictures.count(name) > 1)
        raise InputError(f"{path} names the picture {twice} twice")
    for name in _PER_IMAGE:
        mean = math.fsum(record[name] for record in records) / len(records)
        if not math.isclose(mean, point.figures[name], rel_tol=1e-4, abs_tol=1e-6):
            raise InputError(
                f"{path} does not belong: its mean {name} is {mean:g}, not "
                f"{point.figures[name]:g}"
            )
    return dataclasses.replace(point, records=records)


def _read_records(
    folder: Path, keys: Sequence[str] = ()
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The lines of `per_image.csv`, each with the values of its key; none without the file."""
    path = folder / "per_image.csv"
    if not path.exists():
        return []
    records = []
    for number, row in enumerate(_read_csv(path, (*keys, "person", "name", *_PER_IMAGE)), 2):
        for name in _PER_IMAGE:
            value = number_in(row[name])
            if not _is_finite(value):
                raise InputError(
                    f"{path}, line {number}: {name} must be a finite number, got {row[name]!r}"
                )
            row[name] = value
        records.append((tuple(_value(row[key]) for key in keys), row))
    return records


def _figures(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries of `metrics.json`, or of a row of `sweep.csv`, checked, texts made numbers.

    Raises:
      InputError: one is missing, of another type, not finite, or out of range.
    """
    missing = [name for name in _REQUIRED if name not in entries]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    figures = dict(entries)
    if path.suffix == ".csv":
        for name in entries.keys() - set(_TEXTS):
            number = number_in(entries[name])
            figures[name] = entries[name] or None if number is None else number
    for name in _TEXTS:
        if not isinstance(figures[name], str) or not figures[name]:
            raise InputError(f"{path}: {name} must be a text, got {figures[name]!r}")
    ranges = dict.fromkeys((*_DISTANCES, "num_gradients"), (0.0, math.inf))
    ranges |= dict.fromkeys(_SIMILARITIES, (-1.0, 1.0)) | dict.fromkeys(_RATES, (0.0, 1.0))
    for name, (least, most) in ranges.items():
        value = figures[name]
        if value is None and name in _MAY_BE_ABSENT:
            continue
        if not _is_finite(value):
            raise InputError(f"{path}: {name} must be a finite number, got {value!r}")
        if not least <= value <= most:
            limits = f"from {least:g} to {most:g}" if most < math.inf else f">= {least:g}"
            raise InputError(f"{path}: {name} must be {limits}, got {value:g}")
    number = figures["num_images"]
    if not _is_finite(number) or number < 1 or number != int(number):
        raise InputError(f"{path}: num_images must be an integer >= 1, got {number!r}")
    return figures | {"num_images": int(number)}


def _settings(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings that a method has.

    Raises:
      InputError: one is NaN, or a list or the like.
    """
    settings = {name: _value(value) for name, value in values.items()}
    for name, value in settings.items():
        if value != value or isinstance(value, list | dict):
            raise InputError(f"{path}: {name} must be a number, got {value}")
    return {name: value for name, value in settings.items() if value is not None}


def _value(value: Any) -> Any:
    """A setting from JSON (infinity is a text there) or CSV (a missing one is empty)."""
    if isinstance(value, bool):  # In CSV a text.
        return str(value)
    number = number_in(value)
    return value or None if number is None else number


def number_in(value: Any) -> float | int | None:
    """The number that is meant; None if it is none."""
    if _isnumber_in(value):
        return value
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return None


def _isnumber_in(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _isnumber_in(value) and abs(value) <= sys.float_info.max


def _read_json(path: Path) -> dict[str, Any]:
    content = _parse(path, json.loads)
    if not isinstance(content, dict):
        raise InputError(f"{path} is broken: it must be a JSON object")
    return content


def _read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows; refuses missing columns and rows that end early."""
    lines = _parse(path, lambda text: list(csv.reader(io.StringIO(text), strict=True)))
    header, *rows = lines or [[]]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(row)} entries for {len(header)} columns"
            )
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_attributes(
    folders: Sequence[Path], facts: Mapping[str, Any]
) -> list[tuple[str, list[list[str]]]]:
    """(folder, headings and rows) of every `attributes.csv`.

    Args:
      folders: where to look.
      facts: of the runs, see `comparison.Common`: the table must be of the same pictures.

    Raises:
      InputError: a table is broken, empty, or of other pictures.
    """
    tables = []
    for path in (folder / "attributes.csv" for folder in folders):
        if not path.is_file():
            continue
        rows = _read_csv(path)
        if not rows:
            raise InputError(f"{path} has no rows")
        beside = path.with_name(run_folder.DESCRIPTION)
        data = _read_json(beside).get("data") if beside.exists() else None
        for name in ("dataset", "split", "image_size", "seed"):
            theirs = data.get(name) if isinstance(data, Mapping) else None
            if None not in (theirs, facts.get(name)) and theirs != facts[name]:
                raise InputError(
                    f"{path.parent} and the runs cannot be compared: {name} is {theirs} and "
                    f"{facts[name]}"
                )
        tables.append((str(path.parent), [list(rows[0]), *(list(r.values()) for r in rows)]))
    return tables


def _parse(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text("utf-8"))
    except (ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{path} is broken: {error}") from error
