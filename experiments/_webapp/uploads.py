"""Uploads to the page of `experiments.webapp`: written file, previews, messages.

Previews are uint8[H, W, 3], RGB, with at most `PREVIEW` pixels on the longest side. The
amplified perturbation shows every k-th pixel of the photo, because averaging would understate
it.
"""

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.photos import FaceReport, ProtectedPhoto, Protector, Strength, files
from deid_jax.photos.canvases import Span
from deid_jax.photos.file_records import (
    NOT_PROTECTED,
    PROTECTED,
    UNJUDGED,
    fools_fitted,
    worst_of,
)
from deid_jax.photos.manifest import sha256_of
from deid_jax.photos.written_files import ProtectedError, is_remembered, remember
from deid_jax.runs import write_whole
from deid_jax.types import NumpyArray

MAX_FILES = 20
MAX_PIXELS = 50_000_000
# The longest side of previews.
PREVIEW = 1600
# Factor by which the preview amplifies the perturbation.
AMPLIFICATION = 20


@dataclasses.dataclass(frozen=True)
class UploadOutcome:
    """The outcome of one upload.

    Attributes:
      message: why there is no written file; None if there is one.
      previews: files that show before, after and the amplified perturbation, for the whole
        photo and for each face.
    """

    name: str
    message: str | None = None
    output: Path | None = None
    previews: tuple[tuple[Path, ...], ...] = ()
    faces: tuple[FaceReport, ...] = ()

    @property
    def status(self) -> str:
        """The worst status of a face; `NOT_PROTECTED` without a file."""
        if self.message is not None:
            return NOT_PROTECTED
        return worst_of(face.status for face in self.faces)


def refusal(paths: Sequence[str | Path]) -> str | None:
    """Why an upload of several files is refused as a whole, or None."""
    if not paths:
        return "No photo was chosen."
    if len(paths) > MAX_FILES:
        return f"{len(paths)} files are too many: at most {MAX_FILES} at once."
    return None


def outcome_of(
    path: str | Path, strength: str, protector: Protector, folder: Path
) -> UploadOutcome:
    """Protects one upload, and writes the file and previews into a new folder.

    `strength`, a key of `STRENGTHS`, replaces the protector's.
    """
    name = Path(path).name
    chosen = Strength.of(strength, protector.strength.num_steps)
    protector = dataclasses.replace(protector, strength=chosen)
    try:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read: {one_line(error)}") from error
        photo = files.parse_photo(content, name, max_pixels=MAX_PIXELS)
        if photo.is_marked or is_remembered(sha256_of(content)):
            raise ProtectedError(name)
        assert protector.detector is not None
        faces = protector.detector(photo.pixels)
        if not faces:
            raise InputError(f"No face was found in {name}: there is nothing to download")
        done = protector.protect_photo(photo, faces, name)
        outcome = _outcome(name, photo.pixels, done, folder)
        if done.data != content:
            remember(sha256_of(done.data))
        return outcome
    except InputError as error:
        return UploadOutcome(name, f"{error}.")
    except OSError as error:
        return UploadOutcome(name, f"{name} cannot be written: {one_line(error)}.")


def _outcome(
    name: str, before: NumpyArray, done: ProtectedPhoto, folder: Path
) -> UploadOutcome:
    own = Path(tempfile.mkdtemp(dir=folder))
    output = own / "protected" / name
    write_whole(output, done.data)
    views = [(slice(None), slice(None))]
    views += [around(report, before.shape) for report in done.faces]
    previews = []
    for number, view in enumerate(views):
        one, other = before[view], done.pixels[view]
        step = max(1, math.ceil(max(one.shape[:2]) / PREVIEW))
        difference = amplified_difference(one, other, step)
        if number == 0:
            difference = marked(difference, done.faces, 1 / step)
        shown = {
            "before": smaller(one, step),
            "after": smaller(other, step),
            "difference": difference,
        }
        previews.append(
            tuple(_written(own / f"{kind}{number}.png", shown[kind]) for kind in shown)
        )
    return UploadOutcome(name, None, output, tuple(previews), done.faces)


def around(face: FaceReport, shape: Sequence[int]) -> "tuple[Span, Span]":
    """Rows and columns of a face's box, extended by half its size on each side."""
    left, top, width, height = face.box

    def span(start: float, length: float, bound: int) -> "Span":
        first = min(max(round(start - length / 2), 0), bound - 1)
        return slice(first, max(min(round(start + 1.5 * length), bound), first + 1))

    return span(top, height, shape[0]), span(left, width, shape[1])


def smaller(pixels: NumpyArray, step: int) -> NumpyArray:
    """Reduces an image to one pixel for every step x step pixels."""
    from PIL import Image

    height, width = pixels[::step, ::step].shape[:2]
    if step == 1:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def amplified_difference(before: NumpyArray, after: NumpyArray, step: int = 1) -> NumpyArray:
    """128 + `AMPLIFICATION` (after − before) of every step-th pixel, clipped to uint8."""
    one, other = (pixels[::step, ::step].astype(np.int32) for pixels in (before, after))
    return np.clip(128 + AMPLIFICATION * (other - one), 0, 255).astype(np.uint8)


def marked(pixels: NumpyArray, faces: Sequence[FaceReport], scale: float) -> NumpyArray:
    """The image with each face's box and its number in the table of verdicts."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    size = max(12, max(image.size) // 20)
    for number, report in enumerate(faces, 1):
        left, top, width, height = (scale * edge for edge in report.box)
        line = max(1, size // 16)
        draw.rectangle((left, top, left + width, top + height), outline="white", width=line)
        place = (left + 3 * line, top + 2 * line)
        draw.text(
            place,
            str(number),
            "white",
            ImageFont.load_default(size),
            stroke_width=max(1, size // 16),
            stroke_fill="black",
        )
    return np.asarray(image)


def _written(path: Path, pixels: NumpyArray) -> Path:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels)).save(path, compress_level=1)
    return path


def summary_line(outcome: UploadOutcome) -> str:
    """One line about a photo."""
    if outcome.message is not None:
        return outcome.message
    number = len(outcome.faces)
    faces = "1 face" if number == 1 else f"{number} faces"
    if outcome.status == PROTECTED:
        return (
            f"{outcome.name}: protected. {faces} found, matched by no surrogate and no judge."
        )
    if outcome.status == UNJUDGED:
        return (
            f"{outcome.name}: unjudged. {faces} found, matched by no surrogate; there was no "
            "judge."
        )
    matched = sum(face.status == NOT_PROTECTED for face in outcome.faces)
    still = "a recogniser"
    if all(map(fools_fitted, outcome.faces)):
        still = "a judge"
    return (
        f"{outcome.name}: not protected. {faces} found, of which {still} still matches "
        f"{matched}."
    )


def forget(outcomes: Sequence[UploadOutcome]) -> None:
    """Deletes the files of outcomes."""
    for outcome in outcomes:
        if outcome.output is not None:
            shutil.rmtree(outcome.output.parents[1], ignore_errors=True)
