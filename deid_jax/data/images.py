"""Decoding, cropping and resizing: from an image file to the face crop that the models see.

Pixels are uint8[H, W, 3] in sRGB; boxes are (left, top, right, bottom) in pixels, right and
bottom exclusive. Colour profiles are ignored, as in the recognisers' training sets.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from deid_jax.errors import InputError, one_line
from deid_jax.types import NumpyArray

Box = tuple[int, int, int, int]

# Only these of Pillow's decoders are used on the files: fewer surprises.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MIN_PIXELS_A_SIDE = 8
MAX_PIXELS = 89_478_485  # Pillow's own limit, 2**30 // 12, at which Pillow only warns
THUMBNAIL_SIZE = 24
FILTER = Image.Resampling.LANCZOS

CELEBA_SIZE = (178, 218)
# Eyes, nose and corners of the mouth in its aligned images.
CELEBA_LANDMARKS = np.array(
    [[69.0, 111.5], [108.0, 111.5], [88.0, 134.0], [72.0, 152.5], [105.5, 152.5]]
)
_CELEBA_BOX = (25, 62, 153, 190)
# Maps the centres of its pixels to those of the template's.
_TEMPLATE_SIZE = 112
# What Pillow calls EXIF's orientation, and XMP.
_ORIENTATION = ExifTags.Base.Orientation
_XMP = ("xmp", "XML:com.adobe.xmp")
CELEBA_TO_TEMPLATE = np.array([[0.94596, 0.00183, -27.934], [-0.00183, 0.94596, -53.182]])


def decode_image(path_or_bytes: Path | str | bytes, name: str) -> NumpyArray:
    """The first frame of an image, upright.

    EXIF orientation is applied; grey, 1-bit, palette and CMYK images become RGB; 16-bit grey
    is divided by 257 and rounded; transparent areas become white.

    Returns uint8[H, W, 3]; `name` is the image's name in messages.

    Raises:
      InputError: the file is not a complete image in one of `FORMATS`, is less than 8 pixels
        wide or high, or has more than `MAX_PIXELS`. The message is one line.
    """
    if isinstance(path_or_bytes, bytes):
        source: Path | io.BytesIO = io.BytesIO(path_or_bytes)
    else:
        source = Path(path_or_bytes)
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check_size(image, name)
            read_exif(image)
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels") from error
    except Image.UnidentifiedImageError as error:
        empty = (
            "an empty file" if _is_empty(path_or_bytes) else "not an image in a known format"
        )
        raise InputError(f"{name} is {empty}") from error
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions
        raise InputError(f"{name} cannot be read: {one_line(error)}") from error


def read_exif(image: Image.Image) -> Image.Exif:
    """The EXIF in the file of an image that is not loaded yet; Pillow keeps it.

    Without an orientation there, Pillow would apply XMP's, which viewers ignore.
    """
    if image.format == "PNG":
        image.load()  # Its XMP may follow its pixels.
    xmp = {name: image.info.pop(name) for name in _XMP if name in image.info}
    try:
        found = image.getexif()
    finally:
        for name, value in xmp.items():
            image.info[name] = value
    # Of a JPEG with EXIF but no density Pillow has read both when it opened the file.
    if _ORIENTATION in found and "exif" in image.info:
        own = Image.Exif()
        own.load(image.info["exif"])
        if _ORIENTATION not in own:
            del found[_ORIENTATION]
    return found


def _is_empty(path_or_bytes: Path | str | bytes) -> bool:
    if isinstance(path_or_bytes, bytes):
        return not path_or_bytes
    return Path(path_or_bytes).stat().st_size == 0


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels: {width}x{height}")
    if min(width, height) < MIN_PIXELS_A_SIDE:
        raise InputError(
            f"{name} is {width}x{height}: an image needs {MIN_PIXELS_A_SIDE} pixels a side"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any of Pillow's modes to RGB; for 16-bit grey and alpha see `decode_image`."""
    if image.mode == "F":
        raise ValueError("pixels are floating point, of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # "I" holds 16 bits here: PGM with more than 255 levels, scaled to 65535 by Pillow.
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silences Pillow's warnings about damaged metadata and bombs while many images load.

    Bombs are refused anyway. Warning filters are global to the process, so the thread that
    starts the others calls this, not each of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _square(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _celeba(width: int, height: int) -> Box:
    scales = (width / CELEBA_SIZE[0], height / CELEBA_SIZE[1]) * 2
    left, top, right, bottom = (
        round(edge * scale) for edge, scale in zip(_CELEBA_BOX, scales, strict=True)
    )
    return left, top, right, bottom


# Name -> (width, height) -> box.
#   square: the largest centred square.
#   celeba: x 25..153 of 178, y 62..190 of 218 (a square there; scaled with other images):
#     the face from hairline to chin in CelebA's aligned geometry, eyes at (69, 111.5) and
#     (108, 111.5), mouth at y = 152.5.
#   none: the whole image; `resize` then ignores its aspect.
#   auto: celeba for images of exactly 178x218, square for all others.
BOXES: dict[str, Callable[[int, int], Box]] = {
    "auto": lambda *size: (_celeba if size == CELEBA_SIZE else _square)(*size),
    "celeba": _celeba,
    "none": lambda width, height: (0, 0, width, height),
    "square": _square,
}
# These, and the template of recognisers for 112x112 px, which has no box but uses `align`.
CROPS = (*BOXES, "arcface")


def face_crop(pixels: NumpyArray, name: str, image_size: int) -> NumpyArray:
    """Applies the crop called `name` to uint8[H, W, 3]: uint8[image_size, image_size, 3].

    Raises:
      InputError: no crop has that name, or it does not apply to images of this size.
    """
    if name not in CROPS:
        raise InputError(f"crop must be one of {', '.join(CROPS)}, got {name}")
    if name == "arcface":
        return align(pixels, image_size)
    return resize(crop(pixels, name), image_size)


def align(pixels: NumpyArray, image_size: int) -> NumpyArray:
    """Aligns an image in CelebA's aligned geometry, 178x218, to the ArcFace template.

    Eyes, nose and mouth corners end up within two pixels of (38.3, 51.7), (73.5, 51.5),
    (56.0, 71.7), (41.5, 92.4) and (70.7, 92.2) of 112, by the least-squares similarity
    transform of these five points with bicubic resampling. Images of 112x112 are taken to be
    aligned already.

    Raises:
      InputError: the image has another size.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (_TEMPLATE_SIZE, _TEMPLATE_SIZE):
        return resize(pixels, image_size)
    if (width, height) != CELEBA_SIZE:
        raise InputError(
            "crop=arcface needs images of 178x218 (CelebA's aligned geometry) or 112x112 "
            f"(aligned already), got {width}x{height}"
        )
    # Pillow maps pixel corners, from the result to the image; the matrix maps pixel centres.
    size = max(image_size, _TEMPLATE_SIZE)
    linear, offset = CELEBA_TO_TEMPLATE[:, :2], CELEBA_TO_TEMPLATE[:, 2]
    inverse = np.linalg.inv(linear) * (_TEMPLATE_SIZE / size)
    start = 0.5 - np.linalg.inv(linear) @ (offset + 0.5)
    coefficients = np.column_stack([inverse, start]).ravel().tolist()
    image = Image.fromarray(pixels).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return resize(np.array(image), image_size)


def crop(pixels: NumpyArray, name: str) -> NumpyArray:
    """The part of uint8[H, W, 3] that a crop of `BOXES` keeps, a view."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = BOXES[name](width, height)
    return pixels[top:bottom, left:right]


def resize(pixels: NumpyArray, image_size: int) -> NumpyArray:
    """Resizes uint8[H, W, 3] to uint8[image_size, image_size, 3], down or up.

    It uses Pillow's LANCZOS, whose kernel widens with the reduction and so antialiases. An
    image of that size is returned unchanged.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((image_size, image_size), FILTER))


def thumbnail(pixels: NumpyArray) -> NumpyArray:
    """Grey uint8[24, 24] of uint8[H, W, 3], area-averaged, for finding near-duplicates."""
    grey = Image.fromarray(pixels).convert("L")
    return np.array(grey.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX))
