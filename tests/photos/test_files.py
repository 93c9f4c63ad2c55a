import io
import os
import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from deid_jax.data.images import decode_image
from deid_jax.errors import InputError
from deid_jax.photos import files
from deid_jax.runs import write_whole
from tests.photos import bad_files
from tests.photos.bad_files import encoded, png
from tests.photos.photo_bytes import (
    decode,
    opened,
    parse,
    picture,
    turned_by_xmp,
)

# --- Orientation ---

# How "ABC / DEF" is stored, from EXIF's own table of which side of the image is stored first.
STORED = {
    1: ("ABC", "DEF"),
    2: ("CBA", "FED"),
    3: ("FED", "CBA"),
    4: ("DEF", "ABC"),
    5: ("AD", "BE", "CF"),
    6: ("CF", "BE", "AD"),
    7: ("FC", "EB", "DA"),
    8: ("DA", "EB", "FC"),
}


def _blocks(rows):
    """Blocks of 16 pixels, a colour a letter."""
    colours = np.random.default_rng(1).integers(0, 256, (6, 3), dtype=np.uint8)
    levels = colours[[["ABCDEF".index(letter) for letter in row] for row in rows]]
    return levels.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_once(kind, orientation):
    upright = _blocks(STORED[1])
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = _blocks(STORED[orientation])
    photo = parse(encoded(stored, kind, exif=exif, **options.get(kind, {})))
    tolerance = 4 if kind == "JPEG" else 0
    np.testing.assert_allclose(photo.pixels, upright.astype(float), atol=tolerance)
    for keep in (False, True):
        written = files.encode_photo(photo, photo.pixels, keep_metadata=keep)
        with Image.open(io.BytesIO(written)) as image:
            assert image.getexif().get(0x0112, 1) == 1
            shown = np.asarray(image).astype(float)
        np.testing.assert_allclose(shown, upright.astype(float), atol=tolerance)
        np.testing.assert_array_equal(decode(written), shown)


