"""One video from its file to the protected file, judged frame by frame as it will be seen.

The file is read several times and never held in memory: once to look for faces at every n-th
frame and to learn what each track's face looks like, once to change and write it, once, beside
the written file, to judge it. A track's first frame gets an attack's full number of steps. Each
further one begins with the last one's change, which lives in the coordinates of the crop and so
moves with the face, and needs few steps; where recognisers are not left behind by far enough,
more steps follow, and then a stronger change, from that frame on.
"""

import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from deid_jax.errors import InputError
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.faces import Detector
from deid_jax.photos.files import UNFINISHED
from deid_jax.photos.judging import Witness, crops_of, directions
from deid_jax.photos.photo import DEFAULT, Strength
from deid_jax.videos.tracking import Tracker
from deid_jax.videos.video_faces import Attack, Followed, Judge, mean
from deid_jax.videos.video_files import FORMATS, Picture, look, pictures, rewrite
from deid_jax.videos.video_frames import Change

# The detector looks at every so many frames.
EVERY = 5
# A track's face is the mean of its first detections, so many.
NUM_REFERENCES = 8
# The encoder's constant rate factor.
QUALITY = 16
# Cosines by which recognisers must be left behind before encoding; where the written file still
# fails a next round asks for more, and changes more.
MARGINS = (0.08, 0.2, 0.35)

# (what is being done, frames done, frames in all) -> nothing.
Update = Callable[[str, int, int], None]


class WitnessReport(NamedTuple):
    """What one recogniser makes of one track, or of a video.

    Attributes:
      recogniser: its name.
      fitted: whether the changes were made knowing it.
      threshold: from which cosine on it says "the same person".
      fooled: the share of judged faces of frames with a cosine below it.
      cosine: the highest one.
    """

    recogniser: str
    fitted: bool
    threshold: float
    fooled: float
    cosine: float


class TrackReport(NamedTuple):
    """What became of one face.

    Attributes:
      first: number of the first frame in which it was changed, from 0.
      last: of the last one.
      num_frames: in how many.
      box: where it is in the first one: left, top, width, height.
      tried: the PSNR, in dB, that its changes had at their strongest, before encoding.
      psnr: lowest of the changed pixels in the decoded file, against the source's, dB.
      mean_psnr: mean over frames.
      witnesses: one of each.
    """

    first: int
    last: int
    num_frames: int
    box: tuple[float, float, float, float]
    tried: float
    psnr: float
    mean_psnr: float
    witnesses: list[WitnessReport]

    @property
    def protected(self) -> bool:
        """Whether every witness is fooled in every frame."""
        return all(one.fooled == 1 for one in self.witnesses)


class VideoReport(NamedTuple):
    """What became of a video.

    Attributes:
      written: whether there is a file; not where no face was found.
      width: pixels of the upright frame.
      height: likewise.
      num_frames: of the video.
      num_face_frames: those with a face.
      num_gradients: steps that were computed, of all faces and frames.
      tracks: what became of each face.
      witnesses: over all tracks.
    """

    written: bool
    width: int
    height: int
    num_frames: int
    num_face_frames: int
    num_gradients: int
    tracks: list[TrackReport]
    witnesses: list[WitnessReport]

    @property
    def protected(self) -> bool:
        """Whether there is a face, and every face of every frame fools every witness."""
        return bool(self.tracks) and all(track.protected for track in self.tracks)


