"""Where faces lie, and what recognisers see of them.

Oracles are scikit-image's similarity, a linear system solved in float64, and waves, which are
known between pixels, too.
"""

import tracemalloc

import numpy as np
import pytest
from skimage.transform import SimilarityTransform, estimate_transform

from deid_jax.errors import InputError
from deid_jax.models.templates import ARCFACE
from deid_jax.photos import alignment
from deid_jax.photos.faces import Face
from tests.experiments.protect_helpers import TEMPLATE

SIZE = ARCFACE.height
# Coarser than the crop, hardly finer, and much finer.
SCALES = (0.5, 1.7, 6.0)
ANGLES = (0.0, -1.2)


def landmarks(seed, noise=0.0):
    """float64[5, 2] in a photo: the template turned, scaled, moved, and blurred by noise."""
    generator = np.random.default_rng(seed)
    map_ = SimilarityTransform(
        scale=generator.uniform(0.3, 8),
        rotation=generator.uniform(-np.pi, np.pi),
        translation=generator.uniform(-100, 900, 2),
    )
    return map_(TEMPLATE + noise * generator.standard_normal(TEMPLATE.shape))


def placed(scale, angle=0.0, *, centre, size=SIZE):
    """float64[2, 3]: photo pixels a crop pixel, radians, the crop's centre in the photo."""
    there = SimilarityTransform(translation=-np.asarray(centre))
    turned = SimilarityTransform(scale=1 / scale, rotation=angle)
    back = SimilarityTransform(translation=np.full(2, (size - 1) / 2))
    return (there + turned + back).params[:2]


def room(scale, angle=0.0, *, size=SIZE, seed=0):
    """A photo's side and the similarity of a face wholly in it, anywhere between pixels."""
    side = int(1.5 * scale * size) + 40
    centre = side / 2 + np.random.default_rng(seed).uniform(-3, 3, 2)
    return side, placed(scale, angle, centre=centre, size=size)


def grid(width, height):
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return x, y


def waves(x, y, period, seed=0):
    """float64[..., 3] in [-1, 1]: a plane wave in each channel."""
    generator = np.random.default_rng(seed)
    angles, phases = generator.uniform(0, 2 * np.pi, (2, 3))
    steps = np.multiply.outer(x, np.cos(angles)) + np.multiply.outer(y, np.sin(angles))
    return np.sin(2 * np.pi / period * steps + phases)


def photo_of(values):
    return np.rint(values).astype(np.uint8)


def mapped(matrix, x, y):
    return tuple(row[0] * x + row[1] * y + row[2] for row in matrix)


def inverse(matrix):
    return np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]


def levels(crop):
    return 255 * crop.astype(np.float64)


# --- Similarities ---


@pytest.mark.parametrize("size", [SIZE, 300])
@pytest.mark.parametrize("noise", [0.0, 40.0])
def test_landmarks_go_onto_the_template_by_least_squares(noise, size):
    targets = (TEMPLATE + 0.5) * size / 112 - 0.5
    for seed in range(20):
        points = landmarks(seed, noise)
        found = alignment.crop_matrix(Face((0.0, 0.0, 1.0, 1.0), points), ARCFACE.scaled(size))
        wanted = estimate_transform("similarity", points, targets).params[:2]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
        assert np.linalg.det(found[:, :2]) > 0
        if not noise:
            np.testing.assert_allclose(mapped(found, *points.T), targets.T, atol=1e-9)


def test_similarity_is_the_best_one_without_a_reflection():
    """Also of mirrored points, where the best one of all would reflect."""
    generator = np.random.default_rng(0)
    for number in (2, 3, 5, 40):
        targets = generator.normal(0, 50, (number, 2))
        for sign in (1, -1):
            points = targets * [sign, 1] + generator.normal(0, 5, targets.shape)
            # (a, b, c, d): x' = a x − b y + c, y' = b x + a y + d.
            (x, y), one, none = points.T, np.ones(number), np.zeros(number)
            rows = [np.column_stack([x, -y, one, none]), np.column_stack([y, x, none, one])]
            a, b, c, d = np.linalg.lstsq(np.vstack(rows), targets.T.ravel(), rcond=None)[0]
            found = alignment.fit_similarity(points, targets)
            np.testing.assert_allclose(found, [[a, -b, c], [b, a, d]], rtol=1e-9, atol=1e-9)


def test_landmarks_in_one_place_are_refused():
    """Their mean may be rounded off the place."""
    for seed in range(50):
        points = np.tile(np.random.default_rng(seed).uniform(0, 1000, 2), (5, 1))
        with pytest.raises(InputError, match="landmarks must not lie all in one place"):
            alignment.crop_matrix(Face((0.0, 0.0, 9.0, 9.0), points))
    with pytest.raises(InputError, match="one place"):
        alignment.fit_similarity(np.full((5, 2), np.nan), TEMPLATE)


@pytest.mark.parametrize("box", [(0.0, 0.0, 90.0, 90.0), (-30.5, 12.25, 41.0, 64.0)])
def test_boxes_give_an_upright_crop(box):
    left, top, width, height = box
    (xx, xy, x), (yx, yy, y) = alignment.crop_matrix(Face(box))
    middle = np.array([56.02616, 71.90078])
    np.testing.assert_allclose(middle, TEMPLATE.mean(0), atol=1e-9)
    radius = np.sqrt(np.sum(np.var(TEMPLATE, axis=0)))
    assert xx == yy == pytest.approx(radius / (0.242 * width), rel=1e-12)
    assert xy == pytest.approx(0, abs=1e-15) and yx == -xy
    found = xx * (left + 0.5 * width) + x, yy * (top + 0.576 * height) + y
    np.testing.assert_allclose(found, middle, rtol=1e-12)


