"""Clocks of the benchmark, and programs compiled for it."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar, TypeVarTuple, cast

import jax
import jax.numpy as jnp

from deid_jax.devices.precision import dtype_of, products_in

# Does the work once, and returns when its result is ready.
Run = Callable[[], object]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Size n of the n×n matrix product that measures the device's speed, on CPUs and elsewhere.
MATRIX_SIZES = (2048, 8192)


def compile_at(
    precision: str, function: Callable[[*Ts], T], arguments: tuple[*Ts]
) -> Callable[[*Ts], T]:
    """Compiles a function for given arguments and a matrix product precision."""
    with products_in(precision):
        compiled = jax.jit(function).lower(*arguments).compile()
    return cast("Callable[[*Ts], T]", compiled)


def time_in_turn(runs: Mapping[str, Run], repeats: int) -> dict[str, float]:
    """Median seconds of each run; runs take turns, after one warm-up that does not count."""
    for run_once in runs.values():
        run_once()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run_once in runs.items():
            start = time.perf_counter()
            run_once()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def matrix_product_rate(precision: str, repeats: int) -> float:
    """FLOP/s of the device in a large matrix product: the median of several."""
    size = MATRIX_SIZES[jax.default_backend() != "cpu"]
    matrix = jax.random.normal(
        jax.random.key(0), (size, size), dtype_of(precision) or jnp.float32
    )
    product = compile_at(precision, jnp.matmul, (matrix, matrix))
    runs = {"": lambda: jax.block_until_ready(product(matrix, matrix))}
    return 2 * size**3 / time_in_turn(runs, repeats)[""]
