"""Times P-FGVM beside peers that hold the same weights: ms per image and iteration.

    python -m experiments.benchmark

Writes `benchmark.json` into --output_dir. Ours and every peer run in turn (A B A B ...), on
the same batch, with the same number of threads; figures are medians. Peers need PyTorch: `pip
install --no-deps -r tests/requirements-peers.txt`; one that is missing is named and left out.
"""

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from deid_jax._validate import InputError, count
from deid_jax.attacks import PFGVMConfig, pfgvm
from deid_jax.models import create_model
from deid_jax.objectives import cross_entropy
from deid_jax.reporting import DESCRIPTION, RunFolder, describe
from experiments import cli
from experiments.cli import setting

NUM_CLASSES = 30


class Case(NamedTuple):
    """What is timed: a recogniser, the picture size, the batch."""

    model: str
    image_size: int
    batch: int


class Problem(NamedTuple):
    """One case's weights, float32[B, H, W, 3] pictures, int[B] targets, settings, steps."""

    case: Case
    variables: Any
    images: np.ndarray
    labels: np.ndarray
    config: PFGVMConfig
    num_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of `experiments.benchmark`."""

    cases: str = setting("model_a:64:64,vgg16:64:16", "MODEL:IMAGE_SIZE:BATCH, …")
    peers: str = setting("torch", "Peers to compare with, by commas, or none.")
    num_steps: int = setting(10, "Iterations of the attack.")
    repeats: int = setting(5, "Runs of each; the median counts.")
    seed: int = setting(0, "Decides weights, pictures and targets.")
    output_dir: str = setting("runs/benchmark", "Folder for benchmark.json.")


def ours(problem: Problem) -> Callable[[], None]:
    """P-FGVM as one compiled scan."""
    model = create_model(
        problem.case.model, num_classes=NUM_CLASSES, image_size=problem.case.image_size
    )

    @jax.jit
    def attack(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        objective = cross_entropy(
            lambda images: model.apply(variables, images), labels, targeted=True
        )
        return pfgvm(objective, images, problem.config, jax.random.key(0)).images

    arguments = jax.device_put((problem.variables, problem.images, problem.labels))
    return lambda: jax.block_until_ready(attack(*arguments))


def torch_loop(problem: Problem) -> Callable[[], Any]:
    """A plain PyTorch loop in the channels_last layout."""
    import torch

    from experiments import peers

    twin: Any = peers.twin(problem.case.model, problem.variables)
    twin = twin.to(memory_format=torch.channels_last)
    images, labels = peers.to_torch(problem.images), torch.from_numpy(problem.labels)
    alpha, penalty = problem.config.step_size, problem.config.penalty_weight

    def update(adversarial: Any, gradient: Any) -> Any:
        return adversarial - alpha * (gradient + penalty * (adversarial - images))

    steps = problem.num_steps
    return lambda: peers.descend(twin, images, labels, update=update, num_steps=steps)


# name -> (packages it needs, its timed run).
PEERS: dict[str, tuple[tuple[str, ...], Callable[[Problem], Callable[[], Any]]]] = {
    "torch": (("torch",), torch_loop),
}


def parse_cases(text: str) -> list[Case]:
    """Reads "model:size:batch,…".

    Raises:
      InputError: a case of another form, or an unknown model.
    """
    cases = []
    for part in text.split(","):
        try:
            model, image_size, batch = part.strip().split(":")
            case = Case(model, int(image_size), int(batch))
        except ValueError:
            raise InputError(f"cases must be MODEL:IMAGE_SIZE:BATCH, …, got {part!r}") from None
        create_model(case.model, num_classes=NUM_CLASSES, image_size=case.image_size)
        count("batch", case.batch, least=1)
        cases.append(case)
    return cases


def parse_peers(text: str) -> list[str]:
    """Reads peers' names, and leaves out, aloud, those that are not installed.

    Raises:
      InputError: an unknown peer.
    """
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    present = []
    for name in names:
        if name not in PEERS:
            raise InputError(f"peers must be of {', '.join(PEERS)} or none, got {name}")
        missing = [package for package in PEERS[name][0] if not _version(package)]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} not installed", file=sys.stderr)
        else:
            present.append(name)
    return present


def make_problem(case: Case, num_steps: int, seed: int) -> Problem:
    """Weights, pictures and targets of a case, drawn from the seed."""
    model = create_model(case.model, num_classes=NUM_CLASSES, image_size=case.image_size)
    shape = (case.batch, case.image_size, case.image_size, 3)
    random = np.random.default_rng(seed)
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *shape[1:])))
    return Problem(
        case=case,
        variables=jax.device_get(variables),
        images=random.uniform(size=shape).astype(np.float32),
        labels=random.integers(NUM_CLASSES, size=case.batch),
        config=PFGVMConfig(num_steps=num_steps),
        num_steps=num_steps,
    )


def time_in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
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


def run(settings: BenchmarkSettings) -> dict[str, Any]:
    """Times every case, writes and prints the figures; returns what `benchmark.json` holds.

    Raises:
      InputError: bad settings.
    """
    cases = parse_cases(settings.cases)
    count("num_steps", settings.num_steps, least=1)
    count("repeats", settings.repeats, least=1)
    count("seed", settings.seed, most=2**31 - 1)
    folder = RunFolder(Path(settings.output_dir), ["benchmark.json"])
    folder.check()
    # Last, as it speaks of peers that are missing.
    peers = parse_peers(settings.peers)
    if peers:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    with cli.progress_bar("benchmark") as update:
        for number, case in enumerate(cases):
            update(number, len(cases), ":".join(map(str, case)))
            problem = make_problem(case, settings.num_steps, settings.seed)
            runs = {"ours": ours(problem)} | {name: PEERS[name][1](problem) for name in peers}
            seconds = time_in_turn(runs, settings.repeats)
            scale = 1000 / (case.batch * settings.num_steps)
            rows.append(
                case._asdict()
                | {
                    "ours_ms": scale * seconds["ours"],
                    "peers": {
                        name: {
                            "ms": scale * seconds[name],
                            "ratio": seconds[name] / seconds["ours"],
                        }
                        for name in peers
                    },
                }
            )
    figures = {"machine": _machine(peers), "num_steps": settings.num_steps, "cases": rows}
    with folder:
        folder.write_json("benchmark.json", figures)
        folder.write_json(DESCRIPTION, describe(settings))
    _print(figures, folder.path)
    return figures


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine(peers: list[str]) -> dict[str, Any]:
    packages = ["jax", "jaxlib", "flax", *(name for peer in peers for name in PEERS[peer][0])]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _print(figures: dict[str, Any], path: Path) -> None:
    table = Table(title="ms per image and iteration", title_justify="left")
    for heading in ("case", "ours"):
        table.add_column(heading)
    for peer in figures["cases"][0]["peers"]:
        table.add_column(f"{peer} (ours / {peer})")
    for row in figures["cases"]:
        peers = [f"{p['ms']:.2f} ({1 / p['ratio']:.2f})" for p in row["peers"].values()]
        name = f"{row['model']} {row['image_size']} px, batch {row['batch']}"
        table.add_row(name, f"{row['ours_ms']:.2f}", *peers)
    Console().print(table)
    print(f"Figures: {path / 'benchmark.json'}")


main = cli.binary(run, BenchmarkSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
