"""Runs methods at every point of a grid of their settings and draws what each buys.

    python -m experiments.sweep --method=pfgvm --sweep=penalty_weight=0.1,0.3,1
    python -m experiments.sweep --method=all

Settings are stacked and attacked together (`vmap`); several numbers of steps come from one
run. A sweep that was stopped goes on where it stood when the same command is given again, also
with more values of a setting. Writes into --output_dir: `sweep.csv` (a line a point),
`per_image.csv`, `config.json`, `frontier.png` (distortion against misclassification) and
`sheets/<method>.png` (pictures at the least distortion that gets 99 % misnamed).
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from deid_jax import recognisers
from deid_jax.attacks import METHODS
from deid_jax.checks import count
from deid_jax.data import FaceDataset
from deid_jax.data.images import quiet_pillow
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.evaluation import sweeping
from deid_jax.evaluation.examples import run_examples
from deid_jax.evaluation.measuring import Predictions
from deid_jax.evaluation.records import ImageRecord, summary
from deid_jax.recognisers import Recogniser
from deid_jax.reports import comparison, frontier, sheet
from deid_jax.reports.comparison import Point
from deid_jax.reports.tables import spread
from deid_jax.runs import resuming, run_folder
from deid_jax.runs.resuming import Store
from deid_jax.runs.run_folder import RunFolder
from experiments._common import cli, common, scale
from experiments._common.cli import setting
from experiments._common.method_flags import number_or_name

_CONTENTS = ("sweep.csv", "per_image.csv", "frontier.png", "sheets")
# The sheets show each method where it protects so many pictures at least.
_MIN_MR = 0.99
_SHEET_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(common.MethodSettings, scale.ShardSettings):
    """Settings of `experiments.sweep`."""

    method: str = setting("pfgvm", f"Methods by commas, of {', '.join(METHODS)}; or all.", None)
    sweep: tuple[str, ...] = setting(
        (),
        "SETTING=VALUE,VALUE,...; given several times: a grid. Default: for each method the "
        "setting that trades visibility for protection.",
    )
    settings_per_call: int | None = setting(
        None, "How many settings are attacked together; default: what suits the device."
    )
    output_dir: str | None = setting(None, "Where to write; default: under runs/sweep/.")

    def methods(self) -> list[str]:
        """The methods asked for.

        Raises:
          InputError: an unknown one, or one named twice.
        """
        names = list(METHODS) if self.method == "all" else self.method.split(",")
        for name in names:
            if name not in METHODS:
                raise InputError(
                    f"--method must be of {', '.join(METHODS)}, or all; got {name or 'nothing'}"
                )
        if len(set(names)) < len(names):
            raise InputError(f"--method={self.method} names a method twice")
        return names

    def grids(self) -> dict[str, list[sweeping.Settings]]:
        """The points of each method.

        Raises:
          InputError: an unknown setting, or bad values.
        """
        methods, asked = self.methods(), self._sweeps()
        self.check_methods(methods)
        for name in asked:
            if not any(name in METHODS[method].settings() for method in methods):
                known = dict.fromkeys(own for m in methods for own in METHODS[m].settings())
                raise InputError(
                    f"--sweep={name} means nothing to --method={self.method}, which takes "
                    + ", ".join(known)
                )
        grids = {}
        for method in methods:
            own = METHODS[method].settings()
            chosen = {name: values for name, values in asked.items() if name in own}
            fixed = self.settings_of(method)
            default = {n: v for n, v in METHODS[method].grid.items() if n not in fixed}
            grids[method] = sweeping.grid(method, chosen or default, fixed)
        return grids

    def _sweeps(self) -> dict[str, list[Any]]:
        """Setting -> values, from the texts given."""
        defaults = {
            field.name: field.default
            for method in METHODS.values()
            for field in dataclasses.fields(method.config)
        }
        sweeps: dict[str, list[Any]] = {}
        for text in self.sweep:
            name, equals, values = text.partition("=")
            if not equals:
                raise InputError(f"--sweep={text} must be SETTING=VALUE,VALUE,...")
            if name == "quantize":
                raise InputError("--sweep=quantize: give --quantize or --noquantize")
            if name in sweeps:
                raise InputError(f"--sweep={name} is given twice: name all its values in one")
            try:
                kind: Callable[[str], Any] = type(defaults.get(name, 0.0))
                sweeps[name] = [kind(value) for value in values.split(",")]
            except ValueError as error:
                raise InputError(
                    f"--sweep={text}: the values must be numbers, by commas"
                ) from error
        return sweeps


def run(settings: SweepSettings) -> list[Point]:
    """Sweeps, writes, prints; returns one point per line of `sweep.csv`.

    Raises:
      InputError: bad settings, data, checkpoint or output folder; nothing is written then.
    """
    settings.check()
    settings.check_shards()
    grids = settings.grids()
    if settings.settings_per_call is not None:
        count("settings_per_call", settings.settings_per_call, least=1)
    with settings.joined() as group:
        return _sweep(settings, grids, group)


def _sweep(
    settings: SweepSettings, grids: Mapping[str, Sequence[sweeping.Settings]], group: Group
) -> list[Point]:
    """What `run` does, as one of the processes of a group."""
    path = Path(settings.output_dir or _default_output(settings))
    folder = RunFolder(path, _CONTENTS, group)
    folder.check()
    mesh = settings.local_mesh()
    faces, recogniser = common.faces_and_recogniser(settings, group)
    described = recogniser.describe()
    folder.going_on(_facts(settings, faces, described))
    with folder:
        # Before the others may have kept a first piece.
        if group.agree(len(folder.store)) and group.is_first:
            print("going on where the sweep stopped", file=sys.stderr)
        start = time.perf_counter()
        points, each = _sweep_all(settings, grids, faces, recogniser, folder.store, mesh, group)
        if not group.is_first:
            return []
        seconds = time.perf_counter() - start
        rows = [_row(point, points) for point in points]
        records = (
            {**_key(point, points), **record.to_row()}
            for point, own in zip(points, each, strict=True)
            for record in own
        )
        folder.write_csv("sweep.csv", rows)
        folder.write_csv("per_image.csv", records)
        folder.write_bytes("frontier.png", frontier.draw(points))
        shown = _write_sheets(folder, settings, faces, recogniser, points)
        description = run_folder.describe(
            settings.alone(), dataset=faces.provenance, recogniser=described, shown=shown
        )
        folder.write_json(run_folder.DESCRIPTION, description)
    _print(points, recogniser, seconds, folder.path)
    return points


def _facts(
    settings: SweepSettings, faces: FaceDataset, recogniser: dict[str, Any]
) -> dict[str, Any]:
    """All that decides the records of a point, beside the point."""
    shards = resuming.shards_of(len(faces), settings.shard_size)
    return {
        **scale.facts_of_pictures(faces, recogniser),
        "protocol": [
            settings.target,
            settings.init,
            settings.quantize,
            settings.precision,
            settings.seed,
        ],
        "shards": [len(shards), len(shards[0])],
    }


def _sweep_all(
    settings: SweepSettings,
    grids: Mapping[str, Sequence[sweeping.Settings]],
    faces: FaceDataset,
    recogniser: Recogniser,
    store: Store,
    mesh: Mesh,
    group: Group,
) -> tuple[list[Point], list[Iterable[ImageRecord]]]:
    """Every method at every point of its grid, and the records of each."""
    points, each = [], []
    for method, grid in grids.items():
        protocol = settings.protocol(method)
        profiled = common.profiled(settings.profile_dir)
        with profiled, quiet_pillow(), cli.progress_bar(method) as update:
            per_point = sweeping.sweep(
                recogniser.model,
                recogniser.variables,
                faces,
                method,
                grid,
                protocol,
                settings_per_call=settings.settings_per_call,
                store=store,
                progress=update,
                mesh=mesh,
                spans=resuming.shards_of(len(faces), settings.shard_size),
                group=group,
            )
        if not group.is_first:
            continue
        for own, records in zip(grid, per_point, strict=True):
            figures = {
                "method": method,
                "model": settings.judge,
                "dataset": settings.dataset,
                "split": settings.split,
                "num_devices": mesh.size * group.count,
                **summary(records).to_row(),
            }
            points.append(Point(method, settings.judge, own, figures))
            each.append(records)
    return points, each


def _write_sheets(
    folder: RunFolder,
    settings: SweepSettings,
    faces: FaceDataset,
    recogniser: Recogniser,
    points: Sequence[Point],
) -> dict[str, sweeping.Settings]:
    """Draws each method's pictures at its best point; returns method -> that point."""
    indices = spread(faces.labels, _SHEET_ROWS)
    shown = {}
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        shown[method] = comparison.best(own, "uint8", _MIN_MR).settings
        examples = run_examples(
            recogniser.model,
            recogniser.variables,
            faces,
            method,
            METHODS[method].config(**shown[method]),
            settings.protocol(method),
            indices,
            mesh=settings.local_mesh() if settings.model_parallel > 1 else None,
        )
        rows = [
            sheet.Row(
                original=faces.read(index),
                modified=examples.pictures[place],
                true_name=faces.persons[faces.labels[index]],
                before=_said(faces, examples.clean, place),
                after=_said(faces, examples.predictions, place),
            )
            for place, index in enumerate(indices)
        ]
        folder.write_png(f"sheets/{method}.png", sheet.draw(rows, method=method))
    return shown


