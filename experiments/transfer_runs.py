"""What `experiments.transfer` runs: every method at every budget, fitted on every choice.

A run protects all photos of the protocol once; each recogniser under test then judges them, as
they are and after each kind of processing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import opponents, transfer
from deid_jax.batch import METHODS
from deid_jax.budgets import l2_of_psnr, psnr_of_l2
from deid_jax.data.dataset import LEVELS
from deid_jax.metrics import l2, mssim
from deid_jax.processing import PROCESSING
from deid_jax.protecting import BATCH_SIZE, Program, run_protect
from deid_jax.transfer import Faces, Judge
from experiments import transfer_classifiers
from experiments.transfer_classifiers import Classifier

Row = dict[str, Any]

# Methods that a budget of any size can be put to: by L2, by the change of a pixel, or neither
# (ad-hoc ones, whose change is scaled).
BY_L2 = ("mifgvm", "pgd_l2")
BY_PIXEL = ("mifgsm", "ifgsm", "pgd")
AD_HOC = ("blur", "pixelate", "noise", "mask")
# Methods that seek the least change that suffices; no budget.
LEAST = ("apfgvm", "ddn", "fmn", "cw")
# Opponents who adapt.
AVERAGES = "averages"
TRAINED = "trained on protected photos"
# Steps go so many times as far as the budget, all together.
_REACH = 2.5
# A pixel's bound beyond the budget, so that the change can be brought to it exactly.
_ROOM = 1.1


class Judges(NamedTuple):
    """Who judges: recognisers by embeddings, the plan's, and classifiers; by name."""

    embedding: Mapping[str, Judge]
    naming: Mapping[str, Classifier]


