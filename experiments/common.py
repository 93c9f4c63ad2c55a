"""Settings and steps that several binaries share."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from deid_jax import recognisers
from deid_jax._validate import count
from deid_jax.data import DATASETS, DataOptions, FaceDataset, load_dataset
from deid_jax.data.images import CROPS
from deid_jax.models import MODELS, create_model
from deid_jax.recognisers import Recogniser
from deid_jax.training import EpochRecord, TrainConfig
from experiments.cli import progress_bar, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which pictures and which recogniser."""

    dataset: str = setting("synthetic", "Data set.", choices=tuple(DATASETS))
    data_dir: str | None = setting(None, "Folder of the data set; synthetic takes none.")
    image_size: int = setting(64, "Height and width in pixels that pictures are brought to.")
    crop: str = setting("auto", "Face crop of pictures from files.", choices=tuple(CROPS))
    skip_unreadable: bool = setting(
        False, "Leave out pictures that cannot be read, and count them, instead of stopping."
    )
    model: str = setting("model_a", "Recogniser.", choices=tuple(MODELS))
    seed: int = setting(0, "Decides every random choice: persons, split, weights, targets.")

    def options(self, split: str) -> DataOptions:
        """What the data set's loader is asked for."""
        count("image_size", self.image_size, least=1)
        count("seed", self.seed)
        create_model(self.model, num_classes=2, image_size=self.image_size)
        return DataOptions(
            image_size=self.image_size,
            split=split,
            seed=self.seed,
            data_dir=self.data_dir,
            skip_unreadable=self.skip_unreadable,
            crop=self.crop,
        )

    def load(self, split: str) -> FaceDataset:
        """Loads a split, and says what was left out."""
        dataset = load_dataset(self.dataset, self.options(split))
        skipped = dataset.provenance.get("num_unreadable", 0)
        if skipped:
            print(f"left out {skipped} unreadable pictures", file=sys.stderr)
        return dataset


def trained(
    model: str,
    dataset: str,
    options: DataOptions,
    config: TrainConfig,
    path: Path,
) -> tuple[Recogniser, list[EpochRecord]]:
    """Trains a recogniser behind a progress bar and keeps it at `path`."""
    faces, held_out = recognisers.load_train_and_test(dataset, options)
    with progress_bar(f"training {model}") as update:

        def progress(done: int, total: int, history: Sequence[EpochRecord]) -> None:
            text = f"epoch {len(history) + 1}"
            if history:
                text += f", held-out accuracy {history[-1].test_accuracy:.1%}"
            update(done, total, text)

        return recognisers.fit(model, faces, config, path, held_out=held_out, progress=progress)


def recogniser_for(
    settings: DataSettings, faces: FaceDataset, checkpoint: str | None
) -> Recogniser:
    """The recogniser at `checkpoint`, or the default one, trained now if it is missing.

    Raises:
      InputError: `checkpoint` is given and missing, or a checkpoint does not fit.
    """
    if checkpoint is not None:
        return recognisers.load(Path(checkpoint), settings.model, faces)
    options = settings.options("train")
    path = recognisers.default_path(settings.model, settings.dataset, options)
    if not path.exists():
        print(f"No checkpoint at {path} yet: training {settings.model} now.", file=sys.stderr)
        config = recognisers.train_config(settings.model, seed=settings.seed)
        recogniser, _ = trained(settings.model, settings.dataset, options, config, path)
        print(accuracy_line(recogniser), file=sys.stderr)
    return recognisers.load(path, settings.model, faces)


def accuracy_line(recogniser: Recogniser) -> str:
    """What a recogniser is worth, in words."""
    accuracy = ", ".join(
        f"{share:.1%} on the {split} split" for split, share in recogniser.info.accuracy.items()
    )
    return f"{recogniser.info.model} names rightly {accuracy}."


def first(faces: FaceDataset, max_images: int | None) -> FaceDataset:
    """The first `max_images` pictures; all if None."""
    return faces if max_images is None else faces.take(range(min(max_images, len(faces))))
