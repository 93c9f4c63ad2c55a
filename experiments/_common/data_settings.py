"""Settings of the data set and of the recogniser that it is evaluated with."""

import dataclasses
from pathlib import Path

import numpy as np

from deid_jax import recognisers
from deid_jax.checks import count, folder_to_write
from deid_jax.data import DATASETS, SPLITS, DataOptions, FaceDataset
from deid_jax.data.images import CROPS
from deid_jax.errors import InputError
from deid_jax.metrics import SSIM_WINDOW
from deid_jax.models import MODELS, create_model
from deid_jax.recognisers.embedders import name_of
from deid_jax.recognisers.gallery_classifier import OUTPUTS
from deid_jax.reports.tables import spread_over_persons
from experiments._common.flags import setting

_LARGEST_IMAGE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Settings of the data set."""

    dataset: str = setting("synthetic", "Data set.", choices=tuple(DATASETS))
    data_dir: str | None = setting(None, "Folder of the data set; synthetic takes none.")
    image_size: int = setting(64, "Height and width in pixels that images are resized to.")
    crop: str | None = setting(
        None,
        "The part of an image file that is the face; auto: CelebA's aligned face box for "
        "images of 178x218, else the largest centred square; arcface: the template of "
        "recognisers of 112 px. Default: auto.",
        choices=CROPS,
    )
    skip_unreadable: bool = setting(
        False, "Leave out images that cannot be read, and count them, instead of stopping."
    )

    def loader_options(self, split: str, seed: int, *, crop: str) -> DataOptions:
        """The options for loading the data set, with the crop to take if none is given.

        Raises:
          InputError: a value out of range, or a flag that the data set ignores.
        """
        count("image_size", self.image_size, least=1, most=_LARGEST_IMAGE)
        count("seed", seed, most=2**31 - 1)
        if self.dataset == "synthetic":
            for name in ("data_dir", "crop", "skip_unreadable"):
                value = getattr(self, name)
                if value:
                    raise InputError(f"--{name}={value} does not apply to --dataset=synthetic")
        return DataOptions(
            image_size=self.image_size,
            split=split,
            seed=seed,
            data_dir=self.data_dir,
            skip_unreadable=self.skip_unreadable,
            crop=self.crop or crop,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(ImageSettings):
    """Settings of the data set and the recogniser."""

    model: str = setting("model_a", "Recogniser.", choices=tuple(MODELS))
    seed: int = setting(0, "Decides every random choice: persons, split, weights, targets.")

    def options(self, split: str) -> DataOptions:
        """The options for loading the data set, whose images the recogniser can take."""
        options = self.loader_options(split, self.seed, crop=DataOptions.crop)
        self.check_recogniser()
        return options

    def check_recogniser(self) -> None:
        """Refuses images that the recogniser cannot take, as far as its name says."""
        create_model(self.model, num_classes=2, image_size=self.image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(DataSettings):
    """Settings of the images that a trained recogniser is evaluated on."""

    split: str = setting("test", "Which images to de-identify.", choices=SPLITS)
    max_images: int | None = setting(None, "Only the first N images of the split.")
    sample: int | None = setting(
        None, "Only N images of the split, drawn by the seed, of as many persons as possible."
    )
    batch_size: int | None = setting(
        None, "Images per compiled call; default: what suits the device and its memory."
    )
    checkpoint: str | None = setting(
        None, "The recogniser's weights; default: under checkpoints/, trained if missing."
    )
    recogniser: str | None = setting(
        None,
        "User-supplied recogniser instead of --model and --checkpoint: NAME, NAME:FILE or "
        "package.module:function, from RGB images in [0, 1] to logits or to embeddings; for "
        "embeddings a gallery of the training images predicts persons.",
    )
    recogniser_output: str | None = setting(
        None, "The output of --recogniser. Default: embeddings.", choices=OUTPUTS
    )
    profile_dir: str | None = setting(
        None, "Folder for a trace of JAX's profiler, for XProf, TensorBoard or Perfetto."
    )

    def check(self) -> None:
        """Refuses values out of range."""
        self.options(self.split)
        if self.recogniser is None and self.recogniser_output is not None:
            raise InputError(f"--recogniser_output={self.recogniser_output} needs --recogniser")
        if self.recogniser is not None and self.checkpoint is not None:
            raise InputError("recogniser and checkpoint exclude each other: give one of them")
        # Structural similarity needs images at least as large as its window.
        count("image_size", self.image_size, least=SSIM_WINDOW)
        for name in ("batch_size", "max_images", "sample"):
            if getattr(self, name) is not None:
                count(name, getattr(self, name), least=1)
        if self.max_images is not None and self.sample is not None:
            raise InputError("sample and max_images exclude each other: give one of them")
        if self.profile_dir is not None:
            folder_to_write("profile_dir", Path(self.profile_dir))

    def check_recogniser(self) -> None:
        """Refuses what `DataSettings` refuses, unless the recogniser is user-supplied."""
        if self.recogniser is None:
            super().check_recogniser()

    @property
    def judge(self) -> str:
        """The recogniser's name in tables and folders."""
        return self.model if self.recogniser is None else name_of(self.recogniser)

    @property
    def checkpoint_name(self) -> str:
        """The name of the default checkpoint, which also names the recogniser's folders."""
        options = self.options("train")
        return recognisers.default_path(self.judge, self.dataset, options).name

    def chosen(self, faces: FaceDataset) -> FaceDataset:
        """The requested images of a split; raises `InputError` if there are too few."""
        if self.sample is not None:
            return sampled(faces, self.sample, self.seed)
        return faces.take(range(len(faces))[: self.max_images]) if self.max_images else faces


def sampled(faces: FaceDataset, size: int, seed: int) -> FaceDataset:
    """Draws images by the seed, from as many persons as possible, in the data set's order."""
    if size > len(faces):
        raise InputError(
            f"sample must be at most {len(faces)}, the images of the split, got {size}"
        )
    shuffled = np.random.default_rng(seed).permutation(len(faces))
    chosen = spread_over_persons(faces.labels[shuffled].tolist(), size)
    return faces.take(np.sort(shuffled[chosen]))
