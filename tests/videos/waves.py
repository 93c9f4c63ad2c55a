"""Faces anywhere in photos of waves, which are known between pixels too."""

import numpy as np
from skimage.transform import SimilarityTransform

from deid_jax.photos import alignment
from deid_jax.photos.alignment import SIZE
from tests.experiments.protect_helpers import TEMPLATE


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


def spread_over(change, matrix, shape):
    """float64[H, W, 3]: the change on the whole photo."""
    rows, columns, values = alignment.to_photo(change, matrix, shape)
    whole = np.zeros((*shape, 3))
    whole[rows, columns] = values
    return whole


def rough(seed, amplitude=1.0, size=SIZE):
    signs = np.random.default_rng(seed).choice([-amplitude, amplitude], (size, size, 3))
    return signs.astype(np.float32)


def tapered(place, size):
    """The taper between pixels."""
    share = np.clip(np.minimum(place, size - 1 - place) / 8, 0, 1)
    return (1 - np.cos(np.pi * share)) / 2
