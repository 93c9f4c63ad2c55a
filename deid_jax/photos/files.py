"""Photo files: read upright, and written in the same format without what else they tell.

Beside its pixels a photo's file may say where and when it was taken, by whom and with what,
and hold a small copy of the picture before it was changed. None of that is written unless asked
for, and the small copy never. Read and written is by Pillow, one photo at a time.
"""

import contextlib
import dataclasses
import io
import os
import re
import stat
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deid_jax.errors import InputError, TransientError
from deid_jax.photos import metadata as notes

# Formats that can be written again as they were; the suffixes that folders are searched for.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
SUFFIXES = frozenset(suffix for own in FORMATS.values() for suffix in own)
# With all copies that protecting makes, 22 bytes a pixel at worst, it stays under 3 GB.
MAX_PIXELS = 100_000_000
# Ends the names of files that are being written.
UNFINISHED = ".unfinished"

_MAX_BYTES = 2**30
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
# What a viewer does with the stored picture, by EXIF's orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_WEBP_QUALITY = 95
# Rows that are turned into numbers at a time: Pillow's copies of them stay small.
_ROWS = 256
# Pictures that many cameras and programs write, which `FORMATS` lacks.
_OTHERS = {
    "a GIF": rb"GIF8",
    "a HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "an AVIF": rb"....ftypavi",
    "a JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "a PDF": rb"%PDF",
}
_UNKNOWN = f"damaged or no picture of {', '.join(FORMATS)}"
# Filters of warnings belong to the whole process.
_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as it is to be seen, and what its file needs to be written again.

    Attributes:
      pixels: uint8[H, W, 3], RGB, upright; where it is transparent the colours that lie there.
      alpha: uint8[H, W], or None.
      grey: whether it shows shades of grey only, in one channel or three: so must what is
        written.
      one_channel: whether the file has one channel of colour.
      format: a key of `FORMATS`.
      lossless: whether what is written is read back bit for bit.
      quality: of JPEG and WebP; at least 90, and of JPEG at least the file's.
      icc_profile: the colour profile; None if it has none.
      saving: further arguments of Pillow's `save` that are always given.
      metadata: those that are given only if metadata are to be kept.
      tables: of JPEG, its quantisation if that is of 90 and more; None: by `quality`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    one_channel: bool
    format: str
    lossless: bool
    quality: int
    icc_profile: bytes | None
    saving: Mapping[str, Any]
    metadata: Mapping[str, Any]
    tables: tuple[tuple[int, ...], ...] | None = None


