"""Sweeps run a method at every point of a grid of its settings, over one data set.

Settings that are leaves of the config (α, λ, ε) are stacked, and `vmap` runs the method over
them as one compiled program. Different numbers of steps are read off the same trajectory.
Settings that change the program (the width of a blur) need a new compilation.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, cast

import jax

from deid_jax.data import loader
from deid_jax.devices import programs, sharding
from deid_jax.devices.processes import ALONE, Group
from deid_jax.evaluation.batch import PlacedProgram, run_batch_many
from deid_jax.evaluation.batch_loop import check_numbers, show_nothing
from deid_jax.evaluation.evaluating import Evaluation
from deid_jax.evaluation.grids import ProgramPoints, Settings, by_program
from deid_jax.evaluation.measuring import BatchMetrics
from deid_jax.evaluation.records import ImageRecord, read_stored, records_of, stored_rows
from deid_jax.runs import Store
from deid_jax.types import Batch, Json

Records: TypeAlias = list[ImageRecord]
# The key under which a piece is stored: method, rounding, span and settings.
PieceKey: TypeAlias = dict[str, object]

# A span at some settings, and the program for it.
Unit: TypeAlias = tuple["_Call", range, Sequence[Settings]]

# Pixels × settings in one compiled call. One setting per batch is enough to keep a CPU's cores
# busy; accelerators want more at once, as far as their memory allows.
_PIXELS_PER_CALL = {"cpu": 64 * 64**2}
_PIXELS_PER_CALL_ELSEWHERE = 1024 * 64**2


def default_settings_per_call(batch_size: int, image_size: int) -> int:
    """The number of settings that share a call with a batch, on the current device."""
    most = _PIXELS_PER_CALL.get(jax.default_backend(), _PIXELS_PER_CALL_ELSEWHERE)
    return max(1, most // (batch_size * image_size**2))


def sweep(
    evaluation: Evaluation,
    points: Sequence[Settings],
    *,
    settings_per_call: int | None = None,
    store: Store | None = None,
    progress: Callable[[int, int], object] = show_nothing,
    spans: Sequence[range] | None = None,
    group: Group = ALONE,
) -> Sequence[Iterable[ImageRecord]]:
    """De-identifies a data set at every point of a grid.

    The records are those of `Evaluation.records` at each point, except that two compilations
    may round differently.

    Args:
      evaluation: the method and everything else; its own config is ignored.
      points: from `grids.grid`.
      settings_per_call: how many settings `vmap` stacks; None: what suits the device.
      store: keeps finished work, so that an interrupted sweep resumes from there.
      progress: called with (images done, images in all) over all points of this process.
      spans: the positions, in parts that are computed and stored together; None: batches.
      group: the processes that share the work, through a common store.

    Returns:
      For each point, one record per image that can be read, in the data set's order, read anew
      at every iteration, one piece of the store at a time. Empty in processes other than the
      first.

    Raises:
      InputError: see `Evaluation.over`.

    Warns:
      UserWarning: a batch or a stack of settings did not fit, and smaller ones are used.
    """
    longest = len(evaluation.dataset) if spans is None else max(map(len, spans))
    size = evaluation.batch_size(longest)
    share = size // sharding.num_parts(evaluation.mesh)
    per_call = settings_per_call or default_settings_per_call(
        share, evaluation.dataset.image_size
    )
    if spans is None:
        spans = loader.divided([range(len(evaluation.dataset))], size)
    kept = Store() if store is None else store
    calls = [call.fitted(longest) for call in _calls(evaluation, points, size, per_call, kept)]
    # The smallest value over all processes, so that all divide the work alike.
    sizes = group.gather([(call.width, call.size) for call in calls])
    calls = [
        dataclasses.replace(call, width=min(w for w, _ in fits), size=min(s for _, s in fits))
        for call, fits in zip(calls, zip(*sizes, strict=True), strict=True)
    ]
    units = [(call, span, chosen) for call in calls for span in spans for chosen in call.chunks]
    own = units[group.index :: group.count]
    total, done = sum(len(span) * len(chosen) for _, span, chosen in own), 0
    for call, span, chosen in own:
        call.do(span, chosen)
        done += len(span) * len(chosen)
        progress(done, total)
    group.wait()
    return _results(units, points, kept) if group.is_first else []


def _calls(
    evaluation: Evaluation,
    points: Sequence[Settings],
    size: int,
    per_call: int,
    store: Store,
) -> list["_Call"]:
    """One call per program that the points need; weights are placed once for all of them."""
    groups = by_program(evaluation.method, points)
    first = dataclasses.replace(evaluation, config=groups[0].config(groups[0].leaves[:1]))
    num_settings = sum(len(group.leaves) for group in groups)
    placed = first.placed(run_batch_many, num_settings=num_settings)
    # All chunks have one size, so that a single compilation serves them all.
    widths = [loader.even_batch_size(len(group.leaves), per_call) for group in groups]
    return [
        _Call(evaluation, placed, group, width, size, store)
        for group, width in zip(groups, widths, strict=True)
    ]


def _results(
    units: Sequence[Unit], points: Sequence[Settings], store: Store
) -> list["_StoredRecords"]:
    pieces: dict[frozenset[tuple[str, float | str]], list[tuple[PieceKey, int]]] = {}
    for call, span, chosen in units:
        for point, piece in call.pieces(span, chosen):
            pieces.setdefault(frozenset(point.items()), []).append(piece)
    return [_StoredRecords(store, pieces[frozenset(point.items())]) for point in points]


@dataclasses.dataclass(frozen=True)
class _StoredRecords:
    """The records of a point, from pieces in the data set's order and its position in each."""

    store: Store
    pieces: Sequence[tuple[PieceKey, int]]

    def __iter__(self) -> Iterator[ImageRecord]:
        keys = [key for key, _ in self.pieces]
        for (_, place), per_step in zip(self.pieces, self.store.all_of(keys), strict=True):
            yield from read_stored(cast(list[Json], per_step)[place])


