"""Faces through the frames of a video: one track a person, as long as the detector sees them.

The detector looks at every n-th frame. A face found goes on with the track whose predicted box
it overlaps most, or is nearest to, if recognisers take both for one person; otherwise it begins
a track of its own, so that after a cut nobody is judged by somebody else's face. Between the
looks places are interpolated, over three looks smoothed: a detector's box trembles, and a crop
that trembles makes the change flicker. A track goes on one step less than n frames beyond its
first and last look, since the face may have come and gone between looks.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deid_jax.photos.faces import Face, overlap

# Intersection over union of a face's box with the box that its track predicts.
_SAME = 0.3
# Where boxes do not overlap so far: the distance of their centres in widths, and how many times
# as wide the wider is.
_NEAR, _WIDER = 1.0, 1.4
# Looks that may miss a face before its track has ended.
_PATIENCE = 2

# (what is remembered of a track, what is seen now) -> whether they may be one person.
Alike = Callable[[Any, Any], bool]


class Track:
    """One face through the frames.

    Attributes:
      frames: numbers of the frames in which it was detected, increasing.
      faces: where.
      signs: what `Tracker.see` was given for the first of them.
    """

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.faces: list[Face] = []
        self.signs: list[Any] = []
        self._pointed = True
        self._reach = 0
        self._end = math.inf

    def add(self, number: int, face: Face) -> None:
        """Takes a detection, later than those before."""
        self.frames.append(number)
        self.faces.append(face)
        self._pointed = self._pointed and face.landmarks is not None

    def extend(self, reach: int, num_frames: int) -> None:
        """Follows it `reach` frames beyond its ends, in a video of so many frames."""
        self._reach, self._end = reach, num_frames

    @property
    def first(self) -> int:
        """The first frame that it is followed in, before the first detection."""
        return max(self.frames[0] - self._reach, 0)

    @property
    def last(self) -> int:
        """The last one."""
        return int(min(self.frames[-1] + self._reach, self._end - 1))

    def detected(self, number: int) -> bool:
        """Whether a frame lies between the first and the last detection."""
        return self.frames[0] <= number <= self.frames[-1]

    def at(self, number: int) -> Face:
        """Where the face is in a frame from `first` to `last`.

        The mean of each detection and its neighbours' (1 : 2 : 1), linear in between; beyond
        the first and last detection it goes on as it went.
        """
        if len(self.faces) == 1:
            return self.faces[0]
        place = bisect.bisect_right(self.frames, number) - 1
        place = min(max(place, 0), len(self.frames) - 2)
        start, end = self.frames[place], self.frames[place + 1]
        share = (number - start) / (end - start)
        row = (1 - share) * self._smooth(place) + share * self._smooth(place + 1)
        left, top, width, height = (float(value) for value in row[:4])
        if min(width, height) <= 0:  # Extrapolated from one that shrinks fast.
            return self.faces[0 if number < start else -1]
        landmarks = row[4:].reshape(5, 2) if len(row) > 4 else None
        return Face((left, top, width, height), landmarks, self.faces[place].score)

    def predicted(self, number: int) -> tuple[float, float, float, float]:
        """The box in a later frame if it goes on as from the last detection but one."""
        box = np.array(self.faces[-1].box)
        if len(self.frames) > 1:
            passed = self.frames[-1] - self.frames[-2]
            speed = (box - self.faces[-2].box) / passed
            box[:2] += (number - self.frames[-1]) * speed[:2]
        left, top, width, height = (float(value) for value in box)
        return left, top, width, height

    def _smooth(self, place: int) -> np.ndarray:
        if place in (0, len(self.faces) - 1):
            return self._row(place)
        times = np.array(self.frames[place - 1 : place + 2], float)
        rows = np.stack([self._row(place + step) for step in (-1, 0, 1)])
        # Of what the neighbours interpolate for this moment, so that steady motion stays.
        share = (times[1] - times[0]) / (times[2] - times[0])
        return (rows[1] + (1 - share) * rows[0] + share * rows[2]) / 2

    def _row(self, place: int) -> np.ndarray:
        """The box, and the landmarks where every detection has them."""
        face = self.faces[place]
        if not self._pointed:
            return np.array(face.box, float)
        return np.concatenate([face.box, np.ravel(np.asarray(face.landmarks, float))])


class Tracker:
    """Makes tracks of detections, look by look.

    Args:
      every: frames from one look to the next, ≥ 1.
      alike: whether a face may be a track's; None: places alone decide.
      num_signs: how many signs of a track are kept.
    """

    def __init__(self, every: int, alike: Alike | None = None, num_signs: int = 1) -> None:
        self._every = every
        self._alike = alike
        self._num_signs = num_signs
        self._open: list[Track] = []
        self._closed: list[Track] = []

    def see(self, number: int, faces: Sequence[Face], signs: Sequence[Any]) -> list[Track]:
        """Takes what was found in a frame, and gives each face's track.

        Args:
          number: of the frame, larger than before.
          faces: what was found.
          signs: what `alike` is to know of each, beside the signs that a track began with.
        """
        patience = (_PATIENCE + 1) * self._every
        self._closed += [one for one in self._open if number - one.frames[-1] > patience]
        self._open = [one for one in self._open if number - one.frames[-1] <= patience]
        pairs = sorted(
            (-_closeness(track.predicted(number), face.box), old, new)
            for old, track in enumerate(self._open)
            for new, face in enumerate(faces)
        )
        given: dict[int, Track] = {}
        used: set[int] = set()
        for closeness, old, new in pairs:
            if closeness == 0 or old in used or new in given:
                continue
            if self._alike is None or self._alike(self._open[old].signs, signs[new]):
                given[new] = self._open[old]
                used.add(old)
        for new, face in enumerate(faces):
            if new not in given:
                given[new] = Track()
                self._open.append(given[new])
            track = given[new]
            track.add(number, face)
            if len(track.signs) < self._num_signs:
                track.signs.append(signs[new])
        return [given[new] for new in range(len(faces))]

    def tracks(self, num_frames: int) -> list[Track]:
        """All tracks, by first frame and place.

        Args:
          num_frames: of the video.
        """
        found = [*self._closed, *self._open]
        for track in found:
            track.extend(self._every - 1, num_frames)
        return sorted(found, key=lambda track: (track.frames[0], track.faces[0].box))


def _closeness(one: Sequence[float], other: Sequence[float]) -> float:
    """2 to 1 by overlap, else 1 to 0 by distance; 0: too far from each other."""
    shared = overlap(one, other)
    if shared > _SAME:
        return 1 + shared
    wider = max(one[2], other[2]) / min(one[2], other[2])
    apart = math.hypot(
        one[0] + one[2] / 2 - other[0] - other[2] / 2,
        one[1] + one[3] / 2 - other[1] - other[3] / 2,
    ) / max(one[2], other[2])
    return max(0.0, 1 - apart / _NEAR) if wider <= _WIDER else 0.0
