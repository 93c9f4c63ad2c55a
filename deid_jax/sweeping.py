"""Sweeps: a method at every point of a grid of its settings, over one data set.

Settings that are leaves of the config (α, λ, ε) are stacked, and `vmap` runs the method over
them as one compiled program; another number of steps is another moment of the same
trajectory; what changes the program (the width of a blur) is compiled anew.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from deid_jax import evaluation, programs
from deid_jax._validate import InputError
from deid_jax.batch import METHODS, Protocol, run_batch_many
from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.records import records_of
from deid_jax.resuming import Store
from deid_jax.types import Batch

Settings = Mapping[str, float]
Records = list[dict[str, Any]]

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
) -> list[Records]:
    """De-identifies a data set at every point of a grid.

    The figures are those of `evaluation.evaluate` at each point alone, as near as two
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
      progress: called with (pictures done, pictures in all) over all points.
      memory: bytes that a call may take; what is free if None.

    Returns:
      For each point one record per picture, in the data set's order.

    Raises:
      InputError: not even one picture at one setting fits into memory.

    Warns:
      UserWarning: a batch or a stack of settings did not fit, and smaller ones are taken.
    """
    size = protocol.batch_size or evaluation.default_batch_size(
        dataset.image_size, len(dataset)
    )
    size = loader.even_batch_size(len(dataset), size)
    per_call = settings_per_call or default_settings_per_call(size, dataset.image_size)
    jobs = _jobs(method, points)
    runs = sum(len(job.leaves) for job in jobs)
    steps = max((step for job in jobs for step in job.num_steps), default=0)
    variables = evaluation.ready_variables(variables, dataset, steps, runs)
    total = runs * len(dataset)
    results: dict[tuple, Records] = {}
    done = 0
    for job in jobs:
        # All chunks are of one size, so that one compilation serves them.
        width = loader.even_batch_size(len(job.leaves), per_call)
        call = _Call(model, variables, dataset, method, protocol, job, width, store)
        call, size = call.fitted(size, memory)
        for start in range(0, len(job.leaves), call.width):
            chosen = job.leaves[start : start + call.width]
            for batch in loader.in_order(dataset, size):
                for point, records in call(batch, chosen):
                    results.setdefault(_identity(point), []).extend(records)
                done += len(chosen) * int(np.sum(batch.mask))
                progress(done, total)
    return [results[_identity(point)] for point in points]


def _identity(point: Settings) -> tuple:
    return tuple(sorted(point.items()))


@dataclasses.dataclass(frozen=True)
class _Call:
    """The compiled program for `width` settings at once, batch by batch, with its store."""

    model: Any
    variables: Any
    dataset: FaceDataset
    method: str
    protocol: Protocol
    job: _Job
    width: int
    store: Store | None

    def fitted(self, size: int, memory: int | None) -> tuple["_Call", int]:
        """The same with fewer settings, and a batch size, for which there is memory."""
        while True:
            limit = programs.free_bytes() if memory is None else memory
            # To the device, settings and pictures are one: it is their product that counts.
            smaller = programs.smaller_to_fit(size * self.width, self._program(size), limit)
            if smaller is None:
                return self, size
            if self.width > 1:
                width = loader.even_batch_size(len(self.job.leaves), max(1, smaller // size))
                return dataclasses.replace(self, width=width).fitted(size, memory)
            size = loader.even_batch_size(len(self.dataset), smaller)

    def __call__(
        self, batch: Batch, chosen: Sequence[Settings]
    ) -> list[tuple[Settings, Records]]:
        """Every point of the settings chosen, `width` at most, with its records."""
        piece = {
            "job": [self.method, self.job.statics, self.job.num_steps],
            "first": int(batch.position[0]),
            "pictures": int(np.sum(batch.mask)),
        }
        keys = [{**piece, "leaves": leaves} for leaves in chosen]
        kept: list[Any] = [
            self.store.read(key) if self.store is not None else None for key in keys
        ]
        if None in kept:
            kept = self._compute(batch, chosen)
            if self.store is not None:
                for key, records in zip(keys, kept, strict=True):
                    self.store.write(key, records)
        return [
            (point, records)
            for leaves, per_step in zip(chosen, kept, strict=True)
            for point, records in zip(self.job.points(leaves), per_step, strict=True)
        ]

    def _program(self, size: int) -> Any:
        return programs.compile_once(
            run_batch_many,
            self.variables,
            evaluation.batch_shapes(size, self.dataset.image_size),
            self._config(self.job.leaves[:1]),
            jax.random.key(self.protocol.seed),
            program=self.protocol.program(self.model, self.method),
        )

    def _config(self, chosen: Sequence[Settings]) -> Any:
        repeated = [chosen[-1]] * (self.width - len(chosen))
        return self.job.config(self.method, [*chosen, *repeated])

    def _compute(self, batch: Batch, chosen: Sequence[Settings]) -> list[list[Records]]:
        """[setting][number of steps] -> records."""
        try:
            with programs.watching_memory():
                figures = self._program(len(batch.label))(
                    self.variables,
                    batch,
                    self._config(chosen),
                    jax.random.key(self.protocol.seed),
                )
                figures = jax.device_get(figures)
        except programs.OutOfMemoryError:
            return self._compute_halves(batch, chosen)
        targeted = self.protocol.targeted
        return [
            [records_of(at, self.dataset, batch, targeted=targeted) for at in per_step]
            for per_step in figures.per_setting()[: len(chosen)]
        ]

    def _compute_halves(self, batch: Batch, chosen: Sequence[Settings]) -> list[list[Records]]:
        middle = programs.half_of(len(batch.label))
        halves = [
            self._compute(jax.tree.map(operator.itemgetter(part), batch), chosen)
            for part in (slice(middle), slice(middle, None))
        ]
        return [
            [first + second for first, second in zip(*per_step, strict=True)]
            for per_step in zip(*halves, strict=True)
        ]