@dataclasses.dataclass(frozen=True)
class _Call:
    """The compiled program for `width` settings and `size` images at once, with its store."""

    evaluation: Evaluation
    placed: PlacedProgram
    group: ProgramPoints
    width: int
    size: int
    store: Store

    @property
    def chunks(self) -> list[list[Settings]]:
        """The settings of the group, as many at a time as the program takes."""
        leaves = self.group.leaves
        return [leaves[i : i + self.width] for i in range(0, len(leaves), self.width)]

    def fitted(self, longest: int) -> "_Call":
        """The same call with as many settings and images as there is memory for."""
        program = self._program(self.group.leaves[:1])
        smaller = program.smaller_to_fit(self.size, self.evaluation.memory, settings=self.width)
        if smaller is None:
            return self
        if self.width > 1:
            most = max(1, smaller // self.size)
            width = loader.even_batch_size(len(self.group.leaves), most)
            return dataclasses.replace(self, width=width).fitted(longest)
        parts = sharding.num_parts(self.placed.mesh)
        whole = max(parts, smaller // parts * parts)
        size = self.evaluation.even_batch_size(longest, whole)
        return dataclasses.replace(self, size=size).fitted(longest)

    def do(self, span: range, chosen: Sequence[Settings]) -> None:
        """Computes and stores a span at up to `width` settings, unless already stored."""
        keys = self._keys(span, chosen)
        if all(self.store.done(key) for key in keys):
            return
        per_setting: list[list[Records]] = [
            [[] for _ in self.group.points(leaves)] for leaves in chosen
        ]
        for batch in loader.in_order(self.evaluation.dataset, self.size, spans=[span]):
            computed = self._compute(batch, chosen)
            for per_step, more in zip(per_setting, computed, strict=True):
                for records, new in zip(per_step, more, strict=True):
                    records.extend(new)
        for key, per_step in zip(keys, per_setting, strict=True):
            self.store.write(key, list(map(stored_rows, per_step)))

    def pieces(
        self, span: range, chosen: Sequence[Settings]
    ) -> Iterator[tuple[Settings, tuple[PieceKey, int]]]:
        """Every point of the settings chosen, with the key and position of its records."""
        for leaves, key in zip(chosen, self._keys(span, chosen), strict=True):
            for place, point in enumerate(self.group.points(leaves)):
                yield point, (key, place)

    def _keys(self, span: range, chosen: Sequence[Settings]) -> list[PieceKey]:
        group, quantize = self.group, self.evaluation.program.quantize
        program = [group.method, group.statics, group.num_steps, quantize]
        where = {"first": span.start, "images": len(span)}
        return [{"program": program, **where, "leaves": leaves} for leaves in chosen]

    def _program(self, chosen: Sequence[Settings]) -> PlacedProgram:
        repeated = [chosen[-1]] * (self.width - len(chosen))
        return self.placed.at(self.group.config([*chosen, *repeated]))

    def _compute(self, batch: Batch, chosen: Sequence[Settings]) -> list[list[Records]]:
        """The records of a batch as [setting][number of steps] -> records."""
        try:
            with programs.watching_memory():
                measured: BatchMetrics = jax.device_get(self._program(chosen)(batch))
        except programs.OutOfMemoryError:
            return self._compute_halves(batch, chosen)
        dataset, targeted = self.evaluation.dataset, self.evaluation.protocol.targeted
        check_numbers(measured, dataset, batch)
        return [
            [records_of(at, dataset, batch, targeted=targeted) for at in per_step]
            for per_step in measured.per_setting()[: len(chosen)]
        ]

    def _compute_halves(self, batch: Batch, chosen: Sequence[Settings]) -> list[list[Records]]:
        parts = sharding.num_parts(self.placed.mesh)
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
