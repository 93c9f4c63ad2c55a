"""Measures how well protection transfers to recognisers that the attack was not fitted on.

    python -m experiments.transfer --dataset=folder --data_dir=FACES
        --fit=mobilefacenet_ms1m:A.npz,mobilefacenet_casia:B.npz

Fits the attack on surrogates and has other recognisers judge the protected images. The protocol
(which images are galleries, probes and protected) is saved and hashed, so that the evaluation
can be repeated. Writes into --output_dir: `transfer.csv` (one line per run, judge, processing,
comparison and false accept rate), `per_image.csv` (one line per run, judge and unprocessed
image, from which the rates can be checked), `transfer.md`, `protocol.json` and `config.json`.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deid_jax.attacks import METHODS, LeastPerturbation, of_kind
from deid_jax.checks import count
from deid_jax.data import DATASETS, DataOptions, FaceDataset, load_dataset, pair_lists
from deid_jax.data.images import CROPS
from deid_jax.errors import InputError
from deid_jax.metrics import SSIM_WINDOW, verification
from deid_jax.models import MODELS
from deid_jax.recognisers.embedders import Embedder, FunctionModule, name_of, split_list
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from deid_jax.transfer import (
    ClassifierJudge,
    Faces,
    GalleryJudge,
    TransferEvaluation,
    TransferPlan,
    TransferRun,
)
from deid_jax.transfer.plan import OFFERED
from deid_jax.transfer.transfer_tables import TransferRow
from deid_jax.transforms.processing import PROCESSING
from deid_jax.transforms.random_transforms import TRANSFORMATIONS
from experiments._common import cli, loading, terminal
from experiments._common.data_settings import ImageSettings
from experiments._common.flags import setting
from experiments._common.lists import read_names
from experiments._transfer.transfer_report import TransferReport, markdown, show

_BY_PIXEL = [name for name in OFFERED if METHODS[name].bounds_pixels]
_CONTENTS = ("photos", "transfer.md", "transfer.csv", "per_image.csv", "protocol.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferSettings(ImageSettings):
    """Settings of `experiments.transfer`."""

    dataset: str = setting("folder", "Data set.", choices=tuple(DATASETS))
    image_size: int = setting(112, "Height and width in pixels that images are resized to.")
    crop: str | None = setting(
        None,
        "Which part of an image file is the face; arcface, the template of recognisers of 112 "
        "px, takes images of 178x218 (CelebA's aligned ones) or 112x112 alone, auto takes "
        "any. Default: arcface.",
        choices=CROPS,
    )
    fit: str = setting(
        "mobilefacenet_ms1m,mobilefacenet_casia,mobilefacenet_ms1m+mobilefacenet_casia",
        "Recognisers that attacks know: NAME, NAME:FILE or package.module:function (RGB "
        "images in [0, 1] to embeddings or logits); by commas, one run each; joined by +, "
        "several in one run. After its NAME:FILE a recogniser's NAME is enough.",
    )
    test: str | None = setting(
        None,
        "Recognisers that judge, by commas. Default: all that are named in --fit, so that "
        "each judges what was fitted on the others, too.",
    )
    classifiers: str = setting(
        "none",
        "Classifiers that judge, too, by commas, or none: trained here on the protocol's "
        f"galleries and probes; of {', '.join(MODELS)}.",
    )
    methods: str = setting("mifgvm", f"By commas, of {', '.join(OFFERED)}.")
    psnr: str = setting(
        "40,42,44",
        "Budgets, by commas: the lowest PSNR of any photo, in dB.",
    )
    epsilon: str = setting(
        "4/255",
        f"Budgets beside these of sign methods ({', '.join(_BY_PIXEL)}), by commas, or none: "
        "the largest perturbation of a pixel, of a range of 1.",
    )
    num_steps: int = setting(30, "Gradient steps.")
    transformations: str = setting(
        "none,resize_pad_flip",
        "What attacks foresee in every step, by commas, several at once joined by +: none or "
        f"of {', '.join(TRANSFORMATIONS)}.",
    )
    num_samples: int = setting(1, "Draws of the transformations in every step.")
    margin: float = setting(
        0.2,
        f"How far below the first --far's threshold, in similarity, least-perturbation methods "
        f"({', '.join(of_kind(METHODS, LeastPerturbation))}) go without a budget. "
        "Within one each photo's own is found.",
    )
    processing: str = setting(
        "all",
        "What is done to protected photos before they are judged, by commas, of "
        f"{', '.join(PROCESSING)}. They are judged as they are (none) in any case.",
    )
    far: str = setting(
        "0.01,0.001",
        "False accept rates, by commas: of all comparisons of a clean photo with the gallery "
        "of another person, the share that a threshold takes for one person. Attacks and most "
        "tables go by the first.",
    )
    per_person: int = setting(10, "Photos of each person to protect, at most.")
    gallery_size: int = setting(10, "Clean photos by which each person is known, at most.")
    num_pairs: int = setting(3000, "Clean pairs of one person, and of two, for the accuracy.")
    protocol: str | None = setting(
        None,
        "A protocol.json to keep to, whatever --per_person, --gallery_size and --num_pairs "
        "say. Default: drawn by the seed.",
    )
    average: int = setting(
        5, "An opponent averages so many protected photos of a person; 0 or 1: none does."
    )
    fine_tune: bool = setting(
        False,
        "An opponent trains each judging recogniser on half of the protected photos and is "
        "judged by the other half; functions have no weights to train.",
    )
    keep_images: bool = setting(False, "Keep every photo, under photos/RUN/<person>/.")
    seed: int = setting(0, "Decides every random choice.")
    output_dir: str = setting("runs/transfer", "Where to write.")

    def options(self) -> DataOptions:
        """Options for the data set's loader."""
        count("image_size", self.image_size, least=SSIM_WINDOW)
        crop = DataOptions.crop if self.dataset == "synthetic" else "arcface"
        return self.loader_options(DataOptions.split, self.seed, crop=crop)