def read_photo(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a file; its content decides the format, not its name.

    Raises:
      InputError: see `read_content` and `parse_photo`.
    """
    return parse_photo(read_content(path), str(path), max_pixels=max_pixels)


def read_content(path: str | Path) -> bytes:
    """Reads the bytes of a file.

    Raises:
      InputError: it is missing, no file, not readable, or over 1 GiB.
    """
    name = _shown(str(path))
    try:
        status = Path(path).stat()
        # Others, such as pipes, may never end.
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is no file")
        if status.st_size > _MAX_BYTES:
            raise InputError(f"{name} is larger than 1 GiB")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error


def parse_photo(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a file's content.

    Palettes become RGB, or RGBA where they have transparent colours; 1 bit becomes grey of 8.
    EXIF's orientation is applied. Of a JPEG that holds several pictures (a second view, a gain
    map) the first is the photo. Memory: the file, and under 8 bytes a pixel, 3 or 4 of which
    stay.

    Args:
      data: the content.
      name: what messages call it.
      max_pixels: at most 178 956 970, Pillow's own bound; looked at before decoding.

    Raises:
      InputError: it is damaged or no picture of `FORMATS`; it has several frames, more than 8
        bits a channel, or colours other than grey and RGB, which would not stay as they are;
        or more pixels than `max_pixels`. The message is one line.
    """
    name = _shown(name)
    if not data:
        raise InputError(f"{name} is an empty file")
    try:
        with _quietly(), Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            _check(image, data, name, max_pixels)
            return _photo(image, data)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        kinds = (
            f"{kind}, which cannot be written again: photos must be {', '.join(FORMATS)}"
            for kind, start in _OTHERS.items()
            if re.match(start, data, re.DOTALL)
        )
        raise InputError(f"{name} is {next(kinds, _UNKNOWN)}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {max_pixels} pixels") from error
    except MemoryError as error:
        raise TransientError(f"{name} does not fit into memory") from error
    except Exception as error:  # Pillow's decoders raise all sorts on damaged files.
        raise InputError(f"{name} cannot be read: {_reason(error)}") from error


def decode(data: bytes) -> np.ndarray:
    """What a file shows: uint8[H, W, 3], upright; where transparent the colours that lie there.

    Raises:
      InputError: see `parse_photo`.
    """
    return parse_photo(data, "the file").pixels


def encode(
    photo: Photo, pixels: np.ndarray, *, keep_metadata: bool = False, quality: int | None = None
) -> bytes:
    """The file with other pixels, upright.

    In lossless formats (all but JPEG and most WebP) they are read back bit for bit. The photo's
    own quality means a JPEG's own quantisation, so that where pixels are as they were they
    hardly change; chroma is never coarser than it was.

    Args:
      photo: whose size, format, transparency, colour profile and greyness are kept.
      pixels: uint8[H, W, 3]; of a photo of one channel all channels alike.
      keep_metadata: whether EXIF, GPS, XMP, IPTC, comments and texts stay, as far as
        `metadata.kept_on_request` says; small copies of the picture never do.
      quality: of JPEG and WebP, 1 to 100; None: the photo's own.

    Raises:
      InputError: the pixels are not of that kind, or the file cannot be made.
    """
    if pixels.dtype != np.uint8 or pixels.shape != photo.pixels.shape:
        raise InputError(
            f"pixels must be uint8{list(photo.pixels.shape)}, got {pixels.dtype}"
            f"{list(pixels.shape)}"
        )
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"quality must be between 1 and 100, got {quality}")
    arguments = dict(photo.saving)
    if photo.icc_profile is not None:
        arguments["icc_profile"] = photo.icc_profile
    if photo.tables is not None and quality in (None, photo.quality):
        arguments["qtables"] = photo.tables
    elif not photo.lossless:
        arguments["quality"] = photo.quality if quality is None else quality
    if keep_metadata:
        arguments |= photo.metadata
    target = io.BytesIO()
    image = _image(photo, pixels)
    try:
        with _quietly():
            image.save(target, photo.format, **arguments)
    except Exception as error:  # Pillow's encoders raise all sorts, too.
        if keep_metadata:  # Damaged ones are lost, rather than the photo.
            return encode(photo, pixels, quality=quality)
        raise InputError(
            f"a {photo.format} of this photo cannot be made: {_reason(error)}"
        ) from error
    return target.getvalue()


def write_photo(path: str | Path, data: bytes, *, original: str | Path | None = None) -> None:
    """`write_whole`, and never over the photo that was read.

    Args:
      path: the file.
      data: its content.
      original: the photo that it was made of.

    Raises:
      InputError: `path` is the original, by whatever name, or cannot be written.
    """
    path, name = Path(path), _shown(str(path))
    try:
        if original is not None and path.exists() and path.samefile(original):
            raise InputError(f"{name} is the original, which is never written over")
        write_whole(path, data)
    except OSError as error:
        raise InputError(f"{name} cannot be written: {error.strerror}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name first: it is there whole, or as it was before.

    Folders above it are made. Killed, it may leave a file whose name ends in `UNFINISHED`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short: names have a longest length.
    unfinished = path.parent / f".{uuid.uuid4().hex}{UNFINISHED}"
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check(image: Image.Image, data: bytes, name: str, max_pixels: int) -> None:
    """Refuses, from the header, what cannot be written again as it was."""
    if image.width * image.height > max_pixels:
        raise InputError(
            f"{name} has more than {max_pixels} pixels: {image.width}x{image.height}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(f"{name} has {frames} frames, not one")
    bits = 8
    if image.format == "PNG":
        bits = notes.bits_of_png(data)
    elif image.format == "TIFF":
        bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))
    if bits > 8 or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise InputError(f"{name} has more than 8 bits a channel")
    if image.mode not in _MODES:
        raise InputError(f"{name} is neither grey nor RGB but {image.mode}")
    if image.format == "BMP" and image.mode == "RGBA":
        raise InputError(f"{name} is a transparent BMP, which cannot be written")


