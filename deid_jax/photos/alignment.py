"""Aligned crops of faces, and how a perturbation of a crop is added to the photo's own pixels.

A similarity transform maps points p of the photo to points p' = A p + b of a crop, which has
eyes, nose and mouth on the template that a recogniser is trained on. Coordinates refer to pixel
centres; the first pixel is at (0, 0).
"""

import math
from typing import TypeAlias

import numpy as np
from PIL import Image

from deid_jax.data.images import CELEBA_LANDMARKS, CELEBA_SIZE
from deid_jax.errors import InputError
from deid_jax.models.templates import ARCFACE, Alignment
from deid_jax.photos.faces import Face, FaceError
from deid_jax.types import NumpyArray

Span: TypeAlias = "slice[int, int, None]"
# Rows and columns of a photo, and bool[h, w]: which of their pixels.
Support: TypeAlias = "tuple[Span, Span, NumpyArray]"

# The attack's own crops are ArcFace's.
SIZE = ARCFACE.height
# The landmarks' mean position in a detector's box, and their root mean square distance from it,
# relative to the box's width: means over the 20 of 24 CelebA photos in which
# `detectors.cascade` finds the face (standard deviations 0.022, 0.021 and 0.016).
_BOX_CENTRE = (0.500, 0.576)
_BOX_SPREAD = 0.242
# Width in crop pixels of the border in which a perturbation fades to zero.
_TAPER = 8
# Crops are resampled on a grid finer by this factor and then reduced, which is sharper.
_OVERSAMPLING = 2
# The centre of the fine grid's first pixel, in coordinates of the coarse grid.
_FIRST = 0.5 / _OVERSAMPLING - 0.5
# So are perturbations if a crop pixel covers fewer photo pixels than this.
_COARSE = 2.0
# How far filters reach beyond the crop, in crop or photo pixels, whichever are larger.
_MARGIN = 4
# The sine of rotation up to which a face counts as upright.
_UPRIGHT = 0.02
_BICUBIC = Image.Resampling.BICUBIC


def crop_matrix(face: Face, alignment: Alignment = ARCFACE) -> NumpyArray:
    """float64[2, 3]: the similarity (A, b) from the photo to a recogniser's crop.

    With landmarks it is the least-squares fit onto the template (Umeyama, PAMI 1991, without
    reflections); with only a box it is upright.

    Raises:
      InputError: all landmarks coincide.
    """
    targets = alignment.points
    if face.landmarks is None:
        left, top, width, height = face.box
        centre = np.array([left + _BOX_CENTRE[0] * width, top + _BOX_CENTRE[1] * height])
        spread = math.sqrt(np.mean(np.sum(np.square(targets - targets.mean(0)), axis=1)))
        linear = spread / (_BOX_SPREAD * width) * np.eye(2)
        return np.column_stack([linear, targets.mean(0) - linear @ centre])
    return fit_similarity(np.asarray(face.landmarks, np.float64), targets)


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


def to_photo(
    perturbation: NumpyArray, matrix: NumpyArray, shape: tuple[int, ...]
) -> "tuple[Span, Span, NumpyArray]":
    """Maps the perturbation of a crop, float32[S, S, 3], to the photo's own pixels.

    Returns the rows and columns of the photo that may change, and float32[h, w, 3] for them.

    Resampling is bicubic. The perturbation fades to exactly zero at the crop's border and is
    zero outside. If the photo is coarser than the crop, or hardly finer, the filter is as wide
    as the photo's pixels.
    """
    size = perturbation.shape[0]
    faded = perturbation * taper(size)[:, None, None] * taper(size)[None, :, None]
    corners = _corners(matrix, size, size)
    low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int), [shape[1] - 1, shape[0] - 1])
    if (high < low).any():
        return slice(0, 0), slice(0, 0), np.zeros((0, 0, 3), np.float32)
    over, small = _grid(scale_of(matrix), size)
    ratio = size / small
    linear = matrix[:, :2] / ratio / over
    first = matrix[:, :2] @ (low + 0.5 / over - 0.5) + matrix[:, 2]
    start = (first + 0.5) / ratio - 0.5
    extent = (int(high[0] - low[0] + 1), int(high[1] - low[1] + 1))
    channels = []
    for channel in range(perturbation.shape[2]):
        image = Image.fromarray(np.ascontiguousarray(faded[..., channel], np.float32))
        fine = (over * extent[0], over * extent[1])
        moved = _sampled(image.resize((small, small), _BICUBIC), fine, linear, start)
        channels.append(np.asarray(moved.resize(extent, _BICUBIC)))
    found = np.stack(channels, axis=2)
    if over > 1:
        # The last filter reaches beyond the crop's border.
        xs, ys = (np.arange(first, last + 1) for first, last in zip(low, high, strict=True))
        for across, down, offset in matrix:
            found[~_inside(across * xs + down * ys[:, None] + offset, size)] = 0
    rows, columns = slice(low[1], high[1] + 1), slice(low[0], high[0] + 1)
    return rows, columns, found