def protect_video(
    source: Path,
    target: Path,
    witnesses: Sequence[Witness],
    key: jax.Array,
    *,
    detector: Detector,
    strength: Strength = DEFAULT,
    known: Sequence[np.ndarray | None] | None = None,
    keep_metadata: bool = False,
    update: Update | None = None,
) -> VideoReport:
    """Changes the faces of a video until they are not known again, and judges the file.

    The file is written under another name first. It is written as well where a recogniser still
    knows a face: the report says so. Where no face is found nothing is written.

    Args:
      source: the video: `video_files.FORMATS`.
      target: the file to write, of the same kind by its suffix.
      witnesses: who judges; those that are `fitted` are known to the attack, at least one.
      key: one key.
      detector: finds faces.
      strength: how much may be changed, before encoding, and steps of a track's first frame.
      known: for each witness what it knows of a person, or None: see `photo.protect`.
      keep_metadata: whether titles, place, time and the like stay.
      update: told how far it is.

    Raises:
      InputError: bad arguments, or the source is no video that can be read and written again.
    """
    source, target = Path(source), Path(target)
    if not any(witness.fitted for witness in witnesses):
        raise InputError("witnesses must have one or more that are fitted")
    if target.suffix.lower() not in FORMATS:
        raise InputError(f"video {target} must end in one of {', '.join(FORMATS)}")
    info = look(source)
    followed, num_frames = _find(source, info.num_frames, witnesses, detector, update)
    for one in followed:
        one.know(witnesses, known or [None] * len(witnesses))
    if not followed:
        return VideoReport(False, info.width, info.height, num_frames, 0, 0, [], [])
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{uuid.uuid4().hex}{UNFINISHED}"
    attack = Attack(witnesses, strength, key, followed)
    try:
        for margin in MARGINS:
            attack.begin(margin, last=margin == MARGINS[-1])
            rewrite(
                source,
                unfinished,
                _told(attack.change, update, num_frames),
                suffix=target.suffix.lower(),
                quality=QUALITY,
                keep_metadata=keep_metadata,
            )
            judge = Judge(witnesses, detector, followed, EVERY)
            for number, (before, after) in enumerate(_pairs(source, unfinished)):
                judge.see(number, before.pixels, after.pixels)
                if update is not None:
                    update("judge", number + 1, num_frames)
            judge.finish()
            if not attack.may_improve():
                break
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    tracks = [_report(one, witnesses, strength) for one in followed if one.num_frames]
    return VideoReport(
        True,
        info.width,
        info.height,
        num_frames,
        judge.num_face_frames,
        attack.num_gradients,
        tracks,
        [_of_all(tracks, number) for number in range(len(witnesses))],
    )


def _find(
    source: Path,
    num_frames: int,
    witnesses: Sequence[Witness],
    detector: Detector,
    update: Update | None,
) -> tuple[list[Followed], int]:
    """The faces of a video, what each looks like, and the number of frames."""

    def alike(known: Sequence[list[np.ndarray]], new: list[np.ndarray]) -> bool:
        return all(
            float(direction @ mean(own)) >= witness.threshold
            for witness, direction, own in zip(
                witnesses, new, zip(*known, strict=True), strict=True
            )
        )

    tracker, number = Tracker(EVERY, alike, NUM_REFERENCES), -1
    for number, picture in enumerate(pictures(source)):
        if number % EVERY == 0:
            faces = detector(picture.pixels)
            matrices = [crop_matrix(face) for face in faces]
            crops = crops_of(picture.pixels, matrices) if faces else None
            signs = (
                [] if crops is None else [directions(one.embedder, crops) for one in witnesses]
            )
            tracker.see(number, faces, [list(own) for own in zip(*signs, strict=True)])
        if update is not None:
            update("find", number + 1, max(num_frames, number + 1))
    return [
        Followed(track, [mean(own) for own in zip(*track.signs, strict=True)], place)
        for place, track in enumerate(tracker.tracks(number + 1))
    ], number + 1


def _told(change: Change, update: Update | None, num_frames: int) -> Change:
    """The same, and tells how far it is."""

    def counted(number: int, pixels: np.ndarray) -> np.ndarray | None:
        changed = change(number, pixels)
        if update is not None:
            update("protect", number + 1, num_frames)
        return changed

    return counted


def _pairs(source: Path, written: Path) -> Iterator[tuple[Picture, Picture]]:
    """Frames of both, whose times must be the same."""
    for before, after in itertools.zip_longest(pictures(source), pictures(written)):
        if before is None or after is None or before.time != after.time:
            raise InputError(f"video {source}: {written.suffix} cannot keep its frames' times")
        yield before, after


def _report(one: Followed, witnesses: Sequence[Witness], strength: Strength) -> TrackReport:
    return TrackReport(
        first=one.first,
        last=one.last,
        num_frames=one.num_frames,
        box=one.track.at(one.first).box,
        tried=strength.psnrs[one.level],
        psnr=one.lowest_psnr,
        mean_psnr=one.sum_psnr / one.num_frames,
        witnesses=[
            WitnessReport(
                witness.embedder.name,
                witness.fitted,
                witness.threshold,
                int(one.fooled[number]) / one.num_frames,
                float(one.cosines[number]),
            )
            for number, witness in enumerate(witnesses)
        ],
    )


def _of_all(tracks: Sequence[TrackReport], number: int) -> WitnessReport:
    """One witness on all tracks."""
    own = [track.witnesses[number] for track in tracks]
    fooled = sum(
        round(one.fooled * track.num_frames) for one, track in zip(own, tracks, strict=True)
    )
    return own[0]._replace(
        fooled=fooled / sum(track.num_frames for track in tracks),
        cosine=max(one.cosine for one in own),
    )
