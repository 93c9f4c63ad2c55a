"""Measures how time and memory grow: with pictures, steps, pixels and the batch.

    python -m experiments.growth

Each point is a whole evaluation (reading, P-FGVM, judging, writing PNG) in a process of its
own, of pictures that are drawn as they are read. Writes into --output_dir: `growth.json`
(points, fitted lines, machine), `growth.csv` (a line a point), `growth.png` and `config.json`.
"""

import dataclasses
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from deid_jax import growth_plot
from deid_jax._validate import InputError, count
from deid_jax.attacks import PFGVMConfig
from deid_jax.batch import Protocol
from deid_jax.data import FaceDataset
from deid_jax.data.loader import even_batch_size
from deid_jax.evaluation import evaluate
from deid_jax.growth_plot import Curve
from deid_jax.metrics import SSIM_WINDOW
from deid_jax.models import MODELS, create_model, prepare
from deid_jax.reporting import DESCRIPTION, RunFolder, describe
from experiments import cli, timing
from experiments.cli import setting

NUM_CLASSES = 30
# A run of fewer seconds is repeated; a longer one is steady enough by itself.
_QUICK = 10.0
_CHILD = "import sys; from experiments.growth import answer; answer(*sys.argv[1:])"


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


class Point(NamedTuple):
    """What one process measures."""

    model: str
    num_images: int
    image_size: int
    num_steps: int
    batch_size: int


class Measured(NamedTuple):
    """What came of a point.

    Attributes:
      seconds: wall time of one evaluation, compilation aside; the median of the repeats.
      compile_seconds: wall time of compiling the attack.
      repeats: how many evaluations were timed.
      peak_bytes: peak memory of the process, or of the accelerator where there is one.
      peak_bytes_before: the same before the first evaluation.
      devices: what the attack ran on.
    """

    seconds: float
    compile_seconds: float
    repeats: int
    peak_bytes: int
    peak_bytes_before: int
    devices: tuple[str, ...]


class PointError(Exception):
    """A point that could not be measured; the message says why."""


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


def noise_faces(num_images: int, image_size: int, seed: int) -> FaceDataset:
    """Pictures of noise, drawn when they are read and never held."""
    shape = (image_size, image_size, 3)

    def read(index: int) -> np.ndarray:
        return np.random.default_rng((seed, index)).integers(256, size=shape, dtype=np.uint8)

    return FaceDataset(
        name="noise",
        persons=tuple(f"{person:02}" for person in range(NUM_CLASSES)),
        labels=np.arange(num_images, dtype=np.int32) % NUM_CLASSES,
        names=tuple(f"{index:06}" for index in range(num_images)),
        read=read,
        image_size=image_size,
        split="all",
    )


def measure(point: Point, folder: Path, *, repeats: int, seed: int) -> Measured:
    """Measures a point in this process, which must do nothing else; writes into a folder."""
    size = point.image_size
    model = create_model(point.model, num_classes=NUM_CLASSES, image_size=size)
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, size, size, 3)))
    config = PFGVMConfig(num_steps=point.num_steps)
    protocol = Protocol(batch_size=point.batch_size, seed=seed)

    def run_once(num_images: int) -> Any:
        faces = noise_faces(num_images, size, seed)
        names = faces.pictures
        with RunFolder(folder, ["images"]) as kept:
            _, timing = evaluate(
                model,
                variables,
                faces,
                "pfgvm",
                config,
                protocol,
                keep=lambda index, pixels: kept.write_png(f"images/{names[index]}.png", pixels),
            )
        return timing

    # For every point alike: `evaluate` alone would not, where there is little to do.
    variables = prepare(variables)
    jax.block_until_ready(variables)
    before = peak_bytes()
    # One batch of the same shape, uncounted: it compiles the program.
    compiling = run_once(even_batch_size(point.num_images, point.batch_size))
    seconds = [run_once(point.num_images).seconds]
    while seconds[0] < _QUICK and len(seconds) < repeats:
        seconds.append(run_once(point.num_images).seconds)
    return Measured(
        seconds=statistics.median(seconds),
        compile_seconds=compiling.compile_seconds,
        repeats=len(seconds),
        peak_bytes=peak_bytes(),
        peak_bytes_before=before,
        devices=tuple(device.device_kind for device in jax.local_devices()),
    )


def peak_bytes() -> int:
    """Most bytes ever in use: on the fullest accelerator, else resident in this process."""
    known = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in known if "peak_bytes_in_use" in entry]
    if peaks:
        return int(max(peaks))
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # Linux's ru_maxrss counts the parent too, from before this process's program was loaded.
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def answer(task: str, folder: str) -> None:
    """The process of a point: its last line is what `measure` returns, or why it failed."""
    given = json.loads(task)
    point = Point(*given.pop("point"))
    # A batch that had to be split is not the point asked for.
    warnings.simplefilter("error", UserWarning)
    try:
        measured = measure(point, Path(folder), **given)
    except Exception as error:
        # In one line: JAX lets notes on its traceback follow what went wrong.
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    print(json.dumps(measured._asdict()))


def measure_afresh(point: Point, *, repeats: int, seed: int) -> Measured:
    """`measure` in a process of its own.

    Raises:
      PointError: the process failed or was killed.
    """
    task = json.dumps({"point": point, "repeats": repeats, "seed": seed})
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # The folder is this process's: it goes even if the other one is killed.
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, "-c", _CHILD, task, str(Path(folder, "run"))],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
    if ended.returncode < 0:
        raise PointError(f"killed by {signal.Signals(-ended.returncode).name}")
    if ended.returncode > 0:
        lines = ended.stderr.strip().splitlines()
        raise PointError(lines[-1] if lines else f"exit status {ended.returncode}")
    figures = json.loads(ended.stdout.splitlines()[-1])
    return Measured(**figures | {"devices": tuple(figures["devices"])})


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
                measured[point] = measure_afresh(
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
