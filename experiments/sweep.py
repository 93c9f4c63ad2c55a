"""Runs attacks over a grid of settings and plots distortion against misclassification.

    python -m experiments.sweep --method=pfgvm --sweep=penalty_weight=0.1,0.3,1
    python -m experiments.sweep --method=all

Many settings run together (`vmap`), and one attack gives the results for several numbers of
steps. To resume an interrupted sweep, repeat the command; you may also add values to a setting.
Writes `sweep.csv` (one line per point), `per_image.csv`, `config.json`, `frontier.png`
(misclassification against distortion) and `sheets/<method>.png` (images at the smallest
distortion that gets 99 % misclassified) into --output_dir.
"""

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.checks import count
from deid_jax.data import FaceDataset
from deid_jax.data.images import quiet_pillow
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.evaluation import (
    Evaluation,
    ImageRecord,
    Predictions,
    Row,
    Settings,
    facts_of_data,
    grid,
    summary,
    sweep,
)
from deid_jax.recognisers import Recogniser
from deid_jax.reports.frontier import draw_frontier
from deid_jax.reports.measured import MeasuredPoint, best_point
from deid_jax.reports.sheet import SheetRow, draw_sheet, sheet_caption
from deid_jax.reports.tables import images_to_show, percent
from deid_jax.runs import DESCRIPTION, RunFolder, describe, shards_of
from deid_jax.types import PyTree
from experiments._common import cli, loading
from experiments._common.flags import setting
from experiments._common.method_settings import MethodSettings, settings_text
from experiments._common.process_settings import ShardSettings
from experiments._common.terminal import progress_bar

_CONTENTS = ("sweep.csv", "per_image.csv", "frontier.png", "sheets")
# The sheets show each method at a setting that reaches this misclassification rate.
_MIN_MR = 0.99
_SHEET_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(MethodSettings, ShardSettings):
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

    def check(self) -> None:
        """Refuses values out of range."""
        super().check()
        self.check_shards()
        if self.settings_per_call is not None:
            count("settings_per_call", self.settings_per_call, least=1)

    @property
    def path(self) -> Path:
        """Where to write: a folder per recogniser, split and methods by default."""
        methods = self.method.replace(",", "-")
        name = f"{self.checkpoint_name}-{self.split}-{methods}"
        return Path(self.output_dir or Path("runs", "sweep", name))

    def methods(self) -> list[str]:
        """The methods to run; refuses unknown ones and those named twice."""
        names = list(METHODS) if self.method == "all" else self.method.split(",")
        for name in names:
            if name not in METHODS:
                raise InputError(
                    f"--method must be of {', '.join(METHODS)}, or all; got {name or 'nothing'}"
                )
        if len(set(names)) < len(names):
            raise InputError(f"--method={self.method} names a method twice")
        return names

    def grids(self) -> dict[str, list[Settings]]:
        """The points of each method."""
        methods, asked = self.methods(), self._sweeps()
        self.check_methods(methods)
        for name in asked:
            if not any(name in METHODS[method].settings() for method in methods):
                known = dict.fromkeys(own for m in methods for own in METHODS[m].settings())
                raise InputError(
                    f"--sweep={name} does not apply to --method={self.method}, which takes "
                    + ", ".join(known)
                )
        grids = {}
        for method in methods:
            own = METHODS[method].settings()
            chosen = {name: values for name, values in asked.items() if name in own}
            fixed = self.settings_of(method)
            default = {n: v for n, v in METHODS[method].grid.items() if n not in fixed}
            grids[method] = grid(method, chosen or default, fixed)
        return grids

    def _sweeps(self) -> dict[str, list[float | str]]:
        """Setting -> values."""
        kinds: dict[str, type[PyTree]] = {
            field.name: type(field.default)
            for method in METHODS.values()
            for field in dataclasses.fields(method.config)
        }
        sweeps: dict[str, list[float | str]] = {}
        for text in self.sweep:
            name, equals, values = text.partition("=")
            if not equals:
                raise InputError(f"--sweep={text} must be SETTING=VALUE,VALUE,...")
            if name == "quantize":
                raise InputError("--sweep=quantize: give --quantize or --noquantize")
            if name in sweeps:
                raise InputError(f"--sweep={name} is given twice: name all its values in one")
            try:
                kind = kinds.get(name, float)
                sweeps[name] = [kind(value) for value in values.split(",")]
            except ValueError as error:
                raise InputError(
                    f"--sweep={text}: the values must be numbers, by commas"
                ) from error
        return sweeps


