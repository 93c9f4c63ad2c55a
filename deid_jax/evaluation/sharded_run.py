"""A run over a data set in shards, each of which is done once, by one of several processes."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from deid_jax.data import loader
from deid_jax.devices.processes import Group
from deid_jax.evaluation.batch_loop import NUM_KEEPERS, Timing
from deid_jax.evaluation.evaluating import Evaluation
from deid_jax.evaluation.outputs import ImageOutput
from deid_jax.evaluation.records import ImageRecord, Row, read_stored, stored_rows
from deid_jax.pixels import Pixels
from deid_jax.runs import RunFolder


class ProcessTiming(NamedTuple):
    """The time that one process of a run spent.

    `startup_seconds` are those before the first shard, without compilation.
    """

    num_attacked: int
    timing: Timing
    startup_seconds: float


@dataclasses.dataclass(frozen=True)
class ShardedRun:
    """An evaluation in shards; finished shards are not repeated by a later run.

    `shown` are the positions of images that are also kept for figures.
    """

    evaluation: Evaluation
    shards: Sequence[range]
    folder: RunFolder
    output: ImageOutput
    shown: Sequence[int]
    group: Group

    def attack(
        self, progress: Callable[[int, int], object], *, startup_seconds: float
    ) -> list[ProcessTiming]:
        """Does this process's part of the unfinished shards; returns all processes' timing.

        Raises:
          OSError: files of finished shards have disappeared.
        """
        left = self.group.agree(self._unfinished() if self.group.is_first else [])
        if len(left) < len(self.shards) and self.group.is_first:
            done = len(self.shards) - len(left)
            print(
                f"going on: {done} of {len(self.shards)} shards are finished", file=sys.stderr
            )
        own = left[self.group.index :: self.group.count]
        timing = Timing()
        if own:
            timing = self.evaluation.over(
                [self.shards[number] for number in own],
                lambda place, records: self._finish(own[place], records),
                keep=self._keep,
                progress=progress,
                longest=len(self.shards[0]),
            )
        num_attacked = sum(len(self.shards[number]) for number in own)
        own_timing = ProcessTiming(num_attacked, timing, startup_seconds)
        gathered = self.group.gather(own_timing)
        if self.group.is_first:
            if self._unfinished():
                raise OSError("files of finished shards are gone or cut: run the command again")
            self.output.close()
        # Those of other processes come as JSON, which has lists for tuples.
        return [ProcessTiming(count, Timing(*spent), start) for count, spent, start in gathered]

    def records(self) -> Iterator[ImageRecord]:
        """One record per image, in the data set's order; at most a shard in memory."""
        for rows in self.folder.store.all_of(range(len(self.shards))):
            yield from read_stored(rows)

    def read_shown(self, index: int) -> Pixels:
        """The de-identified image at one of the positions `shown`, uint8[H, W, 3]."""
        return self.folder.read_png(_shown_name(index))

    def _unfinished(self) -> list[int]:
        store = self.folder.store
        return [number for number in range(len(self.shards)) if not store.done(number)]

    def _keep(self, index: int, image: Pixels) -> Pixels:
        kept = self.output.keep(index, image)
        if index in self.shown:
            self.folder.write_png(_shown_name(index), kept)
        return kept

    def _finish(self, number: int, records: Sequence[ImageRecord]) -> None:
        files = self.output.finish(number, records)
        files += [_shown_name(index) for index in self.shown if index in self.shards[number]]
        self.folder.store.write(number, stored_rows(records), files)


def _shown_name(index: int) -> str:
    return f"shown/{index}.png"


def timing_row(processes: Sequence[ProcessTiming]) -> Row:
    """The timing fields of `metrics.json`: for the slowest process, or summed over threads."""
    timings = [process.timing for process in processes]
    attacked = sum(process.num_attacked for process in processes)
    seconds = max(timing.seconds for timing in timings)
    compiling = max(timing.compile_seconds for timing in timings)
    return {
        "num_processes": len(processes),
        "num_attacked": attacked,
        "seconds": seconds,
        "images_per_second": attacked / seconds if attacked else 0.0,
        "compile_seconds": compiling,
        "attack_seconds": max(timing.attack_seconds for timing in timings),
        "startup_seconds": max(p.startup_seconds for p in processes) + compiling,
        "read_seconds": sum(timing.read_seconds for timing in timings),
        "read_threads": loader.NUM_THREADS,
        "write_seconds": sum(timing.keep_seconds for timing in timings),
        "write_threads": NUM_KEEPERS,
    }
