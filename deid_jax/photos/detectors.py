"""Face detectors: find the faces in a photo, the largest first."""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.photos.faces import Box, Detector, Face, by_size, overlap, shared_area
from deid_jax.types import NumpyArray

if TYPE_CHECKING:
    from skimage.feature import Cascade

# Photos are first reduced to this longest side, to limit time and memory.
_LONGEST_SIDE = 640
# The smallest face to look for, relative to the reduced photo's shorter side.
_SMALLEST_SHARE = 0.1
_CASCADE_WINDOW = 24
# Windows agree if their intersection over union is at least this, and a face needs this many
# windows that agree. Chosen on 108 aligned images of 18 people of CelebA (103 faces found, 3
# wrong boxes) and on images without people, where up to 6 windows agreed.
_AGREEING = 0.5
_LEAST_WINDOWS = 7
# Neither library guarantees that its detectors are thread-safe.
_one_at_a_time = threading.Lock()


def load_detector(name: str) -> Detector:
    """Loads a detector by name: `cascade`, or the path of a YuNet model file.

    Raises:
      InputError: a required package is not installed, or there is no such model.
    """
    if name != "cascade":
        return yunet(name)
    cascade(np.zeros((32, 32, 3), np.uint8))  # Raises if scikit-image is missing.
    return cascade


def cascade(pixels: NumpyArray) -> list[Face]:
    """Detects frontal faces with scikit-image's local binary pattern cascade; boxes only.

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
            # Returns every window: scikit-image's own grouping depends on their order, which
            # threads may change.
            min_neighbor_number=1,
            intersection_score_threshold=2.0,
        )
    windows = sorted((d["c"], d["r"], d["width"], d["height"]) for d in found)
    return by_size(Face(_scaled(box, ratio), None, n) for box, n in _grouped(windows))


@functools.cache
def _cascade() -> "Cascade":
    try:
        from skimage import data
        from skimage.feature import Cascade
    except ImportError:
        raise InputError(
            "finding faces needs scikit-image: pip install 'deid_jax[photos]'"
        ) from None
    return Cascade(data.lbp_frontal_face_cascade_filename())


def yunet(path: str | Path) -> Detector:
    """OpenCV's FaceDetectorYN with a YuNet model file (.onnx): five landmarks per face.

    Wu, Peng, Yu: "YuNet: A Tiny Millisecond-level Face Detector", MIR 2023.

    Raises:
      InputError: OpenCV is not installed, or the file is missing or not a YuNet model.
    """
    try:
        import cv2
    except ImportError:
        raise InputError("YuNet needs OpenCV: pip install 'deid_jax[opencv]'") from None
    if not Path(path).is_file():
        raise InputError(f"detector file {path} does not exist")
    try:
        network = cv2.FaceDetectorYN.create(str(path), "", (320, 320))
        # Other networks load as well and fail only when they are run.
        network.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        reason = one_line(error)
        raise InputError(f"detector file {path} is no YuNet model: {reason}") from error

    def detect(pixels: NumpyArray) -> list[Face]:
        small, ratio = _reduced(pixels)
        with _one_at_a_time:
            network.setInputSize((small.shape[1], small.shape[0]))
            _, rows = network.detect(np.ascontiguousarray(small[..., ::-1]))
        found = () if rows is None else np.asarray(rows, np.float64)
        # OpenCV's first eye is the person's right eye, which is on the left of the image.
        return by_size(
            Face(_scaled(row[:4], ratio), ratio * row[4:14].reshape(5, 2), float(row[14]))
            for row in found
        )

    return detect


def _reduced(pixels: NumpyArray) -> tuple[NumpyArray, float]:
    """The photo reduced to `_LONGEST_SIDE`, and original pixels per reduced pixel."""
    from PIL import Image

    height, width = pixels.shape[:2]
    ratio = max(height, width) / _LONGEST_SIDE
    if ratio <= 1:
        return pixels, 1.0
    size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.array(image), ratio


def _scaled(box: Sequence[float], ratio: float) -> Box:
    left, top, width, height = (float(ratio * n) for n in box)
    return left, top, width, height


def _grouped(windows: Sequence[Sequence[float]]) -> list[tuple[list[float], float]]:
    """Mean boxes of windows that agree, and their number; the largest group first.

    Windows that lie mostly inside a box found earlier belong to that face and are dropped.
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
    """Whether two boxes share more than half of the smaller one's area."""
    smaller = min(one[2] * one[3], other[2] * other[3])
    return shared_area(one, other) > smaller / 2
