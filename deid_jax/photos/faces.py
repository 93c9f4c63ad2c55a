"""Faces in photos: where they are, found by a detector or told by the user."""

import csv
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from deid_jax._validate import InputError

# Photos are looked at with their longer side no longer than this: time and memory stay small.
_LONGEST_SIDE = 640
# Of that picture's shorter side: smaller faces are not looked for.
_SMALLEST_SHARE = 0.1
_CASCADE_WINDOW = 24


class Face(NamedTuple):
    """A face in a photo, in pixels of the upright photo.

    Attributes:
      box: left, top, width, height.
      landmarks: float64[5, 2], x and y of the left and right eye, the nose and the left and
        right corner of the mouth, as one sees them; None where only the box is known.
      score: how sure the detector is; 1 where the user told it.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None = None
    score: float = 1.0


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, pixels: np.ndarray) -> list[Face]:
        """Faces of uint8[H, W, 3], RGB and upright, the largest first."""
        ...


def cascade(pixels: np.ndarray) -> list[Face]:
    """Frontal faces by scikit-image's cascade of local binary patterns, boxes alone.

    Liao, Zhu, Lei, Zhang, Li: "Learning Multi-scale Block Local Binary Patterns for Face
    Recognition", ICB 2007. It misses faces that are turned or tilted.

    Raises:
      InputError: scikit-image is not installed.
    """
    small, ratio = _reduced(pixels)
    shorter = min(small.shape[:2])
    least = max(_CASCADE_WINDOW, round(_SMALLEST_SHARE * shorter))
    if shorter < _CASCADE_WINDOW:
        return []
    found = _cascade().detect_multi_scale(
        img=small,
        scale_factor=1.1,
        step_ratio=1,
        min_size=(least, least),
        max_size=(shorter, shorter),
        min_neighbor_number=6,
    )
    boxes = [(d["c"], d["r"], d["width"], d["height"]) for d in found]
    faces = [Face(_scaled(box, ratio)) for box in _merged(boxes)]
    return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))


@functools.cache
def _cascade() -> Any:
    try:
        from skimage import data
        from skimage.feature import Cascade
    except ImportError:
        raise InputError(
            "finding faces needs scikit-image: pip install 'deid_jax[photos]'"
        ) from None
    return Cascade(data.lbp_frontal_face_cascade_filename())


def yunet(path: str | Path) -> Detector:
    """OpenCV's FaceDetectorYN with a YuNet model file (.onnx): five landmarks a face.

    Wu, Peng, Yu: "YuNet: A Tiny Millisecond-level Face Detector", MIR 2023.

    Raises:
      InputError: OpenCV is not installed, or the file is missing or no model.
    """
    try:
        import cv2
    except ImportError:
        raise InputError("YuNet needs OpenCV: pip install 'deid_jax[opencv]'") from None
    if not Path(path).is_file():
        raise InputError(f"detector file {path} does not exist")
    try:
        network = cv2.FaceDetectorYN.create(str(path), "", (320, 320))
    except cv2.error as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"detector file {path} is no YuNet model: {reason}") from error

    def detect(pixels: np.ndarray) -> list[Face]:
        small, ratio = _reduced(pixels)
        network.setInputSize((small.shape[1], small.shape[0]))
        _, rows = network.detect(np.ascontiguousarray(small[..., ::-1]))
        faces = []
        for row in () if rows is None else np.asarray(rows, np.float64):
            box = _scaled(row[:4], ratio)
            # As OpenCV names them the person's right eye comes first: the left one seen.
            faces.append(Face(box, ratio * row[4:14].reshape(5, 2), float(row[14])))
        return sorted(faces, key=lambda face: (-face.box[2] * face.box[3], face.box))

    return detect


def _reduced(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture no longer than `_LONGEST_SIDE`, and how many pixels one of its pixels is."""
    from PIL import Image

    height, width = pixels.shape[:2]
    ratio = max(height, width) / _LONGEST_SIDE
    if ratio <= 1:
        return pixels, 1.0
    size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.array(image), ratio


def _scaled(box: Sequence[float], ratio: float) -> tuple[float, float, float, float]:
    left, top, width, height = (float(ratio * n) for n in box)
    return left, top, width, height


def _merged(boxes: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Of boxes a quarter of which lies in larger ones the larger alone: others are no faces."""
    kept: list[tuple[float, ...]] = []
    for box in sorted(boxes, key=lambda box: (-box[2] * box[3], box)):
        if all(_shared(box, other) < box[2] * box[3] / 4 for other in kept):
            kept.append(box)
    return kept


def _shared(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes share."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, width, height)."""
    shared = _shared(one, other)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


_BOX = ("left", "top", "width", "height")
_POINTS = tuple(f"{axis}{number}" for number in range(1, 6) for axis in "xy")


def from_csv(path: str | Path) -> dict[str, list[Face]]:
    """Reads faces: `file`, and `left,top,width,height` or `x1,y1,…,x5,y5` or both, in pixels.

    Landmarks are in the order of `Face`; without a box theirs is drawn around them.

    Raises:
      InputError: the file cannot be read, or a line is not as it must be.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"boxes file {path} cannot be read: {error}") from error
    faces: dict[str, list[Face]] = {}
    for number, row in enumerate(rows, 2):
        faces.setdefault(row.get("file") or "", []).append(_face(row, f"{path}, line {number}"))
    if "" in faces:
        raise InputError(f"boxes file {path} must have a column file, filled in every line")
    return faces


def _face(row: dict[str, str | None], where: str) -> Face:
    box, points = (
        [row[name] for name in names] if all(row.get(name) for name in names) else None
        for names in (_BOX, _POINTS)
    )
    if box is None and points is None:
        raise InputError(
            f"{where}: must have {','.join(_BOX)} or {_POINTS[0]},{_POINTS[1]},…,{_POINTS[-1]}"
        )
    landmarks = None
    if points is not None:
        landmarks = np.array(_numbers(points, where)).reshape(5, 2)
        if np.ptp(landmarks, axis=0).min() <= 0:
            raise InputError(f"{where}: landmarks must not lie on one line")
    if box is not None:
        return Face(_checked(_numbers(box, where), where), landmarks)
    assert landmarks is not None
    low, size = landmarks.min(0), np.ptp(landmarks, axis=0)
    return Face(_scaled((*(low - size / 2), *(2 * size)), 1.0), landmarks)


def _numbers(texts: Sequence[str | None], where: str) -> list[float]:
    try:
        numbers = [float(text or "") for text in texts]
    except ValueError:
        raise InputError(f"{where}: must be numbers, got {','.join(map(str, texts))}") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: must be finite numbers")
    return numbers


def _checked(box: Sequence[float], where: str) -> tuple[float, float, float, float]:
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise InputError(
            f"{where}: a box must be wider and higher than 0, got {width}x{height}"
        )
    return left, top, width, height


def parse_faces(text: str) -> str | list[Face]:
    """Reads `largest`, `all`, or boxes LEFT:TOP:WIDTH:HEIGHT by commas.

    Raises:
      InputError: none of these.
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


def choose(found: Sequence[Face], which: str) -> list[Face]:
    """The `largest` of the faces found, or `all`."""
    return list(found[:1] if which == "largest" else found)
