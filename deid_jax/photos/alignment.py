"""Where a face lies in a photo, and how a change of its crop comes back to the photo's pixels.

A similarity takes points p of the photo to p' = A p + b of the recogniser's crop, 112 × 112
pixels whose template puts eyes, nose and mouth where recognisers have learned to see them.
Coordinates are those of pixels' centres: the first pixel's is (0, 0).
"""

import math

import numpy as np
from PIL import Image

from deid_jax._validate import InputError
from deid_jax.data.images import CELEBA_SIZE, CELEBA_TO_TEMPLATE
from deid_jax.photos.faces import Face

SIZE = 112
# Eyes, nose, corners of the mouth: the template of ArcFace (Deng et al., CVPR 2019).
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
# Where the landmarks' mean lies in a detector's box, and their root mean square distance from
# it, in shares of the width: means of 20 photos of CelebA whose face `faces.cascade` finds
# (standard deviations 0.032, 0.028, 0.031).
_BOX_CENTRE = (0.506, 0.582)
_BOX_SPREAD = 0.249
# Crop pixels over which a change fades to nothing at the crop's border.
_TAPER = 8
# Scales beyond this one look alike to `roundtrip`.
_LARGEST_SCALE = 4.0


def crop_matrix(face: Face) -> np.ndarray:
    """float64[2, 3]: the similarity (A, b) from the photo to the crop.

    With landmarks the least-squares one onto `TEMPLATE` (Umeyama, PAMI 1991, without
    reflections); with a box alone upright, its size and place by the box.
    """
    if face.landmarks is None:
        left, top, width, height = face.box
        points_centre = np.array([left + _BOX_CENTRE[0] * width, top + _BOX_CENTRE[1] * height])
        spread_ = np.sqrt(np.mean(np.sum((TEMPLATE - TEMPLATE.mean(0)) ** 2, axis=1)))
        linear = spread_ / (_BOX_SPREAD * width) * np.eye(2)
        return np.column_stack([linear, TEMPLATE.mean(0) - linear @ points_centre])
    return similarity(np.asarray(face.landmarks, np.float64), TEMPLATE)


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64[2, 3], the similarity of least Σ ‖A p + b − q‖²: points p, targets q."""
    centre, target_centre = points.mean(0), targets.mean(0)
    own = (points - centre) @ np.array([1, 1j])
    goal = (targets - target_centre) @ np.array([1, 1j])
    # In the plane a similarity is the product with one complex number.
    factor = np.vdot(own, goal) / np.vdot(own, own).real
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([linear, target_centre - linear @ centre])


def aligned_face(shape: tuple[int, int], name: str) -> Face:
    """The face of a picture that is a crop already: square, on the template; or CelebA's.

    Raises:
      InputError: another shape.
    """
    height, width = shape
    if (height, width) == (CELEBA_SIZE[1], CELEBA_SIZE[0]):
        linear, offset = CELEBA_TO_TEMPLATE[:, :2], CELEBA_TO_TEMPLATE[:, 2]
        points = (TEMPLATE - offset) @ np.linalg.inv(linear).T
    elif height == width:
        points = (TEMPLATE + 0.5) * (width / SIZE) - 0.5
    else:
        raise InputError(f"{name} is no aligned face: it is {width}x{height}, not square")
    return Face((0.0, 0.0, float(width), float(height)), points)


def scale_of(matrix: np.ndarray) -> float:
    """Photo pixels per crop pixel."""
    return 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def crop(pixels: np.ndarray, matrix: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The face as a recogniser sees it: float32[size, size, 3] in [0, 1], of 8 bits.

    Bicubic; where the photo is finer than the crop it is reduced first, by a filter as wide as
    that. What lies beyond the photo is black.

    Args:
      pixels: uint8[H, W, 3].
      matrix: of `crop_matrix`.
      size: 112.
    """
    scale = max(scale_of(matrix), 1.0)
    corners = _corners(matrix, size)
    margin = 4 * scale
    low = np.floor(corners.min(0) - margin).astype(int)
    high = np.ceil(corners.max(0) + margin).astype(int)
    low, high = np.maximum(low, 0), np.minimum(high, [pixels.shape[1] - 1, pixels.shape[0] - 1])
    if (high <= low).any():
        return np.zeros((size, size, 3), np.float32)
    region = Image.fromarray(pixels[low[1] : high[1] + 1, low[0] : high[0] + 1])
    small = (max(1, round(region.width / scale)), max(1, round(region.height / scale)))
    ratios = np.array(region.size) / small
    if scale > 1:
        region = region.resize(small, Image.Resampling.BICUBIC)
    else:
        ratios = np.ones(2)
    # From centres of the crop's pixels to those of the reduced region's.
    back = _inverse(matrix)
    linear = back[:, :2] / ratios[:, None]
    start = (back[:, 2] - low + 0.5) / ratios - 0.5
    shown = region.transform(
        (size, size), Image.Transform.AFFINE, _coefficients(linear, start), _BICUBIC
    )
    return np.asarray(shown, np.float32) / 255


