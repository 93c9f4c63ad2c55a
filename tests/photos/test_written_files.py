"""Files that protection wrote: remembered by their content, and marked on request."""

import threading

import numpy as np
import pytest

from deid_jax.photos import files, written_files
from deid_jax.photos.manifest import sha256_of
from deid_jax.photos.written_files import is_remembered, remember
from tests.photos.bad_files import encoded
from tests.photos.photo_bytes import (
    exif_by_hand,
    notes_of_jpeg,
    opened,
    parse,
    picture,
    talkative_jpeg,
)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index's path; it is not there yet."""
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / written_files.INDEX


def test_what_was_written_is_remembered(index):
    digests = [sha256_of(bytes([n])) for n in range(40)]
    assert not is_remembered(digests[0])
    remember(sha256_of(b"a"))
    with index.open("a") as file:
        file.write(digests[-1][:20])  # A line that was cut off.
    threads = [threading.Thread(target=remember, args=(one,)) for one in digests[:30]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [is_remembered(one) for one in digests] == [True] * 30 + [False] * 10
    assert not is_remembered("")
    assert index.stat().st_mode & 0o077 == 0


def test_index_that_cannot_be_written_is_reported(index, tmp_path, monkeypatch):
    index.parent.write_bytes(b"no folder")
    with pytest.warns(UserWarning, match="will not be refused as input later: .*cache"):
        remember(sha256_of(b"a"))
    assert not is_remembered(sha256_of(b"a"))


KINDS = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "raw"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_mark_is_all_that_is_added(kind, keep):
    photo = parse(encoded(picture(), kind, exif=exif_by_hand(), **KINDS[kind]))
    assert not photo.is_marked
    plain, written = (
        files.encode_photo(one, photo.pixels, keep_metadata=keep)
        for one in (photo, photo.with_mark())
    )
    assert parse(written).is_marked and not parse(plain).is_marked
    np.testing.assert_array_equal(parse(written).pixels, parse(plain).pixels)
    software = {0x0131: "deid_jax: faces are protected"}
    before, after = _exif(plain), _exif(written)
    assert after == before | software
    assert (0x010F in after) is bool(after[0x8825]) is bool(after[0x8769]) is keep


def _exif(content):
    """A file's EXIF without its layout, whose offsets differ in a TIFF."""
    exif = opened(content).getexif()
    layout = set(range(254, 300)) - {0x010F, 0x0112, 0x0131}
    found = {tag: value for tag, value in exif.items() if tag not in layout}
    return found | {part: dict(exif.get_ifd(part)) for part in (0x8769, 0x8825)}


def test_mark_stands_beside_other_notes():
    photo = parse(talkative_jpeg(picture(), quality=95)).with_mark()
    silent = files.encode_photo(photo, photo.pixels)
    notes = [inside for _, inside in notes_of_jpeg(silent)]
    assert sum(b"faces are protected" in note for note in notes) == 1
    telling = files.encode_photo(photo, photo.pixels, keep_metadata=True)
    assert parse(telling).is_marked
    assert b"Comment-Bob" in telling and b"Comment-Bob" not in silent


def test_bmp_holds_no_mark():
    photo = parse(encoded(picture(), "BMP")).with_mark()
    written = files.encode_photo(photo, photo.pixels)
    assert not parse(written).is_marked
