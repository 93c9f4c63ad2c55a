"""Faces in photos: boxes and landmarks, and the choice of faces to protect."""

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.types import NumpyArray

Box = tuple[float, float, float, float]

# The margin in which a face is searched for around a user-supplied box, relative to its longer
# side, and the least intersection over union of box and face: users draw boxes of any size.
_SEARCH_MARGIN, _SAME = 0.5, 0.2
# The smallest share of a given box that must lie in the photo; a box far larger than the photo
# would need too much memory.
_WITHIN = 0.25
# The least width and height of a box, and extent of landmarks, which is half as large, in
# pixels: smaller ones are shares of the photo by mistake.
_LEAST_SIDE, _LEAST_EXTENT = 2.0, 1.0


class Face(NamedTuple):
    """A face in a photo, in pixels of the upright photo.

    Attributes:
      box: left, top, width, height.
      landmarks: float64[5, 2], x and y of the left and right eye, the nose, and the left and
        right corner of the mouth, as seen when the face is upright; None if only the box is
        known.
      score: the detector's confidence; of user-supplied faces 1 without a detector, and 0 if it
        detects no face there.
    """

    box: Box
    landmarks: NumpyArray | None = None
    score: float = 1.0


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, pixels: NumpyArray) -> list[Face]:
        """Faces of uint8[H, W, 3], RGB and upright, the largest first."""
        ...


class FaceError(InputError):
    """A user-supplied face is not in the photo."""


@dataclasses.dataclass(frozen=True)
class FaceChoice:
    """Which faces of a photo are protected.

    Attributes:
      which: `all` or `largest`, or boxes that are the same in every photo.
      listed: file name -> faces; None if `which` or the detector decides.
      detector: finds the faces; None if the user gives them.
      landmarker: finds the landmarks of faces that the user gives as boxes only.
    """

    which: str | list[Face]
    listed: Mapping[str, list[Face]] | None = None
    detector: Detector | None = None
    landmarker: Detector | None = None

    def faces(self, name: str, pixels: NumpyArray) -> tuple[list[Face], int]:
        """The faces of a photo, uint8[H, W, 3], to protect, and the number of others.

        The name is a path below the input folder; a list may give the file name alone.

        Raises:
          FaceError: most of a box or of the landmarks given lies outside the photo, or
            the photo is not an aligned crop.
        """
        found = self._candidates(name, pixels)
        chosen = list(found)
        if self.which == "largest" and found:
            chosen = [max(found, key=lambda face: face.box[2] * face.box[3])]
        return chosen, len(found) - len(chosen)

    def _candidates(self, name: str, pixels: NumpyArray) -> list[Face]:
        if self.detector is not None:
            try:
                return self.detector(pixels)
            except FaceError as error:
                raise FaceError(f"{name} {error}") from error
        if self.listed is not None:
            found = self.listed.get(name, self.listed.get(Path(name).name, []))
        else:
            assert not isinstance(self.which, str)
            found = self.which
        whole = (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0]))
        for face in found:
            if not _is_within(face.box, whole):
                raise FaceError(f"{name}: a face's box lies beside the photo, {face.box}")
            if face.landmarks is not None and not _is_within(_around(face.landmarks), whole):
                raise FaceError(f"{name}: a face's landmarks lie beside the photo, {face.box}")
        if self.landmarker is None:
            return found
        return [
            face_within(self.landmarker, pixels, face.box) if face.landmarks is None else face
            for face in found
        ]


def by_size(faces: Iterable[Face]) -> list[Face]:
    """Sorts faces by the areas of their boxes, the largest first."""
    return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))


