"""Measures how time and memory grow: with pictures, steps, pixels and the batch.

    python -m experiments.growth

Each point is a whole evaluation (reading, P-FGVM, judging, writing PNG) in a process of its
own, of pictures that are drawn as they are read. Writes into --output_dir: `growth.json`
(points, fitted lines, machine), `growth.csv` (a line a point), `growth.png` and `config.json`.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deid_jax.checks import count
from deid_jax.errors import InputError
from deid_jax.metrics import SSIM_WINDOW
from deid_jax.models import MODELS, create_model
from deid_jax.reports import growth_plot
from deid_jax.reports.growth_plot import Curve
from deid_jax.runs.run_folder import DESCRIPTION, RunFolder, describe
from experiments._common import cli, timing
from experiments._common.cli import setting
from experiments._growth import growth_points
from experiments._growth.growth_points import NUM_CLASSES, Measured, Point, PointError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """Settings of `experiments.growth`."""

    model: str = setting("model_a", "Recogniser; its weights are drawn.", choices=tuple(MODELS))
    num_images: str = setting("100,300,1000,3000,10000", "Numbers of pictures.")
    num_steps: str = setting("5,10,20,50", "Numbers of steps of the attack.")
    image_sizes: str = setting("32,64,96,128,192,224", "Heights and widths in pixels.")
    batch_sizes: str = setting("1,4,16,64,128,256", "Pictures in a batch.")
    images: int = setting(
        256, "Pictures where other things grow; at least two batches where the batch does."
    )
    steps: int = setting(10, "Steps where other things grow.")
    image_size: int = setting(64, "Height and width in pixels where other things grow.")
    batch: int = setting(64, "Pictures in a batch where other things grow.")
    repeats: int = setting(3, "Runs where one takes under 10 seconds; the median counts.")
    seed: int = setting(0, "Decides weights and pictures.")
    output_dir: str = setting("runs/growth", "Folder for the figures.")


def parse_counts(name: str, text: str, *, least: int = 1) -> tuple[int, ...]:
    """Reads "N,N,…".

    Raises:
      InputError: anything but increasing integers of at least `least`.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} must be integers by commas, got {text!r}") from None
    for number in numbers:
        count(name, number, least=least)
    if list(numbers) != sorted(set(numbers)):
        raise InputError(f"{name} must increase, got {text}")
    return numbers


def plan(settings: GrowthSettings) -> dict[str, dict[int, Point]]:
    """The points of each curve, by what grows.

    Raises:
      InputError: bad settings.
    """
    num_images = parse_counts("num_images", settings.num_images)
    num_steps = parse_counts("num_steps", settings.num_steps)
    sizes = parse_counts("image_sizes", settings.image_sizes, least=SSIM_WINDOW)
    batches = parse_counts("batch_sizes", settings.batch_sizes)
    count("image_size", settings.image_size, least=SSIM_WINDOW)
    for name in ("images", "steps", "batch", "repeats"):
        count(name, getattr(settings, name), least=1)
    count("seed", settings.seed, most=2**31 - 1)
    for size in (settings.image_size, *sizes):
        create_model(settings.model, num_classes=NUM_CLASSES, image_size=size)
    fixed = Point(
        model=settings.model,
        num_images=settings.images,
        image_size=settings.image_size,
        num_steps=settings.steps,
        batch_size=settings.batch,
    )
    return {
        "images": {n: fixed._replace(num_images=n) for n in num_images},
        "steps": {n: fixed._replace(num_steps=n) for n in num_steps},
        "pixels": {n * n: fixed._replace(image_size=n) for n in sizes},
        # Two batches at least: the next one computes while the pictures of the last are kept.
        "batch": {
            n: fixed._replace(batch_size=n, num_images=max(settings.images, 2 * n))
            for n in batches
        },
    }


def run(settings: GrowthSettings) -> dict[str, Any]:
    """Measures every point, writes and prints; returns what `growth.json` holds.

    Raises:
      InputError: bad settings, or no point could be measured.
    """
    planned = plan(settings)
    folder = RunFolder(Path(settings.output_dir), ["growth.json", "growth.csv", "growth.png"])
    folder.check()
    measured, failures = _measure_all(planned, settings)
    curves = {name: _curve(name, points, measured) for name, points in planned.items()}
    devices = next(iter(measured.values())).devices
    figures = {
        "machine": {
            "processor": timing.processor(),
            "cores": os.cpu_count(),
            "devices": devices,
            "versions": describe()["versions"],
        },
        "curves": {name: curve.figures() for name, curve in curves.items()},
        "points": [
            point._asdict()
            | (measured[point]._asdict() if point in measured else {"failure": failures[point]})
            for point in _points(planned)
        ],
    }
    with folder:
        folder.write_json("growth.json", figures)
        folder.write_csv("growth.csv", _rows(planned, measured, failures))
        title = f"P-FGVM against {settings.model} on {devices[0]}"
        if devices[0] == "cpu":
            title += f", {os.cpu_count()} cores"
        picture = growth_plot.draw(curves, titles=_titles(settings), title=title)
        folder.write_bytes("growth.png", picture)
        folder.write_json(DESCRIPTION, describe(settings))
    _print(curves, folder.path)
    return figures


def _points(planned: dict[str, dict[int, Point]]) -> list[Point]:
    """Every point once, though several curves may go through it."""
    return list(dict.fromkeys(p for points in planned.values() for p in points.values()))


def _measure_all(
    planned: dict[str, dict[int, Point]], settings: GrowthSettings
) -> tuple[dict[Point, Measured], dict[Point, str]]:
    """What came of each point, and why others failed, which is also said aloud."""
    points = _points(planned)
    measured: dict[Point, Measured] = {}
    failures: dict[Point, str] = {}
    with cli.progress_bar("growth") as update:
        for number, point in enumerate(points):
            update(number, len(points), _name(point))
            try:
                measured[point] = growth_points.measure_afresh(
                    point, repeats=settings.repeats, seed=settings.seed
                )
            except PointError as error:
                failures[point] = " ".join(str(error).split())
                print(f"{_name(point)} failed: {failures[point]}", file=sys.stderr)
        update(len(points), len(points))
    if not measured:
        raise InputError(f"no point could be measured: {failures[points[0]]}")
    return measured, failures


def _name(point: Point) -> str:
    return (
        f"{point.num_images} pictures of {point.image_size} px, {point.num_steps} steps, "
        f"batch {point.batch_size}"
    )


def _curve(name: str, points: dict[int, Point], measured: dict[Point, Measured]) -> Curve:
    found = [measured.get(point) for point in points.values()]
    return Curve(
        against=name,
        x=tuple(points),
        seconds=tuple(entry and entry.seconds for entry in found),
        peak_bytes=tuple(entry and entry.peak_bytes for entry in found),
    )


def _rows(
    planned: dict[str, dict[int, Point]],
    measured: dict[Point, Measured],
    failures: dict[Point, str],
) -> list[dict[str, Any]]:
    """A line for every point of every curve."""
    names = [name for name in Measured._fields if name != "devices"]
    return [
        {"against": against, "x": x, **point._asdict()}
        | {name: getattr(measured.get(point), name, "") for name in names}
        | {"failure": failures.get(point, "")}
        for against, points in planned.items()
        for x, point in points.items()
    ]


def _titles(settings: GrowthSettings) -> dict[str, str]:
    """What stands still where another thing grows."""
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