def run(settings: SweepSettings) -> list[MeasuredPoint]:
    """Runs the sweep, writes and prints it; returns one point per line of `sweep.csv`.

    Raises:
      InputError: bad settings, data, checkpoint or output folder. Nothing is written in that
        case.
    """
    settings.check()
    grids = settings.grids()
    with settings.joined() as group:
        folder = RunFolder(settings.path, _CONTENTS, group)
        folder.check()
        settings.local_mesh()
        split = loading.load_split(settings, group)
        recogniser = loading.load_or_train_recogniser(
            settings, split, group, model_parallel=settings.model_parallel
        )
        sweeper = _Sweeper(settings, recogniser, settings.chosen(split), folder, group)
        described = recogniser.describe()
        folder.going_on(sweeper.facts(described))
        with folder:
            # Must come before another process can have stored its first shard.
            if group.agree(len(folder.store)) and group.is_first:
                print("going on where the sweep stopped", file=sys.stderr)
            start = time.perf_counter()
            records = {method: sweeper.sweep(method, grids[method]) for method in grids}
            if not group.is_first:
                return []
            points = sweeper.points(grids, records)
            seconds = time.perf_counter() - start
            loading.say_left_out(len(sweeper.dataset) - points[0].metrics.num_images)
            sweeper.write_tables(points, [one for own in records.values() for one in own])
            shown = sweeper.write_sheets(points)
            description = describe(
                settings.alone(),
                dataset=sweeper.dataset.provenance,
                recogniser=described,
                shown=shown,
            )
            folder.write_json(DESCRIPTION, description)
    _print(points, recogniser, seconds, folder.path)
    return points


@dataclasses.dataclass(frozen=True)
class _Sweeper:
    """One process's part in a sweep of several methods."""

    settings: SweepSettings
    recogniser: Recogniser
    dataset: FaceDataset
    folder: RunFolder
    group: Group

    @property
    def shards(self) -> list[range]:
        """The positions of the images in each shard."""
        return shards_of(len(self.dataset), self.settings.shard_size)

    def evaluation(self, method: str) -> Evaluation:
        """A method at its default settings."""
        return Evaluation(
            self.recogniser,
            self.dataset,
            method,
            METHODS[method].config(),
            self.settings.protocol(method),
            self.settings.local_mesh(),
        )

    def facts(self, recogniser: Mapping[str, object]) -> dict[str, object]:
        """Everything but point and rounding that determines the point's records."""
        shards = self.shards
        # One for all attacks; whether a method rounds is in the key of its records.
        protocol = dataclasses.asdict(self.settings.protocol(next(iter(ATTACKS))))
        del protocol["batch_size"], protocol["quantize"]
        return {
            **facts_of_data(self.dataset, recogniser),
            "protocol": protocol,
            "shards": [len(shards), len(shards[0])],
        }

    def sweep(self, method: str, points: Sequence[Settings]) -> Sequence[Iterable[ImageRecord]]:
        """The records of a method at each point, in the first process."""
        with (
            loading.profiled(self.settings.profile_dir),
            quiet_pillow(),
            progress_bar(method) as update,
        ):
            return sweep(
                self.evaluation(method),
                points,
                settings_per_call=self.settings.settings_per_call,
                store=self.folder.store,
                progress=update,
                spans=self.shards,
                group=self.group,
            )

    def points(
        self,
        grids: Mapping[str, Sequence[Settings]],
        records: Mapping[str, Sequence[Iterable[ImageRecord]]],
    ) -> list[MeasuredPoint]:
        """Every point with its metrics."""
        own = self.settings
        return [
            MeasuredPoint(
                method, own.judge, own.dataset, own.split, settings, summary(of_point)
            )
            for method, of_method in grids.items()
            for settings, of_point in zip(of_method, records[method], strict=True)
        ]

    def write_tables(
        self, points: Sequence[MeasuredPoint], records: Sequence[Iterable[ImageRecord]]
    ) -> None:
        """Writes `sweep.csv`, `per_image.csv` and `frontier.png`."""
        lines = (
            {**_key(point, points), **record.to_row()}
            for point, own in zip(points, records, strict=True)
            for record in own
        )
        num_devices = self.settings.local_mesh().size * self.group.count
        rows = [_row(point, points, num_devices) for point in points]
        self.folder.write_csv("sweep.csv", rows)
        self.folder.write_csv("per_image.csv", lines)
        self.folder.write_bytes("frontier.png", draw_frontier(points))

    def write_sheets(self, points: Sequence[MeasuredPoint]) -> dict[str, Settings]:
        """Draws each method's images at its best point; returns method -> that point."""
        dataset = self.dataset
        indices = images_to_show(dataset, _SHEET_ROWS)

        def predicted(predictions: Predictions, place: int) -> tuple[str, float]:
            person = dataset.persons[predictions.label[place]]
            return person, float(predictions.confidence[place])

        shown = {}
        for method in dict.fromkeys(point.method for point in points):
            own = [point for point in points if point.method == method]
            best = best_point(own, "uint8", _MIN_MR)
            shown[method] = best.settings
            examples = self.evaluation(method).at(shown[method]).examples(indices)
            rows = [
                SheetRow(
                    original=dataset.read(index),
                    modified=examples.images[place],
                    true_name=dataset.persons[dataset.labels[index]],
                    before=predicted(examples.clean, place),
                    after=predicted(examples.predictions, place),
                )
                for place, index in enumerate(indices)
            ]
            sheet = draw_sheet(rows, caption=sheet_caption(best))
            self.folder.write_png(f"sheets/{method}.png", sheet)
        return shown


