"""Reads CSV and JSON files that a command wrote, with types.

Any error in a file raises a one-line `InputError` with the file, line, column and value.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from deid_jax.errors import InputError, one_line
from deid_jax.types import Json

T = TypeVar("T")


class CsvLine(NamedTuple):
    """One line of a CSV file: file and line for messages, and column -> text."""

    where: str
    entries: dict[str, str]


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[CsvLine]:
    """Reads the lines below the header.

    Raises:
      InputError: the file is broken, lacks one of `columns`, or a line is too short or long.
    """
    lines = _parse(path, lambda text: list(csv.reader(io.StringIO(text), strict=True)))
    header, *rest = lines or [[]]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    read = []
    for number, line in enumerate(rest, 2):
        where = f"{path}, line {number}"
        if len(line) != len(header):
            raise InputError(f"{where}: {len(line)} entries for {len(header)} columns")
        read.append(CsvLine(where, dict(zip(header, line, strict=True))))
    return read


def read_json(path: Path) -> dict[str, Json]:
    """Reads a JSON object.

    Raises:
      InputError: the file is broken, or is not a JSON object.
    """
    content = _parse(path, json.loads)
    if not isinstance(content, dict):
        raise InputError(f"{path} is broken: it must be a JSON object")
    return content


def _parse(path: Path, parse: Callable[[str], T]) -> T:
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise InputError(f"{path} is broken: {one_line(error)}") from error


class RowReader:
    """Reads the entries of a row, which are strings if it comes from a CSV file.

    Every method raises `InputError` if the entry is missing or of the wrong kind; the message
    begins with `where`.
    """

    def __init__(self, row: Mapping[str, object], where: str):
        self._row = row
        self._where = where

    def optional(self, read: Callable[[str], T], name: str) -> T | None:
        """The entry as `read` reads it; None if it is empty or absent."""
        return None if self._row.get(name) in (None, "") else read(name)

    def text(self, name: str) -> str:
        """A non-empty string."""
        value = self._entry(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool:
        """True or False."""
        value = str(self._entry(name))
        if value not in ("True", "False"):
            raise self._wrong(name, "True or False")
        return value == "True"

    def number(
        self,
        name: str,
        *,
        least: float = -math.inf,
        most: float = math.inf,
        finite: bool = True,
    ) -> float:
        """A number in a range."""
        value = self._entry(name)
        kind = "a finite number" if finite else "a number"
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong(name, kind)
        try:
            number = float(value)
        except (ValueError, OverflowError) as error:
            raise self._wrong(name, kind) from error
        if finite and not math.isfinite(number):
            raise self._wrong(name, kind)
        if number < least or number > most:
            limits = f"from {least:g} to {most:g}" if most < math.inf else f">= {least:g}"
            raise self._wrong(name, limits)
        return number

    def rate(self, name: str) -> float:
        """A number from 0 to 1."""
        return self.number(name, least=0, most=1)

    def integer(self, name: str, *, least: int = 0) -> int:
        """A whole number, at least `least`."""
        number = self.number(name, finite=False)
        if not number.is_integer() or number < least:
            raise self._wrong(name, f"an integer >= {least}")
        return int(number)

    def _entry(self, name: str) -> object:
        if name not in self._row:
            raise InputError(f"{self._where} lacks {name}")
        return self._row[name]

    def _wrong(self, name: str, wanted: str) -> InputError:
        return InputError(f"{self._where}: {name} must be {wanted}, got {self._row[name]!r}")


def number_in(text: str) -> int | float | None:
    """The number in a string, as an integer if possible; None if it is not a number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def section(content: Mapping[str, Json], name: str) -> dict[str, Json]:
    """An object within a JSON object; empty if there is none."""
    inner = content.get(name)
    return inner if isinstance(inner, dict) else {}
