"""Measures how well protection transfers to recognisers that the attack was not fitted on.

    python -m experiments.transfer --dataset=folder --data_dir=FACES
        --fit=mobilefacenet_ms1m:A.npz,mobilefacenet_casia:B.npz

Fits the attack on surrogates and has other recognisers judge the protected images. The protocol
(which images are galleries, probes and protected) is saved and hashed, so that the evaluation
can be repeated. Writes into --output_dir: `transfer.csv` (one line per run, judge, processing,
comparison and false accept rate), `per_image.csv` (one line per run, judge and unprocessed
image, from which the rates can be checked), `transfer.md`, `protocol.json` and `config.json`.

    python -m experiments.transfer --photos=PHOTOS --gallery=OTHERS

protects whole photos, PHOTOS/<person>/*, as `experiments.protect` does, and has strangers judge
the written files: the faces are detected again in them (by CenterFace), and each stranger cuts
its own crop and compares it with the originals and with other photos of the persons,
OTHERS/<person>/*.
It writes `photos.csv` (one line per fit, judge, budget, processing and false accept rate),
`per_photo.csv`, `transfer.md` and `config.json`.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deid_jax.data import FaceDataset, load_dataset, pair_lists
from deid_jax.errors import InputError
from deid_jax.metrics import SSIM_WINDOW, verification
from deid_jax.models import MODELS
from deid_jax.photos import load_detector
from deid_jax.photos.detectors import DEFAULT
from deid_jax.photos.verifiers import check_networks
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from deid_jax.transfer import (
    ClassifierJudge,
    Faces,
    GalleryJudge,
    TransferEvaluation,
    TransferPlan,
    TransferRun,
)
from deid_jax.transfer.transfer_tables import TransferRow
from deid_jax.transforms.processing import PROCESSING
from experiments._common import cli, loading, terminal
from experiments._common.lists import read_names
from experiments._transfer.photo_report import photo_markdown, show_photos
from experiments._transfer.photo_runs import (
    PhotoEvaluation,
    PhotoPlan,
    PhotoRow,
    PhotoRun,
    read_photos,
)
from experiments._transfer.transfer_report import TransferReport, markdown, show
from experiments._transfer.transfer_settings import TransferSettings, photo_plan_of, plan_of

_CONTENTS = (
    *("photos", "transfer.md", "transfer.csv", "per_image.csv", "protocol.json"),
    *("photos.csv", "per_photo.csv"),
)


def run(settings: TransferSettings) -> list[TransferRow] | list[PhotoRow]:
    """Protects and judges the images, writes and prints; returns the rows of the table.

    Raises:
      InputError: bad settings, data, recognisers, protocol or output folder. Nothing is
        written in that case.
    """
    if settings.photos is not None:
        return _on_photos(settings, Path(settings.photos))
    if settings.gallery is not None:
        raise InputError(f"--gallery={settings.gallery} needs --photos")
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
    _check_judges(plan, embedders)
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


def _on_photos(settings: TransferSettings, photos: Path) -> list[PhotoRow]:
    folder = RunFolder(Path(settings.output_dir), _CONTENTS)
    folder.check()
    plan, embedders = photo_plan_of(settings)
    _check_judges(plan, embedders)
    detector = load_detector(DEFAULT)
    sources = {"photos": photos, "gallery": Path(str(settings.gallery))}
    with terminal.progress_bar("faces") as update:
        whole = read_photos(sources, detector, embedders, update)
    evaluation = PhotoEvaluation(plan, whole, embedders, detector)

    def keep(made: PhotoRun, name: str, data: bytes) -> None:
        own = "-".join([*made.fit, f"{made.psnr:g}dB"])
        folder.write_bytes(f"photos/{own}/{name}", data)

    with folder, terminal.progress_bar("transfer") as update:
        tables = evaluation.measure(update, keep if settings.keep_images else None)
        folder.write_csv("photos.csv", (row.columns() for row in tables.rows))
        folder.write_csv("per_photo.csv", tables.photos)
        folder.write_text("transfer.md", photo_markdown(tables, evaluation))
        folder.write_json(DESCRIPTION, describe(settings))
    show_photos(tables, evaluation)
    print(f"Tables and report: {folder.path}")
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


def _check_judges(plan: TransferPlan | PhotoPlan, embedders: dict[str, Embedder]) -> None:
    """Refuses judges that count as held out but are surrogates by another name."""
    for fit in plan.fits:
        held_out = [embedders[name] for name in plan.judges if name not in fit]
        check_networks([embedders[name] for name in fit], held_out)


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