def _key(point: MeasuredPoint, points: Sequence[MeasuredPoint]) -> Row:
    """The method and all methods' settings; empty where this method lacks the setting."""
    names = dict.fromkeys(name for other in points for name in other.settings)
    return {"method": point.method, **{name: point.settings.get(name, "") for name in names}}


def _row(point: MeasuredPoint, points: Sequence[MeasuredPoint], num_devices: int) -> Row:
    """One line of `sweep.csv`: the data, the settings, the metrics."""
    metrics = point.metrics.to_row()
    row: Row = {
        "method": point.method,
        "model": point.model,
        "dataset": point.dataset,
        "split": point.split,
        "num_images": metrics.pop("num_images"),
        "num_devices": num_devices,
        **_key(point, points),
    }
    return row | {name: "" if value is None else value for name, value in metrics.items()}


def _print(
    points: Sequence[MeasuredPoint], recogniser: Recogniser, seconds: float, path: Path
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "settings", title="8-bit images")
    for heading in ("L2", "MSSIM", "MR"):
        table.add_column(heading, justify="right")
    for point in points:
        means = point.metrics.uint8_result
        table.add_row(
            point.method,
            settings_text(point.settings),
            f"{means.l2:.3f}",
            f"{means.mssim:.4f}",
            percent(means.mr),
        )
    Console().print(table)
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        print(_best_line(best_point(own, "uint8", _MIN_MR)))
    first = points[0]
    print(
        f"{first.metrics.num_images} images of {first.dataset}, split {first.split}, clean "
        f"error {percent(first.metrics.clean_error)}; {len(points)} points in {seconds:.1f} s, "
        f"compiling included.\n{loading.accuracy_line(recogniser)}\n"
        f"Table, frontier and metrics: {path}"
    )


def _best_line(point: MeasuredPoint) -> str:
    """One line on a method's distortion at a setting that protects enough."""
    means = point.metrics.uint8_result
    words = "least L2 with MR ≥" if means.mr >= _MIN_MR else "never reaches MR"
    return (
        f"{point.method}: {words} {percent(_MIN_MR, 0)}; L2 {means.l2:.3f}, MSSIM "
        f"{means.mssim:.4f}, MR {percent(means.mr)} at {settings_text(point.settings)}"
    )


main = cli.binary(run, SweepSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
