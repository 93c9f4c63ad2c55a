import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, IptcImagePlugin

from deid_jax.photos import files
from tests.photos.bad_files import encoded
from tests.photos.photo_bytes import (
    PROFILE,
    SECRETS,
    SMALL,
    XMP,
    chunk,
    decode,
    directory,
    exif_by_hand,
    exif_directories,
    notes_of_jpeg,
    opened,
    parse,
    picture,
    png_chunks,
    talkative_jpeg,
    talkative_png,
    webp_chunks,
)


def test_by_default_a_jpeg_tells_nothing_but_its_colours_and_density():
    talkative = talkative_jpeg(picture())
    with Image.open(io.BytesIO(talkative)) as image:  # The oracle sees what is to go.
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1) and image.info["xmp"]
        assert image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    photo = parse(talkative)
    written = files.encode_photo(photo, photo.pixels)
    notes = notes_of_jpeg(written)
    assert [marker for marker, _ in notes] == [0xE0, 0xE2]
    assert notes[0][1][:5] == b"JFIF\0" and notes[0][1][12:14] == b"\0\0"  # no thumbnail
    assert notes[1][1] == b"ICC_PROFILE\0\x01\x01" + PROFILE
    # Turned by a quarter: so is the density.
    assert struct.unpack(">BHH", notes[0][1][7:12]) == (1, 200, 300)
    assert not any(secret in written for secret in SECRETS)
    assert written.count(b"\xff\xd8\xff") == 1
    assert not len(opened(written).getexif())


def test_kept_metadata_of_a_jpeg_are_all_but_small_copies():
    photo = parse(talkative_jpeg(picture()))
    written = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    assert sorted(marker for marker, _ in notes_of_jpeg(written)) == [
        *(0xE0, 0xE1, 0xE1, 0xE2, 0xED, 0xFE)
    ]
    assert written.count(b"\xff\xd8\xff") == 1 and b"/9j/" not in written
    image = opened(written)
    exif = image.getexif()
    assert exif[0x010F] == "ACME" and exif[0x0112] == 1
    camera = exif.get_ifd(ExifTags.IFD.Exif)
    assert camera[0x9286] == b"ASCII\0\0\0Secret Street" and 0x927C not in camera
    assert (camera[0xA002], camera[0xA003]) == image.size == (30, 40)
    assert exif.get_ifd(ExifTags.IFD.GPSInfo) == {1: "N", 27: b"GPS-there"}
    assert exif_directories(image.info["exif"])[1] == 0
    assert b'tiff:Orientation="1" dc:who="Ann"' in image.info["xmp"]
    assert image.info["comment"] == b"Comment-Bob"
    assert IptcImagePlugin.getiptcinfo(image) == {(2, 120): b"Ann"}
    assert set(image.info["photoshop"]) == {0x0404}
    assert image.info["icc_profile"] == PROFILE
    np.testing.assert_array_equal(decode(written), np.asarray(image))


def test_notes_of_the_maker_without_a_picture_stay():
    exif = exif_by_hand(maker=b"notes-of-maker, long enough")
    photo = parse(encoded(picture(), "JPEG", exif=exif))
    written = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    kept = opened(written).getexif().get_ifd(ExifTags.IFD.Exif)
    assert kept[0x927C] == b"notes-of-maker, long enough"


def test_metadata_that_cannot_be_written_are_lost_and_not_the_photo():
    levels = picture()
    # EXIF with room for a thumbnail; XMP in UTF-16, in which images are not looked for.
    long = exif_by_hand(maker=b"n-" * 3500)[6:].ljust(65_500, b"\0")
    strange = '<x tiff:Orientation="6">Ann</x>'.encode("utf-16-le")
    photo = parse(encoded(levels, "JPEG", exif=b"Exif\0\0" + long, xmp=strange))
    written = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    assert b"n-n-n-" in written and b"A\0n\0n" not in written
    # What Pillow takes at reading and not at writing.
    too_long = dataclasses.replace(photo, metadata={"exif": b"Exif\0\0" + bytes(70_000)})
    written = files.encode_photo(too_long, photo.pixels, keep_metadata=True)
    assert written == files.encode_photo(photo, photo.pixels)


def test_the_directory_of_rules_stays_where_there_is_one():
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {0x829D: 2.5, ExifTags.IFD.Interop: {1: "R98"}}
    photo = parse(encoded(picture(), "JPEG", exif=exif))
    kept = opened(files.encode_photo(photo, photo.pixels, keep_metadata=True)).getexif()
    assert kept.get_ifd(ExifTags.IFD.Exif)[0x829D] == 2.5
    assert kept.get_ifd(ExifTags.IFD.Interop)[1] == "R98"


def test_by_default_a_png_tells_nothing_but_its_colours_and_density():
    photo = parse(talkative_png())
    written = files.encode_photo(photo, photo.pixels)
    found = dict(png_chunks(written))
    assert set(found) == {b"IHDR", b"iCCP", b"gAMA", b"pHYs", b"IDAT", b"IEND"}
    assert zlib.decompress(found[b"iCCP"].partition(b"\0\0")[2]) == PROFILE
    assert found[b"gAMA"] == struct.pack(">I", 100_000)
    assert struct.unpack(">IIB", found[b"pHYs"]) == (2835, 3780, 1)
    assert not any(secret in written for secret in SECRETS)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", [b"cHRM", b"cICP", b"gAMA", b"sRGB"])
