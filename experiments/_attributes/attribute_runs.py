"""The runs that `experiments.attributes` reads: output folders of `experiments.attack`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from deid_jax.attacks import ATTACKS
from deid_jax.data import DataOptions
from deid_jax.data.images import decode_image
from deid_jax.errors import InputError
from deid_jax.pixels import Pixels
from deid_jax.runs import DESCRIPTION
from deid_jax.runs.reading import RowReader, read_csv, read_json, section
from experiments._common.data_settings import ImageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackedData(ImageSettings):
    """The settings of a run that decide what its images are."""

    seed: int
    split: str

    def options(self) -> DataOptions:
        """The options that the data set was loaded with."""
        return self.loader_options(self.split, self.seed, crop=DataOptions.crop)


@dataclasses.dataclass(frozen=True)
class AttackRun:
    """An output folder of `experiments.attack`.

    `settings` are the method's, name -> value as text; `images` are "person/name".
    """

    folder: Path
    method: str
    model: str
    settings: Mapping[str, str]
    data: AttackedData
    images: tuple[str, ...]

    def read(self, index: int) -> Pixels:
        """The de-identified image at a position, uint8[H, W, 3].

        Raises:
          InputError: it is missing, damaged, or not of the run's size.
        """
        path = self.folder / "images" / f"{self.images[index]}.png"
        if not path.is_file():
            raise InputError(f"run {self.folder} lacks the image {path}")
        image, size = decode_image(path, str(path)), self.data.image_size
        if image.shape != (size, size, 3):
            height, width = image.shape[:2]
            raise InputError(f"{path} is {width}x{height}, but its run is of {size}x{size}")
        return image


def read_runs(folders: str | None) -> list[AttackRun]:
    """Reads runs, folders separated by commas, which must hold the same images.

    Raises:
      InputError: no folder is given, a folder is given twice or holds no complete run, or two
        runs have different images.
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
        theirs = dataclasses.asdict(other.data)
        for name, value in dataclasses.asdict(first.data).items():
            if value != theirs[name]:
                raise InputError(f"{where}: {name} is {value} and {theirs[name]}")
        if first.images != other.images:
            odd = sorted(set(first.images).symmetric_difference(other.images))
            raise InputError(f"{where}: {odd[0] if odd else 'their order'} differs")
    return runs


def _read_run(folder: Path) -> AttackRun:
    files = [folder / name for name in ("metrics.json", DESCRIPTION, "per_image.csv")]
    for path in files:
        if not path.is_file():
            raise InputError(
                f"{folder} is no output folder of experiments.attack: it has no {path.name}"
            )
    measured, described, records = files
    metrics = read_json(measured)
    method = RowReader(metrics, str(measured)).text("method")
    given = RowReader(section(read_json(described), "settings"), f"{described}, settings")
    settings = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in section(metrics, "config").items()
    }
    lines = read_csv(records, ("person", "name"))
    if not lines:
        raise InputError(f"{records} lists no image")
    return AttackRun(
        folder,
        method,
        RowReader(metrics, str(measured)).text("model"),
        settings | _protocol(given, method, settings),
        _read_data(given),
        tuple(f"{line.entries['person']}/{line.entries['name']}" for line in lines),
    )


def _protocol(given: RowReader, method: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings other than the method's own that determine its result."""
    chosen: dict[str, str] = {}
    if method in ATTACKS:
        chosen["target"] = given.optional(given.text, "target") or "random"
        chosen["init"] = given.optional(given.text, "init") or "image"
        precision = given.optional(given.text, "precision")
        if precision:
            chosen["precision"] = precision
    if given.optional(given.flag, "quantize") and "quantize" not in settings:
        chosen["quantize"] = "yes"
    return chosen


def _read_data(given: RowReader) -> AttackedData:
    data_dir = given.optional(given.text, "data_dir")
    return AttackedData(
        dataset=given.text("dataset"),
        data_dir=data_dir and str(Path(data_dir).resolve()),
        image_size=given.integer("image_size", least=1),
        crop=given.optional(given.text, "crop"),
        skip_unreadable=given.flag("skip_unreadable"),
        seed=given.integer("seed"),
        split=given.text("split"),
    )
