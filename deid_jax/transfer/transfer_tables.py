"""The tables of a transfer evaluation: rates per run and judge, and results per image.

Each run protects all images to protect once. Each judge then judges them, unprocessed and after
each kind of processing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from deid_jax.attacks.budgets import psnr_of_l2
from deid_jax.metrics import l2, mssim
from deid_jax.pixels import LEVELS
from deid_jax.transfer.fitting import BATCH_SIZE, protect_images
from deid_jax.transfer.judges import (
    GALLERY,
    OTHERS,
    ClassifierJudge,
    Faces,
    GalleryJudge,
    ImageJudge,
    JudgedImages,
    ProtectionRates,
)
from deid_jax.transfer.opponents import averaged, fine_tune
from deid_jax.transfer.plan import TransferPlan, TransferRun
from deid_jax.transforms.processing import PROCESSING
from deid_jax.types import NumpyArray

# Opponents who adapt.
AVERAGES = "averages"
TRAINED = "trained on protected photos"

Cell: TypeAlias = str | float | bool | None
# The first columns of transfer.csv.
_FIRST = ("fit", "test", "method", "psnr", "transformation", "far", "protected", "low", "high")
# (a key of `PROCESSING`, a judge's name) -> the judge's results on the processed images.
_ByJudge: TypeAlias = Mapping[tuple[str, str], JudgedImages]


@dataclasses.dataclass(frozen=True)
class MeanDistortion:
    """Means over a run's images of L2, finite PSNRs and SSIM, and the lowest PSNR."""

    l2: float
    psnr_mean: float | None
    psnr_min: float
    ssim: float