@pytest.mark.parametrize("make", [None, "ACME"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_of_xmp_is_ignored(kind, make):
    """As viewers and OpenCV do."""
    content, pixels = turned_by_xmp(kind, make)
    photo = parse(content)
    assert photo.pixels.shape == pixels.shape == decode_image(content, "a").shape
    written = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    assert parse(written).pixels.shape == pixels.shape
    assert b'tiff:Orientation="1"' in written


# --- Modes ---


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_files_change_where_pixels_do_and_nowhere_else(kind, channels):
    levels = picture(channels=channels)
    photo = parse(encoded(levels, kind))
    assert photo.lossless and photo.one_channel is (channels < 3)
    pixels = photo.pixels.copy()
    pixels[3:9, 4:20] ^= 3
    image = opened(files.encode_photo(photo, pixels))
    assert image.mode == ("L", "LA", "RGB", "RGBA")[channels - 1] and image.format == kind
    changed = levels.copy()
    changed[3:9, 4:20, : 1 if channels < 3 else 3] ^= 3
    np.testing.assert_array_equal(np.atleast_3d(np.asarray(image)), changed)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_and_palettes_become_grey_and_colours(kind):
    bits = picture(channels=1)[..., 0] > 99
    photo = parse(encoded(Image.fromarray(bits), kind))
    assert photo.one_channel and photo.grey and photo.alpha is None
    np.testing.assert_array_equal(photo.pixels, 255 * np.repeat(bits[..., None], 3, axis=2))
    palette = Image.fromarray(picture()).quantize(8)
    photo = parse(encoded(palette, kind))
    assert not photo.one_channel and not photo.grey
    np.testing.assert_array_equal(photo.pixels, np.asarray(palette.convert("RGB")))
    image = opened(files.encode_photo(photo, photo.pixels))
    assert (image.format, image.mode) == (kind, "RGB")


@pytest.mark.parametrize(
    "depth, rows, key, levels",
    [
        (1, b"\0\x50", 1, [0, 255, 0, 255]),
        (2, b"\0\x1b", 3, [0, 85, 170, 255]),
        (4, b"\0\x0f\x30", 15, [0, 255, 51, 0]),
        (8, b"\0\x00\x0f\xff\x03", 255, [0, 15, 255, 3]),
    ],
)
def test_transparent_grey_of_every_depth(depth, rows, key, levels):
    transparent = (b"tRNS", struct.pack(">H", key))
    photo = parse(png(4, 1, depth, 0, rows, [transparent]))
    assert photo.pixels[0, :, 1].tolist() == levels
    assert photo.alpha[0].tolist() == [0 if level == 255 else 255 for level in levels]
    assert opened(files.encode_photo(photo, photo.pixels)).mode == "LA"


def test_transparent_colours_of_palettes_and_rgb():
    palette = [(b"PLTE", bytes([9, 8, 7, 6, 5, 4])), (b"tRNS", bytes([0, 77]))]
    photo = parse(png(2, 1, 8, 3, b"\0\0\1", palette))
    assert photo.pixels.tolist() == [[[9, 8, 7], [6, 5, 4]]] and photo.alpha.tolist() == [
        [0, 77]
    ]
    transparent = (b"tRNS", struct.pack(">HHH", 1, 2, 3))
    photo = parse(png(2, 1, 8, 2, b"\0\1\2\3\3\2\1", [transparent]))
    assert photo.pixels.tolist() == [[[1, 2, 3], [3, 2, 1]]]
    assert photo.alpha.tolist() == [[0, 255]]
    again = parse(files.encode_photo(photo, photo.pixels))
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    np.testing.assert_array_equal(again.alpha, photo.alpha)


@pytest.mark.parametrize("kind", files.FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_stays_grey_in_one_channel_and_in_three(kind, channels):
    levels = np.repeat(picture(channels=1), channels, axis=2)
    photo = parse(encoded(levels, kind))
    assert photo.grey and photo.one_channel is (channels == 1 and kind != "WEBP")
    pixels = np.clip(photo.pixels.astype(int) + 9, 0, 255).astype(np.uint8)
    image = opened(files.encode_photo(photo, pixels))
    assert image.mode == ("L" if photo.one_channel else "RGB")
    again = decode(files.encode_photo(photo, pixels)).astype(int)
    assert np.max(np.ptp(again, axis=2)) <= (1 if kind == "WEBP" else 0)
    assert not parse(encoded(picture(), kind)).grey


# --- JPEG's quality ---


@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_written_as_it_was(sampling, progressive):
    levels = picture(64, 48)
    options = {"quality": 93, "subsampling": sampling, "progressive": progressive}
    content = encoded(levels, "JPEG", **options)
    photo = parse(content)
    assert photo.quality == 93 and not photo.lossless
    before = opened(content)
    written = files.encode_photo(photo, photo.pixels)
    for after in (opened(written), opened(files.encode_photo(photo, photo.pixels, quality=93))):
        assert after.quantization == before.quantization
        assert after.info.get("progressive", 0) == before.info.get("progressive", 0)
    assert after.layer[0][1:3] == (1, 1)
    after = opened(written)
    assert after.layer == before.layer
    # The same tables again: far less is lost than in writing once.
    once = np.square(photo.pixels - levels.astype(float)).mean()
    twice = np.square(decode(written) - photo.pixels.astype(float)).mean()
    assert twice < once / 2


def test_tables_of_other_encoders_stay():
    luma = np.arange(1, 9)[:, None] + np.arange(8) // 2
    tables = [luma.ravel().tolist(), (luma + 1).ravel().tolist()]
    content = encoded(picture(), "JPEG", qtables=tables, subsampling=0)
    photo = parse(content)
    assert [list(table) for table in photo.tables] == tables
    assert opened(files.encode_photo(photo, photo.pixels)).quantization == dict(
        enumerate(tables)
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = parse(encoded(picture(), "JPEG", qtables=tables, subsampling=1, exif=exif))
    turned = opened(files.encode_photo(photo, photo.pixels))
    assert turned.quantization[0] == luma.T.ravel().tolist()
    # There is no half height alone: all chroma is kept instead.
    assert [component[1:3] for component in turned.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("quality", [1, 89, 90, 91, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_quality_is_estimated_and_never_below_ninety(quality, channels):
    content = encoded(picture(channels=channels), "JPEG", quality=quality)
    photo = parse(content)
    assert photo.quality == max(quality, 90)
    assert (photo.tables is None) == (quality < 90)
    finer = opened(files.encode_photo(photo, photo.pixels)).quantization
    assert all(
        np.all(np.array(finer[n]) <= old) for n, old in opened(content).quantization.items()
    )


# --- What is refused, and what is not ---


def _transparent_bmp():
    """Two pixels with masks for red, green, blue and alpha."""
    head = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = head.ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + 8, 0, 0, 122) + head + bytes(range(8))


@pytest.mark.slow
def test_two_hundred_odd_files(tmp_path):
    must = bad_files.make(tmp_path, seed=0)
    assert len(must) == bad_files.COUNT
    for name, readable in must.items():
        try:
            photo = files.parse_photo((tmp_path / name).read_bytes(), name)
        except OSError:
            continue
        except InputError as refused:
            assert not readable, name
            assert str(refused).isprintable()
            continue
        assert readable is not False, name
        for keep in (False, True):
            again = parse(files.encode_photo(photo, photo.pixels, keep_metadata=keep))
            kept = ("format", "grey", "one_channel", "lossless", "icc_profile")
            assert all(getattr(again, name) == getattr(photo, name) for name in kept)
            np.testing.assert_array_equal(again.alpha, photo.alpha)
            away = np.abs(again.pixels - photo.pixels.astype(float))
            assert away.max() == 0 if photo.lossless else away.mean() < 4


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "photo is an empty file"),
        (b"Dear Ann", "photo is damaged or no image of JPEG, PNG, WEBP, TIFF, BMP"),
        (
            encoded(picture(), "GIF"),
            "photo is a GIF, which cannot be written again: photos must",
        ),
        (b"\0\0\0\x18ftypheic", "photo is a HEIC, which"),
        (png(9, 9, 16, 2), "photo has more than 8 bits a channel"),
        (encoded(Image.new("CMYK", (9, 9)), "JPEG"), "photo is neither grey nor RGB but CMYK"),
        (png(13_000, 13_000, 8, 2), "photo has more than 100000000 pixels: 13000x13000"),
        (png(50_000, 50_000, 8, 2), "photo has more than 100000000 pixels"),
        (png(9, 9, 8, 2), "photo cannot be read: "),
        (_transparent_bmp(), "photo is a transparent BMP, which cannot be written"),
    ],
)
def test_reasons(content, message):
    with pytest.raises(InputError, match=f"^{message}") as refused:
        parse(content)
    assert str(refused.value).isprintable()


def test_limit_on_pixels_and_name_in_one_line():
    name, content = "line\nbreak.png", encoded(picture(), "PNG")
    assert files.parse_photo(content, name, max_pixels=1200).pixels.shape == (30, 40, 3)
    with pytest.raises(InputError, match=r"line\\nbreak.png has more than 1199 pixels: 40x30$"):
        files.parse_photo(content, name, max_pixels=1199)


def test_threads_leave_the_filters_of_warnings_alone():
    damaged = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    before, shapes = list(warnings.filters), []
    run = [threading.Thread(target=lambda: shapes.append(parse(damaged))) for _ in range(8)]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    assert len(shapes) == 8 and warnings.filters == before


# --- Writing ---


def test_writing_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / ("x" * 251 + ".jpg")
    for content in (b"one", b"two"):
        write_whole(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]


def test_interrupted_writing_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
