"""Your own pictures: `data_dir/<person>/<picture>`, a folder for each person."""

from collections import Counter
from pathlib import Path

from deid_jax._validate import InputError
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.data.pictures import Source, build_dataset

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".webp")


def load(options: DataOptions) -> FaceDataset:
    """Loads the pictures under `options.data_dir`.

    A person is a folder, sorted by name; its pictures are the files directly inside with one
    of `SUFFIXES` in any case. Files and folders whose names start with a dot, deeper folders,
    other files, and persons without a picture are ignored; links are followed.

    A picture is named after its file without the suffix; where two of a person would share a
    name (a.jpg, a.png), these keep the suffix.

    Raises:
      InputError: `data_dir` is not a folder with pictures of two persons or more, a picture
        cannot be read (see `DataOptions.skip_unreadable`), or a person cannot be divided.
    """
    if options.data_dir is None:
        raise InputError("data_dir must name the folder of pictures, DIR/<person>/<picture>")
    root = Path(options.data_dir)
    if not root.exists():
        raise InputError(f"data_dir {root} does not exist")
    if not root.is_dir():
        raise InputError(f"data_dir {root} is not a folder")
    sources = [
        Source(person=folder.name, name=name, content=path, title=str(path))
        for folder in _visible(root)
        if folder.is_dir()
        for name, path in picture_names(folder).items()
    ]
    if not sources:
        raise InputError(
            f"data_dir {root} has no pictures: DIR/<person>/*{{{','.join(SUFFIXES)}}} is read"
        )
    return build_dataset("folder", sources, options, {"folder": root.resolve().name})


def _visible(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted by name."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror}") from error


def picture_names(folder: Path) -> dict[str, Path]:
    """Name -> file of the pictures directly in a folder; names as `load` says."""
    files = [
        path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    stems = Counter(path.stem for path in files)
    named = {path.stem if stems[path.stem] == 1 else path.name: path for path in files}
    if len(named) < len(files):  # a.jpg, a.png and a.png.jpg: only whole names differ
        named = {path.name: path for path in files}
    return named
