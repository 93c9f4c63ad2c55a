"""What `experiments.transfer` runs, and what the judges make of it.

A run protects all photos of the protocol once; each recogniser under test then judges them, as
they are and after each kind of processing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from deid_jax import transfer
from deid_jax.attacks.budgets import psnr_of_l2
from deid_jax.metrics import l2, mssim
from deid_jax.pixels import LEVELS
from deid_jax.transfer import Faces, Judge, Verdict, opponents
from deid_jax.transforms.processing import PROCESSING
from experiments._transfer.transfer_classifiers import Classifier
from experiments._transfer.transfer_plan import Budget, Plan, Row, Run
from experiments._transfer.transfer_protect import BATCH_SIZE, protect

# Opponents who adapt.
AVERAGES = "averages"
TRAINED = "trained on protected photos"


class Judges(NamedTuple):
    """Who judges: recognisers by embeddings, the plan's, and classifiers; by name."""

    embedding: Mapping[str, Judge]
    naming: Mapping[str, Classifier]

    def worth(self, name: str) -> Row:
        """How well one does on clean photos."""
        if name in self.naming:
            return {"accuracy": 1 - self.naming[name].clean_error, "auc": ""}
        return worth(self.embedding[name])


# (a key of `PROCESSING`, a judge's name) -> what it makes of the photos so processed.
Verdicts = Mapping[tuple[str, str], Verdict]


class Tables(NamedTuple):
    """What is measured: the rows of `transfer.csv`, and those of `per_image.csv`."""

    rows: list[Row]
    images: list[Row]


class Change(NamedTuple):
    """How far photos lie from their originals, float64[N] each.

    Attributes:
      l2: of pixels in [0, 1].
      psnr: in dB, infinite where nothing changed.
      ssim: the mean structural similarity.
    """

    l2: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray

    def summary(self) -> Row:
        """Means, of PSNR where it is finite, and the lowest PSNR."""
        finite = self.psnr[np.isfinite(self.psnr)]
        return {
            "l2": float(self.l2.mean()),
            "psnr_mean": float(finite.mean()) if len(finite) else "",
            "psnr_min": float(self.psnr.min()),
            "ssim": float(self.ssim.mean()),
        }


def distortion(photos: np.ndarray, originals: np.ndarray) -> Change:
    """How far 8-bit photos lie from their originals."""
    lengths, similar = [], []
    for first in range(0, len(photos), BATCH_SIZE):
        pair = [jnp.asarray(LEVELS[a[first : first + BATCH_SIZE]]) for a in (photos, originals)]
        lengths.append(np.asarray(l2(*pair)))
        similar.append(np.asarray(mssim(*pair)))
    every = np.concatenate(lengths)
    with np.errstate(divide="ignore"):
        ratios = np.asarray(psnr_of_l2(jnp.asarray(every), photos[0].size))
    found = (every, ratios, np.concatenate(similar))
    return Change(*(array.astype(np.float64) for array in found))


def verdicts(photos: np.ndarray, plan: Plan, judges: Judges, labels: np.ndarray) -> Verdicts:
    """Of all who judge, after every kind of processing."""
    found = {}
    for kind in plan.processing:
        processed = PROCESSING[kind](photos)
        for name in plan.tests:
            found[kind, name] = judges.embedding[name].verdict(processed, labels)
        for name, classifier in judges.naming.items():
            found[kind, name] = classifier.verdict(processed, labels)
    return found


def judged(named: Row, found: Verdicts, clean: Verdicts, judges: Judges) -> Iterator[Row]:
    """The rows of one run, opponents who adapt aside.

    Args:
      named: the columns that all of them share.
      found: what became of the run's photos.
      clean: likewise of the unprotected ones.
      judges: all who judge.
    """
    for (kind, name), verdict in found.items():
        for row in transfer.figures(verdict, clean[kind, name], found["none", name]):
            row |= {"transformation": kind, "opponent": ""}
            yield named | {"test": name} | row | judges.worth(name)


