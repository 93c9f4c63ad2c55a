"""One workload of `experiments.growth`: an evaluation, measured in its own process."""

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

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from deid_jax.attacks import PFGVMConfig
from deid_jax.data import FaceDataset
from deid_jax.data.loader import even_batch_size
from deid_jax.errors import one_line
from deid_jax.evaluation import Evaluation, Protocol, Timing, WeightedModel
from deid_jax.models import create_model, prepare
from deid_jax.runs import RunFolder

NUM_CLASSES = 30
# Runs shorter than this many seconds are repeated; a longer one is steady enough.
_QUICK = 10.0
_CHILD = "import sys; from experiments._growth.workloads import answer; answer(*sys.argv[1:])"


@dataclasses.dataclass(frozen=True)
class Workload:
    """The workload of one process: P-FGVM against a recogniser."""

    model: str
    num_images: int
    image_size: int
    num_steps: int
    batch_size: int

    def __str__(self) -> str:
        return (
            f"{self.num_images} images of {self.image_size} px, {self.num_steps} steps, "
            f"batch {self.batch_size}"
        )


@dataclasses.dataclass(frozen=True)
class Usage:
    """Time and memory of a workload.

    Attributes:
      seconds: wall time of one evaluation without compilation; the median of the repeats.
      peak_bytes: peak memory of the process, or of the accelerator if there is one.
      peak_bytes_before: the same before the first evaluation.
    """

    seconds: float
    compile_seconds: float
    repeats: int
    peak_bytes: int
    peak_bytes_before: int
    devices: tuple[str, ...]


class WorkloadError(Exception):
    """A workload could not be measured; the message says why."""


def unread_noise(num_images: int, image_size: int, seed: int) -> FaceDataset:
    """Noise images, which are drawn when they are read and never kept in memory."""
    shape = (image_size, image_size, 3)

    def read(index: int) -> npt.NDArray[np.uint8]:
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


def measure_here(workload: Workload, folder: Path, *, repeats: int, seed: int) -> Usage:
    """Measures in this process, which must do nothing else; writes images into a folder."""
    size = workload.image_size
    model = create_model(workload.model, num_classes=NUM_CLASSES, image_size=size)
    initial = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, size, size, 3)))
    # Prepared for every workload: `Evaluation` would not prepare weights for a small one.
    network = WeightedModel(model, jax.block_until_ready(prepare(initial)))
    config = PFGVMConfig(num_steps=workload.num_steps)
    protocol = Protocol(batch_size=workload.batch_size, seed=seed)

    def run_once(num_images: int) -> Timing:
        faces = unread_noise(num_images, size, seed)
        names = faces.image_names
        with RunFolder(folder, ["images"]) as kept:
            _, timing = Evaluation(network, faces, "pfgvm", config, protocol).records(
                keep=lambda index, pixels: kept.write_png(f"images/{names[index]}.png", pixels)
            )
        return timing

    before = peak_bytes()
    # A first batch of the same shape compiles the program and does not count.
    compiling = run_once(even_batch_size(workload.num_images, workload.batch_size))
    seconds = [run_once(workload.num_images).seconds]
    while seconds[0] < _QUICK and len(seconds) < repeats:
        seconds.append(run_once(workload.num_images).seconds)
    return Usage(
        seconds=statistics.median(seconds),
        compile_seconds=compiling.compile_seconds,
        repeats=len(seconds),
        peak_bytes=peak_bytes(),
        peak_bytes_before=before,
        devices=tuple(device.device_kind for device in jax.local_devices()),
    )


def peak_bytes() -> int:
    """Peak memory in bytes: of the fullest accelerator, otherwise resident in this process."""
    known = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in known if "peak_bytes_in_use" in entry]
    if peaks:
        return int(max(peaks))
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # Linux's ru_maxrss includes the parent, from before this process loaded its program.
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def answer(task: str, folder: str) -> None:
    """Main function of a workload's process; prints the usage or an error as its last line."""
    given = json.loads(task)
    # If a batch had to be split, this is not the requested workload.
    warnings.simplefilter("error", UserWarning)
    try:
        workload = Workload(**given["workload"])
        usage = measure_here(
            workload, Path(folder), repeats=given["repeats"], seed=given["seed"]
        )
    except Exception as error:
        # Kept to one line, because JAX appends notes on its traceback to the message.
        sys.exit(f"{type(error).__name__}: {one_line(error)}")
    print(json.dumps(dataclasses.asdict(usage)))


def measure(workload: Workload, *, repeats: int, seed: int) -> Usage:
    """Runs `measure_here` in a new process.

    Raises:
      WorkloadError: the process failed or was killed.
    """
    given = {"workload": dataclasses.asdict(workload), "repeats": repeats, "seed": seed}
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # This process owns the folder, so it is removed even if the other process is killed.
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(given), str(Path(folder, "run"))],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
    if ended.returncode < 0:
        raise WorkloadError(f"killed by {signal.Signals(-ended.returncode).name}")
    if ended.returncode > 0:
        lines = ended.stderr.strip().splitlines()
        raise WorkloadError(lines[-1] if lines else f"exit status {ended.returncode}")
    found = json.loads(ended.stdout.splitlines()[-1])
    return Usage(**found | {"devices": tuple(found["devices"])})
