"""One point of `experiments.growth`: a whole evaluation, measured in a process of its own."""

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

from deid_jax.attacks import PFGVMConfig
from deid_jax.data import FaceDataset
from deid_jax.data.loader import even_batch_size
from deid_jax.evaluation import evaluate
from deid_jax.evaluation.batch import Protocol
from deid_jax.models import create_model, prepare
from deid_jax.runs.run_folder import RunFolder

NUM_CLASSES = 30
# A run of fewer seconds is repeated; a longer one is steady enough by itself.
_QUICK = 10.0
_CHILD = (
    "import sys; from experiments._growth.growth_points import answer; answer(*sys.argv[1:])"
)


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
