"""De-identifies the images of a data set with one attack and measures the results.

    python -m experiments.attack --method=pfgvm

Writes `metrics.json`, `per_image.csv`, `config.json`, `sheet.png` and the images
`images/<person>/<name>.png` into --output_dir. With --output_format=tfds the images go to
`dataset/<name>/<version>/` instead, which TFDS loads like the original data set. --evolution
adds `evolution.png` and `evolution.gif`.

The images are processed in shards on all devices, and by several processes if you start them.
To resume an interrupted run, repeat the command; the number of processes may differ.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.data.images import quiet_pillow
from deid_jax.errors import InputError
from deid_jax.evaluation import (
    FORMATS,
    Evaluation,
    Predictions,
    ProcessTiming,
    RunMetrics,
    ShardedRun,
    facts_of_data,
    summary,
    timing_row,
)
from deid_jax.evaluation.outputs import OUTPUT_NAMES
from deid_jax.pixels import Pixels
from deid_jax.recognisers import Recogniser
from deid_jax.reports import filmstrip
from deid_jax.reports.filmstrip import Film, FilmFrame
from deid_jax.reports.measured import MeasuredPoint
from deid_jax.reports.sheet import SheetRow, draw_sheet, sheet_caption
from deid_jax.reports.tables import images_to_show, metrics_table, percent
from deid_jax.runs import DESCRIPTION, RunFolder, describe, shards_of
from deid_jax.types import Json
from experiments._common import cli, loading
from experiments._common.flags import setting
from experiments._common.machine import threads
from experiments._common.method_settings import MethodSettings, settings_text
from experiments._common.process_settings import ShardSettings
from experiments._common.terminal import progress_bar

_SHEET_ROWS = 8
_CONTENTS = (
    *OUTPUT_NAMES,
    "metrics.json",
    "per_image.csv",
    "sheet.png",
    "evolution.png",
    "evolution.gif",
)
# Frames and images of the evolution figure.
_STRIP_FRAMES, _GIF_FRAMES, _FILMS = 8, 24, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings(MethodSettings, ShardSettings):
    """Settings of `experiments.attack`."""

    method: str = setting("pfgvm", "De-identification method.", choices=tuple(METHODS))
    output_format: str = setting(
        "png",
        "png: a file for each image; tfds: a TFDS data set (ArrayRecord) with the features "
        "of the original, to train on.",
        choices=tuple(FORMATS),
    )
    evolution: bool = setting(
        False, "Also draw how the first images develop, step by step, as PNG and GIF."
    )
    output_dir: str | None = setting(None, "Where to write; default: under runs/attack/.")

    def check(self) -> None:
        """Refuses values out of range and flags that cannot be combined."""
        super().check()
        self.check_shards()
        self.check_methods([self.method])
        if self.evolution and self.method not in ATTACKS:
            raise InputError(f"--evolution does not apply to --method={self.method}: no steps")

    @property
    def path(self) -> Path:
        """Where to write: a folder per recogniser, split and method by default."""
        name = f"{self.checkpoint_name}-{self.split}-{self.method}"
        return Path(self.output_dir or Path("runs", "attack", name))


def run(settings: AttackSettings) -> dict[str, Json]:
    """Runs the attack, writes and prints its results; returns the content of `metrics.json`.

    Raises:
      InputError: bad settings, data, checkpoint or output folder. Nothing is written in that
        case.
    """
    start = time.perf_counter()
    settings.check()
    config = settings.config(settings.method)
    with settings.joined() as group:
        mesh = settings.local_mesh()
        folder = RunFolder(settings.path, _CONTENTS, group)
        folder.check()
        split = loading.load_split(settings, group)
        recogniser = loading.load_or_train_recogniser(
            settings, split, group, model_parallel=settings.model_parallel
        )
        dataset = settings.chosen(split)
        protocol = settings.protocol(settings.method)
        evaluation = Evaluation(recogniser, dataset, settings.method, config, protocol, mesh)
        shards = shards_of(len(dataset), settings.shard_size)
        described = recogniser.describe()
        folder.going_on(_facts(settings, evaluation, shards, described))
        with folder:
            output = FORMATS[settings.output_format](folder, dataset, shards)
            shown = images_to_show(dataset, _SHEET_ROWS)
            sharded = ShardedRun(evaluation, shards, folder, output, shown, group)
            timings = _attack(settings, sharded, startup_seconds=time.perf_counter() - start)
            if not group.is_first:
                return {}
            metrics = _metrics(settings, sharded, timings)
            folder.write_json("metrics.json", metrics)
            folder.write_csv("per_image.csv", (one.to_row() for one in sharded.records()))
            folder.write_png("sheet.png", _sheet(sharded, metrics))
            if settings.evolution:
                _write_evolution(folder, evaluation)
            description = describe(
                settings.alone(), dataset=dataset.provenance, recogniser=described
            )
            folder.write_json(DESCRIPTION, description)
    _print(metrics, evaluation, recogniser, folder.path)
    return metrics


def _facts(
    settings: AttackSettings,
    evaluation: Evaluation,
    shards: Sequence[range],
    recogniser: Mapping[str, Json],
) -> dict[str, object]:
    """Everything that determines the output."""
    protocol = dataclasses.asdict(evaluation.protocol)
    del protocol["batch_size"]
    return {
        **facts_of_data(evaluation.dataset, recogniser),
        "method": [settings.method, dataclasses.asdict(evaluation.config)],
        "protocol": protocol,
        "output format": settings.output_format,
        "shards": [len(shards), len(shards[0])],
    }


def _attack(
    settings: AttackSettings, sharded: ShardedRun, *, startup_seconds: float
) -> list[ProcessTiming]:
    """Runs the attack, with a progress bar."""
    with (
        loading.profiled(settings.profile_dir),
        quiet_pillow(),
        progress_bar(settings.method) as update,
    ):
        return sharded.attack(update, startup_seconds=startup_seconds)


def _metrics(
    settings: AttackSettings, sharded: ShardedRun, timings: Sequence[ProcessTiming]
) -> dict[str, Json]:
    """The content of `metrics.json`."""
    evaluation = sharded.evaluation
    means = summary(sharded.records())
    loading.say_left_out(len(evaluation.dataset) - means.num_images)
    return {
        "method": settings.method,
        "model": settings.judge,
        "dataset": settings.dataset,
        "split": settings.split,
        "num_devices": evaluation.mesh.size * sharded.group.count,
        **means.to_row(),
        **timing_row(timings),
        "host_cores": threads(),
        "shard_size": len(sharded.shards[0]),
        "config": dataclasses.asdict(evaluation.config),
    }


def _sheet(sharded: ShardedRun, metrics: Mapping[str, Json]) -> Pixels:
    evaluation = sharded.evaluation
    dataset = evaluation.dataset
    wanted = {dataset.image_name(index): index for index in sharded.shown}
    rows = [
        SheetRow(
            original=dataset.read(wanted[record.image]),
            modified=sharded.read_shown(wanted[record.image]),
            true_name=record.person,
            before=(record.clean_prediction, record.clean_confidence),
            after=(record.uint8_result.prediction, record.uint8_result.confidence),
        )
        for record in sharded.records()
        if record.image in wanted
    ]
    point = MeasuredPoint(
        evaluation.method,
        str(metrics["model"]),
        str(metrics["dataset"]),
        str(metrics["split"]),
        dataclasses.asdict(evaluation.config),
        RunMetrics.from_row(metrics, "metrics.json"),
    )
    return draw_sheet(rows, caption=sheet_caption(point))


def _write_evolution(folder: RunFolder, evaluation: Evaluation) -> None:
    """Writes the filmstrip and the GIF: the first image of each of several persons."""
    dataset, num_steps = evaluation.dataset, evaluation.num_steps
    indices = images_to_show(dataset, _FILMS)
    strip, gif = (filmstrip.moments(num_steps, n) for n in (_STRIP_FRAMES, _GIF_FRAMES))
    steps = tuple(sorted({*strip, *gif}))
    settings = dataclasses.asdict(evaluation.config) | {"num_steps": steps}
    examples = evaluation.at(settings).examples(indices)

    def frame(
        image: Pixels, predictions: Predictions, place: int | tuple[int, int]
    ) -> FilmFrame:
        person = dataset.persons[predictions.label[place]]
        return FilmFrame(image, person, float(predictions.confidence[place]))

    def film(place: int, index: int, chosen: Sequence[int]) -> Film:
        return Film(
            person=dataset.persons[dataset.labels[index]],
            original=frame(dataset.read(index), examples.clean, place),
            frames=[
                frame(examples.images[moment, place], examples.predictions, (moment, place))
                for moment in map(steps.index, chosen)
            ],
        )

    def films(chosen: Sequence[int]) -> list[Film]:
        return [film(place, index, chosen) for place, index in enumerate(indices)]

    folder.write_png("evolution.png", filmstrip.draw_filmstrip(films(strip), strip))
    folder.write_bytes("evolution.gif", filmstrip.draw_animation(films(gif), gif))


def _by_whom(metrics: Mapping[str, Json]) -> str:
    devices, processes = metrics["num_devices"], metrics["num_processes"]
    text = f" on {devices} devices" if devices != 1 else ""
    return text + (f" of {processes} processes" if processes != 1 else "")


def _print(
    metrics: Mapping[str, Json], evaluation: Evaluation, recogniser: Recogniser, path: Path
) -> None:
    from rich.console import Console

    config, protocol = dataclasses.asdict(evaluation.config), evaluation.protocol
    settings = dict(config)
    if evaluation.method in ATTACKS:
        settings |= {"target": protocol.target, "init": protocol.init}
    print(
        f"{evaluation.method} against {metrics['model']}: {metrics['num_images']} images "
        f"of {metrics['dataset']}, split {metrics['split']}\n{settings_text(settings)}"
    )
    Console().print(metrics_table(RunMetrics.from_row(metrics, "metrics.json")))
    if protocol.init == "noise" and "penalty_weight" in config:
        kept = abs(1 - config["step_size"] * config["penalty_weight"])
        print(f"Of the noise (1 - αλ)^N = {percent(kept ** config['num_steps'])} is left.")
    print(
        f"attack {metrics['seconds']:.1f} s ({metrics['images_per_second']:.1f} images/s"
        f"{_by_whom(metrics)}), compiling {metrics['compile_seconds']:.1f} s\n"
        f"{loading.accuracy_line(recogniser)}\n"
        f"Images, sheet and metrics: {path}"
    )


main = cli.binary(run, AttackSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
