"""Measures how the speed of `experiments.attack` scales with the number of processes.

    python -m experiments.scaling --dataset=folder --data_dir=FACES --split=all

All processes run on this machine, each on its own cores (--cores_per_process). The numbers of
processes are measured in turn, --repeats times. The result is the median of images per second,
without start-up and compilation. Writes `scaling.csv` (one line per run) and `config.json` into
--output_dir.
"""

import contextlib
import dataclasses
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from deid_jax.attacks import METHODS
from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.evaluation.records import MeanMetrics, Row, RunMetrics
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from deid_jax.runs.reading import RowReader, read_json
from experiments._common import cli, flags, loading, method_settings, terminal
from experiments._common.flags import setting
from experiments._common.machine import threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingSettings(method_settings.MethodSettings):
    """Settings of `experiments.scaling`."""

    method: str = setting("pfgvm", "De-identification method.", choices=tuple(METHODS))
    processes: str = setting("1,2", "Numbers of processes, by commas.")
    cores_per_process: int = setting(1, "Cores that each process has for itself.")
    repeats: int = setting(3, "How often each number of processes is run.")
    output_dir: str = setting("runs/scaling", "Where to write.")

    def numbers(self) -> list[int]:
        """The numbers of processes; refuses more than the machine has cores for."""
        try:
            numbers = [int(text) for text in self.processes.split(",")]
        except ValueError:
            raise InputError(
                f"processes must be whole numbers by commas, got {self.processes}"
            ) from None
        if not hasattr(os, "sched_setaffinity"):
            raise InputError("this system gives processes no cores of their own: Linux does")
        cores = threads()
        count("cores_per_process", self.cores_per_process, least=1)
        count("repeats", self.repeats, least=1)
        for number in numbers:
            count("processes", number, least=1)
            if number * self.cores_per_process > cores:
                raise InputError(
                    f"{number} processes of {self.cores_per_process} cores are more than the "
                    f"{cores} cores at hand"
                )
        return numbers


@dataclasses.dataclass(frozen=True)
class TimedRun:
    """One run by some processes: a line of `scaling.csv`.

    The seconds are without start-up and compilation.
    """

    turn: int
    num_processes: int
    num_images: int
    seconds: float
    images_per_second: float
    compile_seconds: float
    uint8_result: MeanMetrics

    @classmethod
    def from_metrics(cls, turn: int, path: Path) -> "TimedRun":
        """Reads a run's `metrics.json`."""
        row = read_json(path)
        read, metrics = RowReader(row, str(path)), RunMetrics.from_row(row, str(path))
        return cls(
            turn=turn,
            num_processes=read.integer("num_processes"),
            num_images=metrics.num_images,
            seconds=read.number("seconds"),
            images_per_second=read.number("images_per_second"),
            compile_seconds=read.number("compile_seconds"),
            uint8_result=metrics.uint8_result,
        )

    def to_row(self) -> Row:
        """The line of `scaling.csv`."""
        means = self.uint8_result
        own: Row = {n: value for n, value in vars(self).items() if n != "uint8_result"}
        return own | {"l2_uint8": means.l2, "mssim_uint8": means.mssim, "mr_uint8": means.mr}


def run(settings: ScalingSettings) -> list[TimedRun]:
    """Measures every number of processes, writes and prints the results; returns the runs.

    Raises:
      InputError: bad settings, data, checkpoint or output folder, or a run failed.
    """
    settings.check()
    settings.check_methods([settings.method])
    numbers = settings.numbers()
    folder = RunFolder(Path(settings.output_dir), ["scaling.csv"])
    folder.check()
    # Trains a missing recogniser, and refuses whatever the processes would refuse.
    loading.load_or_train_recogniser(settings, loading.load_split(settings))
    runs: list[TimedRun] = []
    bar = terminal.progress_bar("runs")
    with folder, tempfile.TemporaryDirectory() as scratch, bar as update:
        total = settings.repeats * len(numbers)
        for turn in range(settings.repeats):
            for number in numbers:
                metrics = _attack(settings, number, Path(scratch, f"{turn}-{number}"))
                runs.append(TimedRun.from_metrics(turn, metrics))
                update(len(runs), total)
        folder.write_csv("scaling.csv", [one.to_row() for one in runs])
        folder.write_json(DESCRIPTION, describe(settings))
    _print(runs, numbers, settings.cores_per_process, folder.path)
    return runs


def _attack(settings: ScalingSettings, number: int, output: Path) -> Path:
    """Runs the attack in processes with their own cores; returns the path of `metrics.json`."""
    cores = sorted(os.sched_getaffinity(0))
    arguments = [*_arguments(settings), f"--output_dir={output}"]
    if number > 1:
        arguments += [
            f"--coordinator_address=127.0.0.1:{_free_port()}",
            f"--num_processes={number}",
        ]
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for index in range(number):
            first = index * settings.cores_per_process
            own = cores[first : first + settings.cores_per_process]
            which = [f"--process_id={index}"] if number > 1 else []
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [sys.executable, "-c", _PINNED, ",".join(map(str, own)), *arguments, *which],
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            stack.callback(process.kill)  # No effect if it has ended.
            started.append(process)
            stack.callback(_refuse_failed, process, said)
        for process in started:
            process.wait()
    return output / "metrics.json"


# A process must be bound to its cores before JAX counts them.
_PINNED = """
import os, runpy, sys
os.sched_setaffinity(0, map(int, sys.argv.pop(1).split(",")))
runpy.run_module("experiments.attack", run_name="__main__", alter_sys=True)
"""


def _refuse_failed(process: subprocess.Popen[bytes], said: IO[str]) -> None:
    if process.returncode:
        said.seek(0)
        lines = said.read().strip().splitlines()
        reason = lines[-1].removeprefix("error: ") if lines else f"status {process.returncode}"
        raise InputError(f"a run failed: {reason}")


def _arguments(settings: ScalingSettings) -> list[str]:
    """The flags for `experiments.attack`."""
    own = {field.name for field in dataclasses.fields(ScalingSettings)} - {
        field.name for field in dataclasses.fields(method_settings.MethodSettings)
    }
    given: dict[str, object] = dict(settings.method_settings)
    for name, flag in flags.flags_of(ScalingSettings).items():
        value = getattr(settings, name, flag.default)
        if name not in own - {"method"} and value != flag.default:
            given[name] = value
    return [f"--{name}={value}" for name, value in given.items()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _print(runs: Sequence[TimedRun], numbers: Sequence[int], cores: int, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    images = runs[0].num_images
    table = Table("processes", title=f"{images} images, cores of each process: {cores}")
    for heading in ("images/s", "least", "most", "times the first", "L2"):
        table.add_column(heading, justify="right")
    rates = {
        number: [one.images_per_second for one in runs if one.num_processes == number]
        for number in numbers
    }
    base = statistics.median(rates[numbers[0]])
    for number, own in rates.items():
        l2 = next(one.uint8_result.l2 for one in runs if one.num_processes == number)
        middle = statistics.median(own)
        table.add_row(
            str(number),
            f"{middle:.2f}",
            f"{min(own):.2f}",
            f"{max(own):.2f}",
            f"{middle / base:.2f}",
            f"{l2:.5f}",
        )
    Console().print(table)
    print(f"Every run: {path / 'scaling.csv'}")


main = cli.binary(run, ScalingSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
