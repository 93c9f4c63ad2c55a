"""Canvases: what they show of a photo, how perturbations return to it, and what these cost."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deid_jax.models.templates import ARCFACE, DLIB
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.canvases import SIZE, Canvas
from deid_jax.photos.faces import Face
from tests.experiments.protect_helpers import psnr_of
from tests.helpers import refused


def placed(eye_distance, middle, degrees=0.0):
    """A face with its eyes so far apart, turned about `middle`."""
    points = (ARCFACE.points - ARCFACE.points[:2].mean(0)) * (eye_distance / 35.2372)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Face((0.0, 0.0, 1.0, 1.0), points @ turn.T + middle)


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).random((500, 600, 3))
    smooth = ndimage.gaussian_filter(noise, (6, 6, 0))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.rint(255 * smooth).astype(np.uint8)


def test_small_face_is_shown_and_changed_in_its_own_pixels(photo):
    face = placed(30, (300, 250))
    canvas = Canvas.around(face, photo)
    assert canvas.ratio == 1
    rows, columns = (slice(first, first + SIZE) for first in (canvas.top, canvas.left))
    np.testing.assert_array_equal(
        canvas.cut_from(photo), photo[rows, columns] / np.float32(255)
    )
    perturbation = np.random.default_rng(1).normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    inside, spread = canvas.spread(perturbation)
    assert inside == (rows, columns)
    np.testing.assert_array_equal(spread, perturbation)
    there = canvas.landmarks + np.array([canvas.left, canvas.top])
    np.testing.assert_allclose(there, face.landmarks)


def test_the_smallest_faces_have_an_area_wherever_they_lie(photo):
    """Of smaller ones the pixels that may change could all lie between the photo's."""
    for middle in np.random.default_rng(0).uniform(200, 300, (50, 2)):
        canvas = Canvas.around(Face((*(middle - 1), 2.0, 2.0)), photo)
        assert canvas.error(photo, 255 - photo) > 0
        assert canvas.area() > 1
    for small in (0.5, 1e-3):
        with refused("a face must be larger than 2 pixels"):
            Canvas.around(Face((250.0, 250.0, small, small)), photo)


@pytest.mark.parametrize("reach", [13.46983784, 13.489])
def test_landmarks_of_no_face_are_refused(photo, reach):
    """With a mouth that is mirrored and wide they fit a crop of any size."""
    mouth = [[100 + reach, 151], [100 - reach, 151]]
    points = np.array([[90, 150], [110, 150], [100, 150.5], *mouth])
    with refused("a face's landmarks must be eyes, nose and corners of the mouth"):
        Canvas.around(Face((80.0, 140.0, 40.0, 20.0), points), photo)


@pytest.mark.parametrize("degrees", [0, 90, 180, 30])
def test_large_face_keeps_its_place(photo, degrees):
    face = placed(100, (300, 260), degrees)
    canvas = Canvas.around(face, photo)
    assert canvas.ratio > 1
    shown = canvas.cut_from(photo)
    for point, there in zip(face.landmarks, canvas.landmarks, strict=True):
        values = [
            [ndimage.map_coordinates(plane, place[::-1, None], order=1)[0] for plane in planes]
            for planes, place in (
                (np.moveaxis(photo / 255, 2, 0), point),
                (np.moveaxis(shown, 2, 0), there),
            )
        ]
        np.testing.assert_allclose(*values, atol=0.02)


def test_perturbation_comes_back_from_the_photo(photo):
    canvas = Canvas.around(placed(70, (310, 240), 20), photo)
    noise = np.random.default_rng(2).normal(size=(SIZE, SIZE, 3))
    perturbation = ndimage.gaussian_filter(noise, (2, 2, 0)).astype(np.float32)
    _, spread = canvas.spread(perturbation)
    assert spread.shape == (canvas.length, canvas.length, 3)
    planes = [
        Image.fromarray(plane).resize((SIZE, SIZE)) for plane in np.moveaxis(spread, 2, 0)
    ]
    again = np.stack([np.asarray(plane) for plane in planes], axis=2)
    error = np.linalg.norm(again - perturbation) / np.linalg.norm(perturbation)
    assert error < 0.05


@pytest.mark.parametrize("other", [ARCFACE, DLIB])
@pytest.mark.parametrize("degrees", [0, 40])
def test_whole_crops_may_change_and_the_border_may_not(photo, other, degrees):
    canvas = Canvas.around(placed(80, (300, 250), degrees), photo)
    weights = canvas.weights()[..., 0]
    scale, offset = other.onto(ARCFACE)
    ends = np.array([(x, y) for x in (0, other.width - 1) for y in (0, other.height - 1)])
    crop = Face((0.0, 0.0, 1.0, 1.0), canvas.landmarks)
    linear, moved = np.split(crop_matrix(crop), [2], axis=1)
    corners = (scale * ends + offset - moved.T) @ np.linalg.inv(linear).T
    columns, rows = corners.round().astype(int).T
    assert (weights[rows, columns] > 0).all()
    columns, rows = canvas.landmarks.round().astype(int).T
    assert (weights[rows, columns] == 1).all()
    assert weights[[0, -1]].max() == weights[:, [0, -1]].max() == 0


def test_nothing_changes_beyond_the_photo(photo):
    canvas = Canvas.around(placed(80, (0, 250)), photo)
    weights = canvas.weights()[..., 0]
    columns = canvas.left + (np.arange(SIZE) + 0.5) * canvas.ratio
    assert weights[:, columns < 0].max() == 0
    assert weights[:, columns > 1].max() == 1
    inside, spread = canvas.spread(np.ones((SIZE, SIZE, 3), np.float32))
    assert inside[1].start == 0
    assert spread.shape == photo[inside].shape


@pytest.mark.parametrize(
    ("eye_distance", "middle", "tolerance"),
    [
        (25, (300, 250), 1e-6),
        (25, (3, 480), 1e-6),
        (110, (300, 250), 0.12),
        (110, (40, 420), 0.12),
    ],
)
@pytest.mark.parametrize("degrees", [0, 130])
def test_error_is_all_of_it_over_the_area_of_the_crop(
    photo, eye_distance, middle, tolerance, degrees
):
    """Also of faces of which the photo shows a part; in dB.

    Large faces end on the canvas's coarser pixels.
    """
    face = placed(eye_distance, middle, degrees)
    noise = np.random.default_rng(3).integers(-9, 10, photo.shape)
    changed = np.clip(photo + noise, 0, 255).astype(np.uint8)
    error = Canvas.around(face, photo).error(photo, changed)
    expected = psnr_of(photo, changed, crop_matrix(face))
    assert -10 * np.log10(error) == pytest.approx(expected, abs=tolerance)


def test_faces_beside_the_photo_have_no_error(photo):
    canvas = Canvas.around(placed(30, (-300, 100)), photo)
    assert canvas.area() == 0
    assert canvas.error(photo, 255 - photo) == 0
