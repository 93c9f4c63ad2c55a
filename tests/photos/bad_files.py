"""Two hundred files as a folder of photos may hold them: odd, damaged, or no photos at all.

All is made from a seed, without network and without asking the code under test.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 200
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
READABLE, REFUSED, EITHER = True, False, None


def make(folder, seed=0):
    """Fills a folder: {name: whether it must be readable; None where luck decides}."""
    rng = np.random.default_rng(seed)
    kinds = (_turned, _misnamed, _modes, _behind, _named, _codings, _cut, _deep, _inks)
    kinds += (_animated, _bombs, _garbage, _broken_checksums, _others, _no_files, _flipped)
    files = [file for kind in kinds for file in kind(rng)]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    readable = {}
    for number, (name, content, must) in enumerate(files):
        whole = name if name.startswith(("-", ".")) else f"{number:03}_{name}"
        path = folder / whole
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        readable[whole] = must
    assert len(readable) == COUNT, len(readable)
    return readable


def picture(rng, width=40, height=30, channels=3):
    """uint8[height, width, channels], smooth with an edge."""
    ends = rng.integers(0, 256, (2, 2, channels))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top, bottom = ((1 - x) * row[0] + x * row[1] for row in ends)
    levels = (1 - y) * top + y * bottom
    levels[height // 3 :, width // 3 :] = 255 - levels[height // 3 :, width // 3 :]
    return np.round(levels).astype(np.uint8)


def encoded(image, kind, **options):
    """A file's content of an array or of Pillow's image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png(width, height, depth, colours, rows=b"", chunks=()):
    """A PNG by hand: rows with their filter bytes, further chunks before the pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))]
    parts += [*chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(name, content):
    """One of a PNG's chunks."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _turned(rng):
    for kind, orientations in (
        *(("JPEG", range(1, 9)), ("PNG", range(1, 9))),
        *(("WEBP", (6,)), ("TIFF", (6,))),
    ):
        for orientation in orientations:
            exif = Image.Exif()
            exif[0x0112] = orientation
            content = encoded(picture(rng), kind, exif=exif)
            yield f"turned_{orientation}.{SUFFIX[kind]}", content, READABLE


def _misnamed(rng):
    for kind, suffix in zip(FORMATS, ("png", "jpg", "tiff", "bmp", "jpeg"), strict=True):
        yield f"{kind}_as.{suffix}", encoded(picture(rng), kind), READABLE
        yield f"{kind}_in_capitals.{suffix.upper()}", encoded(picture(rng), kind), READABLE


def _modes(rng):
    colours = Image.fromarray(picture(rng))
    grey, bits = colours.convert("L"), colours.convert("1")
    for number in (2, 4, 16, 200):
        palette = colours.quantize(number)
        yield f"palette_{number}.png", encoded(palette, "PNG"), READABLE
        yield f"palette_{number}.bmp", encoded(palette, "BMP"), READABLE
    palette = colours.quantize(16)
    yield "palette_key.png", encoded(palette, "PNG", transparency=3), READABLE
    alphas = bytes(range(0, 256, 16))
    yield "palette_alphas.png", encoded(palette, "PNG", transparency=alphas), READABLE
    yield "palette.tif", encoded(palette, "TIFF"), READABLE
    yield "grey_key.png", encoded(grey, "PNG", transparency=100), READABLE
    yield "colour_key.png", encoded(colours, "PNG", transparency=(9, 9, 9)), READABLE
    yield "bits_key.png", encoded(bits, "PNG", transparency=255), READABLE
    for kind in ("PNG", "TIFF", "BMP"):
        yield f"bits.{SUFFIX[kind]}", encoded(bits, kind), READABLE
    for kind in FORMATS:
        yield f"grey.{SUFFIX[kind]}", encoded(grey, kind), READABLE
    for kind in ("PNG", "TIFF", "WEBP"):
        alpha = encoded(picture(rng, channels=4), kind)
        yield f"alpha.{SUFFIX[kind]}", alpha, READABLE
    for kind in ("PNG", "TIFF"):
        yield f"grey_alpha.{SUFFIX[kind]}", encoded(picture(rng, channels=2), kind), READABLE
    for kind in FORMATS:
        yield f"one_pixel.{SUFFIX[kind]}", encoded(picture(rng, 1, 1), kind), READABLE


def _behind(rng):
    for kind in ("JPEG", "PNG", "BMP"):
        for number in range(2):
            garbage = rng.bytes(int(rng.integers(1, 5000)))
            content = encoded(picture(rng), kind) + garbage
            yield f"garbage_behind_{number}.{SUFFIX[kind]}", content, READABLE
    second = encoded(picture(rng), "JPEG")
    yield "two_in_one.jpg", encoded(picture(rng), "JPEG") + second, READABLE


def _named(rng):
    undecodable = os.fsdecode(b"\xff\xfe\x80.jpg")
    names = (
        "a b.jpg",
        "line\nbreak.jpg",
        "«ß» 名.jpg",
        undecodable,
        "%s{0}.jpg",
        "'\"`$(x).jpg",
    )
    for name in (*names, "--help.jpg", "x" * 230 + ".jpg", "\u202egpj.jpg", "tab\t\x07.jpg"):
        yield name, encoded(picture(rng), "JPEG"), READABLE


