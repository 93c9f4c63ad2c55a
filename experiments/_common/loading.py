"""Loads images and recognisers for a command, with progress bars.

Only `load_or_train_recogniser` trains: it trains a default recogniser whose checkpoint is
missing.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from deid_jax import recognisers
from deid_jax.data import FaceDataset, load_dataset
from deid_jax.data.images import quiet_pillow
from deid_jax.devices.processes import ALONE, Group
from deid_jax.models.templates import ARCFACE
from deid_jax.recognisers import (
    EpochRecord,
    Recogniser,
    TrainConfig,
    TrainingData,
    checkpoints,
    storage,
    weights,
)
from deid_jax.recognisers.cutting import in_frame
from deid_jax.recognisers.embedders import Embedder, load_embedder
from deid_jax.recognisers.gallery_classifier import OUTPUTS, from_embedder
from deid_jax.recognisers.vggface_files import Pretrained
from deid_jax.reports.tables import percent
from experiments._common.data_settings import EvaluationSettings
from experiments._common.terminal import counted, progress_bar


def load_split(settings: EvaluationSettings, group: Group = ALONE) -> FaceDataset:
    """Loads all images of the requested split.

    Raises:
      InputError: the images cannot be used, or the checkpoint is damaged or made for something
        else; checkpoints are checked before any image is read.
    """
    path = _checkpoint(settings)
    if settings.recogniser is None:
        if settings.checkpoint is not None or storage.exists(path):
            recognisers.load_matching(
                path, settings.model, settings.dataset, settings.image_size
            )
        else:
            checkpoints.check_target(path, overwrite=False)
    faces = load_dataset(settings.dataset, settings.options(settings.split))
    if group.is_first:
        say_skipped(faces)
    return faces


def load_or_train_recogniser(
    settings: EvaluationSettings,
    faces: FaceDataset,
    group: Group = ALONE,
    *,
    model_parallel: int = 1,
) -> Recogniser:
    """The recogniser that a split is evaluated with; `faces` are all images of the split.

    That is the user-supplied one, the one at `settings.checkpoint`, or the default one, which
    all processes of the group train together if it is missing.

    Raises:
      InputError: the checkpoint is missing, damaged or made for something else.
    """
    if settings.recogniser is not None:
        return _user_supplied(settings, settings.recogniser, faces, model_parallel)
    path = _checkpoint(settings)
    if group.agree(settings.checkpoint is None and not storage.exists(path)):
        _train_default(settings, path, faces, group, model_parallel)
    return recognisers.load(path, faces, model=settings.model)


def _checkpoint(settings: EvaluationSettings) -> Path:
    options = settings.options("train")
    default = recognisers.default_path(settings.model, settings.dataset, options)
    return Path(settings.checkpoint or default)


def _train_default(
    settings: EvaluationSettings,
    path: Path,
    faces: FaceDataset,
    group: Group,
    model_parallel: int,
) -> None:
    if group.is_first:
        print(f"No checkpoint at {path} yet: training {settings.model} now.", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
    group.check_shared(path.parent, f"checkpoint {path}, which is trained now,")
    config = recognisers.train_config(settings.model, settings.dataset, seed=settings.seed)
    test = faces if settings.split == "test" else None
    data = recognisers.load_training_data(
        settings.dataset, settings.options("train"), test=test
    )
    fit_with_bar(settings.model, data, config, path, group=group, model_parallel=model_parallel)


def _user_supplied(
    settings: EvaluationSettings, recogniser: str, faces: FaceDataset, model_parallel: int
) -> Recogniser:
    embedder = load_in_frame(recogniser, settings.image_size)
    train, test = (
        faces
        if settings.split == split
        else load_dataset(settings.dataset, settings.options(split))
        for split in ("train", "test")
    )
    output = settings.recogniser_output or OUTPUTS[0]
    return from_embedder(embedder, output, train, test, model_parallel=model_parallel)


def fit_with_bar(
    model: str,
    data: TrainingData,
    config: TrainConfig,
    path: Path,
    pretrained: Pretrained | None = None,
    *,
    group: Group = ALONE,
    model_parallel: int = 1,
) -> tuple[Recogniser, list[EpochRecord]]:
    """`recognisers.fit` behind a progress bar: trains a recogniser and saves it at `path`."""
    with progress_bar(f"training {model}") as update:
        first_call = True

        def progress(done: int, total: int, history: Sequence[EpochRecord]) -> None:
            nonlocal first_call
            if first_call and history and group.is_first:
                print(f"going on after epoch {len(history)}, where it stopped", file=sys.stderr)
            first_call = False
            text = f"epoch {len(history) + 1}"
            if history:
                text += f", test accuracy {percent(history[-1].test_accuracy)}"
            update(done, total, text)

        return recognisers.fit(
            model,
            data,
            config,
            path,
            pretrained=pretrained,
            progress=progress,
            group=group,
            model_parallel=model_parallel,
        )


def load_in_frame(text: str, image_size: int) -> Embedder:
    """A recogniser that cuts its own crops out of square images, aligned as ArcFace's."""
    return in_frame(load_embedder_with_bar(text, image_size), ARCFACE.scaled(image_size))


def load_embedder_with_bar(text: str, image_size: int) -> Embedder:
    """`embedders.load_embedder` with a progress bar while it downloads."""
    with progress_bar("weights", at_once=False) as update:
        return load_embedder(text, image_size=image_size, progress=update)


def fetch_weights_with_bar(name: str, sha256: str | None) -> Path:
    """`weights.fetch` with a progress bar while it downloads."""
    with progress_bar("weights", at_once=False) as update:
        return weights.fetch(name, sha256=sha256, progress=update)


def without_unreadable(faces: FaceDataset) -> FaceDataset:
    """The images that are not left out as unreadable; prints how many are."""
    with quiet_pillow():
        readable = faces.readable()
    say_left_out(len(faces) - len(readable))
    return readable


def say_skipped(faces: FaceDataset) -> None:
    """Prints how many images of a data set could not be read, if already known."""
    count = faces.provenance.get("num_unreadable")
    if isinstance(count, int):
        say_left_out(count)


def say_left_out(count: int) -> None:
    """Prints that images could not be read, if there are any."""
    if count:
        print(f"left out {counted(count, 'unreadable image')}", file=sys.stderr)


def accuracy_line(recogniser: Recogniser) -> str:
    """A sentence that states a recogniser's accuracy."""
    accuracy = ", ".join(
        f"{percent(share)} on the {split} split"
        for split, share in recogniser.info.accuracy.items()
    )
    return f"{recogniser.info.model}: accuracy {accuracy}"


def profiled(profile_dir: str | None) -> contextlib.AbstractContextManager[None]:
    """Traces the block with JAX's profiler, if a folder is given."""
    if profile_dir is None:
        return contextlib.nullcontext()
    return jax.profiler.trace(profile_dir)
