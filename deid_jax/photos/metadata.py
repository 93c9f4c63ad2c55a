"""Metadata of photo files: what is always kept, and what is kept on request.

Metadata without which a photo would look wrong (a PNG's colour space, the density) is always
kept. EXIF with GPS, XMP, IPTC, comments and texts are kept on request, without any thumbnail
that can be recognised as one. Nothing else is ever carried over.
"""

import contextlib
import functools
import io
import re
import struct
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

# Arguments of Pillow's `save`.
SaveArguments: TypeAlias = dict[str, object]
# A coarser JPEG would remove so small a perturbation.
LEAST_QUALITY = 90
FINEST_CHROMA = 0
# Written into EXIF's Software on request.
MARK = "deid_jax: faces are protected"
_HALF_WIDTH_CHROMA = 1

_ORIENTATION = 0x0112
_XMP = 0x02BC
# Chunks that define a PNG's colour space, and their lengths: longer ones could hold anything.
_PNG_COLOURS = {b"cHRM": 32, b"cICP": 4, b"gAMA": 4, b"sRGB": 1}
_XMP_IN_PNG = "XML:com.adobe.xmp"
_IPTC_IN_PHOTOSHOP = 0x0404
# Tags that describe the pixel layout of a TIFF or thumbnail, that `save` writes itself
# (density, profile), or that hold images (Photoshop's resources, sub-directories, JPEGs).
_LAYOUT = frozenset(
    tag
    for first, last in (
        *((254, 268), (273, 273), (277, 284), (288, 293), (296, 297), (301, 301), (317, 347)),
        *((512, 521), (529, 532), (_XMP, _XMP), (34377, 34377), (34675, 34675)),
        *((37724, 37724), (50341, 50341)),
    )
    for tag in range(first, last + 1)
)
# A JPEG marker holds 65533 bytes, including its name.
_LONGEST_IN_JPEG = 65_400
_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n"
# An image in a text is base64, possibly with line breaks, which are references in XML.
_BASE64 = r"(?:[A-Za-z0-9+/]{40,}+={0,2}(?:&#x[aAdD];|&#1[03];|\s)*+)+[A-Za-z0-9+/]*+={0,2}"
_LONGEST_WORD = 160


def kept_always(image: Image.Image, data: bytes, *, sideways: bool) -> SaveArguments:
    """A PNG's colour space, and the density in dots per inch.

    `sideways` says whether width and height are swapped when the image is turned upright.
    """
    kept: SaveArguments = {}
    if image.format == "PNG":
        kept["pnginfo"] = _png_info(data)
    density = _density(image.info.get("dpi"))
    if density is not None:
        kept["dpi"] = density[::-1] if sideways else density
    return kept


def kept_on_request(image: Image.Image, data: bytes, size: tuple[int, int]) -> SaveArguments:
    """Metadata beyond `kept_always`, or in place of some of it.

    Thumbnails are dropped: those of EXIF, maker notes and other values that contain a JPEG or
    PNG, Photoshop's resources other than IPTC, base64 in XMP and texts, and further images
    (MPF, gain maps, depth) or videos after the first. Anything that Pillow does not read is
    dropped as well: extended XMP, all comments but the last, other segments. A thumbnail in a
    camera maker's own format cannot be recognised. The size is that of the upright image.
    """
    kept: SaveArguments = {}
    jpeg = image.format in ("JPEG", "MPO")
    exif = _exif(image, size)
    packet = _xmp(image.info.get("xmp"))
    if packet and image.format == "TIFF":
        exif[_XMP] = packet
    elif packet and image.format != "PNG":
        kept["xmp"] = packet
    # Damaged values may raise any exception; what cannot be written is dropped.
    with contextlib.suppress(Exception):
        whole = exif.tobytes()
        if len(exif) and (not jpeg or len(whole) < _LONGEST_IN_JPEG):
            kept["exif"] = whole
            if image.format == "TIFF":
                # Uses Pillow's own writer: libtiff loses GPS and may crash on odd tags.
                kept["compression"] = "raw"
    if jpeg and isinstance(image.info.get("comment"), bytes):
        kept["comment"] = image.info["comment"]
    iptc = image.info.get("photoshop", {}).get(_IPTC_IN_PHOTOSHOP) if jpeg else None
    if isinstance(iptc, bytes) and len(iptc) < _LONGEST_IN_JPEG:
        kept["extra"] = _iptc_segment(iptc)
    if image.format == "PNG":
        kept["pnginfo"] = _png_notes(image, data)
    return kept


def with_mark(arguments: SaveArguments) -> SaveArguments:
    """The arguments with `MARK` in their EXIF, in place of the software named there."""
    exif = Image.Exif()
    known = arguments.get("exif")
    if isinstance(known, bytes):
        exif.load(known)
    exif[ExifTags.Base.Software] = MARK
    return arguments | {"exif": exif.tobytes()}


def is_marked(exif: Image.Exif) -> bool:
    """Whether EXIF holds `MARK`."""
    return str(exif.get(ExifTags.Base.Software, "")).startswith(MARK)


def is_lossless_webp(data: bytes) -> bool:
    """Whether a WebP's first frame is lossless (VP8L)."""
    stream = io.BytesIO(data)
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name in (b"VP8 ", b"VP8L"):
            return bool(name == b"VP8L")
        # An animation's frame begins with a header of 16 bytes.
        stream.seek(16 if name == b"ANMF" else length + length % 2, io.SEEK_CUR)
    return False


def bits_of_png(data: bytes) -> int:
    """A PNG's bits per channel, from the header."""
    return data[24]


