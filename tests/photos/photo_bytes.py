"""How photo files are built, read without Pillow; and files that tell everything."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from deid_jax.photos import files
from tests.photos import bad_files
from tests.photos.bad_files import chunk, encoded

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(width=40, height=30, channels=3, seed=0):
    return bad_files.picture(np.random.default_rng(seed), width, height, channels)


def parse(content):
    return files.parse_photo(content, "photo")


def decode(content):
    """uint8[H, W, 3], as the library shows a file."""
    return parse(content).pixels


def opened(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


# --- How a file is built, read without Pillow ---


def segments(content):
    """(marker, content) of a JPEG's segments, and what lies behind its end."""
    assert content[:2] == b"\xff\xd8"
    found, place = [], 2
    while True:
        assert content[place] == 0xFF
        marker = content[place + 1]
        if marker == 0xD9:
            return found, content[place + 2 :]
        (length,) = struct.unpack_from(">H", content, place + 2)
        found.append((marker, content[place + 4 : place + 2 + length]))
        place += 2 + length
        if marker == 0xDA:
            while content[place] != 0xFF or content[place + 1] in (0, *range(0xD0, 0xD8)):
                place += 1


def notes_of_jpeg(content):
    """A JPEG's segments that hold no pixels: APPn, comments, unknown ones."""
    found, behind = segments(content)
    assert behind == b""
    pixels = {0xDB, 0xC4, 0xC0, 0xC2, 0xDA, 0xDD}
    return [(marker, inside) for marker, inside in found if marker not in pixels]


def png_chunks(content):
    found, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        name, inside = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        assert checksum == zlib.crc32(name + inside)
        found.append((name, inside))
        place += 12 + length
    return found


