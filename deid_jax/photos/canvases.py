"""Canvases: the square of a photo around one face on which the attack works.

A canvas has S × S pixels. Large faces are reduced to it; around small ones it holds the photo's
own pixels. It is upright in the photo, whatever the face's angle, so that a perturbation is
neither turned nor, at that size, resampled on its way into the photo. Every recogniser cuts its
own crop out of the canvas. Coordinates refer to pixel centres; the first pixel is at (0, 0).
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from deid_jax.models.templates import ARCFACE
from deid_jax.photos.alignment import fit_similarity, inverse_of
from deid_jax.types import NumpyArray

SIZE = 192
Span: TypeAlias = "slice[int, int, None]"
# The pixels that a perturbation may touch: left, top, right, bottom in ArcFace's crop. They
# cover that crop and dlib's, and a little more.
_TOUCHED = (-6.0, -6.0, 118.0, 127.0)
# Width in pixels of ArcFace's crop of the border in which a perturbation fades to zero.
_TAPER = 8.0
_BICUBIC = Image.Resampling.BICUBIC


class Canvas(NamedTuple):
    """The canvas of a face.

    Attributes:
      left: column of the photo at which the canvas begins; it may lie outside of the photo.
      top: row of the photo.
      length: of its sides in pixels of the photo, at least S.
      landmarks: float64[5, 2], in pixels of the canvas.
    """

    left: int
    top: int
    length: int
    landmarks: NumpyArray

    @classmethod
    def around(cls, landmarks: NumpyArray) -> "Canvas":
        """The smallest canvas that holds what a perturbation may touch.

        Raises:
          InputError: the landmarks, float64[5, 2] in pixels of the photo, coincide.
        """
        left, top, right, bottom = _TOUCHED
        ends = np.array([[left, top], [right, top], [left, bottom], [right, bottom]])
        back = inverse_of(fit_similarity(landmarks, ARCFACE.points))
        corners = ends @ back[:, :2].T + back[:, 2]
        length = max(SIZE, math.ceil(np.ptp(corners, axis=0).max()) + 4)
        middle = (corners.min(0) + corners.max(0)) / 2
        first = np.rint(middle - (length - 1) / 2).astype(int)
        points = (landmarks - first + 0.5) * (SIZE / length) - 0.5
        return cls(int(first[0]), int(first[1]), length, points)

    @property
    def ratio(self) -> float:
        """Pixels of the photo per pixel of the canvas, along one axis."""
        return self.length / SIZE

    @property
    def face_area(self) -> float:
        """The area of ArcFace's crop in pixels of the canvas, over which PSNR is measured."""
        linear = fit_similarity(self.landmarks, ARCFACE.points)[:, :2]
        return ARCFACE.height * ARCFACE.width / float(np.linalg.det(linear))

    def shown(self, pixels: NumpyArray) -> NumpyArray:
        """float32[S, S, 3] in [0, 1] of a photo uint8[H, W, 3]; black outside of the photo."""
        whole = np.zeros((self.length, self.length, 3), np.uint8)
        inside, canvas = self._spans(pixels.shape)
        whole[canvas] = pixels[inside]
        image = Image.fromarray(whole).resize((SIZE, SIZE), _BICUBIC)
        return np.asarray(image, np.float32) / 255

    def weights(self, shape: tuple[int, ...]) -> NumpyArray:
        """float32[S, S, 1] in [0, 1]: zero where a photo's pixels must not change.

        `shape` is the photo's. Within `_TAPER` of the border of what may be touched the weights
        fall as a half cosine.
        """
        matrix = fit_similarity(self.landmarks, ARCFACE.points)
        line = np.arange(SIZE)
        points = np.stack(np.meshgrid(line, line), axis=-1) @ matrix[:, :2].T + matrix[:, 2]
        low, high = np.array(_TOUCHED[:2]), np.array(_TOUCHED[2:])
        depth = np.clip(np.minimum(points - low, high - points) / _TAPER, 0, 1)
        weights = np.prod((1 - np.cos(np.pi * depth)) / 2, axis=-1)
        for axis, first, count in ((0, self.top, shape[0]), (1, self.left, shape[1])):
            place = first + (line + 0.5) * self.ratio
            inside = (place > 0) & (place < count)
            weights *= np.expand_dims(inside, 1 - axis)
        return weights[..., None].astype(np.float32)

    def spread(
        self, perturbation: NumpyArray, shape: tuple[int, ...]
    ) -> tuple[tuple[Span, Span], NumpyArray]:
        """A perturbation float32[S, S, 3] in pixels of a photo of that shape.

        Returns the photo's rows and columns, and float32[h, w, 3] for them.
        """
        size = (self.length, self.length)
        channels = [
            np.asarray(Image.fromarray(channel).resize(size, _BICUBIC))
            for channel in np.ascontiguousarray(np.moveaxis(perturbation, 2, 0))
        ]
        inside, canvas = self._spans(shape)
        return inside, np.stack(channels, axis=2)[canvas]

    def _spans(self, shape: tuple[int, ...]) -> tuple[tuple[Span, Span], tuple[Span, Span]]:
        """Rows and columns that photo and canvas share, in pixels of the photo, of each."""
        photo, canvas = [], []
        for first, count in ((self.top, shape[0]), (self.left, shape[1])):
            start = min(max(first, 0), count)
            stop = max(min(first + self.length, count), start)
            photo.append(slice(start, stop))
            canvas.append(slice(start - first, stop - first))
        return (photo[0], photo[1]), (canvas[0], canvas[1])