def _inside(places: NumpyArray, size: int) -> NumpyArray:
    """Which positions along one axis lie inside the crop."""
    return (places >= -0.5) & (places <= size - 0.5)


def _grid(scale: float, size: int) -> tuple[int, int]:
    """How much finer than the photo a perturbation's grid is, and the size to reduce it to."""
    over = _OVERSAMPLING if scale < _COARSE else 1
    return over, max(1, round(size * min(scale * over, 1.0)))


def support(matrix: NumpyArray, shape: tuple[int, ...]) -> "Support":
    """The pixels that `to_photo` may change."""
    rows, columns, touched = to_photo(np.ones((SIZE, SIZE, 3), np.float32), matrix, shape)
    return rows, columns, np.any(touched != 0, axis=2)


def error_within(where: "Support", before: NumpyArray, after: NumpyArray) -> float:
    """Mean squared error of the pixels of a `support`, for a range of 1; 0 if it has none."""
    ys, xs, inside = where
    difference = after[ys, xs].astype(np.int16) - before[ys, xs]
    squares = np.square(difference, dtype=np.int32).sum(axis=2)
    mean = squares.sum(where=inside, dtype=np.float64) / max(inside.sum(), 1)
    return float(mean / (3 * 255**2))


def taper(size: int) -> NumpyArray:
    """float32[size]: 1 inside, falling to 0 at both ends as a half cosine."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    share = np.clip(distance / _TAPER, 0, 1)
    return ((1 - np.cos(np.pi * share)) / 2).astype(np.float32)


def round_trip(matrix: NumpyArray, size: int = SIZE) -> tuple[NumpyArray, NumpyArray]:
    """R and C, float32[S, S]: δ becomes R δ Cᵀ when mapped to the photo and cropped again.

    This is what `aligned_crop` shows of a perturbation that `to_photo` adds. It is exact up to
    8-bit rounding for upright faces at least `_MARGIN` crop pixels from the photo's border;
    nearer to the border, the photo is assumed to continue. For rotated faces only the scale is
    modelled, not the rotation: R and C are means over sub-pixel positions.
    """
    scale = scale_of(matrix)
    centre = inverse_of(matrix) @ [(size - 1) / 2, (size - 1) / 2, 1.0]
    turned = abs(matrix[0, 1]) * scale > _UPRIGHT
    places = np.arange(0, 1, 0.25) * max(scale, 1.0) if turned else np.zeros(1)
    columns, rows = (
        np.mean([_line(scale, float(middle + place), size) for place in places], axis=0)
        for middle in centre
    )
    return rows, columns


def _line(scale: float, centre: float, size: int) -> NumpyArray:
    """float32[S, S], the round trip along one axis of an upright face; `centre`: the crop's."""
    low = math.floor(centre - size * scale / 2)
    length = math.ceil(centre + size * scale / 2) - low + 1
    # Each column is a unit perturbation with the fade applied.
    over, small = _grid(scale, size)
    image = Image.fromarray(np.diag(taper(size))).resize((size, small), _BICUBIC)
    start = (low + 0.5 / over - 0.5 - centre) / scale + size / 2
    ratio = size / small
    image = _stretched(image, over * length, 1 / (scale * ratio * over), start / ratio - 0.5)
    photo = np.array(image.resize((size, length), _BICUBIC))
    photo[~_inside((low + np.arange(length) - centre) / scale + (size - 1) / 2, size)] = 0
    reach = size * scale / 2 + _MARGIN * max(scale, 1.0)
    margin = low - math.floor(centre - reach)
    behind = math.ceil(centre + reach) - (low + length - 1)
    photo = np.pad(photo, ((margin, behind), (0, 0)))
    small = max(1, round(len(photo) / max(scale / _OVERSAMPLING, 1.0)))
    ratio = len(photo) / small
    image = Image.fromarray(photo).resize((size, small), _BICUBIC)
    start = centre + (_FIRST - (size - 1) / 2) * scale - low + margin + 0.5
    step = scale / (ratio * _OVERSAMPLING)
    image = _stretched(image, _OVERSAMPLING * size, step, start / ratio - 0.5)
    return np.asarray(image.resize((size, size), _BICUBIC))


def _stretched(image: Image.Image, height: int, step: float, start: float) -> Image.Image:
    """Resamples rows: row i of the result is row start + i step of the image."""
    linear = np.diag([1.0, step])
    return _sampled(image, (image.width, height), linear, np.array([0.0, start]))


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
