"""Face detectors: find the faces in a photo, the largest first."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.photos import face_search
from deid_jax.photos.faces import Box, Detector, Face, by_size
from deid_jax.types import NumpyArray

# Photos are first reduced to this longest side, to limit time and memory.
_LONGEST_SIDE = 640
DEFAULT = "centerface"
# OpenCV does not guarantee that its detectors are thread-safe.
_one_at_a_time = threading.Lock()


def load_detector(name: str) -> Detector:
    """Loads a detector by name: `centerface`, or the path of a YuNet model file.

    Raises:
      InputError: a required package is not installed, or there is no such model.
    """
    return face_search.load_search() if name == DEFAULT else yunet(name)


def yunet(path: str | Path) -> Detector:
    """OpenCV's FaceDetectorYN with a YuNet model file (.onnx): five landmarks per face.

    Wu, Peng, Yu: "YuNet: A Tiny Millisecond-level Face Detector", MIR 2023.

    Raises:
      InputError: OpenCV is not installed, or the file is missing or not a YuNet model.
    """
    if not Path(path).is_file():
        raise InputError(f"detector file {path} does not exist")
    try:
        import cv2
    except ImportError as error:  # Or a library of the system, such as libGL, is missing.
        raise InputError(
            f"YuNet needs OpenCV: pip install 'deid_jax[opencv]' ({one_line(error)})"
        ) from None
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
