"""Measures how time and memory grow with the number of images, steps and pixels and the batch.

    python -m experiments.growth

Each point is a complete evaluation (reading, P-FGVM, judging, writing PNG files) in a separate
process, on random images generated as they are read. Writes `growth.json` (points, fitted
lines, machine), `growth.csv` (one line per point), `growth.png` and `config.json` into
--output_dir.
"""

import dataclasses
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deid_jax.checks import count
from deid_jax.errors import InputError, one_line
from deid_jax.metrics import SSIM_WINDOW
from deid_jax.models import MODELS, create_model
from deid_jax.reports.growth_plot import Curve, draw_growth
from deid_jax.runs import DESCRIPTION, RunFolder, describe, package_versions
from deid_jax.types import Json
from experiments._common import cli, machine, terminal
from experiments._common.flags import setting
from experiments._common.lists import read_counts
from experiments._growth import workloads
from experiments._growth.workloads import NUM_CLASSES, Usage, Workload, WorkloadError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """Settings of `experiments.growth`."""

    model: str = setting("model_a", "Recogniser; its weights are drawn.", choices=tuple(MODELS))
    num_images: str = setting("100,300,1000,3000,10000", "Numbers of images.")
    num_steps: str = setting("5,10,20,50", "Numbers of steps of the attack.")
    image_sizes: str = setting("32,64,96,128,192,224", "Heights and widths in pixels.")
    batch_sizes: str = setting("1,4,16,64,128,256", "Images in a batch.")
    images: int = setting(
        256, "Images where other things grow; at least two batches where the batch does."
    )
    steps: int = setting(10, "Steps where other things grow.")
    image_size: int = setting(64, "Height and width in pixels where other things grow.")
    batch: int = setting(64, "Images in a batch where other things grow.")
    repeats: int = setting(3, "Runs where one takes under 10 seconds; the median counts.")
    seed: int = setting(0, "Decides weights and images.")
    output_dir: str = setting("runs/growth", "Folder for the figures.")


