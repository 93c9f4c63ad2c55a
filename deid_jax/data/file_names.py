"""Which files are images, and the names of these images, in folders and in archives."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from deid_jax.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".webp")


def visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, sorted by name."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror}") from error


def is_image(file: str) -> bool:
    """Whether a file is read as an image: its name ends in one of `SUFFIXES`, in any case."""
    return _parts(file)[1].lower() in SUFFIXES


def image_names(files: Sequence[str]) -> list[str]:
    """The names of one person's images, from the distinct names of their files.

    An image is named after its file without the suffix; if two would have the same name (a.jpg,
    a.png), they keep the suffix.
    """
    stems = [_parts(file)[0] for file in files]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else file for stem, file in zip(stems, files, strict=True)
    ]
    if len(set(names)) < len(files):  # a.jpg, a.png and a.png.jpg: only full names differ
        return list(files)
    return names


def _parts(file: str) -> tuple[str, str]:
    """Stem and suffix, without `pathlib`, which interns every name that it parses."""
    stem, dot, suffix = file.rpartition(".")
    return stem, dot + suffix
