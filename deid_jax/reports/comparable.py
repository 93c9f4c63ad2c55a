"""Checks that runs can be compared: they may differ only in method and settings."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple, TypeAlias

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.errors import InputError
from deid_jax.reports.measured import FinishedRun, MeasuredPoint
from deid_jax.runs.reading import section
from deid_jax.types import Json

FactValue: TypeAlias = "Json | frozenset[str]"

RECOGNISER_FACTS = ("seed", "training", "accuracy", "split", "weights")


class _Fact(NamedTuple):
    """A fact recorded by a run, about one model or all of them (""); None if not recorded."""

    name: str
    model: str
    value: FactValue


@dataclasses.dataclass(frozen=True)
class SharedFacts:
    """Everything that the runs have in common.

    `known` holds what is equal in all runs that record it; `unrecorded` maps a run to the facts
    that it does not record, which were not compared.
    """

    known: Mapping[str, FactValue]
    unrecorded: Mapping[str, tuple[str, ...]]


def check_comparable(runs: Sequence[FinishedRun]) -> SharedFacts:
    """Refuses runs that differ in more than method and settings.

    All runs must have the same data set, split, number of images, images, size, crop, persons,
    seed and rounding. Attacks must have the same kind of target and first iterate, and runs
    against one recogniser must have the same training. Facts that a run does not record are
    not compared.

    Raises:
      InputError: two runs differ, or hold the same point; the message names both.
    """
    seen: dict[tuple[str, str], tuple[_Fact, str]] = {}
    unrecorded: dict[str, dict[str, None]] = {}
    for run in runs:
        for fact in _facts(run):
            if fact.value is None:
                unrecorded.setdefault(run.source, {})[fact.name] = None
                continue
            first, source = seen.setdefault((fact.name, fact.model), (fact, run.source))
            if first.value != fact.value:
                where = source if source == run.source else f"{source} and {run.source}"
                raise InputError(f"{where} cannot be compared: {_difference(first, fact)}")
    check_no_point_twice([point for run in runs for point in run.points])
    known = {fact.name: fact.value for fact, _ in seen.values() if not fact.model}
    return SharedFacts(known, {source: tuple(names) for source, names in unrecorded.items()})


def _facts(run: FinishedRun) -> Iterator[_Fact]:
    """The facts of every point of a run."""
    for point in run.points:
        yield _Fact("dataset", "", point.dataset)
        yield _Fact("split", "", point.split)
        yield _Fact("num_images", "", point.metrics.num_images)
        yield _Fact("images", "", frozenset(r.image for r in point.records) or None)
        for name, value in _facts_of_settings(run.description, point.method):
            yield _Fact(name, "", value)
        recogniser = section(run.description, "recogniser")
        if recogniser.get("model", point.model) != point.model:
            recogniser = {}
        for name in RECOGNISER_FACTS:
            yield _Fact(f"recogniser's {name}", point.model, recogniser.get(name))


def _facts_of_settings(
    description: Mapping[str, Json], method: str
) -> Iterator[tuple[str, Json]]:
    settings, provenance = section(description, "settings"), section(description, "dataset")
    for name in ("image_size", "seed"):
        yield name, settings.get(name)
    quantize = settings.get("quantize")
    if quantize is None and "quantize" in settings:
        # Methods that always round can be compared with either.
        if not (method in METHODS and METHODS[method].quantizes):
            yield "quantize", False
    else:
        yield "quantize", quantize
    yield "crop", settings.get("crop") or provenance.get("crop")
    # Not every data set has these; "none" counts as a value.
    folder = settings.get("data_dir")
    name = PurePath(folder).name if isinstance(folder, str) else ""
    recorded = "data_dir" in settings or provenance
    yield "data_dir", (name or provenance.get("folder") or "none") if recorded else None
    yield "persons_seed", provenance.get("persons_seed", "none") if provenance else None
    if method in ATTACKS:
        for name, default in (("target", "random"), ("init", "image")):
            yield name, (settings.get(name) or default) if name in settings else None
        # Older runs, which had no choice of precision, computed in float32.
        yield "precision", (settings.get("precision") or "float32") if settings else None


def _difference(first: _Fact, second: _Fact) -> str:
    if isinstance(first.value, frozenset) and isinstance(second.value, frozenset):
        only = min(first.value ^ second.value)
        at = "first" if only in first.value else "second"
        return f"their images differ, {only} is only in the {at}"
    of = f" of {first.model}" if first.model else ""
    values = [json.dumps(fact.value, ensure_ascii=False) for fact in (first, second)]
    return f"{first.name}{of} is {values[0]} and {values[1]}"


def check_no_point_twice(points: Sequence[MeasuredPoint]) -> None:
    """Refuses two points of the same method, recogniser and settings."""
    seen: dict[tuple[object, ...], MeasuredPoint] = {}
    for point in points:
        settings = sorted(point.settings.items())
        first = seen.setdefault((point.method, point.model, *settings), point)
        if first is not point:
            where = sorted({first.source, point.source})
            told = "".join(f", {name} {value}" for name, value in settings)
            raise InputError(
                f"{' and '.join(where)} {'both hold' if where[1:] else 'holds twice'}: "
                f"{point.method} against {point.model}{told}"
            )