def plan_of(settings: TransferSettings) -> tuple[TransferPlan, dict[str, str]]:
    """Parses the settings that hold lists.

    Returns:
      The plan, and for each recogniser's name the text by which the user gave it.

    Raises:
      InputError: an unknown name, or a number out of range.
    """
    written: dict[str, str] = {}
    fits = tuple(_named(group, written) for group in split_list(settings.fit, ","))
    tests = tuple(written)
    if settings.test is not None:
        judging = (_named(group, written) for group in split_list(settings.test, ","))
        tests = tuple(dict.fromkeys(name for group in judging for name in group))
    for name in ("num_steps", "num_samples", "per_person", "gallery_size", "num_pairs"):
        count(name, getattr(settings, name), least=1)
    count("average", settings.average)
    if not -2 <= settings.margin <= 2:
        raise InputError(f"margin must be a cosine's, -2 to 2, got {settings.margin}")
    foreseen = tuple(
        ()
        if group == "none"
        else read_names("transformations", group.replace("+", ","), TRANSFORMATIONS)
        for group in _parts(settings.transformations)
    )
    kinds = ",".join(PROCESSING) if settings.processing == "all" else settings.processing
    kinds = f"none,{kinds}"  # Processed results are compared with unprocessed ones.
    epsilons = () if settings.epsilon == "none" else _numbers("epsilon", settings.epsilon, 1)
    plan = TransferPlan(
        fits=tuple(dict.fromkeys(fits)),
        judges=tests,
        methods=read_names("methods", settings.methods, OFFERED),
        psnrs=_numbers("psnr", settings.psnr, 200),
        epsilons=epsilons,
        transformations=tuple(dict.fromkeys(foreseen)),
        processing=read_names("processing", kinds, PROCESSING),
        fars=_numbers("far", settings.far, 1),
        num_steps=settings.num_steps,
        num_samples=settings.num_samples,
        margin=settings.margin,
        average=settings.average,
        fine_tune=settings.fine_tune,
        seed=settings.seed,
    )
    return plan, written


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _named(group: str, written: dict[str, str]) -> tuple[str, ...]:
    """The recognisers in a list joined by +; adds name -> text as given to `written`."""
    names = []
    for text in split_list(group, "+"):
        name = name_of(text)
        if not name:
            raise InputError(f"recognisers must be named, got {group!r}")
        has_file = name != text
        if has_file and written.get(name, text) not in (text, name):
            raise InputError(f"recogniser {name} is given twice: {written[name]} and {text}")
        if has_file or name not in written:
            written[name] = text
        names.append(name)
    return tuple(dict.fromkeys(names))


def _numbers(flag: str, text: str, most: float) -> tuple[float, ...]:
    """Reads numbers "a,b,…"; fractions such as 4/255 are allowed."""
    quotients = [part.split("/") for part in _parts(text)]
    try:
        numbers = tuple(float(a) / math.prod(map(float, b)) for a, *b in quotients)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{flag} must be numbers by commas, got {text!r}") from None
    for number in numbers:
        if not (0 < number < most and math.isfinite(number)):
            raise InputError(f"{flag} must be numbers > 0 and < {most}, got {number:g}")
    return tuple(dict.fromkeys(numbers))