def _said(faces: FaceDataset, predictions: Predictions, place: int) -> tuple[str, float]:
    """Whom the recogniser names, and with which probability."""
    return faces.persons[predictions.label[place]], float(predictions.confidence[place])


def _key(point: Point, points: Sequence[Point]) -> dict[str, Any]:
    """The method and every setting of any method; empty where this one has no such."""
    names = dict.fromkeys(name for other in points for name in other.settings)
    return {"method": point.method, **{name: point.settings.get(name, "") for name in names}}


def _row(point: Point, points: Sequence[Point]) -> dict[str, Any]:
    """One line of `sweep.csv`: what was measured, the settings, the figures."""
    what = ("method", "model", "dataset", "split", "num_images", "num_devices")
    row = {name: point.figures[name] for name in what} | _key(point, points)
    figures = {name: value for name, value in point.figures.items() if name not in what}
    return row | {name: "" if value is None else value for name, value in figures.items()}


def _default_output(settings: SweepSettings) -> Path:
    """One folder per recogniser, split and methods, named like the default checkpoint."""
    options = settings.options("train")
    name = recognisers.default_path(settings.judge, settings.dataset, options).name
    methods = settings.method.replace(",", "-")
    return Path("runs", "sweep", f"{name}-{settings.split}-{methods}")


