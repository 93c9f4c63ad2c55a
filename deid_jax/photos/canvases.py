"""Canvases: the square of a photo around one face on which the attack works.

A canvas has S × S pixels. Large faces are reduced to it; around small ones it holds the photo's
own pixels. Its sides are parallel to the photo's, whatever the face's angle, so that a
perturbation is not rotated on its way into the photo and, around small faces, not resampled.
Every recogniser cuts its own crop out of the canvas. Coordinates refer to pixel centres; the
first pixel is at (0, 0).
"""

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from deid_jax.errors import InputError
from deid_jax.models.templates import ARCFACE
from deid_jax.photos.alignment import fit_similarity, inverse_of, landmarks_of
from deid_jax.photos.faces import Face
from deid_jax.types import NumpyArray

SIZE = 192
Span: TypeAlias = "slice[int, int, None]"
# The pixels that may be perturbed: left, top, right, bottom in ArcFace's crop. They cover
# that crop and dlib's, with a small margin.
_PERTURBED_BOX = (-6.0, -6.0, 118.0, 127.0)
# Width of the border in which a perturbation fades to zero, in pixels of ArcFace's crop.
_TAPER = 8.0
# Pixels of the photo that may be perturbed must be more than these along an axis, so that there
# are some within the border.
_LEAST = 2.0
# Landmarks that do not look like a face's can fit a crop of any size: the canvas is at most as
# many times as large as the photo.
_MOST = 8.0
_BICUBIC = Image.Resampling.BICUBIC


class Canvas(NamedTuple):
    """The canvas of a face.

    Attributes:
      left: column of the photo at which the canvas begins; it may lie outside the photo.
      top: row of the photo.
      length: of its sides, in pixels of the photo, at least S.
      height: of the photo.
      width: of the photo.
      landmarks: float64[5, 2], in pixels of the canvas.
    """

    left: int
    top: int
    length: int
    height: int
    width: int
    landmarks: NumpyArray

    @classmethod
    def around(cls, face: Face, pixels: NumpyArray) -> "Canvas":
        """The smallest canvas in a photo, uint8[H, W, 3], with all pixels that may change.

        Raises:
          InputError: the face's landmarks lie within about a pixel, or are no face's.
        """
        landmarks = landmarks_of(face)
        left, top, right, bottom = _PERTURBED_BOX
        ends = np.array([[left, top], [right, top], [left, bottom], [right, bottom]])
        back = inverse_of(fit_similarity(landmarks, ARCFACE.points))
        corners = ends @ back[:, :2].T + back[:, 2]
        extent = np.ptp(corners, axis=0).max()
        if extent < _LEAST:
            raise InputError(f"a face must be larger than {_LEAST:g} pixels: give it in pixels")
        if extent > _MOST * max(pixels.shape):
            raise InputError("a face's landmarks must be eyes, nose and corners of the mouth")
        length = max(SIZE, math.ceil(extent) + 4)
        middle = (corners.min(0) + corners.max(0)) / 2
        first = np.rint(middle - (length - 1) / 2).astype(int)
        points = (landmarks - first + 0.5) * (SIZE / length) - 0.5
        height, width = pixels.shape[:2]
        return cls(int(first[0]), int(first[1]), length, height, width, points)

    @property
    def ratio(self) -> float:
        """Pixels of the photo per pixel of the canvas, along one axis."""
        return self.length / SIZE

    def area(self) -> float:
        """The area of ArcFace's crop within the photo, in pixels of the canvas.

        PSNR is measured over it.
        """
        linear = fit_similarity(self.landmarks, ARCFACE.points)[:, :2]
        whole = ARCFACE.height * ARCFACE.width / float(np.linalg.det(linear))
        return whole * float(self.weights().sum() / self._fading().sum())

    def cut_from(self, pixels: NumpyArray) -> NumpyArray:
        """The canvas of uint8[H, W, 3]: float32[S, S, 3] in [0, 1], black outside the photo."""
        whole = np.zeros((self.length, self.length, 3), np.uint8)
        inside, canvas = self._spans()
        whole[canvas] = pixels[inside]
        image = Image.fromarray(whole).resize((SIZE, SIZE), _BICUBIC)
        return np.asarray(image, np.float32) / 255

    def part(self, pixels: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        """The photo's pixels under the canvas, uint8[h, w, 3], and the first one's x and y."""
        inside, _ = self._spans()
        return pixels[inside], np.array([inside[1].start, inside[0].start], np.float64)

    def weights(self) -> NumpyArray:
        """float32[S, S, 1] in [0, 1]: zero where the photo's pixels must not change.

        Within `_TAPER` of the border of the pixels that may change they fall as a half cosine.
        """
        weights = self._fading()
        for axis, first, count in ((0, self.top, self.height), (1, self.left, self.width)):
            place = first + (np.arange(SIZE) + 0.5) * self.ratio
            weights *= np.expand_dims((place > 0) & (place < count), 1 - axis)
        return weights[..., None].astype(np.float32)

    def _fading(self) -> NumpyArray:
        matrix = fit_similarity(self.landmarks, ARCFACE.points)
        line = np.arange(SIZE)
        points = np.stack(np.meshgrid(line, line), axis=-1) @ matrix[:, :2].T + matrix[:, 2]
        low, high = np.array(_PERTURBED_BOX[:2]), np.array(_PERTURBED_BOX[2:])
        depth = np.clip(np.minimum(points - low, high - points) / _TAPER, 0, 1)
        return np.prod((1 - np.cos(np.pi * depth)) / 2, axis=-1)

    def spread(self, perturbation: NumpyArray) -> tuple[tuple[Span, Span], NumpyArray]:
        """Resizes a perturbation, float32[S, S, C], to pixels of the photo.

        Returns the photo's rows and columns, and float32[h, w, C] for them.
        """
        size = (self.length, self.length)
        channels = [
            np.asarray(Image.fromarray(channel).resize(size, _BICUBIC))
            for channel in np.ascontiguousarray(np.moveaxis(perturbation, 2, 0))
        ]
        inside, canvas = self._spans()
        return inside, np.stack(channels, axis=2)[canvas]

    def error(self, before: NumpyArray, after: NumpyArray) -> float:
        """The face's mean squared error between photos uint8[H, W, 3], for a range of 1.

        The sum over all pixels that may change, divided by `area`.
        """
        inside, weights = self.spread(self.weights())
        difference = after[inside].astype(np.int16) - before[inside]
        squares = np.square(difference, dtype=np.int32).sum(axis=2)
        total = squares.sum(where=weights[..., 0] > 0, dtype=np.float64)
        return float(total / (3 * 255**2 * max(self.area(), 1.0) * self.ratio**2))

    def _spans(self) -> tuple[tuple[Span, Span], tuple[Span, Span]]:
        """Rows and columns that photo and canvas share, counted in either, in photo pixels."""
        photo, canvas = [], []
        for first, count in ((self.top, self.height), (self.left, self.width)):
            start = min(max(first, 0), count)
            stop = max(min(first + self.length, count), start)
            photo.append(slice(start, stop))
            canvas.append(slice(start - first, stop - first))
        return (photo[0], photo[1]), (canvas[0], canvas[1])
