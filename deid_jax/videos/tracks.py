"""Tracks: faces followed through the frames of a video.

The detector runs on every n-th frame. A detected face joins the track whose predicted box it
overlaps most, or is nearest to, if recognisers match the two. Otherwise it starts a new track,
so that after a cut nobody is judged by another person's face. Positions are smoothed over three
detections, because jitter of the detector's boxes would make the perturbation flicker, and
interpolated between detections. A track extends n − 1 frames beyond its first and last
detection, since the face may have appeared or disappeared between detections.
"""

import bisect
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from deid_jax.photos.faces import Box, Face, overlap
from deid_jax.types import NumpyArray

# The least intersection over union of a face's box with the box that its track predicts.
_SAME = 0.3
# For boxes that overlap less: the largest distance of centres in widths, and ratio of widths.
_NEAR, _WIDER = 1.0, 1.4
# Consecutive detections that may miss a face before its track ends.
_PATIENCE = 2

# A caller's features of a detection, such as embeddings.
T = TypeVar("T")


class Track(Generic[T]):
    """One face through the frames."""

    def __init__(self) -> None:
        # The detections and their frames, increasing, and features of the first ones.
        self.frames: list[int] = []
        self.faces: list[Face] = []
        self.features: list[T] = []
        self._reach = 0
        self._end = math.inf

    def add(self, number: int, face: Face) -> None:
        """Adds a detection, later than those before."""
        self.frames.append(number)
        self.faces.append(face)

    def extend(self, reach: int, num_frames: int) -> None:
        """Ends it `reach` frames beyond the outer detections, but within the video.

        Missing landmarks are interpolated from the detections that have them.
        """
        self._reach, self._end = reach, num_frames
        self.faces = _with_landmarks(self.frames, self.faces)

    @property
    def score(self) -> float:
        """The detector's median confidence, above 0 only if most of the detections are.

        In a given box it may have found no face, see `faces.face_within`.
        """
        return statistics.median_low(face.score for face in self.faces)

    @property
    def first(self) -> int:
        """The first frame of the track, before the first detection."""
        return max(self.frames[0] - self._reach, 0)

    @property
    def last(self) -> int:
        """The last frame of the track, after the last detection."""
        return int(min(self.frames[-1] + self._reach, self._end - 1))

    def detected(self, number: int) -> bool:
        """Whether a frame lies between the first and the last detection."""
        return self.frames[0] <= number <= self.frames[-1]

    def at(self, number: int) -> Face:
        """The face in a frame from `first` to `last`.

        Detections are averaged with their neighbours (1 : 2 : 1). Positions are linear between
        detections and extrapolated beyond the first and last.
        """
        if len(self.faces) == 1:
            return self.faces[0]
        place = bisect.bisect_right(self.frames, number) - 1
        place = min(max(place, 0), len(self.frames) - 2)
        start, end = self.frames[place], self.frames[place + 1]
        share = (number - start) / (end - start)
        row = (1 - share) * self._smooth(place) + share * self._smooth(place + 1)
        left, top, width, height = (float(value) for value in row[:4])
        if min(width, height) <= 0:  # Extrapolated from a face that shrinks fast.
            return self.faces[0 if number < start else -1]
        landmarks = row[4:].reshape(5, 2) if len(row) > 4 else None
        return Face((left, top, width, height), landmarks, self.faces[place].score)

    def predicted(self, number: int) -> Box:
        """The box in a later frame, by the motion between the last two detections."""
        box = np.array(self.faces[-1].box)
        if len(self.frames) > 1:
            passed = self.frames[-1] - self.frames[-2]
            speed = (box - self.faces[-2].box) / passed
            box[:2] += (number - self.frames[-1]) * speed[:2]
        left, top, width, height = (float(value) for value in box)
        return left, top, width, height

    def _smooth(self, place: int) -> NumpyArray:
        if place in (0, len(self.faces) - 1):
            return self._row(place)
        times = np.array(self.frames[place - 1 : place + 2], float)
        rows = np.stack([self._row(place + step) for step in (-1, 0, 1)])
        # Neighbours are interpolated to this frame's time, so that steady motion is preserved.
        share = (times[1] - times[0]) / (times[2] - times[0])
        return (rows[1] + (1 - share) * rows[0] + share * rows[2]) / 2

    def _row(self, place: int) -> NumpyArray:
        """The box, and the landmarks if there are any."""
        face = self.faces[place]
        if face.landmarks is None:
            return np.array(face.box, float)
        return np.concatenate([face.box, np.ravel(np.asarray(face.landmarks, float))])


