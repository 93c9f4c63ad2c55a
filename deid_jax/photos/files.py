"""Photo files: decodes them upright, and encodes them in the same format without metadata.

A photo's file may also record where, when, by whom and with what camera it was taken, and hold
a thumbnail of the original. Metadata is written only on request, thumbnails never.
"""

import contextlib
import dataclasses
import io
import re
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from deid_jax.data.images import read_exif
from deid_jax.errors import InputError, TransientError, one_line
from deid_jax.photos import metadata
from deid_jax.photos.metadata import SaveArguments
from deid_jax.types import NumpyArray

# Formats in which a photo can be read and written again.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
# Protecting makes copies, at worst 22 bytes per pixel; this limit keeps them under 3 GB.
MAX_PIXELS = 100_000_000

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
# How a viewer turns the stored image, by EXIF orientation.
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
# Number of rows converted at a time, so that Pillow's copies stay small.
_ROWS = 256
# Common formats that are not supported.
_OTHERS = {
    "a GIF": rb"GIF8",
    "a HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "an AVIF": rb"....ftypavi",
    "a JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "a PDF": rb"%PDF",
}
_UNKNOWN = f"damaged or no image of {', '.join(FORMATS)}"
# Warning filters are global to the process.
_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Photo:
    """A decoded photo, and everything needed to write its file again.

    Attributes:
      pixels: uint8[H, W, 3], RGB, upright; stored colours where the photo is transparent.
      alpha: uint8[H, W], or None.
      grey: whether it only has shades of grey, in one channel or three; kept when written.
      one_channel: whether the file has a single colour channel.
      format: one of `FORMATS`.
      lossless: whether the written file decodes bit for bit.
      quality: for JPEG and WebP; at least 90, and for JPEG at least the file's own.
      icc_profile: the colour profile, or None.
      saving: further arguments of Pillow's `save`, always given.
      metadata: arguments of `save` that are given only if metadata is kept.
      tables: the quantisation tables of a JPEG of quality 90 or more, otherwise None.
      is_marked: whether it says that it is protected, see `with_mark`.
    """

    pixels: NumpyArray
    alpha: NumpyArray | None
    grey: bool
    one_channel: bool
    format: str
    lossless: bool
    quality: int
    icc_profile: bytes | None
    saving: SaveArguments
    metadata: SaveArguments
    tables: tuple[tuple[int, ...], ...] | None = None
    is_marked: bool = False

    def with_mark(self) -> "Photo":
        """The photo with `metadata.MARK`, so that its written file says that it is protected.

        EXIF's Software says it; a BMP, which has no EXIF, cannot.
        """
        return dataclasses.replace(
            self,
            saving=metadata.with_mark(self.saving),
            metadata=metadata.with_mark(self.metadata),
        )


