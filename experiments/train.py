"""Trains a recogniser on a data set and keeps it as a checkpoint.

    python -m experiments.train --dataset=folder --data_dir=FACES

Writes the checkpoint, and `history.csv` and `config.json` into --output_dir. A training that
was stopped goes on where it stood when the same command is given again.
"""

import dataclasses
import sys
from pathlib import Path

from deid_jax import checkpointing, recognisers
from deid_jax.recognisers import Recogniser
from deid_jax.reporting import DESCRIPTION, RunFolder, describe
from experiments import cli, common
from experiments.cli import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(common.DataSettings):
    """Settings of `experiments.train`."""

    split: str = setting("train", "What to train on.", choices=("train", "all"))
    epochs: int | None = setting(None, "Passes over the pictures; default: the model's own.")
    learning_rate: float | None = setting(None, "Adam's step size; default: the model's own.")
    batch_size: int = setting(32, "Pictures per training step.")
    checkpoint: str | None = setting(
        None, "Where to keep the result; default: under checkpoints/."
    )
    overwrite: bool = setting(
        False, "Replace a checkpoint of other settings; one of these settings always is."
    )
    output_dir: str | None = setting(None, "Where to write; default: under runs/train/.")


def run(settings: TrainSettings) -> Recogniser:
    """Trains, writes checkpoint and history, and returns the recogniser.

    Raises:
      InputError: bad settings or data, the checkpoint exists already, or a path that cannot
        be written; nothing is written then.
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
    default = recognisers.default_path(settings.model, settings.dataset, options)
    path = Path(settings.checkpoint or default)
    folder = RunFolder(
        Path(settings.output_dir or Path("runs", "train", default.name)), ["history.csv"]
    )
    folder.check()
    again = checkpointing.is_same_training(
        path, settings.model, settings.dataset, options, config
    )
    checkpointing.check_target(path, overwrite=settings.overwrite or again)
    faces, held_out = recognisers.load_train_and_test(settings.dataset, options)
    common.say_skipped(faces)
    with folder:
        recogniser, history = common.trained(settings.model, faces, held_out, config, path)
        folder.write_csv("history.csv", [record._asdict() for record in history])
        folder.write_json(DESCRIPTION, describe(settings, recogniser=recogniser.describe()))
    print(common.accuracy_line(recogniser))
    print(f"Checkpoint: {path}\nHistory: {folder.path / 'history.csv'}")
    return recogniser


main = cli.binary(run, TrainSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
