import numpy as np
import pytest

from deid_jax.metrics.verification import Distance
from deid_jax.photos.faces import Face
from deid_jax.photos.named_faces import face_again, named_faces
from deid_jax.photos.photo_processing import PHOTO_PROCESSING

COSINE, EUCLIDEAN = Distance.COSINE, Distance.EUCLIDEAN
X, Y, Z = np.eye(3)


def test_face_that_resembles_the_persons_other_photos():
    """Person 0 is X and comes with others; person 1's second photo shows no face."""
    photos = [[Y, X], [X + 0.1], [Z, X - 0.1, Y], [Y], np.zeros((0, 3)), [Y + 0.1]]
    embeddings = [[np.array(own)] for own in photos]
    labels = [0, 0, 0, 1, 1, 1]
    assert named_faces(embeddings, labels, [COSINE]) == [1, 0, 1, 0, None, 0]
    # Alone, a photo cannot tell whose face is whose.
    assert named_faces(embeddings[:1], [0], [COSINE]) == [None]


def test_most_recognisers_must_agree():
    """The second recogniser knows faces by length, and takes the other face."""
    first = [np.array([Y, X]), np.array([X])]
    second = [np.array([2 * Y, 5 * X]), np.array([2 * X])]

    def choices(*columns):
        embeddings = [list(own) for own in zip(*columns, strict=True)]
        return named_faces(embeddings, [0, 0], [COSINE, EUCLIDEAN, COSINE][: len(columns)])

    assert choices(first, second) == [None, 0]
    assert choices(first, second, first) == [1, 0]


@pytest.mark.parametrize("kind", PHOTO_PROCESSING)
def test_faces_are_where_the_matrix_says(kind):
    """A white spot on black, and the face around it."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[30:37, 100:107] = 255
    shown, matrix = PHOTO_PROCESSING[kind](pixels, 1.5)
    rows, columns = np.indices(shown.shape[:2])
    weights = shown.astype(float).mean(2)
    centre = [np.average(axis, weights=weights) for axis in (columns, rows)]
    np.testing.assert_allclose(matrix @ [103, 33, 1], centre, atol=0.1)
    size = 24 * np.sqrt(np.linalg.det(matrix[:, :2]))
    box = (centre[0] - size / 2, centre[1] - size / 2, size, size)
    spot, beside = Face(box), Face((box[0] + 0.7 * size, *box[1:]))
    face = Face((91.0, 21.0, 24.0, 24.0))
    assert face_again(face, matrix, [beside, spot]) is spot
    assert face_again(face, matrix, [beside]) is None
    assert face_again(face, matrix, []) is None
    noise = np.random.default_rng(0).integers(100, 120, (24, 30, 3), np.uint8)
    assert np.array_equal(PHOTO_PROCESSING[kind](noise, 1.5).pixels, noise) == (kind == "none")


def test_blur_is_as_wide_as_a_pixel_of_the_crop():
    """In contrast to that of crops it does not depend on the photo's height."""
    spot = np.zeros((90, 60, 3), np.uint8)
    spot[45, 30] = 255
    shown, _ = PHOTO_PROCESSING["blur"](spot, 1.5)
    assert shown[45, 30, 0] == pytest.approx(255 / (2 * np.pi * 1.5**2), abs=1)
    wide = np.repeat(spot, 10, axis=0)
    np.testing.assert_array_equal(PHOTO_PROCESSING["blur"](wide, 0.0)[0], wide)