def shared_area(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes share."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _is_within(box: Box, whole: Box) -> bool:
    """Whether enough of a box is in the photo."""
    return shared_area(box, whole) >= _WITHIN * box[2] * box[3]


def _around(landmarks: NumpyArray) -> Box:
    """The box of twice the extent of landmarks."""
    low, size = landmarks.min(0), np.ptp(landmarks, axis=0)
    (left, top), (width, height) = (low - size / 2).tolist(), (2 * size).tolist()
    return left, top, width, height


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    shared = shared_area(one, other)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def face_within(detector: Detector, pixels: NumpyArray, box: Box) -> Face:
    """The face that is detected in a user-supplied box; the box itself is kept.

    Only the box and a margin around it are searched. If no face is detected, the landmarks are
    None and the score is 0.
    """
    left, top, width, height = box
    margin = _SEARCH_MARGIN * max(width, height)
    rows, columns = (
        slice(max(math.floor(start - margin), 0), max(math.ceil(start + size + margin), 0))
        for start, size in ((top, height), (left, width))
    )
    offset = np.array([columns.start, rows.start])
    seen = detector(np.ascontiguousarray(pixels[rows, columns]))
    places = [
        (face.box[0] + offset[0], face.box[1] + offset[1], *face.box[2:]) for face in seen
    ]
    shares = [overlap(place, box) for place in places]
    if max(shares, default=0) < _SAME:
        return Face(box, None, 0.0)
    face = seen[int(np.argmax(shares))]
    landmarks = None if face.landmarks is None else face.landmarks + offset
    return Face(box, landmarks, face.score)


_BOX = ("left", "top", "width", "height")
_POINTS = tuple(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
_PARTS = ("leye", "reye", "nose", "lmouth", "rmouth")
_NAMED_POINTS = tuple(f"{part}_{axis}" for part in _PARTS for axis in "xy")


def read_faces(path: str | Path) -> dict[str, list[Face]]:
    """Reads faces from CSV, one per line: `file`, and a box, landmarks or both in pixels.

    Boxes are `left,top,width,height`; landmarks are `x1,y1,…,x5,y5` or
    `leye_x,leye_y,reye_x,…,rmouth_y`, in the order of `Face`. Landmarks without a box get a box
    of twice their extent. Other columns are ignored.

    Raises:
      InputError: the file cannot be read, or a line is malformed.
    """
    faces: dict[str, list[Face]] = {}
    try:
        # Spreadsheet programs begin files with a byte order mark.
        with Path(path).open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True)
            if "file" not in (reader.fieldnames or ()):
                raise InputError(f"boxes file {path} must have a column file")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values() or not row["file"]:
                    raise InputError(f"{where}: must have a file and a value for every column")
                faces.setdefault(row["file"], []).append(_face(row, where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"boxes file {path} cannot be read: {one_line(error)}") from error
    return faces


def _face(row: dict[str, str], where: str) -> Face:
    box = _columns(row, _BOX, where)
    points = _columns(row, _POINTS, where) or _columns(row, _NAMED_POINTS, where)
    if not box and not points:
        raise InputError(
            f"{where}: must have {','.join(_BOX)} or {_POINTS[0]},{_POINTS[1]},…,{_POINTS[-1]}"
        )
    if not points:
        return Face(_checked(box, where))
    landmarks = np.array(points).reshape(5, 2)
    (across, down), below = landmarks[1] - landmarks[0], landmarks[3:].mean(0)
    x, y = below - landmarks[:2].mean(0)
    # Mirrored landmarks cannot be aligned by rotation and scaling.
    if across * y - down * x <= 0:
        raise InputError(
            f"{where}: landmarks must be left and right eye, nose, left and right corner of "
            "the mouth, left as seen in the photo"
        )
    if np.ptp(landmarks, axis=0).max() < _LEAST_EXTENT:
        raise InputError(
            f"{where}: landmarks are in pixels, and these lie within {_LEAST_EXTENT:g}"
        )
    if not box:
        return Face(_around(landmarks), landmarks)
    return Face(_checked(box, where), landmarks)


def _columns(row: dict[str, str], names: Sequence[str], where: str) -> list[float]:
    """The numbers in these columns; empty if all cells are empty or a column is missing."""
    texts = [row[name] for name in names if name in row]
    if len(texts) < len(names):  # `width` alone may be the photo's width.
        return []
    return _numbers(texts, where) if any(texts) else []


def _numbers(texts: Sequence[str], where: str) -> list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise InputError(f"{where}: must be numbers, got {','.join(texts)!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: must be finite numbers")
    return numbers


def _checked(numbers: Sequence[float], where: str) -> Box:
    left, top, width, height = numbers
    if min(width, height) < _LEAST_SIDE:
        raise InputError(
            f"{where}: boxes are in pixels, {_LEAST_SIDE:g} or more wide and high, got "
            f"{width:g}x{height:g}"
        )
    return left, top, width, height


def parse_faces(text: str) -> str | list[Face]:
    """Parses `largest`, `all`, or boxes LEFT:TOP:WIDTH:HEIGHT separated by commas.

    Raises:
      InputError: it is none of these.
    """
    if text in ("largest", "all"):
        return text
    faces = []
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 4:
            raise InputError(
                f"faces must be largest, all or LEFT:TOP:WIDTH:HEIGHT, …, got {text!r}"
            )
        faces.append(Face(_checked(_numbers(numbers, "faces"), "faces")))
    return faces