def subsampling(image: Image.Image, sideways: bool) -> int:
    """Pillow's number for the chroma subsampling; the finest if there is none."""
    found = JpegImagePlugin.get_sampling(image)
    if found < 0 or (sideways and found == _HALF_WIDTH_CHROMA):
        return FINEST_CHROMA
    return found


def quantisation(
    image: Image.Image, sideways: bool
) -> tuple[int, tuple[tuple[int, ...], ...] | None]:
    """The lowest quality of at least 90 as fine as a JPEG's, and its tables if of at least 90.

    The fineness of a table is measured by its sum.
    """
    own: dict[int, list[int]] = getattr(image, "quantization", {})
    tables = [own[number] for number in sorted(own)]
    sums = {quality: _sums_of_tables(quality) for quality in range(LEAST_QUALITY, 101)}
    quality = LEAST_QUALITY
    for number, table in enumerate(tables):
        as_fine = (q for q, known in sums.items() if known[min(number, 1)] <= sum(table))
        quality = max(quality, next(as_fine, 100))
    limits = sums[LEAST_QUALITY]
    if any(sum(table) > limits[min(number, 1)] for number, table in enumerate(tables)):
        return quality, None
    squares = (np.array(table).reshape(8, 8) for table in tables)
    turned = (square.T if sideways else square for square in squares)
    return quality, tuple(tuple(square.ravel().tolist()) for square in turned) or None


@functools.cache
def _sums_of_tables(quality: int) -> tuple[int, int]:
    """Sums of Pillow's luma and chroma tables."""
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, "JPEG", quality=quality)
    with Image.open(written, formats=("JPEG",)) as image:
        # Pillow declares the attribute only for its JPEG class.
        tables = image.quantization  # type: ignore[attr-defined]
    return sum(tables[0]), sum(tables[1])


def _density(value: object) -> tuple[float, float] | None:
    try:
        # `value` is whatever a file holds: anything but two numbers raises.
        across, down = (float(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    fits = all(1 <= number < 65_535 for number in (across, down))
    return (across, down) if fits else None


def _exif(image: Image.Image, size: tuple[int, int]) -> Image.Exif:
    """New upright EXIF without images and pixel layout; empty if the original is damaged."""
    fresh = Image.Exif()
    try:
        found = image.getexif()
        camera, place = (dict(found.get_ifd(part)) for part in (_CAMERA, _PLACE))
        rules = dict(found.get_ifd(_RULES)) if _RULES in camera else {}
    except Exception:  # Damaged directories may raise any exception.
        return fresh
    fresh.endian = found.endian
    apart = {*_LAYOUT, _ORIENTATION, _CAMERA, _PLACE}
    fresh.update({tag: value for tag, value in found.items() if tag not in apart})
    camera.pop(_RULES, None)
    camera |= {tag: n for tag, n in zip(_PIXELS, size, strict=True) if tag in camera}
    for directory in (fresh, camera, place, rules):
        for tag in [tag for tag, value in directory.items() if _holds_image(value)]:
            del directory[tag]
    if rules:
        camera[_RULES] = rules
    fresh.update({tag: part for tag, part in ((_CAMERA, camera), (_PLACE, place)) if part})
    if len(fresh):
        fresh[_ORIENTATION] = 1
    return fresh


_CAMERA, _PLACE, _RULES = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop
_PIXELS = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)


def _holds_image(value: object) -> bool:
    """Whether bytes contain the start of a JPEG or PNG, or text contains long base64."""
    if isinstance(value, bytes):
        return (
            _JPEG_START in value or _PNG_START in value or _holds_image(value.decode("latin-1"))
        )
    return isinstance(value, str) and without_images(value) != value


def without_images(text: str) -> str:
    """The text without runs of base64 of 160 characters or more."""
    return re.sub(_BASE64, lambda run: "" if len(run[0]) >= _LONGEST_WORD else run[0], text)


def _xmp(packet: object) -> bytes:
    """XMP without images, its orientation set to upright; empty unless it is UTF-8."""
    if not isinstance(packet, bytes):
        return b""
    try:
        text = packet.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return b""
    return b"" if "\0" in text else _upright(without_images(text)).encode("utf-8")


def _upright(xmp: str) -> str:
    return re.sub(r"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[0-9]", r"\g<1>1", xmp)


def _iptc_segment(iptc: bytes) -> bytes:
    """A JPEG segment with IPTC as its only Photoshop resource."""
    resource = b"8BIM" + struct.pack(">HHI", _IPTC_IN_PHOTOSHOP, 0, len(iptc)) + iptc
    content = b"Photoshop 3.0\0" + resource + b"\0" * (len(iptc) % 2)
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def _png_notes(image: Image.Image, data: bytes) -> PngImagePlugin.PngInfo:
    """A PNG's texts, its time, and what `kept_always` keeps."""
    notes = _png_info(data, b"tIME")
    for key, value in getattr(image, "text", {}).items():
        # These are hexadecimal copies of other metadata; Pillow reads EXIF among them, so it
        # is kept.
        if key.startswith("Raw profile type"):
            continue
        text = without_images(str(value))
        if key == _XMP_IN_PNG:
            text = _upright(text)
        if isinstance(value, PngImagePlugin.iTXt):
            notes.add_itxt(key, text, value.lang or "", value.tkey or "")
        else:
            notes.add_text(key, text)
    return notes


def _png_info(data: bytes, *more: bytes) -> PngImagePlugin.PngInfo:
    """A PNG's colour space, and the chunks of these names."""
    kept = PngImagePlugin.PngInfo()
    for name, content in _png_chunks(data):
        if name in more or len(content) == _PNG_COLOURS.get(name):
            kept.add(name, content)
    return kept


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks, without its pixels."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name = data[place + 4 : place + 8]
        yield name, b"" if name == b"IDAT" else data[place + 8 : place + 8 + length]
        place += length + 12
