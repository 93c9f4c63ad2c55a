"""The attacks that the benchmark times: ours, and the candidates of each peer."""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax

from deid_jax.attacks import ATTACKS
from deid_jax.devices.precision import in_precision
from deid_jax.errors import one_line
from deid_jax.models import prepare
from deid_jax.objectives import OBJECTIVES
from deid_jax.types import Model, Variables
from experiments._benchmark import timing
from experiments._benchmark.timing import Run
from experiments._common import machine
from experiments._common.lists import read_names
from experiments._peers import naive
from experiments._peers.problem import NUM_CLASSES, Case, Problem, model_of


class Candidate(NamedTuple):
    """One way to run a peer: its name, the function that makes its run, whether it may fail."""

    name: str
    build: Callable[[Problem], Run]
    may_fail: bool = False


class TimedPeer(NamedTuple):
    """A peer: the packages that it needs, and its candidates; the fastest candidate counts."""

    packages: tuple[str, ...]
    candidates: Callable[[Problem], list[Candidate]]


def ours(problem: Problem, *, method: str = "pfgvm", prepared: bool = True) -> Run:
    """An attack, P-FGVM if none is named, as one compiled scan."""
    model = in_precision(model_of(problem.case), problem.precision)
    variables = prepare(problem.variables) if prepared else problem.variables
    return jax_attack(problem, model, variables, method)


def jax_attack(
    problem: Problem, model: Model, variables: Variables, method: str = "pfgvm"
) -> Run:
    """An attack like P-FGVM as one compiled scan."""
    chosen = ATTACKS[method]
    config = chosen.config(num_steps=problem.num_steps)

    def attack(variables: Variables, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits_fn = functools.partial(model.apply, variables)
        objective = OBJECTIVES[chosen.objective](logits_fn, labels, targeted=True)
        return chosen.function(objective, images, config, jax.random.key(0)).images

    arguments = jax.device_put((variables, problem.images, problem.labels))
    compiled = timing.compile_at(problem.precision, attack, arguments)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _flax(problem: Problem) -> Run:
    model = in_precision(naive.NAIVE_MODELS[problem.case.model](NUM_CLASSES), problem.precision)
    return jax_attack(problem, model, problem.variables)


def _torch_candidates(problem: Problem) -> list[Candidate]:
    from experiments._peers import fixed_steps

    return [
        Candidate(
            variant.name,
            functools.partial(fixed_steps.plain_loop, variant=variant),
            may_fail=variant.compiled,
        )
        for variant in fixed_steps.loop_variants(problem)
    ]


def _library(name: str, function: str) -> Callable[[Problem], list[Candidate]]:
    """The only candidate of a peer, given as a function of `fixed_steps`."""

    def candidates(problem: Problem) -> list[Candidate]:
        from experiments._peers import fixed_steps

        return [Candidate(name, getattr(fixed_steps, function))]

    return candidates


def _only(name: str, build: Callable[[Problem], Run]) -> Callable[[Problem], list[Candidate]]:
    return lambda _: [Candidate(name, build)]


PEERS = {
    "torch": TimedPeer(("torch",), _torch_candidates),
    "torchattacks": TimedPeer(("torch", "torchattacks"), _library("BIM", "torchattacks_bim")),
    "foolbox": TimedPeer(
        ("torch", "foolbox", "eagerpy"), _library("LinfBasicIterativeAttack", "foolbox_bim")
    ),
    "art": TimedPeer(
        ("torch", "adversarial-robustness-toolbox", "scikit-learn"),
        _library("BasicIterativeMethod", "art_bim"),
    ),
    "flax": TimedPeer((), _only("nn.Conv, nn.max_pool", _flax)),
    "unprepared": TimedPeer(
        (), _only("kernels as loaded", functools.partial(ours, prepared=False))
    ),
    "apfgvm": TimedPeer((), _only("A-PFGVM", functools.partial(ours, method="apfgvm"))),
}


def present_peers(text: str, cases: Iterable[Case] = ()) -> list[str]:
    """Parses the names of peers; reports and leaves out those that cannot run here.

    Raises:
      InputError: an unknown peer.
    """
    present = []
    unknown = {case.model: None for case in cases if case.model not in naive.NAIVE_MODELS}
    for name in read_names("peers", text, PEERS, all_or_none=True):
        missing = [package for package in PEERS[name].packages if not machine.version(package)]
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
    from experiments._peers import twins

    return twins.has_torch_device()


class Chosen(NamedTuple):
    """The candidate that counts: its name and its run, and notes on the choice."""

    name: str
    run: Run
    notes: list[str]


def fastest(peer: str, candidates: Sequence[Candidate], problem: Problem) -> Chosen:
    """Chooses the candidate that is fastest in two runs."""
    if len(candidates) == 1:
        return Chosen(candidates[0].name, candidates[0].build(problem), [])
    found: list[tuple[float, str, Run]] = []
    notes = []
    for name, build, may_fail in candidates:
        try:
            run = build(problem)
            seconds = timing.time_in_turn({name: run}, 2)[name]
        except Exception as error:
            if not may_fail:
                raise
            reason = one_line(f"{type(error).__name__}: {error}")
            print(f"{peer}: {name} is left out: {reason}", file=sys.stderr)
            notes.append(f"{problem.case}: {peer}: {name} is left out: {reason}")
        else:
            found.append((seconds, name, run))
    _, name, run = min(found, key=lambda entry: entry[0])
    count = f"{len(candidates)} variants"
    notes.append(f"{problem.case}: {peer} is the fastest of {count}: {name}")
    return Chosen(name, run, notes)
