"""The benchmark's results, and their form in `benchmark.json`."""

import dataclasses
import os
import platform
from collections.abc import Iterable, Mapping

import jax

from deid_jax.types import Json
from experiments._common import machine
from experiments._peers.problem import Case


@dataclasses.dataclass(frozen=True)
class PeerTime:
    """A peer's time, its ratio to ours, and the variant that ran."""

    ms: float
    ratio: float
    variant: str | None = None


@dataclasses.dataclass(frozen=True)
class Times:
    """Our time and the peers' times."""

    ours_ms: float
    peers: dict[str, PeerTime]

    @classmethod
    def of(
        cls, seconds: Mapping[str, float], scale: float, variants: Mapping[str, str]
    ) -> "Times":
        """From the seconds of "ours" and each peer; one second is shown as `scale` ms."""
        ours = seconds["ours"]
        peers = {
            name: PeerTime(scale * time, time / ours, variants.get(name))
            for name, time in seconds.items()
            if name != "ours"
        }
        return cls(scale * ours, peers)

    def json(self) -> dict[str, Json]:
        """Its entries of `benchmark.json`."""
        peers: dict[str, Json] = {
            name: {key: value for key, value in vars(peer).items() if value is not None}
            for name, peer in self.peers.items()
        }
        return {"ours_ms": self.ours_ms, "peers": peers}


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """Whole attacks on one case, ms per image and iteration.

    Attributes:
      forward_gflop: GFLOP of one image's forward pass.
      gflops: rate of our attack, which performs twice that many per step.
      share_of_matrix_product: this rate relative to that of a large matrix product.
    """

    case: Case
    times: Times
    forward_gflop: float
    gflops: float
    share_of_matrix_product: float

    def json(self) -> dict[str, Json]:
        """Its entry of `benchmark.json`."""
        rates = {**vars(self)}
        case, times = rates.pop("case"), rates.pop("times")
        return {**vars(case), **times.json(), **rates}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer: float[batch, image_size, image_size, channels] -> `features` channels.

    `size` is the kernel size; 0 stands for 2×2 max-pooling.
    """

    size: int
    image_size: int
    batch: int
    channels: int
    features: int

    def __str__(self) -> str:
        name = f"conv {self.size}×{self.size}, {self.channels} → {self.features}"
        name = name if self.size else f"max_pool, {self.channels}"
        return f"{name}: {self.image_size} px, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """One layer in one direction, ms per pass."""

    layer: Layer
    direction: str
    times: Times

    def json(self) -> dict[str, Json]:
        """Its entry of `benchmark.json`."""
        return (
            {"layer": str(self.layer), "pass": self.direction}
            | vars(self.layer)
            | self.times.json()
        )


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """All that was timed: whole attacks with their matrix product rate, or layers."""

    cases: list[CaseResult]
    layers: list[LayerResult]
    notes: list[str]
    matrix_product_gflops: float | None = None

    def json(self) -> dict[str, Json]:
        """The measurements of `benchmark.json`."""
        rate = self.matrix_product_gflops
        return {
            "cases": [case.json() for case in self.cases],
            "layers": [layer.json() for layer in self.layers],
            "notes": list(self.notes),
            **({} if rate is None else {"matrix_product_gflops": rate}),
        }


def describe_machine(packages: Iterable[str]) -> dict[str, Json]:
    """Processor, devices, threads, and the versions of JAX and the given packages."""
    versions = {name: machine.version(name) for name in ("jax", "jaxlib", "flax", *packages)}
    return {
        "processor": machine.processor(),
        "cores": os.cpu_count(),
        "threads": machine.threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {**versions},
    }
