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
from typing import TypeAlias

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


# Workloads by the quantity that grows and its value.
Planned: TypeAlias = dict[str, dict[int, Workload]]
# Time and memory, or why a workload could not be measured.
Outcomes: TypeAlias = dict[Workload, Usage | str]


def plan_growth(settings: GrowthSettings) -> Planned:
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


def run(settings: GrowthSettings) -> dict[str, Curve]:
    """Measures every workload, and writes and prints the results: one curve per quantity.

    Raises:
      InputError: bad settings, or nothing could be measured.
    """
    planned = plan_growth(settings)
    folder = RunFolder(Path(settings.output_dir), ["growth.json", "growth.csv", "growth.png"])
    folder.check()
    outcomes = _measured(planned, settings)
    devices = next(found.devices for found in outcomes.values() if isinstance(found, Usage))
    curves = {name: _curve(name, points, outcomes) for name, points in planned.items()}
    title = f"P-FGVM against {settings.model} on {devices[0]}"
    if devices[0] == "cpu":
        title += f", {os.cpu_count()} cores"
    figures: dict[str, Json] = {
        "machine": {
            "processor": machine.processor(),
            "cores": os.cpu_count(),
            "devices": list(devices),
            "versions": package_versions(),
        },
        "curves": {name: curve.figures() for name, curve in curves.items()},
        "points": [
            vars(workload)
            | ({"failure": found} if isinstance(found, str) else dataclasses.asdict(found))
            for workload, found in outcomes.items()
        ],
    }
    with folder:
        folder.write_json("growth.json", figures)
        folder.write_csv("growth.csv", _rows(planned, outcomes))
        drawn = draw_growth(curves, titles=_titles(settings), title=title)
        folder.write_bytes("growth.png", drawn)
        folder.write_json(DESCRIPTION, describe(settings))
    _print(curves, folder.path)
    return curves


def _measured(planned: Planned, settings: GrowthSettings) -> Outcomes:
    """Measures every workload once, though curves may share it; prints why one fails."""
    every = (workload for points in planned.values() for workload in points.values())
    todo = list(dict.fromkeys(every))
    outcomes: Outcomes = {}
    with terminal.progress_bar("growth") as update:
        for number, workload in enumerate(todo):
            update(number, len(todo), str(workload))
            try:
                outcomes[workload] = workloads.measure(
                    workload, repeats=settings.repeats, seed=settings.seed
                )
            except WorkloadError as error:
                outcomes[workload] = one_line(error)
                print(f"{workload} failed: {outcomes[workload]}", file=sys.stderr)
        update(len(todo), len(todo))
    if not any(isinstance(found, Usage) for found in outcomes.values()):
        raise InputError(f"no point could be measured: {outcomes[todo[0]]}")
    return outcomes


def _curve(name: str, points: dict[int, Workload], outcomes: Outcomes) -> Curve:
    seconds, peaks = (
        tuple(getattr(outcomes[workload], what, None) for workload in points.values())
        for what in ("seconds", "peak_bytes")
    )
    return Curve(name, tuple(points), seconds, peaks)


def _rows(planned: Planned, outcomes: Outcomes) -> list[dict[str, object]]:
    """The lines of `growth.csv`: every point of every curve."""
    measured = [f.name for f in dataclasses.fields(Usage) if f.name != "devices"]
    return [
        {"against": against, "x": x, **vars(workload)}
        | {name: getattr(outcomes[workload], name, "") for name in measured}
        | {"failure": found if isinstance(found := outcomes[workload], str) else ""}
        for against, points in planned.items()
        for x, workload in points.items()
    ]


def _titles(settings: GrowthSettings) -> dict[str, str]:
    """For each curve, the quantities that stay constant."""
    images, steps = f"{settings.images} images", f"{settings.steps} steps"
    size, batch = f"{settings.image_size} px", f"batch {settings.batch}"
    return {
        "images": f"{size}, {steps}, {batch}",
        "steps": f"{images} of {size}, {batch}",
        "pixels": f"{images}, {steps}, {batch}",
        "batch": f"{size}, {steps}; {batch} where the images in all grow",
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
