"""User-supplied images: `data_dir/<person>/<image>`, one folder per person."""

from pathlib import Path

from deid_jax.data.building import Source, build_dataset, from_sources
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.data.file_names import SUFFIXES, image_names, is_image, visible
from deid_jax.errors import InputError


def load(options: DataOptions) -> FaceDataset:
    """Loads the images under `options.data_dir`.

    Each folder is a person, sorted by name; its images are the files directly inside with one
    of `SUFFIXES` in upper or lower case. Files and folders whose names start with a dot, deeper
    folders, other files, and persons without an image are ignored; links are followed. Images
    are named by `image_names`.

    Raises:
      InputError: `data_dir` is not a folder with images of at least two persons, an image
        cannot be read (see `DataOptions.skip_unreadable`), or a person cannot be split.
    """
    if options.data_dir is None:
        raise InputError("data_dir must name the folder of images, DIR/<person>/<image>")
    root = Path(options.data_dir)
    if not root.exists():
        raise InputError(f"data_dir {root} does not exist")
    if not root.is_dir():
        raise InputError(f"data_dir {root} is not a folder")
    sources = [
        source for folder in visible(root) if folder.is_dir() for source in _sources(folder)
    ]
    if not sources:
        raise InputError(
            f"data_dir {root} has no images: DIR/<person>/*{{{','.join(SUFFIXES)}}} is read"
        )
    facts = {"folder": root.resolve().name}
    return build_dataset("folder", from_sources(sources), options, facts)


def _sources(folder: Path) -> list[Source]:
    """The images directly in one person's folder."""
    paths = [path for path in visible(folder) if is_image(path.name) and path.is_file()]
    names = image_names([path.name for path in paths])
    return [
        Source(folder.name, name, path, str(path), {})
        for name, path in zip(names, paths, strict=True)
    ]