def run(settings: TransferSettings) -> list[TransferRow]:
    """Protects and judges the images, writes and prints; returns the rows of `transfer.csv`.

    Raises:
      InputError: bad settings, data, recognisers, protocol or output folder. Nothing is
        written in that case.
    """
    plan, written = plan_of(settings)
    classifiers: tuple[str, ...] = ()
    if settings.classifiers != "none":
        classifiers = read_names("classifiers", settings.classifiers, MODELS)
    options = settings.options()
    folder = RunFolder(Path(settings.output_dir), _CONTENTS)
    folder.check()
    dataset = load_dataset(settings.dataset, options)
    loading.say_skipped(dataset)
    dataset = loading.without_unreadable(dataset)
    embedders = {
        name: loading.load_in_frame(text, settings.image_size) for name, text in written.items()
    }
    images = np.stack([dataset.read(place) for place in range(len(dataset))])
    dataset = dataclasses.replace(dataset, read=images.__getitem__)
    lists = _lists(settings, dataset)
    positions = lists.positions(dataset)
    _check(plan, embedders, positions)
    faces = Faces(images, dataset.labels, positions, dataset.image_names)
    with folder, terminal.progress_bar("transfer") as update:
        evaluation = TransferEvaluation(
            plan,
            faces,
            {n: GalleryJudge.of(one, faces, plan.fars) for n, one in embedders.items()},
            {
                name: ClassifierJudge.trained(name, dataset, faces, settings.seed)
                for name in classifiers
            },
        )
        keep = _keeper(folder, faces) if settings.keep_images else None
        tables = evaluation.measure(update, keep)
        folder.write_csv("transfer.csv", (row.columns() for row in tables.rows))
        folder.write_csv("per_image.csv", (row.columns() for row in tables.images))
        report = TransferReport(tables, evaluation, dataset, lists.sha256())
        folder.write_text("transfer.md", markdown(report))
        folder.write_text("protocol.json", lists.to_json())
        described = describe(settings, dataset=dataset.provenance, protocol=lists.sha256())
        folder.write_json(DESCRIPTION, described)
    show(tables.rows, plan)
    print(f"Protocol {lists.sha256()[:12]}; tables and report: {folder.path}")
    return tables.rows


def _lists(settings: TransferSettings, dataset: FaceDataset) -> pair_lists.Lists:
    groups = pair_lists.near_duplicate_groups(dataset)
    if settings.protocol is not None:
        return pair_lists.read_lists(settings.protocol, dataset, groups)
    return pair_lists.make_lists(
        dataset,
        seed=settings.seed,
        per_person=settings.per_person,
        gallery_size=settings.gallery_size,
        num_pairs=settings.num_pairs,
        groups=groups,
    )


def _check(
    plan: TransferPlan, embedders: dict[str, Embedder], lists: pair_lists.Positions
) -> None:
    """Refuses, before anything is computed, settings that would fail later."""
    impostors = len(lists.probes) * (len(lists.gallery) - 1)
    for far in plan.fars:
        verification.threshold_at_far(np.zeros(impostors), far)
    for kind in plan.processing:
        PROCESSING[kind](np.zeros((1, SSIM_WINDOW, SSIM_WINDOW, 3), np.uint8))
    for name in plan.judges if plan.fine_tune else ():
        if isinstance(embedders[name].module, FunctionModule):
            raise InputError(
                f"fine_tune trains a recogniser's weights, and {name} is a function without"
            )
    if plan.fine_tune and len(lists.protected) < 2:
        raise InputError(
            "fine_tune needs two protected photos or more, one to train on and one to judge, "
            f"the protocol has {len(lists.protected)}"
        )


def _keeper(
    folder: RunFolder, faces: Faces
) -> Callable[[TransferRun, NDArray[np.uint8]], None]:
    """A function that writes every protected image of a run as PNG."""

    def keep(run: TransferRun, photos: NDArray[np.uint8]) -> None:
        fit, method, foreseen, psnr, epsilon = run.columns().values()
        size = "" if psnr is None else f"{psnr}dB"
        size = size if epsilon is None else f"eps{epsilon}"
        own = "-".join(str(part) for part in (fit, method, foreseen, size) if part)
        for name, photo in zip(faces.protected_names, photos, strict=True):
            folder.write_png(f"photos/{own}/{name}.png", photo)

    return keep


main = cli.binary(run, TransferSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