def webp_chunks(content):
    assert struct.unpack_from("<I", content, 4)[0] == len(content) - 8
    found, place = [], 12
    while place < len(content):
        name, length = struct.unpack_from("<4sI", content, place)
        found.append((name, content[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return found


def directory(tiff, place):
    """{tag: (type, count, value or offset)} of little-endian TIFF, and the next one's place."""
    (count,) = struct.unpack_from("<H", tiff, place)
    entries = [struct.unpack_from("<HHII", tiff, place + 2 + 12 * n) for n in range(count)]
    (following,) = struct.unpack_from("<I", tiff, place + 2 + 12 * count)
    return {tag: rest for tag, *rest in entries}, following


def exif_directories(exif):
    """Tags of the first directory, and whether another follows: the thumbnail's."""
    tiff = exif.removeprefix(b"Exif\0\0")
    assert tiff[:4] == b"II*\0"
    return directory(tiff, struct.unpack_from("<I", tiff, 4)[0])


# --- A file that tells everything ---

SMALL = encoded(np.full((16, 16, 3), (255, 0, 0), np.uint8), "JPEG", quality=30)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:who="Ann">'
    b"<xmpGImg:image>" + b"".join([b"/9j/" + b"QUJD" * 18 + b"&#xA;"] * 9) + b"</xmpGImg:image>"
    b"</rdf:Description></x:xmpmeta>"
)
SECRETS = (b"ACME", b"Secret Street", b"Ann", b"GPS-there", b"Comment-Bob", b"notes-of-maker")


def tiff_directory(entries, place, following=0):
    """A little-endian directory at `place`: {tag: (type, content)}, with its values behind."""
    head = struct.pack("<H", len(entries))
    values, behind = b"", place + 2 + 12 * len(entries) + 4
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}
    for tag, (kind, content) in sorted(entries.items()):
        head += struct.pack("<HHI", tag, kind, len(content) // sizes[kind])
        if len(content) <= 4:
            head += content.ljust(4, b"\0")
        else:
            head += struct.pack("<I", behind + len(values))
            values += content + b"\0" * (len(content) % 2)
    return head + struct.pack("<I", following) + values


def exif_by_hand(orientation=1, maker=b"notes-of-maker" + SMALL):
    """EXIF by hand: camera, maker's notes, GPS, and a thumbnail that shows another image."""
    camera_at, place_at, thumbnail_at = 400, 8000, 9000
    first = {
        0x010F: (2, b"ACME\0"),
        0x0112: (3, struct.pack("<H", orientation)),
        0x8769: (4, struct.pack("<I", camera_at)),
        0x8825: (4, struct.pack("<I", place_at)),
    }
    camera = {
        0x927C: (7, maker),
        0x9286: (7, b"ASCII\0\0\0Secret Street"),
        0xA002: (4, struct.pack("<I", 4000)),
        0xA003: (4, struct.pack("<I", 3000)),
    }
    place = {0x0001: (2, b"N\0"), 0x001B: (7, b"GPS-there")}
    pixels_at = thumbnail_at + 200
    thumbnail = {
        0x0103: (3, struct.pack("<H", 6)),
        0x0201: (4, struct.pack("<I", pixels_at)),
        0x0202: (4, struct.pack("<I", len(SMALL))),
    }
    tiff = b"II*\0" + struct.pack("<I", 8)
    for at, part in (
        (8, tiff_directory(first, 8, thumbnail_at)),
        (camera_at, tiff_directory(camera, camera_at)),
        (place_at, tiff_directory(place, place_at)),
        (thumbnail_at, tiff_directory(thumbnail, thumbnail_at)),
        (pixels_at, SMALL),
    ):
        assert len(tiff) <= at
        tiff = tiff.ljust(at, b"\0") + part
    return b"Exif\0\0" + tiff


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def talkative_jpeg(pixels, orientation=6, **options):
    """EXIF, XMP and its extension, IPTC and a thumbnail, comments, MPF, and things behind."""
    plain = encoded(pixels, "JPEG", icc_profile=PROFILE, dpi=(300, 200), **options)
    caption = b"\x1c\x02\x78" + struct.pack(">H", 3) + b"Ann"
    resources = b"Photoshop 3.0\0"
    for number, content in ((0x040C, b"\0" * 28 + SMALL), (0x0404, caption)):
        resources += b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content
        resources += b"\0" * (len(content) % 2)
    extension = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40 + b"Ann" + SMALL
    segments = (
        segment(0xE1, exif_by_hand(orientation)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        segment(0xE1, extension),
        segment(0xEB, b"JP\0\0 jumb Ann"),
        segment(0xED, resources),
        segment(0xFE, b"Comment-Bob"),
    )
    return b"".join((plain[:2], *segments, plain[2:], SMALL, b"ftypmp4 video of Ann"))


def turned_by_xmp(kind, make=None):
    """(file, pixels): XMP alone has an orientation; in a PNG it follows the pixels.

    With a make the file has EXIF as well, but no density, nor does EXIF have one.
    """
    pixels, target = picture(), io.BytesIO()
    tags = {} if make is None else {0x010F: make}
    options = {"xmp": XMP}
    if kind == "TIFF":
        options = {"tiffinfo": {700: XMP} | tags}
    elif tags:
        options["exif"] = Image.Exif()
        options["exif"].update(tags)
    Image.fromarray(pixels).save(target, kind, **options)
    content = target.getvalue()
    if kind == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        content = content[:-12] + chunk(b"iTXt", text) + content[-12:]
    assert XMP in content
    return content, pixels


def talkative_png(**options):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "Comment-Bob")
    texts.add_text("Author", "Ann", zip=True)
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    texts.add_itxt("Title", "Ännchen", "de", "Titel")
    texts.add_text("Raw profile type iptc", "\niptc\n 3\n" + SMALL.hex(), zip=True)
    texts.add_text("thumbnail", "iVBORw0KGgo" + "QUJD" * 90)
    content = encoded(
        picture(),
        "PNG",
        **{"pnginfo": texts, "exif": exif_by_hand(3), "icc_profile": PROFILE, "dpi": (72, 96)}
        | options,
    )
    further = chunk(b"gAMA", struct.pack(">I", 100_000)) + chunk(b"tIME", b"\7\xe8\1\2\3\4\5")
    return content[:33] + further + content[33:] + b"behind: Ann"