class Tracker(Generic[T]):
    """Joins detections into tracks.

    Args:
      every: frames between detections, ≥ 1.
      alike: (features of a track, features of a face) -> whether they may be one person.
      num_kept: of how many detections a track keeps the features.
    """

    def __init__(self, every: int, alike: Callable[[list[T], T], bool], num_kept: int = 1):
        self._every = every
        self._alike = alike
        self._num_kept = num_kept
        self._open: list[Track[T]] = []
        self._closed: list[Track[T]] = []

    def see(self, number: int, faces: Sequence[Face], features: Sequence[T]) -> list[Track[T]]:
        """Assigns each face detected in a frame, later than before, to a track."""
        patience = (_PATIENCE + 1) * self._every
        self._closed += [one for one in self._open if number - one.frames[-1] > patience]
        self._open = [one for one in self._open if number - one.frames[-1] <= patience]
        pairs = sorted(
            (-_closeness(track.predicted(number), face.box), old, new)
            for old, track in enumerate(self._open)
            for new, face in enumerate(faces)
        )
        given: dict[int, Track[T]] = {}
        used: set[int] = set()
        for closeness, old, new in pairs:
            if closeness == 0 or old in used or new in given:
                continue
            if self._alike(self._open[old].features, features[new]):
                given[new] = self._open[old]
                used.add(old)
        for new, face in enumerate(faces):
            if new not in given:
                given[new] = Track()
                self._open.append(given[new])
            track = given[new]
            track.add(number, face)
            if len(track.features) < self._num_kept:
                track.features.append(features[new])
        return [given[new] for new in range(len(faces))]

    def tracks(self, num_frames: int) -> list[Track[T]]:
        """All tracks of a video, sorted by first frame and position."""
        found = [*self._closed, *self._open]
        for track in found:
            track.extend(self._every - 1, num_frames)
        return sorted(found, key=lambda track: (track.frames[0], track.faces[0].box))


def _with_landmarks(frames: Sequence[int], faces: Sequence[Face]) -> list[Face]:
    """The faces, all with landmarks if any has them: within the box, linear in time."""
    known = [
        (frame, np.ravel((face.landmarks - face.box[:2]) / face.box[2:]))
        for frame, face in zip(frames, faces, strict=True)
        if face.landmarks is not None
    ]
    if not known:
        return list(faces)
    numbers, shares = zip(*known, strict=True)
    found = np.stack([np.interp(frames, numbers, column) for column in np.transpose(shares)])
    return [
        face._replace(landmarks=face.box[:2] + own.reshape(5, 2) * face.box[2:])
        if face.landmarks is None
        else face
        for face, own in zip(faces, found.T, strict=True)
    ]


def _closeness(one: Sequence[float], other: Sequence[float]) -> float:
    """How close two boxes are: 2 to 1 by overlap, then 1 to 0 by distance; 0 is too far."""
    shared = overlap(one, other)
    if shared > _SAME:
        return 1 + shared
    wider = max(one[2], other[2]) / min(one[2], other[2])
    apart = math.hypot(
        one[0] + one[2] / 2 - other[0] - other[2] / 2,
        one[1] + one[3] / 2 - other[1] - other[3] / 2,
    ) / max(one[2], other[2])
    return max(0.0, 1 - apart / _NEAR) if wider <= _WIDER else 0.0
