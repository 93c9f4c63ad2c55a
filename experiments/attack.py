"""De-identifies a data set with one method and measures what came of it.

    python -m experiments.attack --method=pfgvm

Writes into --output_dir: `metrics.json`, `per_image.csv`, `config.json`, `sheet.png` and
`images/<person>/<name>.png`.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from deid_jax import evaluation, recognisers, reporting, sheet
from deid_jax._validate import InputError
from deid_jax.attacks import ATTACKS
from deid_jax.data import FaceDataset
from deid_jax.evaluation import INITS, METHODS, TARGETS, Protocol
from deid_jax.recognisers import Recogniser
from deid_jax.reporting import RunFolder
from experiments import cli, common
from experiments.cli import Flag, setting

_SHEET_ROWS = 8
_CONTENTS = ("images", "metrics.json", "per_image.csv", "sheet.png")


# What --help says of the methods' settings.
_MEANINGS = {
    "step_size": "α, how far one step goes.",
    "penalty_weight": "λ, the weight of the 'realism' term; α·λ >= 2 diverges.",
    "num_steps": "Number of gradient steps.",
    "epsilon": "ε, the largest change of a pixel, of a range of 1.",
    "blur_sigma": "Standard deviation of the blur, a fraction of the picture's height.",
    "num_blocks": "Number of blocks across and down the picture.",
    "mask_size": "Height and width of the mask, a fraction of the picture's.",
    "noise_stddev": "Standard deviation of the noise, for pixels of a range of 1.",
}


def _method_flags() -> dict[str, Flag]:
    """One flag per setting of any method; where it is not given, the method's default holds."""
    found: dict[str, Flag] = {}
    for name, method in METHODS.items():
        for field in dataclasses.fields(method.config):
            kind, default = type(field.default), f"{name} {field.default:g}"
            if field.name in found:
                text = f"{found[field.name].help.removesuffix('.')}, {default}."
            else:
                text = f"{_MEANINGS.get(field.name, '')} Default: {default}.".strip()
            found[field.name] = Flag(kind, None, text)
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings(common.EvaluationSettings):
    """Settings of `experiments.attack`; `method_settings` are those of the method alone."""

    method: str = setting("pfgvm", "De-identification method.", choices=tuple(METHODS))
    target: str | None = setting(
        None, "Label that an attack aims at; none = untargeted. Default: random.", TARGETS
    )
    init: str | None = setting(None, "First iterate of an attack. Default: image.", INITS)
    quantize: bool = setting(False, "Round the result to 8 bits before it is measured.")
    output_dir: str | None = setting(None, "Where to write; default: under runs/attack/.")
    method_settings: Mapping[str, Any] = cli.settings_of_others(_method_flags())

    def config(self) -> Any:
        """The method's config.

        Raises:
          InputError: a setting that the method does not have, or a bad value.
        """
        method = METHODS[self.method]
        for name, value in self.method_settings.items():
            if name not in method.settings():
                raise InputError(
                    f"--{name}={value} means nothing to --method={self.method}, which takes "
                    + ", ".join(f"--{own}" for own in method.settings())
                )
        return method.config(**self.method_settings)

    def protocol(self) -> Protocol:
        """How the method is run.

        Raises:
          InputError: a flag that the method ignores, or a bad value.
        """
        if self.method not in ATTACKS:
            for name, value in (("target", self.target), ("init", self.init)):
                if value is not None:
                    raise InputError(
                        f"--{name}={value} means nothing to --method={self.method}"
                    )
        default_target = "random" if self.method in ATTACKS else "none"
        return Protocol(
            target=self.target or default_target,
            init=self.init or "image",
            quantize=self.quantize,
            batch_size=self.batch_size,
            seed=self.seed,
        )


def run(settings: AttackSettings) -> dict[str, Any]:
    """De-identifies, measures, writes, prints; returns what `metrics.json` holds.

    Raises:
      InputError: bad settings, data, checkpoint or output folder; nothing is written then.
    """
    settings.check()
    config, protocol = settings.config(), settings.protocol()
    folder = RunFolder(Path(settings.output_dir or _default_output(settings)), _CONTENTS)
    folder.check()
    faces, recogniser = common.faces_and_recogniser(settings)
    with folder:
        records, timing, rows = _de_identify(
            settings, faces, recogniser, config, protocol, folder
        )
        figures = {
            "method": settings.method,
            "model": settings.model,
            "dataset": settings.dataset,
            "split": settings.split,
            "num_devices": 1,
            **evaluation.summary(records, protocol),
            "seconds": timing.seconds,
            "images_per_second": len(records) / timing.seconds,
            "compile_seconds": timing.compile_seconds,
            "config": dataclasses.asdict(config),
        }
        description = reporting.describe(
            settings, dataset=faces.provenance, recogniser=recogniser.info.summary()
        )
        folder.write_json("metrics.json", figures)
        folder.write_csv("per_image.csv", records)
        folder.write_png("sheet.png", sheet.draw(rows, method=settings.method))
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

    def keep(index: int, picture: np.ndarray) -> np.ndarray:
        kept = folder.write_png(f"images/{faces.pictures[index]}.png", picture)
        if index in chosen:
            shown[index] = kept
        return kept

    with cli.progress_bar(settings.method) as update:
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


def _default_output(settings: AttackSettings) -> Path:
    """One folder per recogniser, split and method, named like the default checkpoint."""
    options = settings.options("train")
    name = recognisers.default_path(settings.model, settings.dataset, options).name
    return Path("runs", "attack", f"{name}-{settings.split}-{settings.method}")


def _print(
    figures: Mapping[str, Any], protocol: Protocol, recogniser: Recogniser, path: Path
) -> None:
    settings = [f"{name} {value:g}" for name, value in figures["config"].items()]
    if figures["method"] in ATTACKS:
        settings += [f"target {protocol.target}", f"init {protocol.init}"]
    print(
        f"{figures['method']} against {figures['model']}: {figures['num_images']} pictures "
        f"of {figures['dataset']}, split {figures['split']}\n{', '.join(settings)}"
    )
    Console().print(reporting.metrics_table(figures))
    print(
        f"{figures['seconds']:.1f} s ({figures['images_per_second']:.1f} pictures/s) after "
        f"{figures['compile_seconds']:.1f} s of compiling.\n"
        f"{common.accuracy_line(recogniser)}\n"
        f"Pictures, sheet and figures: {path}"
    )


main = cli.binary(run, AttackSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