_BICUBIC = Image.Resampling.BICUBIC


def spread(
    change: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]
) -> tuple[slice, slice, np.ndarray]:
    """A change of the crop, on the photo's own pixels.

    Bicubic, fading to exactly zero at the crop's border; where the photo is coarser than the
    crop the change is reduced first.

    Args:
      change: float32[S, S, 3].
      matrix: of `crop_matrix`.
      shape: (H, W) of the photo.

    Returns:
      The rows and columns of the photo that it may touch, and float32[h, w, 3] for them.
    """
    size = change.shape[0]
    faded = change * taper(size)[:, None, None] * taper(size)[None, :, None]
    corners = _corners(matrix, size)
    low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int), [shape[1] - 1, shape[0] - 1])
    if (high < low).any():
        return slice(0, 0), slice(0, 0), np.zeros((0, 0, 3), np.float32)
    scale = min(scale_of(matrix), 1.0)
    small = max(1, round(size * scale))
    ratio = size / small
    linear = matrix[:, :2] / ratio
    start = (matrix[:, :2] @ low + matrix[:, 2] + 0.5) / ratio - 0.5
    extent = (int(high[0] - low[0] + 1), int(high[1] - low[1] + 1))
    channels = []
    for channel in range(3):
        image = Image.fromarray(np.ascontiguousarray(faded[..., channel], np.float32))
        if small < size:
            image = image.resize((small, small), _BICUBIC)
        moved = image.transform(
            extent, Image.Transform.AFFINE, _coefficients(linear, start), _BICUBIC
        )
        channels.append(np.asarray(moved))
    rows, columns = slice(low[1], high[1] + 1), slice(low[0], high[0] + 1)
    return rows, columns, np.stack(channels, axis=2)


def support(matrix: np.ndarray, shape: tuple[int, int]) -> tuple[slice, slice, np.ndarray]:
    """The pixels that `spread` may touch: rows and columns of the photo, and bool[h, w]."""
    rows, columns, touched = spread(np.ones((SIZE, SIZE, 3), np.float32), matrix, shape)
    return rows, columns, np.any(touched != 0, axis=2)


def taper(size: int) -> np.ndarray:
    """float32[size]: 1 inside, falling to 0 at both ends as a half cosine."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    share = np.clip(distance / _TAPER, 0, 1)
    return ((1 - np.cos(np.pi * share)) / 2).astype(np.float32)


def roundtrip(matrix: np.ndarray, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """R and C, float32[S, S]: `crop` sees R δ Cᵀ of what `spread` brings to the photo of δ.

    The face's scale counts, its rotation and its place between pixels do not.
    """
    scale = float(np.clip(scale_of(matrix), 1 / size, _LARGEST_SCALE))
    line = max(1, round(size * scale))
    ends = Image.fromarray(np.diag(taper(size)))
    there = ends.resize((size, line), _BICUBIC)
    back = np.asarray(there.resize((size, size), _BICUBIC), np.float32)
    return back, back


def _corners(matrix: np.ndarray, size: int) -> np.ndarray:
    """float64[4, 2], the crop's corners in the photo."""
    ends = np.array([[-0.5, -0.5], [size - 0.5, -0.5], [-0.5, size - 0.5], [size - 0.5] * 2])
    back = _inverse(matrix)
    return ends @ back[:, :2].T + back[:, 2]


def _inverse(matrix: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def _coefficients(linear: np.ndarray, start: np.ndarray) -> list[float]:
    """Pillow's, which map corners of pixels, of a map of centres."""
    start = start + 0.5 - linear @ np.array([0.5, 0.5])
    return np.column_stack([linear, start]).ravel().tolist()