def test_scale_is_photo_pixels_per_crop_pixel():
    matrix = placed(7.5, 0.3, centre=(10, 20))
    assert alignment.scale_of(matrix) == pytest.approx(7.5, rel=1e-12)


def shaped(height, width):
    (face,) = alignment.aligned_face(np.zeros((height, width, 3), np.uint8))
    return face


@pytest.mark.parametrize("side", [1, 300])
def test_square_images_are_crops_already(side):
    face = shaped(side, side)
    assert face.box == (0, 0, side, side)
    matrix = alignment.crop_matrix(face, ARCFACE.scaled(side))
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-9)


def test_images_of_celeba_have_their_own_place():
    face = shaped(218, 178)
    assert face.box == (0, 0, 178, 218)
    wanted = [[0.94596, 0.00183, -27.934], [-0.00183, 0.94596, -53.182]]
    # It is rounded.
    np.testing.assert_allclose(alignment.crop_matrix(face), wanted, atol=6e-4)
    points = [(69, 111.5), (108, 111.5), (88, 134), (72, 152.5), (105.5, 152.5)]
    np.testing.assert_array_equal(face.landmarks, points)


def test_other_shapes_are_no_crops():
    with pytest.raises(InputError, match=r"^is no aligned face: it is 218x178, not square"):
        shaped(178, 218)


# --- What recognisers see ---


@pytest.mark.parametrize(("period", "tolerance"), [(64, 1), (8, 5)])
def test_crop_of_a_crop_is_nearly_itself(period, tolerance):
    """In levels of 255, of waves ±100; one more next to the border, where none go on."""
    pixels = photo_of(127.5 + 100 * waves(*grid(112, 112), period))
    matrix = alignment.crop_matrix(shaped(112, 112))
    errors = np.abs(levels(alignment.aligned_crop(pixels, matrix)) - pixels)
    assert errors[4:-4, 4:-4].max() <= tolerance + 1e-3
    assert errors.max() <= tolerance + 1 + 1e-3


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("scale", [0.2, 1.7])
def test_constant_photos_stay_constant(scale, angle):
    side, matrix = room(scale, angle)
    for value in (0, 1, 127, 255):
        found = alignment.aligned_crop(np.full((side, side, 3), value, np.uint8), matrix)
        np.testing.assert_array_equal(found, np.float32(value) / 255)


@pytest.mark.parametrize("size", [SIZE, 64])
@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("scale", SCALES)
def test_crop_shows_what_lies_there(scale, angle, size):
    """Waves ±100, 24 pixels long, within 4 levels; a quarter of a pixel would be 6."""
    side, matrix = room(scale, angle, size=size)
    period = 24 * max(scale, 1)
    photo = photo_of(127.5 + 100 * waves(*grid(side, side), period))
    found = alignment.aligned_crop(photo, matrix, ARCFACE.scaled(size))
    assert found.shape == (size, size, 3)
    wanted = 127.5 + 100 * waves(*mapped(inverse(matrix), *grid(size, size)), period)
    errors = levels(found) - wanted
    assert np.abs(errors).max() <= 4
    # Pillow cuts fractions off: half a level.
    assert np.sqrt(np.mean(errors**2)) <= 1.2


@pytest.mark.parametrize("scale", [2.0, 7.3])
def test_patterns_finer_than_the_crop_are_averaged(scale):
    """Stripes of one pixel give no moiré."""
    side, matrix = room(scale)
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, ::2] = 255
    np.testing.assert_allclose(alignment.aligned_crop(pixels, matrix), 0.5, atol=0.06)


@pytest.mark.parametrize("angle", [0.0, 0.6])
@pytest.mark.parametrize("scale", SCALES)
def test_beyond_the_photo_is_black(scale, angle):
    height, width = int(90 * scale), int(70 * scale)
    matrix = placed(scale, angle, centre=(60.3 * scale, 20.6 * scale))
    found = alignment.aligned_crop(np.full((height, width, 3), 255, np.uint8), matrix)
    x, y = mapped(inverse(matrix), *grid(SIZE, SIZE))
    beyond = np.maximum.reduce([-0.5 - x, x - width + 0.5, -0.5 - y, y - height + 0.5]) / scale
    assert np.any(beyond > 2.5) and np.any(beyond < -2.5)
    assert np.all(found[beyond > 2.5] == 0) and np.all(found[beyond < -2.5] == 1)


@pytest.mark.parametrize("centre", [(-500, 50), (-61, -61)])
def test_faces_beside_the_photo_are_black(centre):
    found = alignment.aligned_crop(
        np.full((100, 100, 3), 255, np.uint8), placed(1.0, centre=centre)
    )
    np.testing.assert_array_equal(found, np.zeros((SIZE, SIZE, 3), np.float32))


def test_only_the_surroundings_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    other = 255 - pixels
    matrix = placed(2.0, 0.5, centre=(430.0, 470.0))
    # Half the turned square's side, and what filters reach.
    reach = int(np.ceil(112 * (np.cos(0.5) + np.sin(0.5)))) + 10
    place = slice(470 - reach, 470 + reach), slice(430 - reach, 430 + reach)
    other[place] = pixels[place]
    np.testing.assert_array_equal(
        alignment.aligned_crop(pixels, matrix), alignment.aligned_crop(other, matrix)
    )
    large = np.broadcast_to(np.uint8(90), (6000, 6000, 3))
    tracemalloc.start()
    try:
        alignment.aligned_crop(large, matrix)
        assert tracemalloc.get_traced_memory()[1] < 10e6  # of 108 MB
    finally:
        tracemalloc.stop()
