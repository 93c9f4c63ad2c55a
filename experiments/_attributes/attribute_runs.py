"""The runs that `experiments.attributes` reads: output folders of `experiments.attack`."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deid_jax.attacks import ATTACKS
from deid_jax.data.images import decode_image
from deid_jax.errors import InputError

# The settings of a run that decide what its images are.
_DATA = ("dataset", "data_dir", "image_size", "crop", "skip_unreadable", "seed", "split")


class AttackRun(NamedTuple):
    """Content of an output folder of `experiments.attack`.

    Attributes:
      folder: the folder.
      method: a key of `deid_jax.attacks.METHODS`.
      model: the recogniser that was attacked.
      settings: the method's settings, name -> value as text.
      data: the settings named in `_DATA`.
      images: "person/name" of every image.
    """

    folder: Path
    method: str
    model: str
    settings: Mapping[str, str]
    data: Mapping[str, Any]
    pictures: tuple[str, ...]

    def read(self, index: int) -> np.ndarray:
        """The de-identified image at a position, uint8[H, W, 3].

        Raises:
          InputError: it is missing, damaged, or not of the run's size.
        """
        path = self.folder / "images" / f"{self.pictures[index]}.png"
        if not path.is_file():
            raise InputError(f"run {self.folder} lacks the image {path}")
        picture, size = decode_image(path, str(path)), self.data["image_size"]
        if picture.shape != (size, size, 3):
            height, width = picture.shape[:2]
            raise InputError(f"{path} is {width}x{height}, but its run is of {size}x{size}")
        return picture


def read_runs(folders: str | None) -> list[AttackRun]:
    """The runs, which are of the same images.

    Args:
      folders: output folders of `experiments.attack`, by commas.

    Raises:
      InputError: none is named, one is named twice or holds no whole run, or two are of
        different images.
    """
    paths = [Path(name.strip()) for name in (folders or "").split(",") if name.strip()]
    if not paths:
        raise InputError("--runs=DIR,DIR,... names output folders of experiments.attack")
    runs: list[AttackRun] = []
    for path in paths:
        if any(path.resolve() == other.folder.resolve() for other in runs):
            raise InputError(f"--runs names {path} twice")
        runs.append(_read_run(path))
    first = runs[0]
    for other in runs[1:]:
        where = f"{first.folder} and {other.folder} are not of the same images"
        for name in _DATA:
            if first.data[name] != other.data[name]:
                raise InputError(
                    f"{where}: {name} is {first.data[name]} and {other.data[name]}"
                )
        if first.pictures != other.pictures:
            odd = sorted(set(first.pictures).symmetric_difference(other.pictures))
            raise InputError(f"{where}: {odd[0] if odd else 'their order'} differs")
    return runs


def _read_run(folder: Path) -> AttackRun:
    texts = {}
    for name in ("metrics.json", "config.json", "per_image.csv"):
        try:
            texts[name] = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(
                f"{folder} is no output folder of experiments.attack: it has no {name}"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder / name} cannot be read: {error}") from error
    try:
        name = "metrics.json"
        figures = json.loads(texts[name])
        method, model = str(figures["method"]), str(figures["model"])
        config = {
            key: f"{value:g}" if isinstance(value, float) else str(value)
            for key, value in figures["config"].items()
        }
        name = "config.json"
        given = json.loads(texts[name])["settings"]
        data = {key: given[key] for key in _DATA}
        if method in ATTACKS:
            config |= {"target": given["target"] or "random", "init": given["init"] or "image"}
            config |= {"precision": given["precision"]} if given.get("precision") else {}
        if given["quantize"] and "quantize" not in config:
            config["quantize"] = "yes"
        name = "per_image.csv"
        records = list(csv.DictReader(io.StringIO(texts[name])))
        pictures = tuple(f"{record['person']}/{record['name']}" for record in records)
        if not pictures:
            raise ValueError("it lists no image")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"{folder / name} is not as experiments.attack writes it: {reason}"
        ) from error
    if data["data_dir"]:
        data["data_dir"] = str(Path(data["data_dir"]).resolve())
    return AttackRun(folder, method, model, config, data, pictures)
