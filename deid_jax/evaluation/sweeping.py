"""Sweeps: a method at every point of a grid of its settings, over one data set.

Settings that are leaves of the config (α, λ, ε) are stacked, and `vmap` runs the method over
them as one compiled program; another number of steps is another moment of the same
trajectory; what changes the program (the width of a blur) is compiled anew.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deid_jax.attacks import METHODS
from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import programs, sharding
from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.evaluation import run
from deid_jax.evaluation.batch import Protocol, run_batch_many
from deid_jax.evaluation.records import ImageRecord, records_of
from deid_jax.runs.resuming import Store, digest_of
from deid_jax.types import Batch

Settings = Mapping[str, float]
Records = list[ImageRecord]

# Pixels × settings in one compiled call. CPU cores have enough to do with a batch at one
# setting; accelerators want more at once, as far as their memory goes.
_PIXELS_PER_CALL = {"cpu": 64 * 64**2}
_PIXELS_PER_CALL_ELSEWHERE = 1024 * 64**2


def default_settings_per_call(batch_size: int, image_size: int) -> int:
    """How many settings share a call with a batch, on the device at hand."""
    most = _PIXELS_PER_CALL.get(jax.default_backend(), _PIXELS_PER_CALL_ELSEWHERE)
    return max(1, most // (batch_size * image_size**2))


def grid(
    method: str, sweeps: Mapping[str, Sequence[float]], fixed: Settings | None = None
) -> list[Settings]:
    """Every combination of the swept values: one mapping with all settings per point.

    Args:
      method: a key of `METHODS`.
      sweeps: setting -> values; the last setting varies fastest.
      fixed: settings that all points share; the method's defaults hold for the others.

    Raises:
      InputError: a setting that the method does not have, that is both swept and fixed, no
        or repeated values, or a value that the method refuses.
    """
    fixed = dict(fixed or {})
    known = METHODS[method].settings()
    for name, values in sweeps.items():
        if name not in known:
            raise InputError(
                f"{method} has no setting {name} to sweep: it takes {', '.join(known)}"
            )
        if name in fixed:
            raise InputError(f"{name} is swept and set to {fixed[name]}: one or the other")
        if not values or len(set(values)) < len(values):
            raise InputError(f"the values of {name} must be different ones, got {values}")
    points: list[Settings] = []
    for combination in itertools.product(*sweeps.values()):
        given = dict(zip(sweeps, combination, strict=True))
        points.append(dataclasses.asdict(METHODS[method].config(**fixed, **given)))
    return points


@dataclasses.dataclass(frozen=True)
class _Job:
    """Points that one compiled program serves.

    Attributes:
      statics: the settings that they share because they change the program.
      num_steps: the numbers of steps asked for, increasing; empty for methods without steps.
      leaves: for each place of the stacked config, its leaves by name.
    """

    statics: Settings
    num_steps: tuple[int, ...]
    leaves: list[Settings]

    def config(self, method: str, chosen: Sequence[Settings]) -> Any:
        """The stacked config of some of the places: leaves are float32[C]."""
        stacked = {
            name: np.array([leaves[name] for leaves in chosen], np.float32)
            for name in self.leaves[0]
        }
        steps: dict[str, Any] = {}
        if self.num_steps:
            alone = len(self.num_steps) == 1
            steps = {"num_steps": self.num_steps[0] if alone else self.num_steps}
        return METHODS[method].config(**self.statics, **stacked, **steps)

    def points(self, leaves: Settings) -> list[Settings]:
        """The points that one place of the stack answers: one per number of steps."""
        steps: Iterable[Settings] = [{}]
        if self.num_steps:
            steps = [{"num_steps": number} for number in self.num_steps]
        return [{**self.statics, **leaves, **step} for step in steps]


def _jobs(method: str, points: Sequence[Settings]) -> list[_Job]:
    """Groups points by what changes the program; each group takes its steps from one run."""
    fields = dataclasses.fields(METHODS[method].config)
    static = {f.name for f in fields if f.metadata.get("static")} - {"num_steps"}
    steps = tuple(sorted({int(p["num_steps"]) for p in points if "num_steps" in p}))
    groups: dict[tuple, list[Settings]] = {}
    for point in points:
        leaves = {n: v for n, v in point.items() if n not in static | {"num_steps"}}
        statics = tuple((n, v) for n, v in point.items() if n in static)
        stack = groups.setdefault(statics, [])
        if leaves not in stack:
            stack.append(leaves)
    return [_Job(dict(statics), steps, stack) for statics, stack in groups.items()]


def sweep(
    model: Any,
    variables: Any,
    dataset: FaceDataset,
    method: str,
    points: Sequence[Settings],
    protocol: Protocol,
    *,
    settings_per_call: int | None = None,
    store: Store | None = None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    memory: int | None = None,
    mesh: Mesh | None = None,
    spans: Sequence[range] | None = None,
    group: Group = ALONE,
) -> Sequence[Iterable[ImageRecord]]:
    """De-identifies a data set at every point of a grid.

    The figures are those of `evaluate.evaluate` at each point alone, as near as two
    compilations round alike.

    Args:
      model: the recogniser's module.
      variables: its weights.
      dataset: the pictures.
      method: a key of `METHODS`.
      points: from `grid`.
      protocol: everything else that decides the result.
      settings_per_call: how many settings `vmap` stacks; None: what suits the device.
      store: keeps what is done, so that a sweep that was stopped goes on from there.
      progress: called with (pictures done, pictures in all) over all points of this process.
      memory: bytes that a call may take on a device; what is free if None.
      mesh: the devices; None: all of this process.
      spans: the positions, in parts that are done and stored at a time; None: batches.
      group: the processes that share the work, by way of a store that they share.

    Returns:
      For each point one record per picture that can be read, in the data set's order: a list,
      or of a store what reads them there, a piece at a time, as often as it is gone through.
      Nothing in other processes than the first.

    Raises:
      InputError: not even one picture at one setting fits into memory, a picture cannot be
        read, or the recogniser gives no numbers.

    Warns:
      UserWarning: a batch or a stack of settings did not fit, and smaller ones are taken.
    """
    mesh = mesh or sharding.local_mesh()
    longest = len(dataset) if spans is None else max(map(len, spans))
    size = run.wanted_batch_size(dataset.image_size, longest, protocol, mesh)
    share = size // sharding.num_parts(mesh)
    per_call = settings_per_call or default_settings_per_call(share, dataset.image_size)
    jobs = _jobs(method, points)
    runs = sum(len(job.leaves) for job in jobs)
    steps = max((step for job in jobs for step in job.num_steps), default=0)
    variables = run.ready_variables(variables, dataset, steps, mesh, runs)
    if spans is None:
        spans = loader.divided([range(len(dataset))], size)
    kept = _Kept() if store is None else store
    calls = []
    for job in jobs:
        # All chunks are of one size, so that one compilation serves them.
        width = loader.even_batch_size(len(job.leaves), per_call)
        call = _Call(
            model,
            variables,
            dataset,
            method,
            protocol,
            mesh,
            job,
            width,
            size,
            kept,
        )
        calls.append(call.fitted(longest, memory))
    # What suits the device with least, so that all processes divide the work alike.
    sizes = group.gather([(call.width, call.size) for call in calls])
    calls = [
        dataclasses.replace(call, width=min(w for w, _ in own), size=min(s for _, s in own))
        for call, own in zip(calls, zip(*sizes, strict=True), strict=True)
    ]
    units = [(call, span, chosen) for call in calls for span in spans for chosen in call.chunks]
    _do(units[group.index :: group.count], progress)
    group.wait()
    if not group.is_first:
        return []
    pieces: dict[tuple, list[tuple[Mapping[str, Any], int]]] = {}
    for call, span, chosen in units:
        for point, piece in call.pieces(span, chosen):
            pieces.setdefault(_identity(point), []).append(piece)
    results = [_Results(kept, pieces[_identity(point)]) for point in points]
    return [list(records) for records in results] if store is None else results


def _do(
    units: Sequence[tuple["_Call", range, Any]], progress: Callable[[int, int], Any]
) -> None:
    """Does the units of one process: what is not kept of spans at some settings."""
    total = sum(len(span) * len(chosen) for _, span, chosen in units)
    done = 0
    for call, span, chosen in units:
        call.do(span, chosen)
        done += len(span) * len(chosen)
        progress(done, total)


class _Kept:
    """What `Store` does, in memory."""

    def __init__(self) -> None:
        self._pieces: dict[str, Any] = {}

    def read(self, key: Mapping[str, Any]) -> Any:
        return self._pieces.get(digest_of(key))

    def write(self, key: Mapping[str, Any], piece: Any) -> None:
        self._pieces[digest_of(key)] = piece

    def all_of(self, keys: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        return map(self.read, keys)


@dataclasses.dataclass(frozen=True)
class _Results:
    """The records of a point; one piece of the store in memory.

    Attributes:
      store: where they are.
      pieces: in the data set's order, the key of each and the place of the point in it.
    """

    store: Store | _Kept
    pieces: Sequence[tuple[Mapping[str, Any], int]]

    def __iter__(self) -> Iterator[ImageRecord]:
        keys = [key for key, _ in self.pieces]
        for (_, place), per_step in zip(self.pieces, self.store.all_of(keys), strict=True):
            for row in per_step[place]:
                yield ImageRecord.from_row(row, "a piece of the sweep")


def _identity(point: Settings) -> tuple:
    return tuple(sorted(point.items()))


@dataclasses.dataclass(frozen=True)
class _Call:
    """The compiled program for `width` settings and `size` pictures at once, with its store."""

    model: Any
    variables: Any
    dataset: FaceDataset
    method: str
    protocol: Protocol
    mesh: Mesh
    job: _Job
    width: int
    size: int
    store: Store | _Kept

    @property
    def chunks(self) -> list[list[Settings]]:
        """The settings of the job, as many at a time as the program takes."""
        leaves = self.job.leaves
        return [leaves[i : i + self.width] for i in range(0, len(leaves), self.width)]

    def fitted(self, longest: int, memory: int | None) -> "_Call":
        """The same with as many settings and pictures as there is memory for.

        Args:
          longest: pictures in the longest span.
          memory: see `sweep`.
        """
        limit = programs.free_bytes() if memory is None else memory
        parts = sharding.num_parts(self.mesh)
        # To the device, settings and pictures are one: it is their product that counts.
        smaller = programs.smaller_to_fit(
            self.size * self.width, self._program(self.size), limit, least=parts
        )
        if smaller is None:
            return self
        if self.width > 1:
            width = loader.even_batch_size(len(self.job.leaves), max(1, smaller // self.size))
            return dataclasses.replace(self, width=width).fitted(longest, memory)
        whole = max(parts, smaller // parts * parts)
        size = run.batch_size_for(longest, whole, self.mesh)
        return dataclasses.replace(self, size=size).fitted(longest, memory)

    def do(self, span: range, chosen: Sequence[Settings]) -> None:
        """Computes and keeps what is not kept of a span, at `width` settings at most."""
        keys = self._keys(span, chosen)
        if all(self.store.read(key) is not None for key in keys):
            return
        per_setting: list[list[Records]] = [
            [[] for _ in self.job.points(leaves)] for leaves in chosen
        ]
        for batch in loader.in_order(self.dataset, self.size, spans=[span]):
            computed = self._compute(batch, chosen)
            for per_step, more in zip(per_setting, computed, strict=True):
                for records, new in zip(per_step, more, strict=True):
                    records.extend(new)
        for key, per_step in zip(keys, per_setting, strict=True):
            rows = [[record.to_row() for record in records] for records in per_step]
            self.store.write(key, rows)

    def pieces(
        self, span: range, chosen: Sequence[Settings]
    ) -> Iterator[tuple[Settings, tuple[Mapping[str, Any], int]]]:
        """Every point of the settings chosen, with the key and place of its records."""
        for leaves, key in zip(chosen, self._keys(span, chosen), strict=True):
            for place, point in enumerate(self.job.points(leaves)):
                yield point, (key, place)

    def _keys(self, span: range, chosen: Sequence[Settings]) -> list[dict[str, Any]]:
        job = [self.method, self.job.statics, self.job.num_steps]
        where = {"first": span.start, "pictures": len(span)}
        return [{"job": job, **where, "leaves": leaves} for leaves in chosen]

    def _program(self, size: int) -> Any:
        batch = run.batch_shapes(size, self.dataset.image_size)
        return programs.compile_once(
            run_batch_many,
            self.variables,
            sharding.batch_layout(batch, self.mesh),
            self._config(self.job.leaves[:1]),
            self._key(),
            program=self.protocol.program(self.model, self.method, self.mesh),
        )

    def _key(self) -> jax.Array:
        return sharding.place_everywhere(jax.random.key(self.protocol.seed), self.mesh)

    def _config(self, chosen: Sequence[Settings]) -> Any:
        repeated = [chosen[-1]] * (self.width - len(chosen))
        config = self.job.config(self.method, [*chosen, *repeated])
        return sharding.place_everywhere(config, self.mesh)

    def _compute(self, batch: Batch, chosen: Sequence[Settings]) -> list[list[Records]]:
        """[setting][number of steps] -> records."""
        try:
            with programs.watching_memory():
                figures = self._program(len(batch.label))(
                    self.variables,
                    sharding.place_batch(batch, self.mesh),
                    self._config(chosen),
                    self._key(),
                )
                figures = jax.device_get(figures)
        except programs.OutOfMemoryError:
            return self._compute_halves(batch, chosen)
        run.check_numbers(figures, self.dataset, batch)
        targeted = self.protocol.targeted
        return [
            [records_of(at, self.dataset, batch, targeted=targeted) for at in per_step]
            for per_step in figures.per_setting()[: len(chosen)]
        ]

    def _compute_halves(self, batch: Batch, chosen: Sequence[Settings]) -> list[list[Records]]:
        parts = sharding.num_parts(self.mesh)
        middle = programs.half_of(len(batch.label), least=parts)
        middle = max(parts, middle // parts * parts)
        halves = [
            self._compute(jax.tree.map(operator.itemgetter(part), batch), chosen)
            for part in (slice(middle), slice(middle, None))
        ]
        return [
            [first + second for first, second in zip(*per_step, strict=True)]
            for per_step in zip(*halves, strict=True)
        ]
