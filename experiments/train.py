"""Trains a recogniser on a data set and saves it as a checkpoint.

    python -m experiments.train --dataset=folder --data_dir=FACES

Writes the checkpoint, and `history.csv` and `config.json` into --output_dir. To resume
interrupted training, repeat the command.

To train Model B as in the paper, with VGG-Face's descriptor frozen and a new head:

    python -m experiments.train --model=vgg16 --image_size=224 --pretrained=vgg_face.mat

Instead of a file, --pretrained also takes a name from `deid_jax.recognisers.weights`; the
weights are then downloaded.
"""

import dataclasses
import sys
from pathlib import Path

from deid_jax import recognisers
from deid_jax.data import DataOptions
from deid_jax.data.images import quiet_pillow
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.recognisers import Recogniser, TrainConfig, checkpoints, weights
from deid_jax.recognisers.vggface_files import Pretrained, load_vggface
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from experiments._common import cli, data_settings, loading, process_settings
from experiments._common.flags import setting

# The model whose layers `--pretrained` can fill, and the published weights for it.
_PRETRAINED_MODEL = "vgg16"
_READER = f"{load_vggface.__module__}:{load_vggface.__name__}"
_PRETRAINED = tuple(name for name, row in weights.WEIGHTS.items() if row.converter == _READER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(data_settings.DataSettings, process_settings.ModelParallelSettings):
    """Settings of `experiments.train`."""

    split: str = setting("train", "What to train on.", choices=("train", "all"))
    epochs: int | None = setting(None, "Passes over the images; default: the model's own.")
    learning_rate: float | None = setting(None, "Adam's step size; default: the model's own.")
    batch_size: int = setting(32, "Images per training step.")
    pretrained: str | None = setting(
        None,
        "VGG-Face's weights for vgg16: an .h5, .mat or .npz file, or the name of one to "
        f"download, of {', '.join(_PRETRAINED)}. Its layers stay as they are, all others are "
        "trained: the head of 256 and K units, and fc6 and fc7 where the file has none "
        "(notop).",
    )
    sha256: str | None = setting(
        None,
        "SHA-256 of a trusted copy of the weights that --pretrained names, where no source "
        "states it.",
    )
    checkpoint: str | None = setting(
        None, "Where to keep the result; default: under checkpoints/."
    )
    overwrite: bool = setting(
        False, "Replace a checkpoint of other settings; one of these settings always is."
    )
    output_dir: str | None = setting(None, "Where to write; default: under runs/train/.")


def run(settings: TrainSettings) -> Recogniser:
    """Trains the recogniser, writes its checkpoint and history, and returns it.

    Raises:
      InputError: bad settings, data or pretrained weights, a checkpoint that already exists, or
        a path that cannot be written. Nothing is written in that case.
    """
    options = settings.options(settings.split)
    config = recognisers.train_config(
        settings.model,
        settings.dataset,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    with settings.joined() as group:
        return _train(settings, options, config, group)


def _train(
    settings: TrainSettings, options: DataOptions, config: TrainConfig, group: Group
) -> Recogniser:
    """The work of `run`, as one process of a group."""
    default = recognisers.default_path(settings.model, settings.dataset, options)
    path = Path(settings.checkpoint or default)
    output = Path(settings.output_dir or Path("runs", "train", default.name))
    folder = RunFolder(output, ["history.csv"], group)
    folder.check()
    settings.local_mesh()
    pretrained = _pretrained(settings)
    sha256 = pretrained.sha256 if pretrained else None
    again = checkpoints.is_same_training(
        path, settings.model, settings.dataset, options, config, sha256
    )
    checkpoints.check_target(path, overwrite=settings.overwrite or again)
    data = recognisers.load_training_data(settings.dataset, options)
    if group.is_first:
        loading.say_skipped(data.train)
    with folder, quiet_pillow():
        recogniser, history = loading.fit_with_bar(
            settings.model,
            data,
            config,
            path,
            pretrained,
            group=group,
            model_parallel=settings.model_parallel,
        )
        if not group.is_first:
            return recogniser
        folder.write_csv("history.csv", list(map(dataclasses.asdict, history)))
        described = describe(settings.alone(), recogniser=recogniser.describe())
        folder.write_json(DESCRIPTION, described)
    print(loading.accuracy_line(recogniser))
    print(f"Checkpoint: {path}\nHistory: {folder.path / 'history.csv'}")
    return recogniser


def _pretrained(settings: TrainSettings) -> Pretrained | None:
    """The pretrained layers, read from the file or the published weights, if any."""
    given = settings.pretrained
    if settings.sha256 is not None and given not in weights.WEIGHTS:
        raise InputError(
            f"--sha256={settings.sha256} needs a --pretrained of {', '.join(_PRETRAINED)}"
        )
    if given is None:
        return None
    if settings.model != _PRETRAINED_MODEL:
        raise InputError(
            f"--pretrained={given} does not apply to --model={settings.model}: VGG-Face's "
            f"weights are {_PRETRAINED_MODEL}'s"
        )
    if given not in weights.WEIGHTS:
        return load_vggface(given, image_size=settings.image_size)
    if given not in _PRETRAINED:
        raise InputError(
            f"pretrained must be a file or of {', '.join(_PRETRAINED)}, got {given}, which "
            f"holds no weights of {_PRETRAINED_MODEL}"
        )
    path = loading.fetch_weights_with_bar(given, settings.sha256)
    return load_vggface(path, image_size=settings.image_size)


main = cli.binary(run, TrainSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
