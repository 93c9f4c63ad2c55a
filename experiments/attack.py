"""De-identifies a data set with one method and measures what came of it.

    python -m experiments.attack --method=pfgvm

Writes into --output_dir: `metrics.json`, `per_image.csv`, `config.json`, `sheet.png` and
`images/<person>/<name>.png`, or with --output_format=tfds `dataset/<name>/<version>/`, which
TFDS loads like the original; with --evolution also `evolution.png` and `evolution.gif`.

The work is done shard by shard, on all devices, and by several processes if so started. A run
that was stopped goes on where it stood when the same command is given again, by however many
processes.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from deid_jax import evaluation, recognisers
from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.data import FaceDataset, loader
from deid_jax.data.images import quiet_pillow
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.evaluation import Timing
from deid_jax.evaluation.batch import Protocol
from deid_jax.evaluation.examples import run_examples
from deid_jax.evaluation.measuring import Predictions
from deid_jax.evaluation.records import ImageRecord, summary
from deid_jax.recognisers import Recogniser
from deid_jax.reports import filmstrip, sheet
from deid_jax.reports.tables import metrics_table, spread
from deid_jax.runs import resuming, run_folder
from deid_jax.runs.run_folder import RunFolder
from experiments._attack import attack_output
from experiments._attack.attack_output import CopyOutput, Output, PngOutput
from experiments._common import cli, common, scale
from experiments._common.cli import setting
from experiments._common.method_flags import number_or_name
from experiments._common.machine import threads

_SHEET_ROWS = 8
_CONTENTS = (
    "images",
    "dataset",
    "metrics.json",
    "per_image.csv",
    "sheet.png",
    "evolution.png",
    "evolution.gif",
)
# Frames and pictures of the evolution figure.
_STRIP_FRAMES, _GIF_FRAMES, _FILMS = 8, 24, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings(common.MethodSettings, scale.ShardSettings):
    """Settings of `experiments.attack`."""

    method: str = setting("pfgvm", "De-identification method.", choices=tuple(METHODS))
    output_format: str = setting(
        "png",
        "png: a file for each picture; tfds: a TFDS data set (ArrayRecord) with the features "
        "of the original, to train on.",
        choices=attack_output.FORMATS,
    )
    evolution: bool = setting(
        False, "Also write how the first pictures come about, step by step, as PNG and GIF."
    )
    output_dir: str | None = setting(None, "Where to write; default: under runs/attack/.")


def run(settings: AttackSettings) -> dict[str, Any]:
    """De-identifies, measures, writes, prints; returns what `metrics.json` holds.

    Raises:
      InputError: bad settings, data, checkpoint or output folder; nothing is written then.
    """
    settings.check()
    settings.check_shards()
    settings.check_methods([settings.method])
    config = METHODS[settings.method].config(**settings.settings_of(settings.method))
    protocol = settings.protocol(settings.method)
    if settings.evolution and settings.method not in ATTACKS:
        raise InputError(f"--evolution means nothing to --method={settings.method}: no steps")
    start = time.perf_counter()
    with settings.joined() as group:
        mesh = settings.local_mesh()
        path = Path(settings.output_dir or _default_output(settings))
        folder = RunFolder(path, _CONTENTS, group)
        folder.check()
        faces, recogniser = common.faces_and_recogniser(settings, group)
        described = recogniser.describe()
        work = _Work(settings, faces, recogniser, config, protocol, folder, group)
        folder.going_on(work.facts(described))
        with folder:
            timing = work.attack_all(mesh, time.perf_counter() - start)
            if not group.is_first:
                return {}
            figures = work.conclude(timing, num_devices=mesh.size * group.count)
            if settings.evolution:
                own = (settings.method, faces, recogniser, config, protocol)
                _write_evolution(folder, *own, mesh if settings.model_parallel > 1 else None)
            description = run_folder.describe(
                settings.alone(), dataset=faces.provenance, recogniser=described
            )
            folder.write_json(run_folder.DESCRIPTION, description)
    _print(figures, protocol, recogniser, folder.path)
    return figures


@dataclasses.dataclass(frozen=True)
class _Work:
    """The shards of a run: which are finished, and what they come to."""

    settings: AttackSettings
    faces: FaceDataset
    recogniser: Recogniser
    config: Any
    protocol: Protocol
    folder: RunFolder
    group: Group

    @property
    def shards(self) -> list[range]:
        """The positions of each."""
        return resuming.shards_of(len(self.faces), self.settings.shard_size)

    def facts(self, recogniser: dict[str, Any]) -> dict[str, Any]:
        """All that decides what is written."""
        protocol = dataclasses.asdict(self.protocol)
        del protocol["batch_size"]
        return {
            **scale.facts_of_pictures(self.faces, recogniser),
            "method": [self.settings.method, dataclasses.asdict(self.config)],
            "protocol": protocol,
            "output format": self.settings.output_format,
            "shards": [len(self.shards), len(self.shards[0])],
        }

    def attack_all(self, mesh: Any, spent: float) -> list[dict[str, float]]:
        """Does this process's part of the shards that are not finished.

        Args:
          mesh: its devices.
          spent: seconds of the run so far.

        Returns:
          The timing of every process.
        """
        shards, store = self.shards, self.folder.store
        left = self.group.agree(self._unfinished() if self.group.is_first else None)
        if len(left) < len(shards) and self.group.is_first:
            done = len(shards) - len(left)
            print(f"going on: {done} of {len(shards)} shards are finished", file=sys.stderr)
        own = left[self.group.index :: self.group.count]
        output, shown = self._output(), self._shown()

        def keep(index: int, picture: np.ndarray) -> np.ndarray:
            kept = output.keep(index, picture)
            if index in shown:
                self.folder.write_png(_shown_name(index), kept)
            return kept

        def finish(number: int, records: list[ImageRecord]) -> None:
            files = output.finish(own[number], records)
            names = [_shown_name(index) for index in shown if index in shards[own[number]]]
            files |= self.folder.sizes(names)
            store.write(
                own[number],
                {"files": files, "records": [record.to_row() for record in records]},
            )

        profiled = common.profiled(self.settings.profile_dir)
        with profiled, quiet_pillow(), cli.progress_bar(self.settings.method) as update:
            timing = Timing()
            if own:
                timing = evaluation.evaluate_spans(
                    self.recogniser.model,
                    self.recogniser.variables,
                    self.faces,
                    self.settings.method,
                    self.config,
                    self.protocol,
                    [shards[number] for number in own],
                    finish,
                    keep=keep,
                    progress=update,
                    mesh=mesh,
                    longest=len(shards[0]),
                )
        attacked = sum(len(shards[number]) for number in own)
        timings = self.group.gather(
            {**timing._asdict(), "spent": spent, "num_attacked": attacked}
        )
        if self.group.is_first:
            if self._unfinished():
                raise OSError("files of finished shards are gone or cut: run the command again")
            output.close()
        return timings

    def _unfinished(self) -> list[int]:
        """The shards that are not there, or no longer whole."""
        left = []
        for number in range(len(self.shards)):
            piece = self.folder.store.read(number)
            if piece is None or not attack_output.is_whole(
                self.folder.work_path("."), piece["files"]
            ):
                left.append(number)
        return left

    def _output(self) -> Output:
        if self.settings.output_format == "tfds":
            return CopyOutput(self.folder, self.faces, self.shards)
        return PngOutput(self.folder, self.faces)

    def _shown(self) -> list[int]:
        return spread(self.faces.labels.tolist(), _SHEET_ROWS)

    def _records(self) -> Iterator[ImageRecord]:
        """One record per picture, in the data set's order; no more than a shard in memory."""
        for piece in self.folder.store.all_of(range(len(self.shards))):
            for row in piece["records"]:
                yield ImageRecord.from_row(row, "a shard")

    def conclude(
        self, timings: Sequence[Mapping[str, float]], *, num_devices: int
    ) -> dict[str, Any]:
        """Writes tables and sheet; returns the figures of the run."""
        settings = self.settings
        figures = {
            "method": settings.method,
            "model": settings.judge,
            "dataset": settings.dataset,
            "split": settings.split,
            "num_devices": num_devices,
            **summary(self._records()).to_row(),
            **_times(timings),
            "shard_size": len(self.shards[0]),
            "config": dataclasses.asdict(self.config),
        }
        left_out = len(self.faces) - figures["num_images"]
        if left_out:
            pictures = "picture" if left_out == 1 else "pictures"
            print(f"left out {left_out} unreadable {pictures}", file=sys.stderr)
        self.folder.write_json("metrics.json", figures)
        self.folder.write_csv("per_image.csv", (record.to_row() for record in self._records()))
        rows = self._rows()
        self.folder.write_png("sheet.png", sheet.draw(rows, method=settings.method))
        return figures

    def _rows(self) -> list[sheet.Row]:
        """What the sheet shows."""
        wanted = {self.faces.picture(index): index for index in self._shown()}
        rows = []
        for record in self._records():
            index = wanted.get(record.image)
            if index is not None:
                rows.append(
                    sheet.Row(
                        original=self.faces.read(index),
                        modified=self.folder.read_png(_shown_name(index)),
                        true_name=record.person,
                        before=(record.clean_prediction, record.clean_confidence),
                        after=(record.uint8_result.prediction, record.uint8_result.confidence),
                    )
                )
        return rows


