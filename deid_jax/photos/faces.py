"""Faces in photos: where they are, found by a detector or told by the user."""

import csv
import functools
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from deid_jax.errors import InputError

# Photos are looked at with their longer side no longer than this: time and memory stay small.
_LONGEST_SIDE = 640
# Of that picture's shorter side: smaller faces are not looked for.
_SMALLEST_SHARE = 0.1
_CASCADE_WINDOW = 24
# Windows that overlap so far, intersection over union, agree; a face needs so many of them.
# Chosen on 108 aligned pictures of 18 people of CelebA (103 faces found, 3 boxes wrong) and on
# pictures without people, which had up to 6.
_AGREEING = 0.5
_LEAST_WINDOWS = 7


class Face(NamedTuple):
    """A face in a photo, in pixels of the upright photo.

    Attributes:
      box: left, top, width, height.
      landmarks: float64[5, 2], x and y of the left and right eye, the nose and the left and
        right corner of the mouth, as one sees them; None where only the box is known.
      score: how sure the detector is, by its own measure; 1 where the user told it.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None = None
    score: float = 1.0


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, pixels: np.ndarray) -> list[Face]:
        """Faces of uint8[H, W, 3], RGB and upright, the largest first."""
        ...


# Neither library says that its detectors serve several threads at once.
_one_at_a_time = threading.Lock()


def cascade(pixels: np.ndarray) -> list[Face]:
    """Frontal faces by scikit-image's cascade of local binary patterns, boxes alone.

    Liao, Zhu, Lei, Zhang, Li: "Learning Multi-scale Block Local Binary Patterns for Face
    Recognition", ICB 2007. It misses faces that are turned or tilted, and those smaller than a
    tenth of the photo's shorter side. The score is the number of windows that agree.

    Raises:
      InputError: scikit-image is not installed.
    """
    small, ratio = _reduced(pixels)
    shorter = min(small.shape[:2])
    least = max(_CASCADE_WINDOW, round(_SMALLEST_SHARE * shorter))
    if shorter < _CASCADE_WINDOW:
        return []
    with _one_at_a_time:
        found = _cascade().detect_multi_scale(
            img=small,
            scale_factor=1.1,
            step_ratio=1,
            min_size=(least, least),
            max_size=(shorter, shorter),
            # Every window by itself: scikit-image's own grouping depends on their order, which
            # threads may change.
            min_neighbor_number=1,
            intersection_score_threshold=2.0,
        )
    windows = sorted((d["c"], d["r"], d["width"], d["height"]) for d in found)
    faces = [Face(_scaled(box, ratio), None, score) for box, score in _grouped(windows)]
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
        # Only looking tells that a network has other outputs than YuNet's.
        network.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"detector file {path} is no YuNet model: {reason}") from error

    def detect(pixels: np.ndarray) -> list[Face]:
        small, ratio = _reduced(pixels)
        with _one_at_a_time:
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


def _grouped(windows: Sequence[Sequence[float]]) -> list[tuple[list[float], float]]:
    """Mean boxes of windows that agree, and how many did; the most agreed upon first.

    Of windows whose larger part lies in a box found before none are counted again: they are
    parts of that face.
    """
    overlaps = np.array([[overlap(one, other) for other in windows] for one in windows])
    left, groups = np.ones(len(windows), bool), []
    while left.any():
        agree = (overlaps >= _AGREEING) & left & left[:, None]
        largest = agree[int(np.argmax(agree.sum(axis=1)))]
        if largest.sum() < _LEAST_WINDOWS:
            break
        box = np.mean(np.asarray(windows, np.float64)[largest], axis=0).tolist()
        groups.append((box, float(largest.sum())))
        left &= ~largest & [not _within(window, box) for window in windows]
    return groups


def _within(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether boxes share more than half of the smaller one's area."""
    smaller = min(one[2] * one[3], other[2] * other[3])
    return _shared(one, other) > smaller / 2


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
_PARTS = ("leye", "reye", "nose", "lmouth", "rmouth")
_NAMED_POINTS = tuple(f"{part}_{axis}" for part in _PARTS for axis in "xy")


def from_csv(path: str | Path) -> dict[str, list[Face]]:
    """Reads faces: `file`, and a box or landmarks or both, in pixels; other columns are free.

    Boxes are `left,top,width,height`, landmarks `x1,y1,…,x5,y5` or
    `leye_x,leye_y,reye_x,…,rmouth_y`, in the order of `Face`; without a box theirs is drawn
    around them. A line is a face; files may have many.

    Raises:
      InputError: the file cannot be read, or a line is not as it must be.
    """
    faces: dict[str, list[Face]] = {}
    try:
        # Spreadsheets begin files with a mark.
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
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"boxes file {path} cannot be read: {reason}") from error
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
    # Of mirrored landmarks no rotation and scaling is right.
    if across * y - down * x <= 0:
        raise InputError(
            f"{where}: landmarks must be left and right eye, nose, left and right corner of "
            "the mouth, left as one sees them"
        )
    if box:
        return Face(_checked(box, where), landmarks)
    low, size = landmarks.min(0), np.ptp(landmarks, axis=0)
    return Face(_scaled((*(low - size / 2), *(2 * size)), 1.0), landmarks)


def _columns(row: dict[str, str], names: Sequence[str], where: str) -> list[float]:
    """The numbers in these columns; none where all are empty, or one is missing."""
    texts = [row[name] for name in names if name in row]
    if len(texts) < len(names):  # A width alone may be the photo's.
        return []
    return _numbers(texts, where) if any(texts) else []


def _numbers(texts: Sequence[str | None], where: str) -> list[float]:
    try:
        numbers = [float(text or "") for text in texts]
    except ValueError:
        raise InputError(
            f"{where}: must be numbers, got {','.join(map(str, texts))!r}"
        ) from None
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
    """The `largest` of the faces by their boxes' areas, the first of equals; or `all`."""
    if which == "largest":
        return sorted(found, key=lambda face: -face.box[2] * face.box[3])[:1]
    return list(found)
