"""De-identifies a data set with one method and measures what came of it.

    python -m experiments.attack --method=pfgvm

Writes into --output_dir: `metrics.json`, `per_image.csv`, `config.json`, `sheet.png` and
`images/<person>/<name>.png`; with --evolution also `evolution.png` and `evolution.gif`.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from deid_jax import evaluation, filmstrip, recognisers, reporting, sheet
from deid_jax._validate import InputError
from deid_jax.attacks import ATTACKS
from deid_jax.batch import METHODS, Protocol
from deid_jax.data import FaceDataset
from deid_jax.judging import Naming
from deid_jax.recognisers import Recogniser
from deid_jax.records import summary
from deid_jax.reporting import RunFolder
from experiments import cli, common
from experiments.cli import setting

_SHEET_ROWS = 8
_CONTENTS = (
    "images",
    "metrics.json",
    "per_image.csv",
    "sheet.png",
    "evolution.png",
    "evolution.gif",
)
# Frames and pictures of the evolution figure.
_STRIP_FRAMES, _GIF_FRAMES, _FILMS = 8, 24, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings(common.MethodSettings):
    """Settings of `experiments.attack`."""

    method: str = setting("pfgvm", "De-identification method.", choices=tuple(METHODS))
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
    settings.check_methods([settings.method])
    config = METHODS[settings.method].config(**settings.settings_of(settings.method))
    protocol = settings.protocol(settings.method)
    if settings.evolution and settings.method not in ATTACKS:
        raise InputError(f"--evolution means nothing to --method={settings.method}: no steps")
    folder = RunFolder(Path(settings.output_dir or _default_output(settings)), _CONTENTS)
    folder.check()
    faces, recogniser = common.faces_and_recogniser(settings)
    with folder:
        records, timing, rows = _de_identify(
            settings, faces, recogniser, config, protocol, folder
        )
        figures = {
            "method": settings.method,
            "model": settings.judge,
            "dataset": settings.dataset,
            "split": settings.split,
            "num_devices": 1,
            **summary(records, targeted=protocol.targeted),
            "seconds": timing.seconds,
            "images_per_second": len(records) / timing.seconds,
            "compile_seconds": timing.compile_seconds,
            "attack_seconds": timing.attack_seconds,
            "config": dataclasses.asdict(config),
        }
        description = reporting.describe(
            settings, dataset=faces.provenance, recogniser=recogniser.describe()
        )
        folder.write_json("metrics.json", figures)
        folder.write_csv("per_image.csv", records)
        folder.write_png("sheet.png", sheet.draw(rows, method=settings.method))
        if settings.evolution:
            _write_evolution(folder, settings.method, faces, recogniser, config, protocol)
        folder.write_json(reporting.DESCRIPTION, description)
    _print(figures, protocol, recogniser, folder.path)
    return figures


def _de_identify(
    settings: AttackSettings,
    faces: FaceDataset,
    recogniser: Recogniser,
    config: Any,
    protocol: Protocol,
    folder: RunFolder,
) -> tuple[list[dict[str, Any]], evaluation.Timing, list[sheet.Row]]:
    """Writes the pictures; returns the records, the timing and the sheet's rows."""
    chosen = reporting.spread(faces.labels, _SHEET_ROWS)
    shown: dict[int, np.ndarray] = {}
    names = faces.pictures

    def keep(index: int, picture: np.ndarray) -> np.ndarray:
        kept = folder.write_png(f"images/{names[index]}.png", picture)
        if index in chosen:
            shown[index] = kept
        return kept

    profiled = common.profiled(settings.profile_dir)
    with profiled, cli.progress_bar(settings.method) as update:
        records, timing = evaluation.evaluate(
            recogniser.model,
            recogniser.variables,
            faces,
            settings.method,
            config,
            protocol,
            keep=keep,
            progress=update,
        )
    rows = [
        sheet.Row(
            original=faces.read(index),
            modified=kept,
            true_name=records[index]["person"],
            before=(records[index]["clean_prediction"], records[index]["clean_confidence"]),
            after=(records[index]["prediction_uint8"], records[index]["confidence_uint8"]),
        )
        for index, kept in sorted(shown.items())
    ]
    return records, timing, rows


def _write_evolution(
    folder: RunFolder,
    method: str,
    faces: FaceDataset,
    recogniser: Recogniser,
    config: Any,
    protocol: Protocol,
) -> None:
    """The filmstrip and the GIF of the first pictures of as many persons."""
    indices = reporting.spread(faces.labels, _FILMS)
    kinds = [filmstrip.moments(config.num_steps, n) for n in (_STRIP_FRAMES, _GIF_FRAMES)]
    steps = tuple(sorted({step for kind in kinds for step in kind}))
    pictures, naming, clean = evaluation.run_examples(
        recogniser.model,
        recogniser.variables,
        faces,
        method,
        dataclasses.replace(config, num_steps=steps),
        protocol,
        indices,
    )

    def films(chosen: Sequence[int]) -> list[filmstrip.Film]:
        def frame(picture: np.ndarray, named: Naming, place: Any) -> filmstrip.Frame:
            name = faces.persons[named.prediction[place]]
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


def _print(
    figures: Mapping[str, Any], protocol: Protocol, recogniser: Recogniser, path: Path
) -> None:
    settings = [
        f"{name} {common.number_or_name(value)}" for name, value in figures["config"].items()
    ]
    if figures["method"] in ATTACKS:
        settings += [f"target {protocol.target}", f"init {protocol.init}"]
    print(
        f"{figures['method']} against {figures['model']}: {figures['num_images']} pictures "
        f"of {figures['dataset']}, split {figures['split']}\n{', '.join(settings)}"
    )
    Console().print(reporting.metrics_table(figures))
    if protocol.init == "noise" and "penalty_weight" in figures["config"]:
        config = figures["config"]
        kept = abs(1 - config["step_size"] * config["penalty_weight"])
        left = kept ** config["num_steps"]
        print(f"Of the noise (1 - αλ)^N = {left:.1%} is left.")
    print(
        f"{figures['seconds']:.1f} s ({figures['images_per_second']:.1f} pictures/s), "
        f"{figures['attack_seconds']:.1f} s of them in the compiled attack;\n"
        f"{figures['compile_seconds']:.1f} s of compiling before.\n"
        f"{common.accuracy_line(recogniser)}\n"
        f"Pictures, sheet and figures: {path}"
    )


main = cli.binary(run, AttackSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
