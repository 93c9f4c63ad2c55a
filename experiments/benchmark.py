"""Times P-FGVM beside peers that hold the same weights: ms per image and iteration.

    python -m experiments.benchmark

Writes `benchmark.json` into --output_dir. Ours and every peer run in turn (A B A B ...), on
the same batch and device, with the same number of threads; figures are medians, ratios a peer's
time over ours. Peers need PyTorch: `pip install --no-deps -r tests/requirements-peers.txt`; one
that is missing is named and left out. Of the plain PyTorch loop's variants the fastest counts.
`--layers` times the recognisers' layers one by one instead of whole attacks.

MobileFaceNet is timed where a case names it, mobilefacenet_ms1m:112:32 say. As what counts is
the recogniser's time, the 128 numbers of its embedding stand for logits, and the attack and its
cross-entropy are those of the other cases.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deid_jax.attacks import ATTACKS, PFGVMConfig
from deid_jax.checks import count, folder_to_write
from deid_jax.devices.precision import PRECISIONS, in_precision
from deid_jax.errors import InputError
from deid_jax.models import prepare
from deid_jax.objectives import OBJECTIVES
from deid_jax.runs.run_folder import DESCRIPTION, RunFolder, describe
from experiments._benchmark import benchmark_tables, layer_times, naive
from experiments._common import cli, timing
from experiments._common.cli import setting
from experiments._common.timing import MOBILEFACENETS, NUM_CLASSES, Case, Problem, Run

# Read when JAX finds its devices and when PyTorch is imported; one's own settings stand.
_ENVIRONMENT = {
    # PyTorch needs room on the same accelerator.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # OpenMP threads that wait by spinning can block each other where the cores are few or
    # shared: a PyTorch loop then takes several times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
}

# Model, image size, batch on the CPU, batch on an accelerator.
DEFAULT_CASES = (
    ("model_a", 64, 64, 1024),
    ("model_a", 224, 16, 256),
    ("vgg16", 64, 16, 256),
    ("vgg16", 224, 4, 64),
)


class Candidate(NamedTuple):
    """One way to run a peer: its name, what makes its run, whether that may fail."""

    name: str
    build: Callable[[Problem], Run]
    may_fail: bool = False


class Peer(NamedTuple):
    """A peer: the packages that it needs, and its candidates, of which the fastest counts."""

    packages: tuple[str, ...]
    candidates: Callable[[Problem], list[Candidate]]


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
    seed: int = setting(0, "Decides weights, pictures and targets.")
    profile_dir: str | None = setting(
        None, "Folder for a profiler trace of one more run of ours per case."
    )
    output_dir: str = setting("runs/benchmark", "Folder for benchmark.json.")


def ours(problem: Problem) -> Run:
    """P-FGVM as one compiled scan, with prepared weights."""
    return jax_attack(problem, _model(problem), prepare(problem.variables))


def jax_attack(
    problem: Problem,
    model: Any,
    variables: Any,
    method: str = "pfgvm",
) -> Run:
    """An attack of P-FGVM's kind as one compiled scan."""
    chosen = ATTACKS[method]
    config = problem.config if method == "pfgvm" else chosen.config(num_steps=problem.num_steps)

    def attack(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits_fn = functools.partial(model.apply, variables)
        objective = OBJECTIVES[chosen.objective](logits_fn, labels, targeted=True)
        return chosen.function(objective, images, config, jax.random.key(0)).images

    arguments = jax.device_put((variables, problem.images, problem.labels))
    compiled = timing.compile_at(problem.precision, attack, arguments)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _adaptive(problem: Problem) -> Run:
    """A-PFGVM, with as many gradients."""
    return jax_attack(problem, _model(problem), prepare(problem.variables), "apfgvm")


def _model(problem: Problem) -> Any:
    return in_precision(timing.model_of(problem.case), problem.precision)


def _unprepared(problem: Problem) -> Run:
    return jax_attack(problem, _model(problem), problem.variables)


def _flax(problem: Problem) -> Run:
    model = in_precision(naive.NAIVE_MODELS[problem.case.model](NUM_CLASSES), problem.precision)
    return jax_attack(problem, model, problem.variables)


def _torch_candidates(problem: Problem) -> list[Candidate]:
    from experiments._benchmark import peers

    return [
        Candidate(
            variant.name,
            functools.partial(peers.plain_loop, variant=variant),
            may_fail=variant.compiled,
        )
        for variant in peers.variants(problem)
    ]


def _library(name: str, function: str) -> Callable[[Problem], list[Candidate]]:
    """The one candidate of a peer that is a function of `experiments._benchmark.peers`."""

    def candidates(problem: Problem) -> list[Candidate]:
        from experiments._benchmark import peers

        return [Candidate(name, getattr(peers, function))]

    return candidates


PEERS = {
    "torch": Peer(("torch",), _torch_candidates),
    "torchattacks": Peer(("torch", "torchattacks"), _library("BIM", "torchattacks_bim")),
    "foolbox": Peer(
        ("torch", "foolbox", "eagerpy"), _library("LinfBasicIterativeAttack", "foolbox_bim")
    ),
    "art": Peer(
        ("torch", "adversarial-robustness-toolbox", "scikit-learn"),
        _library("BasicIterativeMethod", "art_bim"),
    ),
    "flax": Peer((), lambda _: [Candidate("nn.Conv, nn.max_pool", _flax)]),
    "unprepared": Peer((), lambda _: [Candidate("kernels as loaded", _unprepared)]),
    "apfgvm": Peer((), lambda _: [Candidate("A-PFGVM", _adaptive)]),
}


def default_cases() -> list[Case]:
    """The cases timed where none are named, with batches for JAX's device."""
    on_cpu = jax.default_backend() == "cpu"
    return [
        Case(model, image_size, batch if on_cpu else larger)
        for model, image_size, batch, larger in DEFAULT_CASES
    ]


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
        timing.model_of(case)
        count("batch", case.batch, least=1)
        cases.append(case)
    return cases


def parse_peers(text: str, cases: Iterable[Case] = ()) -> list[str]:
    """Reads peers' names, and leaves out, aloud, those that cannot run here or on all cases.

    Raises:
      InputError: an unknown peer.
    """
    named = [name.strip() for name in text.split(",")]
    names = {"none": [], "all": list(PEERS)}.get(text, list(dict.fromkeys(named)))
    for name in names:
        if name not in PEERS:
            raise InputError(f"peers must be of {', '.join(PEERS)}, all or none, got {name}")
    present = []
    unknown = {case.model: None for case in cases if case.model not in naive.NAIVE_MODELS}
    for name in names:
        missing = [package for package in PEERS[name].packages if not timing.version(package)]
        if missing:
            print(f"{name} is left out: {', '.join(missing)} not installed", file=sys.stderr)
        elif "torch" in PEERS[name].packages and not _torch_has_device():
            print(f"{name} is left out: PyTorch has no CUDA device here", file=sys.stderr)
        elif name == "flax" and unknown:
            print(f"{name} is left out: it has no {', '.join(unknown)}", file=sys.stderr)
        else:
            present.append(name)
    return present


def _torch_has_device() -> bool:
    """Whether PyTorch has the kind of device that JAX uses."""
    import torch

    return jax.default_backend() == "cpu" or torch.cuda.is_available()


def make_problem(case: Case, num_steps: int, seed: int, precision: str = "float32") -> Problem:
    """Weights, pictures and targets of a case, drawn from the seed."""
    shape = (case.batch, case.image_size, case.image_size, 3)
    random = np.random.default_rng(seed)
    images = random.uniform(size=shape).astype(np.float32)
    initialise = jax.jit(timing.model_of(case).init_with_output)
    outputs, variables = jax.device_get(initialise(jax.random.key(seed), images[:1]))
    if case.model in MOBILEFACENETS:
        # With BatchNorm folded, nothing keeps what is drawn as small as logits are.
        last = variables["params"]["embedding"]
        last["kernel"] = last["kernel"] / outputs.std()
    return Problem(
        case=case,
        variables=variables,
        images=images,
        labels=random.integers(case.num_outputs, size=case.batch),
        config=PFGVMConfig(num_steps=num_steps),
        num_steps=num_steps,
        precision=precision,
    )


def fastest(
    peer: str, candidates: list[Candidate], problem: Problem
) -> tuple[str, Run, list[str]]:
    """The candidate that is fastest in two runs: its name, its run, notes on the choice."""
    if len(candidates) == 1:
        return candidates[0].name, candidates[0].build(problem), []
    best: tuple[float, str, Run] | None = None
    notes = []
    for name, build, may_fail in candidates:
        try:
            attempt = build(problem)
            seconds = timing.time_in_turn({name: attempt}, 2)[name]
        except Exception as error:
            if not may_fail:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"{peer}: {name} is left out: {reason}", file=sys.stderr)
            notes.append(f"{problem.case}: {peer}: {name} is left out: {reason}")
            continue
        if best is None or seconds < best[0]:
            best = seconds, name, attempt
    assert best is not None
    notes.append(
        f"{problem.case}: {peer} is the fastest of {len(candidates)} variants: {best[1]}"
    )
    return best[1], best[2], notes


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


