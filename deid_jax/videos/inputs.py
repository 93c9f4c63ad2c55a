"""Input of a run: the files below a folder, their content, and a person's gallery."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deid_jax.errors import InputError, one_line
from deid_jax.photos import files
from deid_jax.photos.faces import Detector, FaceChoice
from deid_jax.photos.manifest import NAME, sha256_of, sha256_of_file
from deid_jax.photos.verifiers import Verifier, gallery_of
from deid_jax.videos.containers import FORMATS

# The largest file in bytes; no photo of `files.MAX_PIXELS` is larger.
_LARGEST_PHOTO = 2**29
# Suffixes of videos that `containers.FORMATS` lacks.
_OTHER_VIDEOS = (
    *(".avi", ".3gp", ".3g2", ".mts", ".m2ts", ".ts"),
    *(".wmv", ".flv", ".mpg", ".mpeg", ".ogv", ".vob"),
)


def folders(given: str, into: str) -> tuple[Path, Path]:
    """The file or folder to read, and the folder to write to.

    Raises:
      InputError: a path is missing or not a folder, or one lies inside the other.
    """
    for name, text in (("input", given), ("output", into)):
        if not text:
            raise InputError(f"{name} must be given")
    source, output = Path(given), Path(into)
    if not source.exists():
        raise InputError(f"input {source} does not exist")
    if output.is_symlink() and not output.exists():
        raise InputError(f"output {output} is a link that leads nowhere")
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is not a folder")
    whole, target = source.resolve(), output.resolve()
    if source.is_dir() and target.is_relative_to(whole):
        raise InputError(f"output {output} must not lie within the input: name another folder")
    if source.is_dir() and whole.is_relative_to(target):
        raise InputError(f"input {source} must not lie within the output: name another folder")
    if target == whole.parent:
        raise InputError(f"output {output} is the input's own folder: name another one")
    return source, output


def listed(source: Path, name: str = "input", *, but: str | None = None) -> list[str]:
    """Names of all files below a folder except hidden ones, sorted.

    Links to folders and unreadable folders are listed as well, so that they are reported. A
    single file is listed alone; the file `but` is left out.

    Raises:
      InputError: there are none.
    """
    if not source.is_dir():
        return [source.name]
    found: list[Path] = []
    walk = os.walk(source, onerror=lambda error: found.append(Path(error.filename)))
    for folder, below, names in walk:
        below[:] = [one for one in below if not one.startswith(".")]
        links = [one for one in below if (Path(folder) / one).is_symlink()]
        found += [Path(folder) / one for one in (*names, *links) if not one.startswith(".")]
    if but is not None:
        # `Path.resolve` fails on circular links.
        whole = os.path.realpath(but)
        found = [path for path in found if os.path.realpath(path) != whole]
    if not found:
        raise InputError(f"{name} {source} holds no files")
    return sorted(path.relative_to(source).as_posix() for path in found)


def is_video(name: str) -> bool:
    """Whether a file is treated as a video, by its suffix."""
    return Path(name).suffix.lower() in FORMATS


def content(source: Path, name: str) -> tuple[bytes | InputError | None, str]:
    """The content of a file or the error on reading it, and its SHA-256 (empty if unreadable).

    Videos are not read into memory; their content is None.
    """
    path = source / name if source.is_dir() else source
    try:
        wrong = _wrong(path, name)
        if wrong is not None:
            return InputError(wrong), ""
        if is_video(name):
            return None, sha256_of_file(path)
        data = path.read_bytes()
        return data, sha256_of(data)
    except OSError as error:
        return InputError(f"{name} cannot be read: {one_line(error)}"), ""


def _wrong(path: Path, name: str) -> str | None:
    """Why a file cannot be opened, or None."""
    if name == NAME:
        return f"{name} is what the record of all files is called"
    if path.is_dir():
        return name + (
            " is a link to a folder, which is not followed"
            if path.is_symlink()
            else " is a folder that cannot be looked into"
        )
    if path.exists() and not path.is_file():
        return f"{name} is no file of data"
    if Path(name).suffix.lower() in _OTHER_VIDEOS:
        kinds = ", ".join(sorted(FORMATS))
        return f"{name} is a video of a kind that is not written: convert it to one of {kinds}"
    if path.stat().st_size > _LARGEST_PHOTO and not is_video(name):
        return f"{name} is larger than {_LARGEST_PHOTO} bytes"
    return None


def with_gallery(
    verifiers: Sequence[Verifier], folder: Path, detector: Detector
) -> tuple[Verifier, ...]:
    """Adds a gallery of one person's photos to the verifiers, using the largest face in each.

    Raises:
      InputError: the gallery is not a folder, or a file in it is not a photo with a face.
    """
    if not folder.is_dir():
        raise InputError(f"gallery {folder} is not a folder")
    choice = FaceChoice("largest", detector=detector)
    photos = []
    for name in listed(folder, "gallery"):
        data, _ = content(folder, name)
        if not isinstance(data, bytes):
            raise InputError(f"gallery {folder}: {data or f'{name} is a video'}")
        try:
            pixels = files.parse_photo(data, name).pixels
            faces, _ = choice.faces(name, pixels)
        except InputError as error:
            raise InputError(f"gallery {folder}: {error}") from error
        if not faces:
            raise InputError(f"gallery {folder}: no face was found in {name}")
        photos.append((pixels, faces[0]))
    return tuple(replace(one, gallery=gallery_of(one, photos)) for one in verifiers)