class Budget(NamedTuple):
    """How large a change may be: a PSNR in dB, a pixel's change of a range of 1, or neither."""

    psnr: float | None = None
    epsilon: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
      fits: which recognisers each attack knows, by name.
      tests: which recognisers judge.
      methods: keys of `METHODS`.
      psnrs: budgets in dB, of all methods but those of least change.
      epsilons: further budgets of sign methods.
      transformations: what each attack foresees: keys of `TRANSFORMATIONS`, none or more.
      processing: keys of `PROCESSING`.
      fars: false accept rates; least changes go below the first one's threshold.
      num_steps: gradient steps.
      num_samples: draws of transformations a step.
      margin: how far below the threshold least changes go, in cosine.
      average: an opponent averages so many protected photos; 0 or 1: none does.
      fine_tune: whether an opponent trains on protected photos.
      seed: decides every random choice.
    """

    fits: tuple[tuple[str, ...], ...]
    tests: tuple[str, ...]
    methods: tuple[str, ...]
    psnrs: tuple[float, ...]
    epsilons: tuple[float, ...]
    transformations: tuple[tuple[str, ...], ...]
    processing: tuple[str, ...]
    fars: tuple[float, ...]
    num_steps: int
    num_samples: int
    margin: float
    average: int
    fine_tune: bool
    seed: int

    def runs(self) -> list["Run"]:
        """Every way in which the photos are protected, once each."""
        found = []
        for method in self.methods:
            if method in AD_HOC:
                found += [Run((), method, (), Budget(psnr)) for psnr in self.psnrs]
                continue
            budgets = [Budget(psnr) for psnr in self.psnrs]
            if method in LEAST:
                budgets = [Budget()]
            elif method in BY_PIXEL:
                budgets += [Budget(epsilon=epsilon) for epsilon in self.epsilons]
            found += [
                Run(fit, method, foreseen, budget)
                for fit in self.fits
                for foreseen in self.transformations
                for budget in budgets
            ]
        return found


class Run(NamedTuple):
    """One way to protect: what it is fitted on, how, what it foresees, and how large."""

    fit: tuple[str, ...]
    method: str
    foreseen: tuple[str, ...]
    budget: Budget

    def describe(self) -> Row:
        """The columns that name it."""
        return {
            "fit": "+".join(self.fit),
            "method": self.method,
            "foreseen": "+".join(self.foreseen),
            "psnr": "" if self.budget.psnr is None else self.budget.psnr,
            "epsilon": "" if self.budget.epsilon is None else self.budget.epsilon,
        }


def config_of(run: Run, plan: Plan, num_values: int) -> Any:
    """The method's settings at the run's budget, for pictures of `num_values` values."""
    config = METHODS[run.method].config
    if run.method in AD_HOC:
        return config()
    if run.method in LEAST:
        return config(num_steps=plan.num_steps)
    if run.budget.epsilon is not None:
        size = run.budget.epsilon
    else:
        assert run.budget.psnr is not None
        size = float(l2_of_psnr(run.budget.psnr, num_values))
        if run.method in BY_PIXEL:
            size *= _ROOM / num_values**0.5
    if run.method == "mifgvm":
        return config(epsilon=size, num_steps=plan.num_steps)
    step_size = _REACH * size / plan.num_steps
    return config(epsilon=size, step_size=step_size, num_steps=plan.num_steps)


def protect(
    run: Run,
    plan: Plan,
    judges: Mapping[str, Judge],
    faces: Faces,
    done: Callable[[int], None],
) -> np.ndarray:
    """All photos of the protocol, protected: uint8[M, H, W, 3].

    Galleries are the persons' own photos (`Judge.own`): a protector knows no others.
    """
    photos, labels = faces.protected, faces.protected_labels
    own = [judges[name] for name in run.fit]
    program = Program(
        modules=tuple(judge.embedder.module for judge in own),
        method=run.method,
        reduction="max" if run.method in LEAST else "mean",
        transformations=run.foreseen,
        num_samples=plan.num_samples if run.foreseen else 1,
        dithered=run.method in BY_PIXEL,
    )
    config = config_of(run, plan, photos[0].size)
    psnr = None if run.budget.psnr is None else jnp.float32(run.budget.psnr)
    weights = [judge.embedder.variables for judge in own]
    goals = [jnp.float32(judge.thresholds[plan.fars[0]] - plan.margin) for judge in own]
    finished = []
    for first in range(0, len(photos), BATCH_SIZE):
        # The last batch is filled up with its last photo: one program serves all.
        places = np.minimum(np.arange(first, first + BATCH_SIZE), len(photos) - 1)
        galleries = [jnp.asarray(judge.own[labels[places]], jnp.float32) for judge in own]
        fold = functools.partial(jax.random.fold_in, jax.random.key(plan.seed))
        keys = jax.vmap(fold)(jnp.asarray(faces.lists.protected[places]))
        pictures, _ = run_protect(
            weights, photos[places], galleries, goals, config, psnr, keys, program=program
        )
        finished.append(np.asarray(pictures)[: len(photos) - first])
        done(min(first + BATCH_SIZE, len(photos)))
    return np.concatenate(finished)


def distortion(photos: np.ndarray, originals: np.ndarray) -> Row:
    """How far 8-bit photos lie from their originals: means, and the lowest PSNR."""
    lengths, similar = [], []
    for first in range(0, len(photos), BATCH_SIZE):
        pair = [jnp.asarray(LEVELS[a[first : first + BATCH_SIZE]]) for a in (photos, originals)]
        lengths.append(np.asarray(l2(*pair)))
        similar.append(np.asarray(mssim(*pair)))
    every = np.concatenate(lengths)
    with np.errstate(divide="ignore"):
        ratios = np.asarray(psnr_of_l2(jnp.asarray(every), photos[0].size))
    return {
        "l2": float(every.mean()),
        "psnr_mean": float(ratios[np.isfinite(ratios)].mean()) if every.any() else "",
        "psnr_min": float(ratios.min()),
        "ssim": float(np.concatenate(similar).mean()),
    }


def judged(
    named: Row,
    photos: np.ndarray,
    plan: Plan,
    judges: Judges,
    faces: Faces,
) -> Iterator[Row]:
    """The rows of one run: every kind of processing, every recogniser under test."""
    labels = faces.protected_labels
    for kind in plan.processing:
        processed = PROCESSING[kind](photos)
        for name in plan.tests:
            for row in transfer.figures(judges.embedding[name], processed, labels):
                row |= {"transformation": kind, "opponent": ""}
                yield named | {"test": name} | row | worth(judges.embedding[name])
        for row in transfer_classifiers.rows(judges.naming, processed, labels):
            yield named | row | {"transformation": kind, "opponent": ""}
    for name in plan.tests:
        for row in opposed(judges.embedding[name], photos, plan, faces):
            yield named | {"test": name, "transformation": "none"} | row


def worth(judge: Judge) -> Row:
    """How well a judge tells same from different on clean pairs."""
    return {"accuracy": judge.pairs.accuracy, "auc": judge.pairs.auc}


def opposed(judge: Judge, photos: np.ndarray, plan: Plan, faces: Faces) -> Iterator[Row]:
    """Rows of the opponents who adapt."""
    labels = faces.protected_labels
    if plan.average > 1:
        for row in transfer.averaged(judge, photos, labels, plan.average):
            yield {"opponent": f"{AVERAGES} {plan.average} photos"} | row | worth(judge)
    if plan.fine_tune:
        known = np.arange(len(photos)) % 2 == 0
        gallery = np.concatenate(faces.lists.gallery)
        tuned = opponents.fine_tune(
            judge.embedder,
            np.concatenate([photos[known], faces.images[gallery]]),
            np.concatenate([labels[known], faces.labels[gallery]]),
            judge.galleries,
            seed=plan.seed,
        )
        anew = transfer.make_judge(tuned, faces, tuple(judge.thresholds))
        for row in transfer.figures(anew, photos[~known], labels[~known]):
            yield {"opponent": TRAINED} | row | worth(anew)


def all_rows(
    plan: Plan,
    judges: Judges,
    faces: Faces,
    update: Callable[[int, int, str], None],
    keep: Callable[[Run, np.ndarray], None] | None = None,
) -> list[Row]:
    """The rows of `transfer.csv`: the clean photos first, then every run.

    Args:
      plan: what is run.
      judges: every recogniser of the plan, and the classifiers.
      faces: the photos.
      update: told of photos done, of how many, and of what.
      keep: told of each run's photos.
    """
    clean = Run((), "none", (), Budget())
    runs: Sequence[Run] = plan.runs()
    total = len(runs) * len(faces.protected)
    originals = faces.protected
    quiet = dataclasses.replace(plan, average=0, fine_tune=False)
    named = clean.describe() | distortion(originals, originals)
    rows = list(judged(named, originals, quiet, judges, faces))
    for number, run in enumerate(runs):
        before = number * len(originals)
        text = f"{run.method} on {'+'.join(run.fit) or 'nothing'}"

        def done(photos: int, before: int = before, text: str = text) -> None:
            update(before + photos, total, text)

        photos = protect(run, plan, judges.embedding, faces, done)
        if keep is not None:
            keep(run, photos)
        named = run.describe() | distortion(photos, originals)
        rows += judged(named, photos, plan, judges, faces)
    return rows
