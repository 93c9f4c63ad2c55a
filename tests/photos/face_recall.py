"""How many faces a detector finds, how well, and how fast.

    python -m tests.photos.face_recall FOLDER [--below=photos/] [--detector=centerface]

FOLDER holds photos and landmarks.csv (file, x1, y1, ... x5, y5 of one face each). Each photo is
also rotated, reduced, and put into a group with nine others. Times are medians of five.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
from PIL import Image

from deid_jax.photos import load_detector
from deid_jax.photos.detectors import DEFAULT
from deid_jax.photos.faces import Detector, overlap, read_faces
from deid_jax.types import NumpyArray

FACELESS = ("coffee", "chelsea", "rocket", "hubble_deep_field")
DEGREES = {"as they are": 0, "rotated by 90°": 90, "by 180°": 180, "by 30°": 30}
FACE_SIZES = {"faces of 24 pixels": 24, "of 40 pixels": 40, "of 60 pixels": 60}
KINDS = (*DEGREES, *FACE_SIZES)
PROFILE = "the tenth most in profile"
GROUP = "groups of ten"
_EYES_PER_FACE = 2.2  # A face's width, in eye distances.
_FOUND = 0.35  # The largest mean error of the landmarks, in eye distances.
_CELL = 256


class Photo(NamedTuple):
    """A photo, uint8[H, W, 3], and the landmarks of its faces, float64[F, 5, 2]."""

    pixels: NumpyArray
    landmarks: NumpyArray


class Recall(NamedTuple):
    """Mean errors of the landmarks, float[F], in eye distances, inf if not found.

    `duplicates` counts the pairs of boxes of one face.
    """

    errors: NumpyArray
    false_positives: int
    duplicates: int

    @property
    def found(self) -> NumpyArray:
        """Which faces are found, bool[F]."""
        return self.errors < _FOUND


def read_photos(folder: Path, below: str = "") -> Iterator[Photo]:
    """The photos of FOLDER/landmarks.csv whose names begin with `below`."""
    for name, faces in read_faces(folder / "landmarks.csv").items():
        if not name.startswith(below):
            continue
        pixels = np.array(Image.open(folder / name).convert("RGB"))
        yield Photo(pixels, np.stack([face.landmarks for face in faces]))


def eye_distances(landmarks: NumpyArray) -> NumpyArray:
    """Eye distances, float64[F]."""
    return np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=1)


def resized(photo: Photo, scale: float) -> Photo:
    """The photo at another size."""
    height, width = (max(1, round(scale * side)) for side in photo.pixels.shape[:2])
    image = Image.fromarray(photo.pixels).resize((width, height), Image.Resampling.LANCZOS)
    return Photo(np.array(image), (photo.landmarks + 0.5) * scale - 0.5)


def rotated(photo: Photo, degrees: float) -> Photo:
    """The photo rotated counterclockwise, enlarged to hold it."""
    image = Image.fromarray(photo.pixels)
    whole = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    away = photo.landmarks + 0.5 - np.array(image.size) / 2
    there = away @ np.array([[cos, -sin], [sin, cos]]) + np.array(whole.size) / 2 - 0.5
    return Photo(np.array(whole), there)


def changed(photo: Photo, kind: str) -> Photo:
    """The photo, rotated or reduced."""
    if kind in DEGREES:
        return rotated(photo, DEGREES[kind])
    return resized(
        photo, FACE_SIZES[kind] / (_EYES_PER_FACE * eye_distances(photo.landmarks)[0])
    )


def grouped(photos: list[Photo]) -> Photo:
    """Photos side by side, in two rows, each reduced to a square cell."""
    half = (len(photos) + 1) // 2
    pixels = np.full((2 * _CELL, half * _CELL, 3), 128, np.uint8)
    landmarks = []
    for n, photo in enumerate(photos):
        small = resized(photo, _CELL / max(photo.pixels.shape))
        top, left = _CELL * (n // half), _CELL * (n % half)
        height, width = small.pixels.shape[:2]
        pixels[top : top + height, left : left + width] = small.pixels
        landmarks.append(small.landmarks + np.array([left, top]))
    return Photo(pixels, np.concatenate(landmarks))


def profiles(photos: list[Photo]) -> list[Photo]:
    """The tenth of the photos in which the nose is farthest from between the eyes."""

    def sideways(photo: Photo) -> float:
        left, right, nose = photo.landmarks[0, :3]
        across = (right - left) / np.linalg.norm(right - left)
        return float(abs((nose - (left + right) / 2) @ across) / np.linalg.norm(right - left))

    return sorted(photos, key=sideways)[-(len(photos) // 10) :]


def measure(detect: Detector, photos: list[Photo]) -> Recall:
    """Compares the faces found with those that the photos are said to have."""
    errors = list[float]()
    false_positives = duplicates = 0
    for photo in photos:
        faces = detect(photo.pixels)
        apart = eye_distances(photo.landmarks)
        points = np.array([face.landmarks for face in faces]).reshape(-1, 1, 5, 2)
        away = np.linalg.norm(points - photo.landmarks, axis=-1).mean(-1) / apart
        errors += list(away.min(axis=0, initial=np.inf))
        false_positives += int((away.min(axis=1, initial=np.inf) >= _FOUND).sum())
        pairs = itertools.combinations([face.box for face in faces], 2)
        duplicates += sum(overlap(one, other) >= 0.5 for one, other in pairs)
    return Recall(np.array(errors), false_positives, duplicates)


def seconds(detect: Detector, photo: Photo, megapixels: float) -> float:
    """The median time of five searches of the photo at this size, after one that compiles."""
    pixels = resized(photo, np.sqrt(megapixels * 1e6 / photo.pixels[..., 0].size)).pixels
    times = []
    for _ in range(6):
        start = time.perf_counter()
        detect(pixels)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def _line(text: str, recall: Recall, num_photos: int) -> str:
    error = recall.errors[recall.found].mean()
    return (
        f"| {text} | {recall.found.sum()} of {len(recall.found)} | {error:.1%} | "
        f"{recall.false_positives / num_photos:.2f} |"
    )


def main() -> None:
    """Prints a table of what is found, and times."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--below", default="", help="beginning of the names of files")
    parser.add_argument("--detector", default=DEFAULT)
    given = parser.parse_args()
    detect = load_detector(given.detector)
    photos = list(read_photos(given.folder, given.below))
    print(
        "| photos | faces found | landmarks' error | false positives per photo |\n"
        "|---|---|---|---|"
    )
    for kind in KINDS:
        print(_line(kind, measure(detect, [changed(p, kind) for p in photos]), len(photos)))
    aside = profiles(photos)
    print(_line(PROFILE, measure(detect, aside), len(aside)))
    groups = [grouped(photos[n : n + 10]) for n in range(0, len(photos), 10)]
    print(_line(GROUP, measure(detect, groups), len(groups)))
    false_positives = 0
    for name in FACELESS:
        pixels = getattr(skimage.data, name)()
        false_positives += len(detect(pixels))
    print(f"\nFalse positives in {len(FACELESS)} photos without a face: {false_positives}")
    for megapixels in (0.5, 1, 12, 24):
        print(f"{megapixels} megapixels: {seconds(detect, photos[0], megapixels):.2f} s")


if __name__ == "__main__":
    main()