def _photo(image: Image.Image, data: bytes) -> Photo:
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    # Pillow turns a TIFF as it loads it, and forgets that it did.
    before = image.getexif().get(_ORIENTATION, 1) if kind == "TIFF" else 1
    image.load()
    if kind == "PNG" and image.mode == "L" and "transparency" in image.info:
        # Pillow scales grey of 2 and 4 bits to 8, but not the grey that is transparent.
        image.info["transparency"] *= {2: 85, 4: 17}.get(notes.bits_of_png(data), 1)
    orientation = image.getexif().get(_ORIENTATION, 1)
    sideways = before in _SIDEWAYS or orientation in _SIDEWAYS
    saving = notes.kept_always(image, data, sideways=sideways)
    quality, tables = 100, None
    lossless = kind != "JPEG" and (kind != "WEBP" or notes.is_lossless_webp(data))
    if kind == "JPEG":
        saving["progressive"] = bool(image.info.get("progressive"))
        saving["subsampling"] = notes.subsampling(image, sideways)
        quality, tables = notes.quantisation(image, sideways)
    elif kind == "WEBP":
        quality = _WEBP_QUALITY
        # Exact: colours stay where they are transparent.
        saving |= {"lossless": True, "exact": True} if lossless else {"exact": True}
    elif kind == "TIFF":
        saving["compression"] = "tiff_lzw"
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    metadata = notes.kept_on_request(image, data, upright.size)
    one_channel = image.mode in ("1", "L", "LA")
    if upright is not image:
        image.close()  # Its memory is free.
    pixels, alpha = _arrays(upright)
    return Photo(
        pixels=pixels,
        alpha=alpha,
        grey=one_channel or _is_grey(pixels),
        one_channel=one_channel,
        format=kind,
        lossless=lossless,
        quality=quality,
        icc_profile=image.info.get("icc_profile") or None,
        saving=saving,
        metadata=metadata,
        tables=tables,
    )


def _arrays(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of a picture of `_MODES`, row by row."""
    transparent = image.has_transparency_data
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty(pixels.shape[:2], np.uint8) if transparent else None
    for top in range(0, image.height, _ROWS):
        rows = slice(top, min(top + _ROWS, image.height))
        part = image.crop((0, rows.start, image.width, rows.stop))
        if part.mode == "1":
            part = part.convert("LA" if transparent else "L")
        levels = np.asarray(part.convert("RGBA" if transparent else "RGB"))
        pixels[rows] = levels[..., :3]
        if alpha is not None:
            alpha[rows] = levels[..., 3]
    return pixels, alpha


def _image(photo: Photo, pixels: np.ndarray) -> Image.Image:
    """Pillow's picture of the file's channels."""
    if photo.one_channel:
        if not all(np.array_equal(pixels[..., 0], pixels[..., n]) for n in (1, 2)):
            raise InputError("pixels of a photo of one channel must be grey")
        colour = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    else:
        colour = Image.fromarray(np.ascontiguousarray(pixels))
    if photo.alpha is not None:
        colour.putalpha(Image.fromarray(photo.alpha))
    return colour


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether channels differ by one level at most, as a lossy file of grey lets them."""
    for top in range(0, len(pixels), _ROWS):
        rows = pixels[top : top + _ROWS]
        if np.any(rows.max(axis=2) - rows.min(axis=2) > 1):
            return False
    return True


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps Pillow from warning of what is refused or does no harm."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _shown(name: str) -> str:
    """A name in one line that any terminal can show."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )


def _reason(error: Exception) -> str:
    """One line of what an error says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _shown(" ".join(str(error).split())) or type(error).__name__
