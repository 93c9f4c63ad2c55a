"""What happens to published photos before somebody shows them to a recogniser.

In contrast to `transforms.processing`, whole photos are processed, and faces may move. Each
kind is given a photo uint8[H, W, 3] and the size of a pixel of the face's crop in pixels of the
photo, since a photo's size says nothing about its faces'.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from deid_jax.transforms.processing import PROCESSING, gaussian_blur
from deid_jax.types import NumpyArray

# A viewer shows a photo a little smaller than it is.
_SCREEN = 0.9
# Somebody photographs a print or screen: smaller, and turned by so many degrees.
_AGAIN, _TURN = 0.8, 4.0
_STILL = np.eye(2, 3)


class HandledPhoto(NamedTuple):
    """A processed photo, and the similarity float64[2, 3] from the original's points."""

    pixels: NumpyArray
    matrix: NumpyArray


Handling = Callable[[NumpyArray, float], HandledPhoto]


def _in_place(name: str) -> Handling:
    def handled(pixels: NumpyArray, crop_pixel: float) -> HandledPhoto:
        del crop_pixel
        return HandledPhoto(PROCESSING[name](pixels[None])[0], _STILL)

    return handled


def blurred(pixels: NumpyArray, crop_pixel: float) -> HandledPhoto:
    """Gaussian blur by one pixel of the face's crop."""
    (result,) = gaussian_blur(pixels[None], sigma=crop_pixel / pixels.shape[0])
    return HandledPhoto(result, _STILL)


def screenshot(pixels: NumpyArray, crop_pixel: float) -> HandledPhoto:
    """Resampled bilinearly to nearly its size, as viewers do, and saved without loss."""
    del crop_pixel
    return _resized(pixels, _SCREEN, Image.Resampling.BILINEAR)


def photographed_again(pixels: NumpyArray, crop_pixel: float) -> HandledPhoto:
    """Resized, and turned about its middle; whoever judges it has to align it anew."""
    del crop_pixel
    small, matrix = _resized(pixels, _AGAIN, Image.Resampling.BICUBIC)
    turned = Image.fromarray(small).rotate(_TURN, Image.Resampling.BICUBIC)
    angle = math.radians(_TURN)  # Counter-clockwise as seen, with y pointing down.
    linear = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    middle = np.array([small.shape[1] - 1, small.shape[0] - 1]) / 2
    moved = linear @ (matrix[:, 2] - middle) + middle
    return HandledPhoto(np.array(turned), np.column_stack([linear @ matrix[:, :2], moved]))


def _resized(pixels: NumpyArray, scale: float, kernel: Image.Resampling) -> HandledPhoto:
    size = [max(1, round(scale * side)) for side in (pixels.shape[1], pixels.shape[0])]
    small = Image.fromarray(pixels).resize((size[0], size[1]), kernel)
    # Sides are rounded, which moves points by less than a pixel.
    matrix = np.column_stack([scale * np.eye(2), [scale / 2 - 0.5] * 2])
    return HandledPhoto(np.array(small), matrix)


HANDLING: dict[str, Handling] = {
    "none": _in_place("none"),
    "jpeg75": _in_place("jpeg75"),
    "half_size": _in_place("half_size"),
    "blur": blurred,
    "denoise": _in_place("denoise"),
    "screenshot": screenshot,
    "photographed_again": photographed_again,
}