def per_image(
    run: Run, change: Change, found: Verdicts, pictures: Sequence[str], plan: Plan
) -> Iterator[Row]:
    """A run's lines of `per_image.csv`: of every judge, of every photo, unprocessed.

    What the judge has not, as a classifier has no scores, is "".
    """
    sizes = dict(zip(("l2", "psnr_image", "ssim"), change, strict=True))
    nothing = np.full(len(pictures), "")
    for name in (name for kind, name in found if kind == "none"):
        verdict = found["none", name]
        columns = sizes | {"score": verdict.scores.get("gallery", nothing)}
        for far in plan.fars:
            columns[f"protected_at_{far}"] = verdict.protected.get((far, "gallery"), nothing)
        columns["rank"] = nothing if verdict.ranks is None else verdict.ranks
        columns["score_protected"] = verdict.scores.get("protected", nothing)
        known = run.describe() | {"test": name, "fitted": name in run.fit}
        lists = (column.tolist() for column in columns.values())
        for picture, *values in zip(pictures, *lists, strict=True):
            yield known | {"image": picture, **dict(zip(columns, values, strict=True))}


def worth(judge: Judge) -> Row:
    """How well a judge tells same from different on clean pairs."""
    return {"accuracy": judge.pairs.accuracy, "auc": judge.pairs.auc}


def opposed(
    judge: Judge,
    photos: np.ndarray,
    plan: Plan,
    faces: Faces,
    found: Verdict,
    clean: Verdict,
) -> Iterator[Row]:
    """Rows of the opponents who adapt.

    Args:
      judge: the recogniser that they use.
      photos: uint8[M, H, W, 3], a run's.
      plan: which opponents there are.
      faces: all photos.
      found: what the judge makes of `photos` by itself.
      clean: likewise of the unprotected ones.
    """
    labels = faces.protected_labels
    if plan.average > 1:
        means, clean_means = (transfer.averaged(judge, v, plan.average) for v in (found, clean))
        if means is not None and clean_means is not None:
            for row in transfer.figures(means, clean_means):
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
        after, missed = (
            anew.verdict(pictures[~known], labels[~known])
            for pictures in (photos, faces.protected)
        )
        before = judge.compare(found.outputs[~known], labels[~known])
        for row in transfer.figures(after, missed, before):
            yield {"opponent": TRAINED} | row | worth(anew)


def all_rows(
    plan: Plan,
    judges: Judges,
    faces: Faces,
    pictures: Sequence[str],
    update: Callable[[int, int, str], None],
    keep: Callable[[Run, np.ndarray], None] | None = None,
) -> Tables:
    """Everything: the clean photos first, then every run.

    Args:
      plan: what is run.
      judges: every recogniser of the plan, and the classifiers.
      faces: the photos.
      pictures: the names of those to protect.
      update: told of photos done, of how many, and of what.
      keep: told of each run's photos.
    """
    runs: Sequence[Run] = plan.runs()
    originals, labels = faces.protected, faces.protected_labels
    total = len(runs) * len(originals)
    clean = verdicts(originals, plan, judges, labels)
    tables = Tables([], [])

    def enter(run: Run, photos: np.ndarray, found: Verdicts) -> Row:
        change = distortion(photos, originals)
        named = run.describe() | change.summary()
        tables.rows.extend(judged(named, found, clean, judges))
        tables.images.extend(per_image(run, change, found, pictures, plan))
        return named

    enter(Run((), "none", (), Budget()), originals, clean)
    for number, run in enumerate(runs):
        before = number * len(originals)
        text = f"{run.method} on {'+'.join(run.fit) or 'nothing'}"

        def done(photos: int, before: int = before, text: str = text) -> None:
            update(before + photos, total, text)

        photos = protect(run, plan, judges.embedding, faces, done)
        if keep is not None:
            keep(run, photos)
        found = verdicts(photos, plan, judges, labels)
        named = enter(run, photos, found)
        for name in plan.tests:
            own = found["none", name], clean["none", name]
            for row in opposed(judges.embedding[name], photos, plan, faces, *own):
                tables.rows.append(named | {"test": name, "transformation": "none"} | row)
    return tables