def _shown_name(index: int) -> str:
    """Where a picture of the sheet waits for it."""
    return f"shown/{index}.png"


def _times(timings: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The timing fields of `metrics.json`: of the slowest process, or summed over threads."""
    slowest = {name: max(timing[name] for timing in timings) for name in timings[0]}
    summed = {name: sum(timing[name] for timing in timings) for name in timings[0]}
    attacked = int(summed["num_attacked"])
    return {
        "num_processes": len(timings),
        "num_attacked": attacked,
        "seconds": slowest["seconds"],
        "images_per_second": attacked / slowest["seconds"] if attacked else 0.0,
        "compile_seconds": slowest["compile_seconds"],
        "attack_seconds": slowest["attack_seconds"],
        "startup_seconds": slowest["spent"] + slowest["compile_seconds"],
        "read_seconds": summed["read_seconds"],
        "read_threads": loader.NUM_THREADS,
        "write_seconds": summed["keep_seconds"],
        "write_threads": evaluation.NUM_KEEPERS,
        "host_cores": threads(),
    }


def _write_evolution(
    folder: RunFolder,
    method: str,
    faces: FaceDataset,
    recogniser: Recogniser,
    config: Any,
    protocol: Protocol,
    mesh: Any,
) -> None:
    """The filmstrip and the GIF of the first pictures of as many persons."""
    indices = spread(faces.labels, _FILMS)
    kinds = [filmstrip.moments(config.num_steps, n) for n in (_STRIP_FRAMES, _GIF_FRAMES)]
    steps = tuple(sorted({step for kind in kinds for step in kind}))
    pictures, naming, clean = run_examples(
        recogniser.model,
        recogniser.variables,
        faces,
        method,
        dataclasses.replace(config, num_steps=steps),
        protocol,
        indices,
        mesh=mesh,
    )

    def films(chosen: Sequence[int]) -> list[filmstrip.Film]:
        def frame(picture: np.ndarray, named: Predictions, place: Any) -> filmstrip.Frame:
            name = faces.persons[named.label[place]]
            return filmstrip.Frame(picture, name, float(named.confidence[place]))

        return [
            filmstrip.Film(
                person=faces.persons[faces.labels[index]],
                original=frame(faces.read(index), clean, place),
                frames=[
                    frame(pictures[moment, place], naming, (moment, place))
                    for moment in map(steps.index, chosen)
                ],
            )
            for place, index in enumerate(indices)
        ]

    strip, gif = kinds
    folder.write_png("evolution.png", filmstrip.draw(films(strip), strip))
    folder.write_bytes("evolution.gif", filmstrip.animate(films(gif), gif))


def _default_output(settings: AttackSettings) -> Path:
    """One folder per recogniser, split and method, named like the default checkpoint."""
    options = settings.options("train")
    name = recognisers.default_path(settings.judge, settings.dataset, options).name
    return Path("runs", "attack", f"{name}-{settings.split}-{settings.method}")


def _by_whom(figures: Mapping[str, Any]) -> str:
    devices, processes = figures["num_devices"], figures["num_processes"]
    text = f" on {devices} devices" if devices > 1 else ""
    return text + (f" of {processes} processes" if processes > 1 else "")


def _print(
    figures: Mapping[str, Any], protocol: Protocol, recogniser: Recogniser, path: Path
) -> None:
    settings = [f"{name} {number_or_name(value)}" for name, value in figures["config"].items()]
    if figures["method"] in ATTACKS:
        settings += [f"target {protocol.target}", f"init {protocol.init}"]
    print(
        f"{figures['method']} against {figures['model']}: {figures['num_images']} pictures "
        f"of {figures['dataset']}, split {figures['split']}\n{', '.join(settings)}"
    )
    Console().print(metrics_table(figures))
    if protocol.init == "noise" and "penalty_weight" in figures["config"]:
        config = figures["config"]
        kept = abs(1 - config["step_size"] * config["penalty_weight"])
        left = kept ** config["num_steps"]
        print(f"Of the noise (1 - αλ)^N = {left:.1%} is left.")
    print(
        f"{figures['seconds']:.1f} s ({figures['images_per_second']:.1f} pictures/s"
        f"{_by_whom(figures)}), {figures['attack_seconds']:.1f} s of them in the compiled "
        f"attack;\n{figures['compile_seconds']:.1f} s of compiling before.\n"
        f"{common.accuracy_line(recogniser)}\n"
        f"Pictures, sheet and figures: {path}"
    )


main = cli.binary(run, AttackSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
