"""Settings and steps that several binaries share."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deid_jax import recognisers
from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.checks import count, folder_to_write
from deid_jax.data import DATASETS, SPLITS, DataOptions, FaceDataset, load_dataset
from deid_jax.data.images import CROPS
from deid_jax.devices.precision import PRECISIONS
from deid_jax.devices.processes import ALONE, Group
from deid_jax.errors import InputError
from deid_jax.evaluation.batch import INITS, TARGETS, Protocol
from deid_jax.metrics import SSIM_WINDOW
from deid_jax.models import MODELS, create_model
from deid_jax.recognisers import Recogniser, checkpointing, storage
from deid_jax.recognisers.embedders import name_of
from deid_jax.recognisers.gallery_classifier import OUTPUTS, from_embedder
from deid_jax.recognisers.training import EpochRecord, TrainConfig
from deid_jax.recognisers.vggface_files import Pretrained
from deid_jax.reports.tables import spread
from experiments._common import cli
from experiments._common.cli import progress_bar, setting, settings_of_others
from experiments._common.method_flags import method_flags

_LARGEST_IMAGE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which pictures and which recogniser."""

    dataset: str = setting("synthetic", "Data set.", choices=tuple(DATASETS))
    data_dir: str | None = setting(None, "Folder of the data set; synthetic takes none.")
    image_size: int = setting(64, "Height and width in pixels that pictures are brought to.")
    crop: str | None = setting(
        None,
        "Which part of a picture file is the face; auto: CelebA's aligned face box for "
        "pictures of 178x218, else the largest centred square; arcface: the template of "
        "recognisers of 112 px. Default: auto.",
        choices=CROPS,
    )
    skip_unreadable: bool = setting(
        False, "Leave out pictures that cannot be read, and count them, instead of stopping."
    )
    model: str = setting("model_a", "Recogniser.", choices=tuple(MODELS))
    seed: int = setting(0, "Decides every random choice: persons, split, weights, targets.")

    def options(self, split: str) -> DataOptions:
        """What the data set's loader is asked for.

        Raises:
          InputError: a value out of range, or a flag that the data set ignores.
        """
        count("image_size", self.image_size, least=1, most=_LARGEST_IMAGE)
        count("seed", self.seed, most=2**31 - 1)
        self.check_recogniser()
        if self.dataset == "synthetic":
            for name in ("data_dir", "crop", "skip_unreadable"):
                value = getattr(self, name)
                if value:
                    raise InputError(f"--{name}={value} means nothing to --dataset=synthetic")
        return DataOptions(
            image_size=self.image_size,
            split=split,
            seed=self.seed,
            data_dir=self.data_dir,
            skip_unreadable=self.skip_unreadable,
            crop=self.crop or DataOptions.crop,
        )

    def check_recogniser(self) -> None:
        """Refuses pictures that the recogniser cannot take, as far as its name tells."""
        create_model(self.model, num_classes=2, image_size=self.image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(DataSettings):
    """Which pictures a trained recogniser is measured on."""

    split: str = setting("test", "Which pictures to de-identify.", choices=SPLITS)
    max_images: int | None = setting(None, "Only the first N pictures of the split.")
    sample: int | None = setting(
        None, "Only N pictures of the split, drawn by the seed, of as many persons as possible."
    )
    batch_size: int | None = setting(
        None, "Pictures per compiled call; default: what suits the device and its memory."
    )
    checkpoint: str | None = setting(
        None, "The recogniser's weights; default: under checkpoints/, trained if missing."
    )
    recogniser: str | None = setting(
        None,
        "One's own in the place of --model and --checkpoint: NAME, NAME:FILE or "
        "package.module:function, from RGB pictures in [0, 1] to embeddings, by whose gallery "
        "of training photos persons are named, or to logits.",
    )
    recogniser_output: str | None = setting(
        None, "What --recogniser gives. Default: embeddings.", choices=OUTPUTS
    )
    profile_dir: str | None = setting(
        None, "Write a trace of JAX's profiler there, for XProf, TensorBoard or Perfetto."
    )

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
          InputError: see above.
        """
        self.options(self.split)
        if self.recogniser is None and self.recogniser_output is not None:
            raise InputError(
                f"--recogniser_output={self.recogniser_output} means nothing without "
                "--recogniser"
            )
        if self.recogniser is not None and self.checkpoint is not None:
            raise InputError("recogniser and checkpoint both say who judges: give one of them")
        # Structural similarity needs the room of its window.
        count("image_size", self.image_size, least=SSIM_WINDOW)
        if self.batch_size is not None:
            count("batch_size", self.batch_size, least=1)
        for name in ("max_images", "sample"):
            if getattr(self, name) is not None:
                count(name, getattr(self, name), least=1)
        if self.max_images is not None and self.sample is not None:
            raise InputError("sample and max_images both say which pictures: give one of them")
        if self.profile_dir is not None:
            folder_to_write("profile_dir", Path(self.profile_dir))

    def check_recogniser(self) -> None:
        """Refuses what `DataSettings` does, where the recogniser is one of the project's."""
        if self.recogniser is None:
            super().check_recogniser()

    @property
    def judge(self) -> str:
        """What the recogniser is called in tables and folders."""
        return self.model if self.recogniser is None else name_of(self.recogniser)


def _quantizing_methods() -> str:
    """Which methods quantize by themselves, in words."""
    names = [name for name, method in METHODS.items() if method.quantizes]
    return f"on for {', '.join(names)}, off for the others" if names else "off"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings(EvaluationSettings):
    """How methods are run; `method_settings` are those that belong to a method alone."""

    target: str | None = setting(
        None, "Label that an attack aims at; none = untargeted. Default: random.", TARGETS
    )
    init: str | None = setting(None, "First iterate of an attack. Default: image.", INITS)
    quantize: bool | None = setting(
        None,
        "Finish on the 8-bit grid with success kept: roundings that the attack does not "
        f"survive are mended. Default: {_quantizing_methods()}.",
    )
    precision: str | None = setting(
        None,
        "What the attack computes in; the verdict stays float32. On CPUs tf32 is float32. "
        "Default: float32.",
        choices=PRECISIONS,
    )
    method_settings: Mapping[str, Any] = settings_of_others(method_flags())

    def check_methods(self, methods: Sequence[str]) -> None:
        """Refuses flags that mean nothing to any of the methods.

        Raises:
          InputError: there is such a flag.
        """
        asked = f"--method={','.join(methods)}"
        if not any(name in ATTACKS for name in methods):
            for flag in ("target", "init", "precision"):
                value = getattr(self, flag)
                if value is not None:
                    raise InputError(f"--{flag}={value} means nothing to {asked}")
        known = dict.fromkeys(own for name in methods for own in METHODS[name].settings())
        for flag, value in self.method_settings.items():
            if flag not in known:
                raise InputError(
                    f"--{flag}={value} means nothing to {asked}, which takes "
                    + ", ".join(f"--{own}" for own in known)
                )

    def settings_of(self, method: str) -> dict[str, Any]:
        """What was given for a method's settings, `quantize` among them."""
        known = METHODS[method].settings()
        given = {**self.method_settings, "quantize": self.quantizes(method)}
        return {name: value for name, value in given.items() if name in known}

    def quantizes(self, method: str) -> bool:
        """Whether a method finishes on the 8-bit grid."""
        return METHODS[method].quantizes if self.quantize is None else self.quantize

    def protocol(self, method: str) -> Protocol:
        """How a method is run; ad-hoc methods know neither target nor first iterate.

        Raises:
          InputError: a bad value.
        """
        aims = method in ATTACKS
        return Protocol(
            target=(self.target or "random") if aims else "none",
            init=(self.init or "image") if aims else "image",
            quantize=self.quantizes(method),
            batch_size=self.batch_size,
            seed=self.seed,
            precision=self.precision or "float32",
        )


def profiled(profile_dir: str | None) -> contextlib.AbstractContextManager:
    """Traces what runs inside with JAX's profiler, where a folder is given."""
    if profile_dir is None:
        return contextlib.nullcontext()
    return jax.profiler.trace(profile_dir)


def say_skipped(dataset: FaceDataset) -> None:
    """Says how many pictures could not be read."""
    skipped = dataset.provenance.get("num_unreadable", 0)
    if skipped:
        noun = "picture" if skipped == 1 else "pictures"
        print(f"left out {skipped} unreadable {noun}", file=sys.stderr)


def trained(
    model: str,
    faces: FaceDataset,
    held_out: FaceDataset | None,
    config: TrainConfig,
    path: Path,
    pretrained: Pretrained | None = None,
    *,
    group: Group = ALONE,
    model_parallel: int = 1,
) -> tuple[Recogniser, list[EpochRecord]]:
    """Trains a recogniser behind a progress bar and keeps it at `path`.

    Layers of `pretrained`, if given, stay as they are.
    """
    with progress_bar(f"training {model}") as update:
        first_call = True

        def progress(done: int, total: int, history: Sequence[EpochRecord]) -> None:
            nonlocal first_call
            if first_call and history and group.is_first:
                print(f"going on after epoch {len(history)}, where it stopped", file=sys.stderr)
            first_call = False
            text = f"epoch {len(history) + 1}"
            if history:
                text += f", held-out accuracy {history[-1].test_accuracy:.1%}"
            update(done, total, text)

        return recognisers.fit(
            model,
            faces,
            config,
            path,
            held_out=held_out,
            pretrained=pretrained,
            progress=progress,
            group=group,
            model_parallel=model_parallel,
        )


def faces_and_recogniser(
    settings: EvaluationSettings, group: Group = ALONE
) -> tuple[FaceDataset, Recogniser]:
    """The pictures asked for, and the recogniser that they are measured with.

    That is the one at `settings.checkpoint`, or the default one, trained now if it is missing,
    by all processes of the group together.

    Raises:
      InputError: the pictures cannot be used, or the checkpoint is missing, damaged or made
        for something else.
    """
    options = settings.options("train")
    over = getattr(settings, "model_parallel", 1)
    if settings.recogniser is not None:
        return _faces_and_own(settings, settings.recogniser, over, group)
    default = recognisers.default_path(settings.model, settings.dataset, options)
    path = Path(settings.checkpoint or default)
    is_new = group.agree(settings.checkpoint is None and not storage.exists(path))
    if is_new:
        checkpointing.check_target(path, overwrite=False)
    else:
        recognisers.load_info(path, settings.model, settings.dataset, settings.image_size)
    faces = load_dataset(settings.dataset, settings.options(settings.split))
    if group.is_first:
        say_skipped(faces)
    wanted = _wanted(faces, settings)
    if is_new:
        if group.is_first:
            said = f"No checkpoint at {path} yet: training {settings.model} now."
            print(said, file=sys.stderr)
        if group.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
        group.check_shared(path.parent, f"checkpoint {path}, which is trained now,")
        config = recognisers.train_config(settings.model, settings.dataset, seed=settings.seed)
        to_train = recognisers.load_train_and_test(
            settings.dataset, options, test=faces if settings.split == "test" else None
        )
        recogniser, _ = trained(
            settings.model, *to_train, config, path, group=group, model_parallel=over
        )
        if group.is_first:
            print(accuracy_line(recogniser), file=sys.stderr)
    recogniser = recognisers.load(path, settings.model, faces)
    return wanted, recogniser


def _faces_and_own(
    settings: EvaluationSettings, recogniser: str, model_parallel: int, group: Group
) -> tuple[FaceDataset, Recogniser]:
    """The pictures asked for, and a recogniser that was brought along."""
    embedder = cli.load_recogniser(recogniser, settings.image_size)
    known = load_dataset(settings.dataset, settings.options("train"))
    held_out = load_dataset(settings.dataset, settings.options("test"))
    faces = known if settings.split == "train" else held_out
    if settings.split == "all":
        faces = load_dataset(settings.dataset, settings.options("all"))
    if group.is_first:
        say_skipped(faces)
    output = settings.recogniser_output or OUTPUTS[0]
    own = from_embedder(embedder, output, known, held_out, model_parallel=model_parallel)
    return _wanted(faces, settings), own


def _wanted(faces: FaceDataset, settings: EvaluationSettings) -> FaceDataset:
    """The pictures of the split that are asked for."""
    if settings.sample is not None:
        return sampled(faces, settings.sample, settings.seed)
    return first(faces, settings.max_images)


def accuracy_line(recogniser: Recogniser) -> str:
    """What a recogniser is worth, in words."""
    accuracy = ", ".join(
        f"{share:.1%} on the {split} split" for split, share in recogniser.info.accuracy.items()
    )
    return f"{recogniser.info.model} names rightly {accuracy}."


def first(faces: FaceDataset, max_images: int | None) -> FaceDataset:
    """The first `max_images` pictures; all if None."""
    return faces if max_images is None else faces.take(range(min(max_images, len(faces))))


def sampled(faces: FaceDataset, size: int, seed: int) -> FaceDataset:
    """Pictures drawn by the seed, of as many persons as possible, in the data set's order.

    Raises:
      InputError: there are not so many.
    """
    if size > len(faces):
        raise InputError(
            f"sample must be at most {len(faces)}, the pictures of the split, got {size}"
        )
    shuffled = np.random.default_rng(seed).permutation(len(faces))
    chosen = spread(faces.labels[shuffled].tolist(), size)
    return faces.take(np.sort(shuffled[chosen]))
