"""Recognisers' templates: where landmarks lie in their crops, and the size of these."""

import dataclasses

import numpy as np

from deid_jax.types import NumpyArray

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A crop of height × width pixels in which a face's landmarks lie on a template.

    The template holds x and y of the left and right eye, the nose, and the left and right
    corner of the mouth, as seen in the image; the centre of the first pixel is at (0, 0).
    """

    template: tuple[Point, ...]
    height: int
    width: int

    @property
    def points(self) -> NumpyArray:
        """The template, float64[5, 2]."""
        return np.array(self.template)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a crop."""
        return self.height, self.width, 3

    def onto(self, other: "Alignment") -> tuple[float, NumpyArray]:
        """The scale a and offset b, float64[2], of the map a p + b onto another template.

        It is the least-squares fit without rotation: templates are upright.
        """
        centre, goal = self.points.mean(0), other.points.mean(0)
        own = self.points - centre
        scale = float(np.sum(own * (other.points - goal)) / np.sum(own**2))
        return scale, goal - scale * centre

    def scaled(self, size: int) -> "Alignment":
        """The same view, `size` pixels high."""
        ratio = size / self.height
        points = (self.points + 0.5) * ratio - 0.5
        return Alignment(tuple(map(tuple, points.tolist())), size, round(self.width * ratio))


# Deng et al.: "ArcFace", CVPR 2019.
ARCFACE = Alignment(
    (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ),
    112,
    112,
)
# Its middle 96 columns.
ARCFACE_NARROW = Alignment(tuple((x - 8, y) for x, y in ARCFACE.template), 112, 96)
# The chips of dlib's `get_face_chip` with a padding of 0.25 follow its own predictor of eye
# corners and nose. This is the mean position of our five landmarks in them, over the 89 of 90
# photos of 30 persons of CelebA in which dlib's frontal detector finds the face (standard
# deviations 2.5, 2.6, 6.1, 5.0 and 5.5 pixels in x and 2.8, 2.3, 4.6, 5.9 and 5.7 in y).
DLIB = Alignment(
    ((47.25, 44.48), (100.67, 44.56), (73.34, 79.34), (49.72, 99.31), (98.19, 99.40)),
    150,
    150,
)