def _codings(rng):
    for sampling in (0, 1, 2):
        content = encoded(picture(rng), "JPEG", subsampling=sampling, quality=96)
        yield f"sampling_{sampling}.jpg", content, READABLE
    yield "progressive.jpg", encoded(picture(rng), "JPEG", progressive=True), READABLE
    yield "coarse.jpg", encoded(picture(rng), "JPEG", quality=1), READABLE
    views = [Image.fromarray(picture(rng)) for _ in range(2)]
    several = {"save_all": True, "append_images": views[1:]}
    yield "two_views.jpg", encoded(views[0], "MPO", **several), READABLE
    yield "lossless.webp", encoded(picture(rng), "WEBP", lossless=True), READABLE
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        content = encoded(picture(rng), "TIFF", compression=compression)
        yield f"{compression}.tif", content, READABLE


def _cut(rng):
    for number in range(5):
        for kind in FORMATS:
            content = encoded(picture(rng, 90, 70), kind)
            # The last bytes may be dispensable.
            length = int(rng.integers(1, len(content) * 3 // 4))
            yield f"cut_{number}.{SUFFIX[kind]}", content[:length], REFUSED


def _deep(rng):
    deep = rng.integers(0, 65536, (8, 9)).astype(np.uint16)
    image = Image.fromarray(deep)
    yield "deep.png", encoded(image, "PNG"), REFUSED
    yield "deep.tif", encoded(image, "TIFF"), REFUSED
    for colours, channels in ((2, 3), (4, 2), (6, 4)):
        rows = b"".join(b"\0" + rng.bytes(9 * channels * 2) for _ in range(8))
        yield f"deep_{colours}.png", png(9, 8, 16, colours, rows), REFUSED
    yield "whole.tif", encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"), REFUSED
    yield "real.tif", encoded(Image.fromarray(deep.astype(np.float32)), "TIFF"), REFUSED


def _inks(rng):
    inks = Image.fromarray(picture(rng, channels=4), "RGBA").convert("RGB").convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        yield f"inks.{SUFFIX[kind]}", encoded(inks, kind), REFUSED
    yield "lab.tif", encoded(Image.new("LAB", (9, 9)), "TIFF"), REFUSED


def _animated(rng):
    frames = [Image.fromarray(picture(rng)) for _ in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], kind, **several)
        yield f"animated.{kind.lower()}", content, REFUSED
        yield f"animated_{kind}.jpg", content, REFUSED
    yield "still.gif", encoded(frames[0], "GIF"), REFUSED
    yield "still_gif.jpg", encoded(frames[0], "GIF"), REFUSED


def _bombs(rng):
    yield "bomb.png", png(60_000, 60_000, 8, 2, bytes(1000)), REFUSED
    yield "bomb_of_a_line.png", png(2**31 - 1, 1, 8, 2, bytes(1000)), REFUSED
    # As many pixels as Pillow still decodes: 13 000 x 13 000 are 169 million.
    yield "bomb_below_pillows.png", png(13_000, 13_000, 1, 0, bytes(1000)), REFUSED
    for kind, place, form in (("BMP", 18, "<ii"), ("JPEG", None, ">HH")):
        content = bytearray(encoded(picture(rng), kind))
        if place is None:
            place = content.index(b"\xff\xc0") + 5
        struct.pack_into(form, content, place, 65_000, 65_000)
        yield f"bomb.{SUFFIX[kind]}", bytes(content), REFUSED
    tags = ((256, 4, 1, 70_000), (257, 4, 1, 70_000), (258, 3, 1, 8), (259, 3, 1, 1))
    tags += ((262, 3, 1, 1), (273, 4, 1, 0), (278, 4, 1, 70_000), (279, 4, 1, 10))
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    yield "bomb.tif", head + directory + bytes(4), REFUSED


def _garbage(rng):
    starts = {kind: encoded(picture(rng), kind)[:12] for kind in FORMATS}
    for kind, start in starts.items():
        suffix = SUFFIX[kind]
        yield f"garbage.{suffix}", rng.bytes(int(rng.integers(1, 3000))), REFUSED
        yield f"only_the_start.{suffix}", start, REFUSED
        yield f"start_and_garbage.{suffix}", start + rng.bytes(500), REFUSED
        yield f"empty.{suffix}", b"", REFUSED
        yield f"zeros.{suffix}", bytes(2000), REFUSED
    yield "text.jpg", "Not a photo, but a letter.\n".encode("utf-16"), REFUSED
    yield "page.png", b"<!DOCTYPE html><title>404 Not Found</title>", REFUSED


def _broken_checksums(rng):
    whole = encoded(picture(rng), "PNG")
    for number, place in enumerate((16, 20, 29, 31)):
        broken = bytearray(whole)
        broken[place] ^= 0x55
        yield f"checksum_{number}.png", bytes(broken), REFUSED


def _others(rng):
    image = Image.fromarray(picture(rng))
    for kind in ("PPM", "ICO", "TGA", "JPEG2000"):
        yield f"{kind}.jpg", encoded(image, kind), REFUSED
    yield "letter.pdf.jpg", b"%PDF-1.7\n" + rng.bytes(100), REFUSED
    yield "phone.heic.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), REFUSED


def _no_files(rng):
    del rng
    yield "folder.jpg", Path.mkdir, REFUSED
    yield "points_nowhere.jpg", lambda path: path.symlink_to("nowhere.jpg"), REFUSED
    yield "points_to_itself.jpg", lambda path: path.symlink_to(path.name), REFUSED


def _flipped(rng):
    for number in range(21):
        kind = FORMATS[number % len(FORMATS)]
        content = bytearray(encoded(picture(rng), kind))
        for place in rng.integers(0, len(content), 3):
            content[place] ^= int(rng.integers(1, 256))
        yield f"flipped_{number}.{SUFFIX[kind]}", bytes(content), EITHER