def test_what_only_looks_like_a_colour_chunk_goes(name, keep):
    plain = encoded(picture(), "PNG")
    photo = parse(
        plain[:33] + chunk(name, b"Ann was here, and more than colours!") + plain[33:]
    )
    written = files.encode_photo(photo, photo.pixels, keep_metadata=keep)
    assert b"Ann" not in written
    assert name not in dict(png_chunks(written))


def test_kept_metadata_of_a_png_are_all_but_small_copies():
    photo = parse(talkative_png())
    written = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    image, found = opened(written), png_chunks(written)
    expected = {"Comment": "Comment-Bob", "Author": "Ann", "Title": "Ännchen", "thumbnail": ""}
    xmp = image.text.pop("XML:com.adobe.xmp")
    assert image.text == expected
    assert (image.text["Title"].lang, image.text["Title"].tkey) == ("de", "Titel")
    assert 'tiff:Orientation="1" dc:who="Ann"' in xmp and "/9j/" not in xmp
    exif = image.getexif()
    assert exif[0x010F] == "ACME" and exif[0x0112] == 1
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[27] == b"GPS-there"
    assert exif_directories(image.info["exif"])[1] == 0
    assert not any(SMALL in inside for _, inside in found)
    assert dict(found)[b"tIME"] == b"\7\xe8\1\2\3\4\5"
    assert image.info["gamma"] == 1 and image.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("lossless", [False, True])
def test_webp(lossless):
    notes = {"exif": exif_by_hand(8), "xmp": XMP, "icc_profile": PROFILE}
    levels = picture(channels=4)
    levels[:5, :5, 3] = 0
    photo = parse(encoded(levels, "WEBP", lossless=lossless, exact=True, **notes))
    assert photo.lossless is lossless
    pixels = photo.pixels.copy()
    pixels[3:9, 4:20] ^= 1
    written = files.encode_photo(photo, pixels)
    found = dict(webp_chunks(written))
    assert set(found) - {b"VP8X", b"ALPH"} == {b"ICCP", b"VP8L" if lossless else b"VP8 "}
    assert found[b"ICCP"] == PROFILE
    again = parse(written)
    np.testing.assert_array_equal(again.alpha, np.rot90(levels[..., 3]))
    if lossless:
        np.testing.assert_array_equal(again.pixels, pixels)
    kept = files.encode_photo(photo, pixels, keep_metadata=True)
    image = opened(kept)
    assert image.getexif()[0x010F] == "ACME" and image.getexif()[0x0112] == 1
    assert b'tiff:Orientation="1" dc:who="Ann"' in image.info["xmp"]
    assert SMALL not in kept and b"/9j/" not in kept
    np.testing.assert_array_equal(decode(kept), again.pixels)


def test_an_animated_webp_of_one_frame_is_a_photo():
    still = encoded(picture(), "WEBP", lossless=True)
    (pixels,) = (part for name, part in webp_chunks(still) if name == b"VP8L")

    def part(name, content):
        return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    size = struct.pack("<I", 39)[:3] + struct.pack("<I", 29)[:3]
    frame = bytes(6) + size + b"\x10\0\0\0" + part(b"VP8L", pixels)
    parts = part(b"VP8X", b"\2\0\0\0" + size) + part(b"ANIM", bytes(6)) + part(b"ANMF", frame)
    photo = parse(b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WEBP" + parts)
    assert photo.lossless
    np.testing.assert_array_equal(photo.pixels, picture())


# Width, height, bits, compression, photometry, strips, samples, rows, planes, density and its
# unit, predictor, profile.
LAYOUT = {256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 283, 284, 296, 317, 34675}


def test_tiff():
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x0112], exif[700] = "Secret Street", "Ann", 5, XMP
    # Photoshop's thumbnail without compression: nothing in it tells that it is an image.
    exif[0x8649] = b"8BIM" + struct.pack(">HHI", 0x0409, 0, 300) + SMALL[20:320]
    exif[0x8825] = {27: b"GPS-there"}
    notes = {"exif": exif.tobytes(), "icc_profile": PROFILE, "dpi": (150, 300)}
    levels = picture()
    content = encoded(levels, "TIFF", **notes)
    assert b"GPS-there" in content and SMALL[20:320] in content
    photo = parse(content)
    np.testing.assert_array_equal(photo.pixels, levels.transpose(1, 0, 2))
    written = files.encode_photo(photo, photo.pixels)
    tags, following = directory(written, struct.unpack_from("<I", written, 4)[0])
    assert set(tags) <= LAYOUT and following == 0
    assert not any(secret in written for secret in SECRETS)
    image = opened(written)
    assert image.info["icc_profile"] == PROFILE and image.info["dpi"] == (300, 150)
    np.testing.assert_array_equal(np.asarray(image), photo.pixels)

    kept = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    tags, following = directory(kept, struct.unpack_from("<I", kept, 4)[0])
    assert set(tags) - LAYOUT == {0x010E, 0x0112, 0x013B, 700, 0x8825} and following == 0
    assert SMALL[20:320] not in kept and b"/9j/" not in kept
    image = Image.open(io.BytesIO(kept))
    assert image.tag_v2[0x0112] == 1 and image.tag_v2[0x013B] == "Ann"
    assert image.getexif().get_ifd(0x8825)[27] == b"GPS-there"
    np.testing.assert_array_equal(decode(kept), photo.pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [300, 200_000])
def test_profiles_stay_byte_for_byte(kind, size):
    profile = np.random.default_rng(0).bytes(size)
    photo = parse(encoded(picture(), kind, icc_profile=profile))
    assert photo.icc_profile == profile
    for keep in (False, True):
        written = files.encode_photo(photo, photo.pixels, keep_metadata=keep)
        assert opened(written).info["icc_profile"] == profile
