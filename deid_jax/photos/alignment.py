"""Aligned crops of faces for recognisers.

A similarity transform maps points p of the photo to points p' = A p + b of a crop, in which
eyes, nose and mouth lie on the template that a recogniser is trained with. Coordinates refer to
pixel centres; the first pixel is at (0, 0).
"""

import math

import numpy as np
from PIL import Image

from deid_jax.data.images import CELEBA_LANDMARKS, CELEBA_SIZE
from deid_jax.errors import InputError
from deid_jax.models.templates import ARCFACE, Alignment
from deid_jax.photos.faces import Face, FaceError
from deid_jax.types import NumpyArray

# The landmarks' mean position in a box, and their root mean square distance from it, relative
# to the box's width, for user-supplied boxes in which no landmarks are detected: means over the
# square boxes of scikit-image's cascade in 20 CelebA photos (standard deviations 0.022, 0.021
# and 0.016).
_BOX_CENTRE = (0.500, 0.576)
_BOX_SPREAD = 0.242
# Crops are resampled on a grid finer by this factor and then reduced, which is sharper.
_OVERSAMPLING = 2
# The centre of the fine grid's first pixel, in coordinates of the coarse grid.
_FIRST = 0.5 / _OVERSAMPLING - 0.5
# How far filters reach beyond the crop, in crop or photo pixels, whichever are larger.
_MARGIN = 4
_BICUBIC = Image.Resampling.BICUBIC


def landmarks_of(face: Face) -> NumpyArray:
    """A face's landmarks, float64[5, 2]; of a box alone, those of an upright face in it."""
    if face.landmarks is not None:
        return np.asarray(face.landmarks, np.float64)
    left, top, width, height = face.box
    offsets = ARCFACE.points - ARCFACE.points.mean(0)
    spread = math.sqrt(np.mean(np.sum(np.square(offsets), axis=1)))
    centre = np.array([left + _BOX_CENTRE[0] * width, top + _BOX_CENTRE[1] * height])
    return centre + offsets * (_BOX_SPREAD * width / spread)


def crop_matrix(face: Face, alignment: Alignment = ARCFACE) -> NumpyArray:
    """float64[2, 3]: the similarity (A, b) from the photo to a recogniser's crop.

    It is the least-squares fit of the landmarks onto the template (Umeyama, PAMI 1991, without
    reflections).

    Raises:
      InputError: all landmarks coincide.
    """
    return fit_similarity(landmarks_of(face), alignment.points)


def fit_similarity(points: NumpyArray, targets: NumpyArray) -> NumpyArray:
    """float64[2, 3], the similarity that minimises Σ ‖A p + b − q‖²: points p, targets q.

    Raises:
      InputError: all points coincide.
    """
    # The mean is rounded, so distances from it may not be exactly zero.
    if not np.ptp(points, axis=0).max() > 0:
        raise InputError("landmarks must not lie all in one place")
    centre, target_centre = points.mean(0), targets.mean(0)
    own = (points - centre) @ np.array([1, 1j])
    goal = (targets - target_centre) @ np.array([1, 1j])
    # In the plane a similarity is multiplication by a complex number.
    factor = np.vdot(own, goal) / np.vdot(own, own).real
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_centre - linear @ centre])


def aligned_face(pixels: NumpyArray) -> list[Face]:
    """The face of an image that is already an aligned crop: square, or of CelebA's shape.

    Raises:
      FaceError: the image, uint8[H, W, 3], has another shape.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (CELEBA_SIZE[1], CELEBA_SIZE[0]):
        points = CELEBA_LANDMARKS
    elif height == width:
        points = ARCFACE.scaled(width).points
    else:
        raise FaceError(f"is no aligned face: it is {width}x{height}, not square")
    return [Face((0.0, 0.0, float(width), float(height)), points)]


def scale_of(matrix: NumpyArray) -> float:
    """Photo pixels per crop pixel."""
    return 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def aligned_crop(
    pixels: NumpyArray, matrix: NumpyArray, alignment: Alignment = ARCFACE
) -> NumpyArray:
    """The aligned crop of a face: float32[h, w, 3] in [0, 1], on the 8-bit grid.

    Resampling is bicubic, on a grid `_OVERSAMPLING` times as fine that is then reduced; a photo
    finer than that grid is first reduced to it. Only pixels around the face are read. Outside
    the photo uint8[H, W, 3] the crop is black. The matrix is that of `crop_matrix` for the same
    alignment.
    """
    height, width = alignment.height, alignment.width
    scale = max(scale_of(matrix), 1.0)
    corners = _corners(matrix, height, width)
    margin = _MARGIN * scale
    low = np.floor(corners.min(0) - margin).astype(int)
    high = np.ceil(corners.max(0) + margin).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, [pixels.shape[1] - 1, pixels.shape[0] - 1])
    if (high <= low).any():
        return np.zeros(alignment.shape, np.float32)
    region = Image.fromarray(pixels[low[1] : high[1] + 1, low[0] : high[0] + 1])
    ratio = max(scale / _OVERSAMPLING, 1.0)
    small = (max(1, round(region.width / ratio)), max(1, round(region.height / ratio)))
    ratios = np.array(region.size) / small
    # From the fine grid through the crop and the photo to the reduced region.
    back = inverse_of(matrix)
    linear = back[:, :2] / ratios[:, None] / _OVERSAMPLING
    first = back[:, :2] @ np.full(2, _FIRST) + back[:, 2]
    start = (first - low + 0.5) / ratios - 0.5
    fine = (_OVERSAMPLING * width, _OVERSAMPLING * height)
    shown = _sampled(region.resize(small, _BICUBIC), fine, linear, start)
    return np.asarray(shown.resize((width, height), _BICUBIC), np.float32) / 255


def _corners(matrix: NumpyArray, height: int, width: int) -> NumpyArray:
    """float64[4, 2]: the crop's corners in the photo."""
    ends = np.array([[x, y] for y in (-0.5, height - 0.5) for x in (-0.5, width - 0.5)])
    back = inverse_of(matrix)
    return ends @ back[:, :2].T + back[:, 2]


def inverse_of(matrix: NumpyArray) -> NumpyArray:
    """The inverse of an affine map float64[2, 3]."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def _sampled(
    image: Image.Image, size: tuple[int, int], linear: NumpyArray, start: NumpyArray
) -> Image.Image:
    """Resamples: the pixel at p of the result is the one at A p + b of the image."""
    # Pillow's coefficients map pixel corners instead of centres.
    start = start + 0.5 - linear @ np.array([0.5, 0.5])
    coefficients = np.column_stack([linear, start]).ravel().tolist()
    return image.transform(size, Image.Transform.AFFINE, coefficients, _BICUBIC)