def run(settings: BenchmarkSettings) -> dict[str, Any]:
    """Times every case, writes and prints the figures; returns what `benchmark.json` holds.

    Raises:
      InputError: bad settings.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cases = default_cases() if settings.cases is None else parse_cases(settings.cases)
    _check(settings, cases)
    folder = RunFolder(Path(settings.output_dir), ["benchmark.json"])
    folder.check()
    # Last, as it speaks of peers that are missing.
    names = parse_peers(settings.peers, cases)
    packages = [package for name in names for package in PEERS[name].packages]
    if "torch" in packages:
        from experiments._benchmark import peers

        peers.configure(settings.precision, timing.threads())
    figures = {
        "machine": timing.machine(packages),
        "precision": settings.precision,
        "num_steps": settings.num_steps,
        "repeats": settings.repeats,
        "cases": [],
        "layers": [],
        "notes": [],
    }
    if settings.layers:
        figures["layers"] = layer_times.time_layers(
            cases,
            settings.precision,
            repeats=settings.repeats,
            seed=settings.seed,
            with_torch="torch" in names,
        )
    else:
        figures |= time_cases(settings, cases, names)
    with folder:
        folder.write_json("benchmark.json", figures)
        folder.write_json(DESCRIPTION, describe(settings))
    benchmark_tables.show(figures)
    print(f"Figures: {folder.path / 'benchmark.json'}")
    return figures


def time_cases(
    settings: BenchmarkSettings, cases: list[Case], names: list[str]
) -> dict[str, Any]:
    """Times whole attacks: entries of `benchmark.json`."""
    rate = timing.matrix_product_rate(settings.precision, max(5, settings.repeats))
    rows, notes = [], []
    with cli.progress_bar("benchmark") as update:
        for number, case in enumerate(cases):
            update(number, len(cases), str(case))
            problem = make_problem(case, settings.num_steps, settings.seed, settings.precision)
            runs, variants = {"ours": ours(problem)}, {}
            for name in names:
                candidates = PEERS[name].candidates(problem)
                variants[name], runs[name], more = fastest(name, candidates, problem)
                notes += more
            seconds = timing.time_in_turn(runs, settings.repeats)
            row = timing.compared(seconds, 1000 / (case.batch * settings.num_steps))
            for name, variant in variants.items():
                row["peers"][name]["variant"] = variant
            rows.append(case._asdict() | row | _throughput(problem, seconds["ours"], rate))
            if settings.profile_dir is not None:
                trace = Path(settings.profile_dir) / "-".join(map(str, case))
                with jax.profiler.trace(trace):
                    runs["ours"]()
    return {"matrix_product_gflops": rate / 1e9, "cases": rows, "notes": notes}


def _throughput(problem: Problem, seconds: float, rate: float) -> dict[str, float]:
    """FLOPs of a picture's forward pass, and how fast ours performs twice that per step."""
    flops = 2 * timing.forward_multiply_adds(problem.case)
    reached = 2 * flops * problem.case.batch * problem.num_steps / seconds
    return {
        "forward_gflop": flops / 1e9,
        "gflops": reached / 1e9,
        "share_of_matrix_product": reached / rate,
    }


main = cli.binary(run, BenchmarkSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
