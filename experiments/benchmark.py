"""Times P-FGVM against other implementations with the same weights (ms per image and step).

    python -m experiments.benchmark

Our attack and every peer run in turn (A B A B ...) on the same batch and device, with the same
number of threads. Times are medians; a ratio is the peer's time divided by ours. Peers need
PyTorch: `pip install --no-deps -r tests/requirements-peers.txt`. A missing peer is reported and
left out. Several variants of a plain PyTorch loop are tried, and the fastest counts. With
--layers, single layers of the recognisers are timed instead of whole attacks. Writes
`benchmark.json` into --output_dir.

MobileFaceNet is timed if you name it as a case, for example mobilefacenet_ms1m:112:32. Only the
recogniser's time matters here, so its 128-dimensional embedding is treated as logits, and the
attack and the cross-entropy are the same as in the other cases.
"""

import dataclasses
import sys
from pathlib import Path

import jax

from deid_jax.checks import count, folder_to_write
from deid_jax.devices.precision import PRECISIONS
from deid_jax.errors import InputError
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from experiments._benchmark import layer_times, timing
from experiments._benchmark.benchmark_tables import show_results
from experiments._benchmark.candidates import PEERS, fastest, ours, present_peers
from experiments._benchmark.results import (
    BenchmarkResult,
    CaseResult,
    Times,
    describe_machine,
)
from experiments._common import cli, machine, terminal
from experiments._common.flags import setting
from experiments._peers.problem import (
    MOBILEFACENETS,
    Case,
    Problem,
    forward_multiply_adds,
    make_problem,
    model_of,
)

# Model, image size, batch on the CPU, batch on an accelerator.
DEFAULT_CASES = (
    ("model_a", 64, 64, 1024),
    ("model_a", 224, 16, 256),
    ("vgg16", 64, 16, 256),
    ("vgg16", 224, 4, 64),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of `experiments.benchmark`."""

    cases: str | None = setting(
        None,
        "MODEL:IMAGE_SIZE:BATCH, …; if not given, model_a and vgg16 at 64 and at 224 px, with "
        "batches for this device. MODEL may also be "
        f"{' or '.join(MOBILEFACENETS)}, at 112 px: their embeddings are attacked as logits.",
    )
    peers: str = setting(
        "torch,torchattacks,foolbox,art",
        "Peers to compare with, by commas, all or none. flax is nn.Conv and nn.max_pool in the "
        "place of this project's layers; unprepared is this project's with kernels as loaded; "
        "apfgvm is the adaptive attack, with its forward passes at the end.",
    )
    precision: str = setting(
        "float32", "What ours and the peers compute in.", choices=PRECISIONS
    )
    layers: bool = setting(False, "Time each convolution and pooling instead of attacks.")
    num_steps: int = setting(10, "Iterations of the attack.")
    repeats: int = setting(5, "Runs of each; the median counts.")
    seed: int = setting(0, "Decides weights, images and targets.")
    profile_dir: str | None = setting(
        None, "Folder for a profiler trace of one more run of ours per case."
    )
    output_dir: str = setting("runs/benchmark", "Folder for benchmark.json.")


def default_cases() -> list[Case]:
    """The cases that are timed by default, with batch sizes for JAX's device."""
    on_cpu = jax.default_backend() == "cpu"
    return [
        Case(model, image_size, batch if on_cpu else larger)
        for model, image_size, batch, larger in DEFAULT_CASES
    ]


def parse_cases(text: str) -> list[Case]:
    """Reads "model:size:batch,…".

    Raises:
      InputError: a malformed case, or an unknown model.
    """
    cases = []
    for part in text.split(","):
        try:
            model, image_size, batch = part.strip().split(":")
            case = Case(model, int(image_size), int(batch))
        except ValueError:
            raise InputError(f"cases must be MODEL:IMAGE_SIZE:BATCH, …, got {part!r}") from None
        model_of(case)
        count("batch", case.batch, least=1)
        cases.append(case)
    return cases


def _check(settings: BenchmarkSettings, cases: list[Case]) -> None:
    count("num_steps", settings.num_steps, least=1)
    count("repeats", settings.repeats, least=1)
    count("seed", settings.seed, most=2**31 - 1)
    if settings.profile_dir is not None:
        folder_to_write("profile_dir", Path(settings.profile_dir))
        if settings.layers:
            raise InputError("profile_dir traces attacks: give it without layers")
    for case in cases:
        if settings.layers and case.model in MOBILEFACENETS:
            raise InputError(f"layers of {case.model} are not timed: give it without layers")


def run(settings: BenchmarkSettings) -> BenchmarkResult:
    """Times every case, and writes and prints the results.

    Raises:
      InputError: bad settings.
    """
    machine.share_with_pytorch()
    cases = default_cases() if settings.cases is None else parse_cases(settings.cases)
    _check(settings, cases)
    folder = RunFolder(Path(settings.output_dir), ["benchmark.json"])
    folder.check()
    # Comes last, because it prints which peers are missing.
    peers = present_peers(settings.peers, cases)
    packages = [package for name in peers for package in PEERS[name].packages]
    if "torch" in packages:
        from experiments._peers import twins

        twins.configure_torch(settings.precision, machine.threads())
    described = describe_machine(packages)
    if settings.layers:
        layers = layer_times.time_layers(
            cases,
            precision=settings.precision,
            repeats=settings.repeats,
            seed=settings.seed,
            with_torch="torch" in peers,
        )
        result = BenchmarkResult([], layers, [])
    else:
        result = time_cases(settings, cases, peers)
    written = {
        "machine": described,
        "precision": settings.precision,
        "num_steps": settings.num_steps,
        "repeats": settings.repeats,
        **result.json(),
    }
    with folder:
        folder.write_json("benchmark.json", written)
        folder.write_json(DESCRIPTION, describe(settings))
    show_results(result)
    print(f"Figures: {folder.path / 'benchmark.json'}")
    return result


def time_cases(
    settings: BenchmarkSettings, cases: list[Case], peers: list[str]
) -> BenchmarkResult:
    """Times whole attacks."""
    rate = timing.matrix_product_rate(settings.precision, max(5, settings.repeats))
    rows, notes = [], []
    with terminal.progress_bar("benchmark") as update:
        for number, case in enumerate(cases):
            update(number, len(cases), str(case))
            problem = make_problem(case, settings.num_steps, settings.seed, settings.precision)
            runs, variants = {"ours": ours(problem)}, {}
            for name in peers:
                chosen = fastest(name, PEERS[name].candidates(problem), problem)
                variants[name], runs[name] = chosen.name, chosen.run
                notes += chosen.notes
            seconds = timing.time_in_turn(runs, settings.repeats)
            times = Times.of(seconds, 1000 / (case.batch * settings.num_steps), variants)
            rows.append(_case_result(problem, times, seconds["ours"], rate))
            if settings.profile_dir is not None:
                folder = f"{case.model}-{case.image_size}-{case.batch}"
                with jax.profiler.trace(Path(settings.profile_dir) / folder):
                    runs["ours"]()
    return BenchmarkResult(rows, [], notes, rate / 1e9)


def _case_result(problem: Problem, times: Times, seconds: float, rate: float) -> CaseResult:
    """Adds the FLOPs of one image's forward pass; our attack performs twice that per step."""
    case = problem.case
    flops = 2 * forward_multiply_adds(case)
    reached = 2 * flops * case.batch * problem.num_steps / seconds
    return CaseResult(case, times, flops / 1e9, reached / 1e9, reached / rate)


main = cli.binary(run, BenchmarkSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