def parse_photo(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Decodes the content of a photo file.

    Palettes become RGB, or RGBA if they have transparent colours; 1 bit becomes 8 bits of grey.
    The EXIF orientation is applied. The first image of a JPEG with several (a second view, a
    gain map) is the photo. Needs memory for the file and less than 8 bytes per pixel, of which
    3 or 4 remain in use.

    The content alone decides the format; the name is for messages. `max_pixels`, checked before
    decoding, is at most 178 956 970, Pillow's own limit.

    Raises:
      InputError: it is damaged or not in one of `FORMATS`; it has several frames, more than 8
        bits per channel, colours other than grey and RGB, or more than `max_pixels` pixels.
    """
    name = printable(name)
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
    except Exception as error:  # Pillow's decoders may raise any exception on damaged files.
        raise InputError(f"{name} cannot be read: {one_line(error)}") from error


def encode_photo(
    photo: Photo, pixels: NumpyArray, *, keep_metadata: bool = False, quality: int | None = None
) -> bytes:
    """Encodes new pixels in the photo's format.

    A JPEG keeps its quantisation tables if they are fine enough, so that unperturbed pixels
    stay nearly equal; its chroma is never coarser than before.

    Args:
      photo: the photo whose size, format, transparency, colour profile and greyness are kept.
      pixels: uint8[H, W, 3]; equal channels for a photo of one channel.
      keep_metadata: see `metadata.kept_on_request`.
      quality: of JPEG, which is then 4:4:4, and WebP; None keeps the photo's own settings.

    Raises:
      InputError: Pillow cannot encode it.
    """
    arguments: SaveArguments = dict(photo.saving)
    if photo.icc_profile is not None:
        arguments["icc_profile"] = photo.icc_profile
    if not photo.lossless:
        arguments["quality"] = photo.quality if quality is None else quality
    if photo.tables is not None and photo.quality == arguments["quality"]:
        arguments["qtables"] = photo.tables
        del arguments["quality"]
    if quality is not None and photo.format == "JPEG":
        arguments["subsampling"] = metadata.FINEST_CHROMA
    if keep_metadata:
        arguments |= photo.metadata
    target = io.BytesIO()
    image = _image(photo, pixels)
    try:
        with _quietly():
            image.save(target, photo.format, **arguments)
    except Exception as error:  # So may Pillow's encoders.
        if keep_metadata:  # Better to drop damaged metadata than to fail.
            return encode_photo(photo, pixels, quality=quality)
        raise InputError(
            f"a {photo.format} of this photo cannot be made: {one_line(error)}"
        ) from error
    return target.getvalue()


def _check(image: Image.Image, data: bytes, name: str, max_pixels: int) -> None:
    """Refuses photos that could not be written again in the same form, by their header."""
    if image.width * image.height > max_pixels:
        raise InputError(
            f"{name} has more than {max_pixels} pixels: {image.width}x{image.height}"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(f"{name} has {frames} frames, not one")
    bits = 8
    if image.format == "PNG":
        bits = metadata.bits_of_png(data)
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
    # Pillow rotates a TIFF when it loads it, and drops the orientation.
    exif = read_exif(image)
    before = exif.get(_ORIENTATION, 1) if kind == "TIFF" else 1
    marks = metadata.is_marked(exif)
    image.load()
    if kind == "PNG" and image.mode == "L" and "transparency" in image.info:
        # Pillow scales grey levels of 2 and 4 bits to 8 bits, but not the transparent level.
        image.info["transparency"] *= {2: 85, 4: 17}.get(metadata.bits_of_png(data), 1)
    orientation = image.getexif().get(_ORIENTATION, 1)
    sideways = before in _SIDEWAYS or orientation in _SIDEWAYS
    saving = metadata.kept_always(image, data, sideways=sideways)
    quality, tables = 100, None
    lossless = kind != "JPEG" and (kind != "WEBP" or metadata.is_lossless_webp(data))
    if kind == "JPEG":
        saving["progressive"] = bool(image.info.get("progressive"))
        saving["subsampling"] = metadata.subsampling(image, sideways)
        quality, tables = metadata.quantisation(image, sideways)
    elif kind == "WEBP":
        quality = _WEBP_QUALITY
        # `exact` keeps the colours of transparent pixels.
        saving |= {"lossless": True, "exact": True} if lossless else {"exact": True}
    elif kind == "TIFF":
        saving["compression"] = "tiff_lzw"
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    on_request = metadata.kept_on_request(image, data, upright.size)
    one_channel = image.mode in ("1", "L", "LA")
    if upright is not image:
        image.close()  # Frees its memory.
    pixels, alpha = _arrays(upright)
    return Photo(
        pixels=pixels,
        alpha=alpha,
        grey=one_channel or is_grey(pixels),
        one_channel=one_channel,
        format=kind,
        lossless=lossless,
        quality=quality,
        icc_profile=image.info.get("icc_profile") or None,
        saving=saving,
        metadata=on_request,
        tables=tables,
        is_marked=marks,
    )


def _arrays(image: Image.Image) -> tuple[NumpyArray, NumpyArray | None]:
    """Pixels and alpha of an image in one of `_MODES`."""
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


def _image(photo: Photo, pixels: NumpyArray) -> Image.Image:
    """A Pillow image with the file's channels."""
    levels = pixels[..., 0] if photo.one_channel else pixels
    colour = Image.fromarray(np.ascontiguousarray(levels))
    if photo.alpha is not None:
        colour.putalpha(Image.fromarray(photo.alpha))
    return colour


def is_grey(pixels: NumpyArray) -> bool:
    """Whether channels differ by at most one level, as they do in lossy grey files."""
    for top in range(0, len(pixels), _ROWS):
        rows = pixels[top : top + _ROWS]
        if np.any(rows.max(axis=2) - rows.min(axis=2) > 1):
            return False
    return True


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences Pillow's warnings: their causes are either refused or harmless."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def printable(text: str) -> str:
    """Text with unprintable characters escaped: file names may hold anything."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
