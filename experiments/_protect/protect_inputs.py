"""What `experiments.protect` is given: folders, their files, recognisers, a gallery."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError
from deid_jax.photos import faces as face_finding
from deid_jax.photos import files
from deid_jax.photos.alignment import SIZE, aligned_face
from deid_jax.photos.faces import Detector
from deid_jax.photos.judging import THRESHOLDS, Witness, directions, directions_of_photos
from deid_jax.photos.manifest import NAME, digest_of, digest_of_file
from deid_jax.recognisers.embedders import split_list
from deid_jax.videos import video_files
from experiments._common import cli

# In bytes: no photo of `MAX_PIXELS` is larger.
_LARGEST_PHOTO = 2**29
# Suffixes of videos that `video_files.FORMATS` lacks.
_OTHER_VIDEOS = (
    *(".avi", ".3gp", ".3g2", ".mts", ".m2ts", ".ts"),
    *(".wmv", ".flv", ".mpg", ".mpeg", ".ogv", ".vob"),
)


def folders(given: str, into: str) -> tuple[Path, Path]:
    """The photo or folder of photos, and the folder to write into, which lie apart.

    Raises:
      InputError: they do not, or are not there.
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
    """Names of all files below a folder; hidden ones are none of ours.

    Links to folders and folders that cannot be looked into are among them, so that they are
    accounted for.

    Args:
      source: a folder, or a file, which is then the only one.
      name: what messages call it.
      but: a file that may lie among them and is none of them.

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
        # Not `resolve`, which links that lead round in circles are too much for.
        whole = os.path.realpath(but)
        found = [path for path in found if os.path.realpath(path) != whole]
    if not found:
        raise InputError(f"{name} {source} holds no files")
    return sorted(path.relative_to(source).as_posix() for path in found)


def is_video(name: str) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return Path(name).suffix.lower() in video_files.SUFFIXES


def content(source: Path, name: str) -> tuple[bytes | InputError | None, str]:
    """What is in a file, or what is wrong with it; and its SHA-256, empty of the latter.

    Videos are not read at once: theirs is None.
    """
    path = source / name if source.is_dir() else source
    try:
        wrong = _wrong(path, name)
        if wrong is not None:
            return InputError(wrong), ""
        if is_video(name):
            return None, digest_of_file(path)
        data = path.read_bytes()
        return data, digest_of(data)
    except OSError as error:
        return InputError(f"{name} cannot be read: {error.strerror}"), ""


def _wrong(path: Path, name: str) -> str | None:
    """Why a file is not even looked into."""
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
        kinds = ", ".join(sorted(video_files.SUFFIXES))
        return f"{name} is a video of a kind that is not written: convert it to one of {kinds}"
    if path.stat().st_size > _LARGEST_PHOTO and not is_video(name):
        return f"{name} is larger than {_LARGEST_PHOTO} bytes"
    return None


def witnesses(recogniser: str, judge: str, threshold: float | None) -> list[Witness]:
    """Who judges: recognisers that are fitted, and others.

    Raises:
      InputError: one cannot be loaded, sees nothing, lacks a threshold or is given twice.
    """
    fitted = split_list(recogniser, ",")
    others = [] if judge == "none" else split_list(judge, ",")
    if threshold is not None and not -1 < threshold < 1:
        raise InputError(f"threshold must be a cosine > -1 and < 1, got {threshold}")
    found: list[Witness] = []
    for number, text in enumerate((*fitted, *others)):
        try:
            embedder = cli.load_recogniser(text, SIZE)
        except InputError as error:
            raise InputError(
                f"{error}; without a recogniser nothing real is protected: give "
                "--recogniser=NAME:FILE with weights of yours, or be online once for NAME"
            ) from error
        if embedder.name in [witness.embedder.name for witness in found]:
            raise InputError(f"recogniser {embedder.name} is given twice")
        own = THRESHOLDS.get(embedder.name) if threshold is None else threshold
        if own is None:
            raise InputError(f"recogniser {embedder.name} needs a --threshold")
        directions(embedder, sample())  # Says who sees nothing.
        found.append(Witness(embedder, own, number < len(fitted)))
    return found


def sample() -> np.ndarray:
    """float32[2, S, S, 3], pictures of noise: what is made of them tells recognisers apart."""
    return np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)


def detector(name: str) -> Detector:
    """What finds faces: `cascade`, or the file of a YuNet model.

    Raises:
      InputError: what it needs is not installed, or there is no such model.
    """
    if name != "cascade":
        return face_finding.yunet(name)
    face_finding.cascade(np.zeros((32, 32, 3), np.uint8))  # Says what is not installed.
    return face_finding.cascade


def known(
    folder: Path, judges: Sequence[Witness], detector: Detector, *, aligned: bool
) -> list[np.ndarray]:
    """For each judge, the directions of the person in a folder's photos, [K, D].

    Of several faces in a photo the largest is taken for the person's.

    Raises:
      InputError: it is no folder, or a file in it is no photo with a face.
    """
    if not folder.is_dir():
        raise InputError(f"gallery {folder} is not a folder")
    photos = []
    for name in listed(folder, "gallery"):
        data, _ = content(folder, name)
        if not isinstance(data, bytes):
            raise InputError(f"gallery {folder}: {data or f'{name} is a video'}")
        try:
            pixels = files.parse_photo(data, name).pixels
            crops = [aligned_face(pixels.shape[:2], name)] if aligned else detector(pixels)
        except InputError as error:
            raise InputError(f"gallery {folder}: {error}") from error
        if not crops:
            raise InputError(f"gallery {folder}: no face was found in {name}")
        photos.append((pixels, crops[0]))
    return [directions_of_photos(judge.embedder, photos) for judge in judges]
