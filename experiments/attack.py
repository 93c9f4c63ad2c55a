"""De-identifies a data set with one method and measures what came of it.

    python -m experiments.attack --method=pfgvm

Writes into --output_dir: `metrics.json`, `per_image.csv`, `config.json`, `sheet.png` and
`images/<person>/<name>.png`.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

from deid_jax import checkpointing, evaluation, recognisers, reporting, sheet
from deid_jax._validate import InputError, count
from deid_jax.attacks import ATTACKS
from deid_jax.data import SPLITS, FaceDataset
from deid_jax.evaluation import INITS, METHODS, TARGETS, Protocol
from deid_jax.recognisers import Recogniser
from deid_jax.reporting import RunFolder
from experiments import cli, common
from experiments.cli import setting

_SHEET_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings(common.DataSettings):
    """Settings of `experiments.attack`; `method_settings` are those of the method alone."""

    split: str = setting("test", "Which pictures to de-identify.", choices=SPLITS)
    max_images: int | None = setting(None, "Only the first N pictures of the split.")
    batch_size: int = setting(64, "Pictures per compiled call.")
    checkpoint: str | None = setting(
        None, "The recogniser's weights; default: under checkpoints/, trained if missing."
    )
    method: str = setting("pfgvm", "De-identification method.", choices=tuple(METHODS))
    target: str | None = setting(
        None, "Label that an attack aims at; none = untargeted. Default: random.", TARGETS
    )
    init: str | None = setting(None, "First iterate of an attack. Default: image.", INITS)
    quantize: bool = setting(False, "Round the result to 8 bits before it is measured.")
    output_dir: str | None = setting(None, "Where to write; default: runs/attack/….")
    method_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self) -> Any:
        """The method's config.

        Raises:
          InputError: a setting that the method does not have, or a bad value.
        """
        method = METHODS[self.method]
        for name in self.method_settings:
            if name not in method.settings():
                raise InputError(
                    f"--{name} means nothing to --method={self.method}, whose settings are "
                    + ", ".join(f"--{own}" for own in method.settings())
                )
        return method.config(**self.method_settings)

    def protocol(self) -> Protocol:
        """How the method is run.

        Raises:
          InputError: a flag that the method ignores, or a bad value.
        """
        if self.method not in ATTACKS:
            for name in ("target", "init"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} means nothing to --method={self.method}")
        default_target = "random" if self.method in ATTACKS else "none"
        return Protocol(
            target=self.target or default_target,
            init=self.init or "image",
            quantize=self.quantize,
            batch_size=self.batch_size,
            seed=self.seed,
        )


def define_method_flags() -> None:
    """One flag per setting of any method; unset, the method's own default holds."""
    owners: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        for field in dataclasses.fields(method.config):
            owners.setdefault(field.name, []).append(f"{name} {field.default:g}")
    for setting_name, users in owners.items():
        kind = int if setting_name.startswith("num_") else float
        cli.define_flag(setting_name, kind, None, f"Default: {', '.join(users)}.")


def read_method_flags() -> dict[str, Any]:
    """The settings that were given, as an argument of `AttackSettings`."""
    names = {name for method in METHODS.values() for name in method.settings()}
    values = {name: flags.FLAGS[name].value for name in sorted(names)}
    return {"method_settings": {k: v for k, v in values.items() if v is not None}}


def run(settings: AttackSettings) -> dict[str, Any]:
    """De-identifies, measures, writes, prints; returns what `metrics.json` holds.

    Raises:
      InputError: bad settings, data, checkpoint or output folder; nothing is written then.
    """
    config, protocol = settings.config(), settings.protocol()
    folder = RunFolder(Path(settings.output_dir or _default_output(settings)))
    folder.check()
    if settings.max_images is not None:
        count("max_images", settings.max_images, least=1)
    if settings.checkpoint is not None:
        checkpointing.load_info(Path(settings.checkpoint))
    faces = common.first(settings.load(settings.split), settings.max_images)
    recogniser = common.recogniser_for(settings, faces, settings.checkpoint)
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
        folder.write_json("metrics.json", figures)
        folder.write_csv("per_image.csv", records)
        folder.write_json("config.json", _description(settings, faces, recogniser))
        folder.write_png("sheet.png", sheet.draw(rows, method=settings.method))
    _print(figures, recogniser, folder.path)
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


def _description(
    settings: AttackSettings, faces: FaceDataset, recogniser: Recogniser
) -> dict[str, Any]:
    """Everything that is needed to run the same again."""
    trained = dataclasses.asdict(recogniser.info)
    del trained["pictures"]  # Long, and it stands in the checkpoint.
    packages = ("deid_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    return {
        "settings": dataclasses.asdict(settings),
        "dataset": dict(faces.provenance),
        "recogniser": trained,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _print(figures: Mapping[str, Any], recogniser: Recogniser, path: Path) -> None:
    settings = ", ".join(f"{name} {value:g}" for name, value in figures["config"].items())
    title = (
        f"{figures['method']} ({settings}) against {figures['model']}: "
        f"{figures['num_images']} pictures of {figures['dataset']}, split {figures['split']}"
    )
    Console().print(reporting.metrics_table(figures, title))
    print(
        f"{figures['seconds']:.1f} s ({figures['images_per_second']:.1f} pictures/s) after "
        f"{figures['compile_seconds']:.1f} s of compiling.\n"
        f"{common.accuracy_line(recogniser)}\n"
        f"Pictures, sheet and figures: {path}"
    )


if __name__ == "__main__":
    cli.launch(
        run, AttackSettings, define_more=define_method_flags, read_more=read_method_flags
    )
