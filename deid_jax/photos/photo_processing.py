"""What happens to published photos before a recogniser sees them.

Unlike `transforms.processing`, it processes whole photos, in which faces may move. Each kind
takes a photo, uint8[H, W, 3], and the photo pixels per pixel of the face's crop: the size of a
photo does not tell the size of its faces.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from deid_jax.transforms.processing import PROCESSING, gaussian_blur
from deid_jax.types import NumpyArray

# Viewers show photos a little smaller than they are.
_SCREEN = 0.9
# A rough stand-in for a recaptured photo: smaller, and rotated by this many degrees.
_PRINT_SCALE, _PRINT_ANGLE = 0.8, 4.0
_IDENTITY = np.eye(2, 3)


class ProcessedPhoto(NamedTuple):
    """A processed photo, and the similarity transform from the original, float64[2, 3]."""

    pixels: NumpyArray
    matrix: NumpyArray


PhotoProcessing = Callable[[NumpyArray, float], ProcessedPhoto]


def _in_place(name: str) -> PhotoProcessing:
    def processed(pixels: NumpyArray, crop_pixel: float) -> ProcessedPhoto:
        del crop_pixel
        return ProcessedPhoto(PROCESSING[name](pixels[None])[0], _IDENTITY)

    return processed


def blurred(pixels: NumpyArray, crop_pixel: float) -> ProcessedPhoto:
    """Gaussian blur by one pixel of the face's crop."""
    (result,) = gaussian_blur(pixels[None], sigma=crop_pixel / pixels.shape[0])
    return ProcessedPhoto(result, _IDENTITY)


def screenshot(pixels: NumpyArray, crop_pixel: float) -> ProcessedPhoto:
    """Resized to 90 % by bilinear resampling, as viewers do; not re-encoded."""
    del crop_pixel
    return _resized(pixels, _SCREEN, Image.Resampling.BILINEAR)


def photographed_again(pixels: NumpyArray, crop_pixel: float) -> ProcessedPhoto:
    """A rough stand-in for a recaptured photo: smaller, and rotated about its centre."""
    del crop_pixel
    small, matrix = _resized(pixels, _PRINT_SCALE, Image.Resampling.BICUBIC)
    rotated = Image.fromarray(small).rotate(_PRINT_ANGLE, Image.Resampling.BICUBIC)
    angle = math.radians(_PRINT_ANGLE)  # Counter-clockwise as seen, with y pointing down.
    linear = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    middle = np.array([small.shape[1] - 1, small.shape[0] - 1]) / 2
    moved = linear @ (matrix[:, 2] - middle) + middle
    return ProcessedPhoto(np.array(rotated), np.column_stack([linear @ matrix[:, :2], moved]))


def _resized(pixels: NumpyArray, scale: float, kernel: Image.Resampling) -> ProcessedPhoto:
    size = [max(1, round(scale * side)) for side in (pixels.shape[1], pixels.shape[0])]
    small = Image.fromarray(pixels).resize((size[0], size[1]), kernel)
    # Sides are rounded, which moves points by less than a pixel.
    matrix = np.column_stack([scale * np.eye(2), [scale / 2 - 0.5] * 2])
    return ProcessedPhoto(np.array(small), matrix)


PHOTO_PROCESSING: dict[str, PhotoProcessing] = {
    "none": _in_place("none"),
    "jpeg75": _in_place("jpeg75"),
    "half_size": _in_place("half_size"),
    "blur": blurred,
    "denoise": _in_place("denoise"),
    "screenshot": screenshot,
    "photographed_again": photographed_again,
}
