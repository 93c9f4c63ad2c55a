"""What the page of `experiments.webapp` does to an upload: protected file, pictures, messages.

Pictures are uint8[H, W, 3], RGB, at most `PREVIEW` pixels long: a photo shown is a copy made
smaller. The amplified difference shows pixels of the photo itself, every k-th of them: made
smaller by averaging, it would understate what was changed.
"""

import dataclasses
import hashlib
import io
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from deid_jax._validate import InputError
from deid_jax.photos import files
from deid_jax.photos.faces import Detector
from deid_jax.photos.judging import Witness
from deid_jax.photos.photo import FaceReport, Strength, protect
from experiments.protect import STRENGTHS

MAX_FILES = 20
MAX_PIXELS = 50_000_000
# The longer side of the pictures shown.
PREVIEW = 1600
# A change of one level in 255 is shown as one of this many.
AMPLIFICATION = 20


@dataclasses.dataclass(frozen=True)
class Studio:
    """What the page works with.

    Attributes:
      detector: finds faces.
      witnesses: who is fooled, and who judges.
      num_steps: gradient steps of each try.
      seed: decides every random choice.
    """

    detector: Detector
    witnesses: Sequence[Witness]
    num_steps: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one upload.

    Attributes:
      name: the file's name.
      message: why there is no protected file; None where there is one.
      output: the protected file.
      pictures: files of before, after and the amplified difference.
      faces: what became of each face.
      step: one pixel of the pictures is so many of the photo's.
    """

    name: str
    message: str | None = None
    output: Path | None = None
    pictures: tuple[Path, ...] = ()
    faces: tuple[FaceReport, ...] = ()
    step: int = 1

    @property
    def protected(self) -> bool:
        """Whether no recogniser that was asked knows a face again."""
        return self.message is None and all(face.protected for face in self.faces)


def refusal(paths: Sequence[str | Path] | None) -> str | None:
    """What is wrong with a choice of files as a whole."""
    if not paths:
        return "No photo was chosen."
    if len(paths) > MAX_FILES:
        return f"{len(paths)} files are too many: at most {MAX_FILES} at once."
    return None


def outcome_of(path: str | Path, strength: str, studio: Studio, folder: Path) -> Outcome:
    """Protects one upload, and writes the protected file and the pictures.

    Args:
      path: the uploaded file.
      strength: a key of `STRENGTHS`.
      studio: what to do it with.
      folder: to write into; a folder below it is made.
    """
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
        _check_size(data, name)
        photo = files.parse_photo(data, name)
    except OSError as error:
        return Outcome(name, f"{name} cannot be read: {error.strerror}.")
    except InputError as error:
        return Outcome(name, f"{error}.")
    faces = studio.detector(photo.pixels)
    if not faces:
        return Outcome(name, f"No face was found in {name}: there is nothing to download.")
    done = protect(
        photo,
        faces,
        studio.witnesses,
        _key(name, studio.seed),
        strength=Strength(STRENGTHS[strength], studio.num_steps),
        detector=studio.detector,
    )
    own = Path(tempfile.mkdtemp(dir=folder))
    output = own / "protected" / name
    files.write_whole(output, done.data)
    step = max(1, math.ceil(max(photo.pixels.shape[:2]) / PREVIEW))
    shown = {
        "before": smaller(photo.pixels, step),
        "after": smaller(done.pixels, step),
        "difference": marked(amplified(photo.pixels, done.pixels, step), done.faces, 1 / step),
    }
    pictures = tuple(_written(own / f"{kind}.png", shown[kind]) for kind in shown)
    return Outcome(name, None, output, pictures, tuple(done.faces), step)


def _key(name: str, seed: int) -> jax.Array:
    """The key that `experiments.protect` gives a file of this name."""
    named = int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16)
    return jax.random.fold_in(jax.random.key(seed), named)


def _check_size(data: bytes, name: str) -> None:
    """Refuses from the header what is too large; what is no picture is not decided here."""
    from PIL import Image

    message = f"{name} is too large: at most {MAX_PIXELS / 1e6:g} megapixels"
    try:
        with Image.open(io.BytesIO(data), formats=tuple(files.FORMATS)) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(message) from None
    except Exception:  # Pillow's decoders raise all sorts on damaged files.
        return
    if width * height > MAX_PIXELS:
        raise InputError(f"{message}, and this has {width * height / 1e6:.1f}")


def smaller(pixels: np.ndarray, step: int) -> np.ndarray:
    """A picture with one pixel for step x step."""
    from PIL import Image

    height, width = pixels[::step, ::step].shape[:2]
    if step == 1:
        return pixels
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def amplified(before: np.ndarray, after: np.ndarray, step: int = 1) -> np.ndarray:
    """uint8 of 128 + `AMPLIFICATION` (after − before), of every step-th pixel, cut to 0…255."""
    one, other = (pixels[::step, ::step].astype(np.int32) for pixels in (before, after))
    return np.clip(128 + AMPLIFICATION * (other - one), 0, 255).astype(np.uint8)


def marked(pixels: np.ndarray, faces: Sequence[FaceReport], scale: float) -> np.ndarray:
    """The picture with each face's box and number, as in the table of verdicts."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    size = max(12, max(image.size) // 40)
    for number, report in enumerate(faces, 1):
        left, top, width, height = (scale * edge for edge in report.face.box)
        line = max(1, size // 12)
        draw.rectangle((left, top, left + width, top + height), outline="white", width=line)
        place = (left + 3 * line, top + 2 * line)
        draw.text(
            place,
            str(number),
            "white",
            ImageFont.load_default(size),
            stroke_width=2,
            stroke_fill="black",
        )
    return np.asarray(image)


def _written(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    Image.fromarray(pixels).save(path, compress_level=1)
    return path


def summary(outcome: Outcome) -> str:
    """One line on a photo."""
    if outcome.message is not None:
        return outcome.message
    knowing = sum(not face.protected for face in outcome.faces)
    number = len(outcome.faces)
    faces = "1 face" if number == 1 else f"{number} faces"
    if not knowing:
        return f"{outcome.name}: {faces}, not known again by any recogniser asked."
    return (
        f"{outcome.name}: {faces}, of which a recogniser still knows {knowing} at the "
        "strongest change allowed."
    )


def forget(outcomes: Sequence[Outcome]) -> None:
    """Deletes what was made."""
    for outcome in outcomes:
        if outcome.output is not None:
            shutil.rmtree(outcome.output.parents[1], ignore_errors=True)