def _print(points: Sequence[Point], recogniser: Recogniser, seconds: float, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "settings", title="8-bit pictures")
    for heading in ("L2", "MSSIM", "MR"):
        table.add_column(heading, justify="right")
    for point in points:
        figures = point.figures
        table.add_row(
            point.method,
            ", ".join(
                f"{name} {number_or_name(value)}" for name, value in point.settings.items()
            ),
            f"{figures['l2_uint8']:.3f}",
            f"{figures['mssim_uint8']:.4f}",
            f"{figures['mr_uint8']:.1%}",
        )
    Console().print(table)
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        print(_best_line(comparison.best(own, "uint8", _MIN_MR)))
    first = points[0].figures
    print(
        f"{first['num_images']} pictures of {first['dataset']}, split {first['split']}, clean "
        f"error {first['clean_error']:.1%}; {len(points)} points in {seconds:.1f} s, compiling "
        f"included.\n{common.accuracy_line(recogniser)}\n"
        f"Table, frontier and figures: {path}"
    )


def _best_line(point: Point) -> str:
    """What a method costs where it protects enough."""
    figures = point.figures
    reached = figures["mr_uint8"] >= _MIN_MR
    what = f"least L2 with MR >= {_MIN_MR:.0%}" if reached else f"never reaches {_MIN_MR:.0%}"
    return (
        f"{point.method}: {what}; L2 {figures['l2_uint8']:.3f}, MSSIM "
        f"{figures['mssim_uint8']:.4f}, MR {figures['mr_uint8']:.1%} at "
        + ", ".join(f"{name} {number_or_name(value)}" for name, value in point.settings.items())
    )


main = cli.binary(run, SweepSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