@dataclasses.dataclass(frozen=True)
class Growth:
    """The workloads of each curve, and their measurements.

    Attributes:
      planned: workloads by the quantity that grows ("images", "steps", "pixels", "batch") and
        its value.
      usages: time and memory of the workloads that could be measured.
      failures: why the others could not be measured.
    """

    planned: dict[str, dict[int, Workload]]
    usages: dict[Workload, Usage]
    failures: dict[Workload, str]

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of devices that were measured."""
        return next(iter(self.usages.values())).devices

    def curves(self) -> dict[str, Curve]:
        """One curve for each quantity that grows."""
        curves = {}
        for name, points in self.planned.items():
            found = [self.usages.get(workload) for workload in points.values()]
            seconds = tuple(usage.seconds if usage else None for usage in found)
            peaks = tuple(usage.peak_bytes if usage else None for usage in found)
            curves[name] = Curve(name, tuple(points), seconds, peaks)
        return curves

    def figures(self) -> dict[str, Json]:
        """The content of `growth.json`; a workload shared by several curves appears once."""
        return {
            "machine": {
                "processor": machine.processor(),
                "cores": os.cpu_count(),
                "devices": list(self.devices),
                "versions": package_versions(),
            },
            "curves": {name: curve.figures() for name, curve in self.curves().items()},
            "points": [
                dataclasses.asdict(workload)
                | (
                    dataclasses.asdict(self.usages[workload])
                    if workload in self.usages
                    else {"failure": self.failures[workload]}
                )
                for workload in distinct_workloads(self.planned)
            ],
        }

    def rows(self) -> list[dict[str, object]]:
        """The lines of `growth.csv`: every point of every curve."""
        measured = [f.name for f in dataclasses.fields(Usage) if f.name != "devices"]
        return [
            {"against": against, "x": x, **dataclasses.asdict(workload)}
            | {name: getattr(self.usages.get(workload), name, "") for name in measured}
            | {"failure": self.failures.get(workload, "")}
            for against, points in self.planned.items()
            for x, workload in points.items()
        ]


def plan_growth(settings: GrowthSettings) -> dict[str, dict[int, Workload]]:
    """The workloads of each curve, by the quantity that grows.

    Raises:
      InputError: bad settings.
    """
    num_images = read_counts("num_images", settings.num_images)
    num_steps = read_counts("num_steps", settings.num_steps)
    sizes = read_counts("image_sizes", settings.image_sizes, least=SSIM_WINDOW)
    batches = read_counts("batch_sizes", settings.batch_sizes)
    count("image_size", settings.image_size, least=SSIM_WINDOW)
    for name in ("images", "steps", "batch", "repeats"):
        count(name, getattr(settings, name), least=1)
    count("seed", settings.seed, most=2**31 - 1)
    for size in (settings.image_size, *sizes):
        create_model(settings.model, num_classes=NUM_CLASSES, image_size=size)
    fixed = Workload(
        model=settings.model,
        num_images=settings.images,
        image_size=settings.image_size,
        num_steps=settings.steps,
        batch_size=settings.batch,
    )
    # At least two batches: one is computed while the images of the last are being written.
    batched = {n: max(settings.images, 2 * n) for n in batches}
    change = dataclasses.replace
    return {
        "images": {n: change(fixed, num_images=n) for n in num_images},
        "steps": {n: change(fixed, num_steps=n) for n in num_steps},
        "pixels": {n * n: change(fixed, image_size=n) for n in sizes},
        "batch": {n: change(fixed, batch_size=n, num_images=m) for n, m in batched.items()},
    }


def distinct_workloads(planned: dict[str, dict[int, Workload]]) -> list[Workload]:
    """Every workload once, though several curves may share it."""
    every = (workload for points in planned.values() for workload in points.values())
    return list(dict.fromkeys(every))


def run(settings: GrowthSettings) -> Growth:
    """Measures every workload, and writes and prints the results.

    Raises:
      InputError: bad settings, or nothing could be measured.
    """
    planned = plan_growth(settings)
    folder = RunFolder(Path(settings.output_dir), ["growth.json", "growth.csv", "growth.png"])
    folder.check()
    growth = _measured(planned, settings)
    curves = growth.curves()
    title = f"P-FGVM against {settings.model} on {growth.devices[0]}"
    if growth.devices[0] == "cpu":
        title += f", {os.cpu_count()} cores"
    with folder:
        folder.write_json("growth.json", growth.figures())
        folder.write_csv("growth.csv", growth.rows())
        drawn = draw_growth(curves, titles=_titles(settings), title=title)
        folder.write_bytes("growth.png", drawn)
        folder.write_json(DESCRIPTION, describe(settings))
    _print(curves, folder.path)
    return growth


def _measured(planned: dict[str, dict[int, Workload]], settings: GrowthSettings) -> Growth:
    """Measures every workload; prints the reason if one fails."""
    growth = Growth(planned, {}, {})
    todo = distinct_workloads(planned)
    with terminal.progress_bar("growth") as update:
        for number, workload in enumerate(todo):
            update(number, len(todo), str(workload))
            try:
                growth.usages[workload] = workloads.measure(
                    workload, repeats=settings.repeats, seed=settings.seed
                )
            except WorkloadError as error:
                growth.failures[workload] = one_line(error)
                print(f"{workload} failed: {growth.failures[workload]}", file=sys.stderr)
        update(len(todo), len(todo))
    if not growth.usages:
        raise InputError(f"no point could be measured: {growth.failures[todo[0]]}")
    return growth


def _titles(settings: GrowthSettings) -> dict[str, str]:
    """For each curve, the quantities that stay constant."""
    images, steps = f"{settings.images} pictures", f"{settings.steps} steps"
    size, batch = f"{settings.image_size} px", f"batch {settings.batch}"
    return {
        "images": f"{size}, {steps}, {batch}",
        "steps": f"{images} of {size}, {batch}",
        "pixels": f"{images}, {steps}, {batch}",
        "batch": f"{size}, {steps}; {batch} where the pictures in all grow",
    }


def _print(curves: dict[str, Curve], path: Path) -> None:
    table = Table()
    for heading in ("against", "count", "seconds", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "against" else "right")
    for name, curve in curves.items():
        for end in sorted({0, len(curve.x) - 1}):
            seconds, peak = curve.seconds[end], curve.peak_bytes[end]
            table.add_row(
                "" if end else name,
                f"{curve.x[end]:,}",
                "failed" if seconds is None else f"{seconds:.2f}",
                "failed" if peak is None else f"{peak / 2**20:.0f}",
            )
    Console().print(table)
    for curve in curves.values():
        print(*curve.summary(), sep="\n")
    print(f"Figures: {path / 'growth.json'}, {path / 'growth.png'}")


main = cli.binary(run, GrowthSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