@dataclasses.dataclass(frozen=True)
class Distortions:
    """The distortion of each image, float64[N]: L2, PSNR in dB (may be infinite) and SSIM."""

    l2: NDArray[np.float64]
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]

    @classmethod
    def of(cls, images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> "Distortions":
        """The distortions of 8-bit images."""
        lengths, similar = [], []
        for first in range(0, len(images), BATCH_SIZE):
            rows = slice(first, first + BATCH_SIZE)
            pair = [jnp.asarray(LEVELS[each[rows]]) for each in (images, originals)]
            lengths.append(np.asarray(l2(*pair)))
            similar.append(np.asarray(mssim(*pair)))
        every = np.concatenate(lengths)
        with np.errstate(divide="ignore"):
            psnr = np.asarray(psnr_of_l2(jnp.asarray(every), images[0].size))
        found = (every, psnr, np.concatenate(similar))
        return cls(*(array.astype(np.float64) for array in found))

    def mean(self) -> MeanDistortion:
        """Means over the images."""
        finite = self.psnr[np.isfinite(self.psnr)]
        return MeanDistortion(
            l2=float(self.l2.mean()),
            psnr_mean=float(finite.mean()) if len(finite) else None,
            psnr_min=float(self.psnr.min()),
            ssim=float(self.ssim.mean()),
        )


@dataclasses.dataclass(frozen=True)
class TransferRow:
    """A line of transfer.csv: a run, judged by one judge after one kind of processing.

    `opponent` says how the judge adapts; it is empty if it does not.
    """

    run: TransferRun
    distortion: MeanDistortion
    judge: str
    processing: str
    opponent: str
    rates: ProtectionRates
    accuracy: float
    auc: float | None

    def columns(self) -> dict[str, Cell]:
        """The line's entries; None is an empty one."""
        every: dict[str, Cell] = {
            **self.run.columns(),
            **dataclasses.asdict(self.distortion),
            "test": self.judge,
            "transformation": self.processing,
            **dataclasses.asdict(self.rates),
            "opponent": self.opponent,
            "accuracy": self.accuracy,
            "auc": self.auc,
        }
        return {name: every[name] for name in _FIRST} | every


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """A line of per_image.csv: one unprocessed image of one run, judged by one judge.

    Attributes:
      score: the similarity to the person's gallery; None for classifiers.
      protected: false accept rate -> whether the image is protected; None for classifiers.
      rank: the person's rank among all.
      score_others: the similarity to the person's other protected images, if there are any.
    """

    run: TransferRun
    judge: str
    image: str
    l2: float
    psnr: float
    ssim: float
    score: float | None
    protected: dict[float, bool | None]
    rank: int | None
    score_others: float | None

    def columns(self) -> dict[str, Cell]:
        """The line's entries; None is an empty one."""
        return {
            **self.run.columns(),
            "test": self.judge,
            "fitted": self.judge in self.run.fit,
            "image": self.image,
            "l2": self.l2,
            "psnr_image": self.psnr,
            "ssim": self.ssim,
            "score": self.score,
            **{f"protected_at_{far}": flag for far, flag in self.protected.items()},
            "rank": self.rank,
            "score_protected": self.score_others,
        }


@dataclasses.dataclass(frozen=True)
class TransferTables:
    """The lines of `transfer.csv`, and those of `per_image.csv`."""

    rows: list[TransferRow]
    images: list[ImageRow]


@dataclasses.dataclass(frozen=True)
class TransferEvaluation:
    """An evaluation: its plan and images; and by name surrogates, judges and classifiers."""

    plan: TransferPlan
    faces: Faces
    recognisers: Mapping[str, GalleryJudge]
    classifiers: Mapping[str, ClassifierJudge]

    def judges(self) -> dict[str, ImageJudge]:
        """All judges, by name."""
        named: dict[str, ImageJudge] = {n: self.recognisers[n] for n in self.plan.judges}
        return named | dict(self.classifiers)

    def measure(
        self,
        update: Callable[[int, int, str], None],
        keep: Callable[[TransferRun, NDArray[np.uint8]], None] | None = None,
    ) -> TransferTables:
        """Judges the clean images first, then those of every run, which `keep` is given.

        `update` is called with images done, images in all, and a description.
        """
        runs, originals = self.plan.runs(), self.faces.protected
        total = len(runs) * len(originals)
        clean = self._judged(originals)
        tables = TransferTables([], [])
        self._enter(tables, TransferRun(), originals, clean, clean)
        for number, run in enumerate(runs):
            before = number * len(originals)
            text = f"{run.method} on {'+'.join(run.fit) or 'nothing'}"

            def done(images: int, before: int = before, text: str = text) -> None:
                update(before + images, total, text)

            images = protect_images(run, self.plan, self.recognisers, self.faces, done)
            if keep is not None:
                keep(run, images)
            self._enter(tables, run, images, self._judged(images), clean)
        return tables

    def _judged(self, images: NDArray[np.uint8]) -> dict[tuple[str, str], JudgedImages]:
        """Results of all judges, after every kind of processing."""
        found, labels = {}, self.faces.protected_labels
        for kind in self.plan.processing:
            processed = PROCESSING[kind](images)
            for name, judge in self.judges().items():
                found[kind, name] = judge.judge(processed, labels)
        return found

    def _enter(
        self,
        tables: TransferTables,
        run: TransferRun,
        images: NDArray[np.uint8],
        judged: _ByJudge,
        clean: _ByJudge,
    ) -> None:
        """Adds the lines of a run."""
        distortions = Distortions.of(images, self.faces.protected)
        mean, judges = distortions.mean(), self.judges()

        def add(
            name: str, kind: str, opponent: str, judge: ImageJudge, rates: ProtectionRates
        ) -> None:
            tables.rows.append(
                TransferRow(run, mean, name, kind, opponent, rates, judge.accuracy, judge.auc)
            )

        for (kind, name), found in judged.items():
            for rates in found.rates(clean[kind, name], judged["none", name]):
                add(name, kind, "", judges[name], rates)
        for name in judges:
            tables.images.extend(self._by_image(run, name, distortions, judged["none", name]))
        for name in self.plan.judges if run.method != "none" else ():
            pair = judged["none", name], clean["none", name]
            for opponent, judge, rates in self.opposed(name, images, *pair):
                add(name, "none", opponent, judge, rates)

    def _by_image(
        self, run: TransferRun, name: str, sizes: Distortions, judged: JudgedImages
    ) -> Iterator[ImageRow]:
        names = self.faces.protected_names
        nothing: list[None] = [None] * len(names)

        def listed(array: NumpyArray | None) -> list[None]:
            return nothing if array is None else array.tolist()

        score, others = (listed(judged.scores.get(one)) for one in (GALLERY, OTHERS))
        flags = {f: listed(judged.protected.get((f, GALLERY))) for f in self.plan.fars}
        ranks = listed(judged.ranks)
        for place, image in enumerate(names):
            yield ImageRow(
                run=run,
                judge=name,
                image=image,
                l2=float(sizes.l2[place]),
                psnr=float(sizes.psnr[place]),
                ssim=float(sizes.ssim[place]),
                score=score[place],
                protected={far: own[place] for far, own in flags.items()},
                rank=ranks[place],
                score_others=others[place],
            )

    def opposed(
        self, name: str, images: NDArray[np.uint8], judged: JudgedImages, clean: JudgedImages
    ) -> Iterator[tuple[str, GalleryJudge, ProtectionRates]]:
        """The opponents who adapt: the name of each, the judge it uses, and its rates.

        They use the recogniser `name`. Its results on the protected images, `judged`, and on
        the clean ones are those without adapting.
        """
        judge, faces, plan = self.recognisers[name], self.faces, self.plan
        if plan.average > 1:
            means, clean_means = (averaged(judge, j, plan.average) for j in (judged, clean))
            if means is not None and clean_means is not None:
                for rates in means.rates(clean_means):
                    yield f"{AVERAGES} {plan.average} photos", judge, rates
        if plan.fine_tune:
            labels = faces.protected_labels
            known = np.arange(len(images)) % 2 == 0
            gallery = np.concatenate(faces.lists.gallery)
            tuned = fine_tune(
                judge.embedder,
                np.concatenate([images[known], faces.images[gallery]]),
                np.concatenate([labels[known], faces.labels[gallery]]),
                judge.galleries,
                seed=plan.seed,
            )
            anew = GalleryJudge.of(tuned, faces, tuple(judge.thresholds))
            after, missed = (
                anew.judge(shown[~known], labels[~known]) for shown in (images, faces.protected)
            )
            before = judge.compare(judged.outputs[~known], labels[~known])
            for rates in after.rates(missed, before):
                yield TRAINED, anew, rates
