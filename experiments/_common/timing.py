"""What the benchmark's parts share: cases, clocks, how much is computed, on what machine."""

import functools
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.attacks import PFGVMConfig
from deid_jax.devices.precision import dtype_of, products_in
from deid_jax.errors import InputError
from deid_jax.models import MODELS, create_model
from deid_jax.models.mobilefacenet import FEATURES, VARIANTS, MobileFaceNet

# Performs the work once, and returns when its result is ready.
Run = Callable[[], Any]

NUM_CLASSES = 30

# Recognisers without classes, and the one size of the pictures that they take.
MOBILEFACENETS = {f"mobilefacenet_{variant}": variant for variant in VARIANTS}
MOBILEFACENET_SIZE = 112

# n of the n×n matrix product that tells what the device can do, on the CPU and elsewhere.
MATRIX_SIZES = (2048, 8192)


class Case(NamedTuple):
    """What is timed: a recogniser, the picture size, the batch."""

    model: str
    image_size: int
    batch: int

    @property
    def num_outputs(self) -> int:
        """Logits per picture, or numbers in an embedding, which are attacked as logits."""
        return FEATURES if self.model in MOBILEFACENETS else NUM_CLASSES

    def __str__(self) -> str:
        return f"{self.model} {self.image_size} px, batch {self.batch}"


class Problem(NamedTuple):
    """One case's weights, float32[B, H, W, 3] pictures, int[B] targets, settings, steps."""

    case: Case
    variables: Any
    images: np.ndarray
    labels: np.ndarray
    config: PFGVMConfig
    num_steps: int
    precision: str = "float32"


def model_of(case: Case) -> Any:
    """The module of a case's recogniser, without weights.

    Raises:
      InputError: an unknown name, or pictures of a size that the recogniser does not take.
    """
    if case.model in MODELS:
        return create_model(case.model, num_classes=NUM_CLASSES, image_size=case.image_size)
    if case.model not in MOBILEFACENETS:
        names = ", ".join([*MODELS, *MOBILEFACENETS])
        raise InputError(f"model must be one of {names}, got {case.model}")
    if case.image_size != MOBILEFACENET_SIZE:
        raise InputError(
            f"image_size must be {MOBILEFACENET_SIZE} for {case.model}, got {case.image_size}"
        )
    return MobileFaceNet(MOBILEFACENETS[case.model])


def compile_at(precision: str, function: Callable, arguments: tuple) -> Callable:
    """A function compiled for some arguments, its matrix products of a precision."""
    with products_in(precision):
        return jax.jit(function).lower(*arguments).compile()


def time_in_turn(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn after one run that does not count."""
    for run_once in runs.values():
        run_once()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run_once in runs.items():
            start = time.perf_counter()
            run_once()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compared(seconds: dict[str, float], scale: float) -> dict[str, Any]:
    """Ours, and per peer its time and how many times ours that is."""
    return {
        "ours_ms": scale * seconds["ours"],
        "peers": {
            name: {"ms": scale * time, "ratio": time / seconds["ours"]}
            for name, time in seconds.items()
            if name != "ours"
        },
    }


def forward_multiply_adds(case: Case) -> int:
    """Multiply-adds of one picture's forward pass, in convolutions and dense layers alone.

    Convolutions are counted as by their definition, whatever the algorithm: every number of a
    kernel once per position of the layer's outputs [1, ..., K].
    """
    images = jnp.zeros((1, case.image_size, case.image_size, 3))
    initialise = functools.partial(model_of(case).init_with_output, capture_intermediates=True)
    _, variables = jax.eval_shape(initialise, jax.random.key(0), images)
    total = 0
    for name, layer in variables["params"].items():
        outputs = variables["intermediates"][name]["__call__"][0]
        if "kernel" in layer:
            total += math.prod((*layer["kernel"].shape, *outputs.shape[1:-1]))
    return total


def map_size(name: str, image_size: int) -> int:
    """The size of the maps in conv<block> or conv<block>_<layer>: a pooling ends each block."""
    return image_size >> int(name.removeprefix("conv").split("_")[0]) - 1


def matrix_product_rate(precision: str, repeats: int) -> float:
    """FLOP/s of the device in a large matrix product: the median of several."""
    size = MATRIX_SIZES[jax.default_backend() != "cpu"]
    matrix = jax.random.normal(
        jax.random.key(0), (size, size), dtype_of(precision) or jnp.float32
    )
    product = compile_at(precision, jnp.matmul, (matrix, matrix))
    runs = {"": lambda: jax.block_until_ready(product(matrix, matrix))}
    return 2 * size**3 / time_in_turn(runs, repeats)[""]


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def threads() -> int:
    """Threads of XLA on the CPU: one per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, devices, threads and the versions of these packages beside JAX's."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", *packages)},
    }


def processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
