"""Trains a recogniser on a data set and keeps it as a checkpoint.

    python -m experiments.train --dataset=folder --data_dir=FACES --model=model_a

Writes the checkpoint (default: under checkpoints/) and `history.csv` in --output_dir. A
training that was stopped goes on where it stood when the same command is given again.
"""

import dataclasses
from pathlib import Path

from deid_jax import checkpointing, recognisers
from deid_jax._validate import InputError
from deid_jax.recognisers import Recogniser
from deid_jax.reporting import RunFolder
from experiments import cli, common
from experiments.cli import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(common.DataSettings):
    """Settings of `experiments.train`."""

    split: str = setting("train", "What to train on.", choices=("train", "all"))
    epochs: int | None = setting(None, "Passes over the pictures; default: the model's.")
    learning_rate: float | None = setting(None, "Adam's step size; default: the model's.")
    batch_size: int = setting(32, "Pictures per training step.")
    checkpoint: str | None = setting(None, "Where to keep the result.")
    overwrite: bool = setting(False, "Train anew even if the checkpoint exists.")
    output_dir: str | None = setting(None, "Folder for history.csv; default: runs/train/….")


def run(settings: TrainSettings) -> Recogniser:
    """Trains, writes checkpoint and history, and returns the recogniser.

    Raises:
      InputError: bad settings or data, or the checkpoint exists already.
    """
    options = settings.options(settings.split)
    config = recognisers.train_config(
        settings.model,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    default = recognisers.default_path(settings.model, settings.dataset, options)
    path = Path(settings.checkpoint) if settings.checkpoint else default
    folder = RunFolder(Path(settings.output_dir or Path("runs", "train", default.name)))
    folder.check()
    if path.exists():
        if not settings.overwrite:
            raise InputError(f"checkpoint {path} exists already; --overwrite trains it anew")
        checkpointing.load_info(path)  # Never replace what is no checkpoint.
    with folder:
        recogniser, history = common.trained(
            settings.model, settings.dataset, options, config, path
        )
        folder.write_csv("history.csv", [record._asdict() for record in history])
    print(common.accuracy_line(recogniser))
    print(f"Checkpoint: {path}\nHistory: {folder.path / 'history.csv'}")
    return recogniser


if __name__ == "__main__":
    cli.launch(run, TrainSettings)
