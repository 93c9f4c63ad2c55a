import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.data.dataset import FaceDataset
from deid_jax.errors import InputError
from deid_jax.pixels import LEVELS, on_grid, to_uint8
from deid_jax.reports.tables import images_to_show
from tests.helpers import refused


def test_levels_are_what_an_8_bit_file_reads_as():
    np.testing.assert_array_equal(LEVELS, np.arange(256).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: jax.jit(_in_a_loop(f))])
def test_grid_is_that_of_files_bit_for_bit(wrap):
    """Compiled or not, and in a loop: rounding to half, ties to even levels."""
    values = np.concatenate(
        [LEVELS, np.random.default_rng(0).random(100_000, np.float32), [0.5 / 255, 1.5 / 255]]
    ).astype(np.float32)
    found = np.asarray(wrap(on_grid)(jnp.asarray(values)))
    assert found.dtype == np.float32
    wanted = np.rint(np.float32(255) * values).astype(np.uint8)
    np.testing.assert_array_equal(found, wanted.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(np.asarray(to_uint8(jnp.asarray(found))), wanted)


def _in_a_loop(function):
    return lambda values: jax.lax.fori_loop(0, 3, lambda _, now: function(now), values)


def test_what_is_no_number_stays_none():
    assert np.isnan(np.asarray(on_grid(jnp.float32([np.nan, 0.5])))[0])


def _faces(**changes):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    facts = {
        "name": "any",
        "persons": ("ada", "bob"),
        "labels": np.arange(6, dtype=np.int32) % 2,
        "names": tuple("000112"),
        "read": lambda index: pixels[index],
        "image_size": 4,
        "split": "all",
        "provenance": {"crop": "auto"},
    }
    return FaceDataset(**(facts | changes))


def _others():
    """Sets that differ from `_faces()` in what decides names, labels and pixels."""
    pixels = np.stack([_faces().read(index) for index in range(6)])
    pixels[5, 3, 3, 2] ^= 1
    yield _faces(read=lambda index: pixels[index])
    yield _faces(names=tuple("000113"))
    yield _faces(persons=("ada", "eve"))
    yield _faces(persons=("bob", "ada"), labels=1 - np.arange(6, dtype=np.int32) % 2)
    yield _faces(image_size=5)
    yield _faces(provenance={"crop": "none"})
    yield _faces(provenance={"crop": "auto", "fingerprint": "1"})
    yield _faces(provenance={"crop": "auto", "fingerprint": "2"})
    yield _faces().take([0, 1, 2, 3, 4])
    yield _faces().take([1, 0, 2, 3, 4, 5])


def test_fingerprint_changes_with_names_labels_and_pixels():
    found = [_faces().fingerprint(), *(other.fingerprint() for other in _others())]
    assert len(set(found)) == 11
    assert all(len(one) == 64 for one in found)


def test_fingerprint_changes_with_nothing_else():
    expected = _faces().fingerprint()
    for same in (
        _faces(),
        _faces(name="other", split="test", attributes={"young": np.zeros(6, bool)}),
        _faces(provenance={"crop": "auto", "seed": 3}, skip_unreadable=True),
        _faces(labels=np.arange(6) % 2),
        _faces().take(range(6)),
    ):
        assert same.fingerprint() == expected


def test_a_fingerprint_of_the_files_saves_reading_them():
    def read(index):
        raise AssertionError

    provenance = {"crop": "auto", "fingerprint": "1"}
    assert _faces(read=read, provenance=provenance).fingerprint()


def test_fingerprint_of_a_set_with_unreadable_pictures():
    whole = _faces()

    def read(index):
        if index == 3:
            raise InputError("bob/1 is damaged")
        return whole.read(index)

    with refused("bob/1 is damaged"):
        _faces(read=read).fingerprint()
    found = _faces(read=read, skip_unreadable=True).fingerprint()
    assert found == _faces(read=read, skip_unreadable=True).fingerprint() != whole.fingerprint()


def test_unreadable_pictures_are_left_out_and_not_shown():
    def read(index):
        if index in (0, 3):
            raise InputError("damaged")
        return _faces().read(index)

    assert _faces(read=read).readable().image_names == _faces().image_names
    faces = _faces(read=read, skip_unreadable=True)
    left = faces.readable()
    assert left.image_names == tuple(faces.image_names[i] for i in (1, 2, 4, 5))
    np.testing.assert_array_equal(left.read(0), _faces().read(1))
    # One of ada's two and one of bob's two; all, where there are no more.
    assert images_to_show(faces, 2) == [1, 2]
    assert images_to_show(faces, 8) == [1, 2, 4, 5]
    with refused("no image could be read"):
        faces.take([0, 3]).readable()


def test_names_that_are_no_unicode_have_a_fingerprint():
    assert _faces(names=(*"00011", "\udcff")).fingerprint() != _faces().fingerprint()


def test_pictures_are_called_person_and_name():
    assert _faces().image_name(5) == "bob/2"
    assert _faces().image_names == ("ada/0", "bob/0", "ada/0", "bob/1", "ada/1", "bob/2")
