"""Photo files: read upright, and written in the same format without what else they tell.

Beside its pixels a photo's file may say where and when it was taken, by whom and with what,
and hold a small copy of the picture before it was changed. None of that is written unless asked
for, and the small copy never.
"""

import dataclasses
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin

from deid_jax._validate import InputError
from deid_jax.data.images import MAX_PIXELS
from deid_jax.jpeg import LUMINANCE

# Formats that can be written again as they were; the suffixes that folders are searched for.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
SUFFIXES = frozenset(suffix for own in FORMATS.values() for suffix in own)
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
# Ends the names of files that are being written.
UNFINISHED = ".unfinished"
# Below this quality a change this small would hardly outlive the encoder.
_LEAST_QUALITY = 90


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as it is to be seen, and what its file needs to be written again.

    Attributes:
      pixels: uint8[H, W, 3], RGB, upright.
      alpha: uint8[H, W], or None.
      grey: whether the file has one channel of colour.
      format: a key of `FORMATS`.
      lossless: whether what is written is read back bit for bit.
      quality: of JPEG and WebP; at least 90.
      saving: further arguments of Pillow's `save`: the colour profile and the like.
      metadata: those that are given only if metadata are to be kept.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    grey: bool
    format: str
    lossless: bool
    quality: int
    saving: Mapping[str, Any]
    metadata: Mapping[str, Any]


def read_photo(path: str | Path) -> Photo:
    """Reads a file; its content decides the format, not its name.

    Raises:
      InputError: see `parse_photo`.
    """
    try:
        return parse_photo(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def parse_photo(data: bytes, name: str) -> Photo:
    """Reads a file's content.

    Palettes become RGB, or RGBA where they have transparent colours; 1 bit becomes grey.

    Args:
      data: the content.
      name: what messages call it.

    Raises:
      InputError: it is damaged or no picture of `FORMATS`; it has several frames, more than 8
        bits a channel or colours other than grey and RGB, which would not stay as they are; or
        over `MAX_PIXELS`, which is looked at before anything is decoded.
    """
    if not data:
        raise InputError(f"{name} is an empty file")
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            _check(image, data, name)
            return _photo(image)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{name} is no picture of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's decoders raise all sorts on damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot be read: {reason}") from error


def _check(image: Image.Image, data: bytes, name: str) -> None:
    """Refuses, from the header, what cannot be written again as it was."""
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels")
    if getattr(image, "n_frames", 1) > 1 and image.format != "JPEG":
        raise InputError(f"{name} has {getattr(image, 'n_frames', 1)} frames, not one")
    bits = 8
    if image.format == "PNG":
        bits = data[24]
    elif image.format == "TIFF":
        bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))
    if bits > 8 or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise InputError(f"{name} has more than 8 bits a channel")
    if image.mode not in _MODES:
        raise InputError(f"{name} is neither grey nor RGB but {image.mode}")


def _photo(image: Image.Image) -> Photo:
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    saving, metadata = _arguments(image)
    quality, lossless = 100, kind not in ("JPEG", "WEBP")
    if kind == "JPEG":
        quality = max(_LEAST_QUALITY, _quality_of(image))
    elif kind == "WEBP":
        quality = 95
    upright = ImageOps.exif_transpose(image)
    transparent = upright.has_transparency_data
    grey = upright.mode in ("1", "L", "LA")
    if upright.mode == "1":
        upright = upright.convert("LA" if transparent else "L")
    whole = np.asarray(upright.convert("RGBA" if transparent else "RGB"))
    return Photo(
        pixels=np.ascontiguousarray(whole[..., :3]),
        alpha=np.ascontiguousarray(whole[..., 3]) if transparent else None,
        grey=grey,
        format=kind,
        lossless=lossless,
        quality=quality,
        saving=saving,
        metadata=metadata,
    )


def _arguments(image: Image.Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save` is given in any case, and what to keep metadata."""
    saving: dict[str, Any] = {}
    if image.info.get("icc_profile"):
        saving["icc_profile"] = image.info["icc_profile"]
    if image.format in ("JPEG", "MPO"):
        saving["progressive"] = bool(image.info.get("progressive"))
        sampling = JpegImagePlugin.get_sampling(image)
        saving["subsampling"] = sampling if sampling >= 0 else 0
    if image.format == "TIFF":
        saving["compression"] = "tiff_lzw"
    metadata: dict[str, Any] = {}
    exif = image.getexif()
    exif.pop(_ORIENTATION, None)
    if len(exif) and image.format != "BMP":
        # Pillow writes the main directory and its sub-directories, never the thumbnail's.
        metadata["exif"] = exif.tobytes()
    if image.format in ("JPEG", "MPO", "WEBP") and image.info.get("xmp"):
        metadata["xmp"] = image.info["xmp"]
    if image.format in ("JPEG", "MPO") and image.info.get("comment"):
        metadata["comment"] = image.info["comment"]
    if image.format == "PNG":
        image.load()  # Texts may follow the pixels.
        texts = PngImagePlugin.PngInfo()
        for key, value in getattr(image, "text", {}).items():
            texts.add_itxt(key, str(value))
        metadata["pnginfo"] = texts
    return saving, metadata


def _quality_of(image: Image.Image) -> int:
    """The quality whose luminance table, of the JPEG standard's example, is nearest."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return _LEAST_QUALITY
    qualities = np.arange(_LEAST_QUALITY, 101)
    factors = 2 - qualities / 50
    # The sum of a table is what most tells its scale.
    sums = [np.clip(np.floor(np.array(LUMINANCE) * f + 0.5), 1, 255).sum() for f in factors]
    return int(qualities[np.argmin(np.abs(np.array(sums) - sum(tables[0])))])


def encode(
    photo: Photo, pixels: np.ndarray, *, keep_metadata: bool = False, quality: int | None = None
) -> bytes:
    """The file with other pixels.

    Args:
      photo: whose size, format, transparency, colour profile and greyness are kept.
      pixels: uint8[H, W, 3]; of a grey photo all channels alike.
      keep_metadata: whether EXIF, GPS, XMP, comments and texts stay, but for the orientation,
        which was applied, and small copies of the picture.
      quality: of JPEG and WebP; None: the photo's own, at least 90.
    """
    colours = pixels[..., :1] if photo.grey else pixels
    if photo.alpha is not None:
        colours = np.concatenate([colours, photo.alpha[..., None]], axis=2)
    image = Image.fromarray(colours[..., 0] if colours.shape[2] == 1 else colours)
    arguments = dict(photo.saving)
    if not photo.lossless:
        arguments["quality"] = photo.quality if quality is None else quality
    if keep_metadata:
        arguments |= photo.metadata
    target = io.BytesIO()
    image.save(target, photo.format, **arguments)
    return target.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under another name first: it is there whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name[:64]}.{uuid.uuid4().hex}{UNFINISHED}"
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
