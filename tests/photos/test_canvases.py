"""Canvases: what they show of a photo, and how perturbations return to it."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deid_jax.models.templates import ARCFACE
from deid_jax.photos.canvases import SIZE, Canvas


def placed(eye_distance, middle, degrees=0.0):
    """Landmarks of a face with its eyes so far apart, turned about `middle`."""
    points = (ARCFACE.points - ARCFACE.points[:2].mean(0)) * (eye_distance / 35.2372)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T + middle


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).random((500, 600, 3))
    smooth = ndimage.gaussian_filter(noise, (6, 6, 0))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.rint(255 * smooth).astype(np.uint8)


def test_small_face_is_shown_and_changed_in_its_own_pixels(photo):
    canvas = Canvas.around(placed(30, (300, 250)))
    assert canvas.ratio == 1
    rows, columns = (slice(first, first + SIZE) for first in (canvas.top, canvas.left))
    np.testing.assert_array_equal(canvas.shown(photo), photo[rows, columns] / np.float32(255))
    perturbation = np.random.default_rng(1).normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    (ys, xs), spread = canvas.spread(perturbation, photo.shape)
    assert (ys, xs) == (rows, columns)
    np.testing.assert_array_equal(spread, perturbation)
    there = canvas.landmarks + np.array([canvas.left, canvas.top])
    np.testing.assert_allclose(there, placed(30, (300, 250)))


@pytest.mark.parametrize("degrees", [0, 90, 180, 30])
def test_large_face_keeps_its_place(photo, degrees):
    landmarks = placed(100, (300, 260), degrees)
    canvas = Canvas.around(landmarks)
    assert canvas.ratio > 1
    shown = canvas.shown(photo)
    for point, there in zip(landmarks, canvas.landmarks, strict=True):
        values = [
            [ndimage.map_coordinates(plane, place[::-1, None], order=1)[0] for plane in planes]
            for planes, place in (
                (np.moveaxis(photo / 255, 2, 0), point),
                (np.moveaxis(shown, 2, 0), there),
            )
        ]
        np.testing.assert_allclose(*values, atol=0.02)


def test_perturbation_comes_back_from_the_photo(photo):
    canvas = Canvas.around(placed(70, (310, 240), 20))
    noise = np.random.default_rng(2).normal(size=(SIZE, SIZE, 3))
    perturbation = ndimage.gaussian_filter(noise, (2, 2, 0)).astype(np.float32)
    (ys, xs), spread = canvas.spread(perturbation, photo.shape)
    whole = np.zeros((*photo.shape[:2], 3), np.float32)
    whole[ys, xs] = spread
    inside = whole[max(canvas.top, 0) :, max(canvas.left, 0) :][
        : canvas.length, : canvas.length
    ]
    again = np.stack(
        [
            np.asarray(Image.fromarray(c).resize((SIZE, SIZE)))
            for c in np.moveaxis(inside, 2, 0)
        ],
        axis=2,
    )
    error = np.linalg.norm(again - perturbation) / np.linalg.norm(perturbation)
    assert error < 0.05


def test_weights_cover_the_crop_and_stay_within_the_photo(photo):
    # Half of the face is beyond the photo's left border.
    canvas = Canvas.around(placed(80, (0, 250)))
    weights = canvas.weights(photo.shape)[..., 0]
    columns = canvas.left + (np.arange(SIZE) + 0.5) * canvas.ratio
    assert weights[:, columns < 0].max() == 0
    assert weights[:, columns > 1].max() == 1
    inside, spread = canvas.spread(np.ones((SIZE, SIZE, 3), np.float32), photo.shape)
    assert inside[1].start == 0
    assert spread.shape == photo[inside].shape
    canvas = Canvas.around(placed(80, (300, 250)))
    weights = canvas.weights(photo.shape)[..., 0]
    points = canvas.landmarks.round().astype(int)
    assert (weights[points[:, 1], points[:, 0]] == 1).all()
    assert weights[[0, -1]].max() == weights[:, [0, -1]].max() == 0
    # ArcFace's crop spans 3.18 eye distances.
    assert canvas.face_area * canvas.ratio**2 == pytest.approx((80 * 112 / 35.2372) ** 2, 1e-3)
