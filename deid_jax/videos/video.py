"""Protects one video, and judges the written file frame by frame.

The file is never held in memory as a whole. It is read several times: to find and track faces,
to perturb and write them, and to judge the written file. A track's first frame gets the
attack's full number of steps. Later frames need only a few, because they start from the
previous frame's perturbation, which is defined on the canvas and so moves with the face. If a
surrogate's similarity is not below its threshold by a margin, more steps follow, and then, if
there are several strengths, the next ones from that frame on.
"""

import dataclasses
import itertools
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError
from deid_jax.photos.faces import Detector
from deid_jax.photos.file_records import (
    TrackReport,
    TrackVerdict,
    status_of,
    worst_of,
)
from deid_jax.photos.protector import Protector
from deid_jax.photos.verdicts import verdict_of
from deid_jax.photos.verifiers import Verifier, face_embeddings
from deid_jax.photos.written_files import ProtectedError
from deid_jax.runs import UNFINISHED
from deid_jax.types import NumpyArray
from deid_jax.videos.containers import FORMATS, TimedFrame, look, read_frames, rewrite
from deid_jax.videos.followed_faces import FaceEmbeddings, FollowedFace, VideoAttack, VideoJudge
from deid_jax.videos.tracks import Tracker

# Frames between detections.
EVERY = 5
# A track is compared by the mean embedding of up to this many of its first detections.
NUM_REFERENCES = 8
# The encoder's constant rate factor.
QUALITY = 16
# Margins below the surrogates' thresholds before encoding. If one still matches a face in the
# written file and the face began below the largest of several strengths, the next round uses
# the next margin. A single strength is spent wholly in the only round.
MARGINS = (0.08, 0.2, 0.35)

# (the stage, frames done, frames in all) -> nothing.
VideoProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class VideoReport:
    """The outcome of a video: nothing is written if no face was found.

    Width and height are those of upright frames.
    """

    written: bool
    width: int
    height: int
    num_frames: int
    num_face_frames: int = 0
    faces: tuple[TrackReport, ...] = ()

    @property
    def status(self) -> str:
        """The worst status of a face, in every frame."""
        return worst_of(face.status for face in self.faces)


@dataclasses.dataclass(frozen=True)
class VideoJob:
    """One video to protect, in one of `containers.FORMATS`.

    The target's suffix decides the container, the name the random choices; `progress` is called
    after every frame.
    """

    protector: Protector
    source: Path
    target: Path
    name: str
    detector: Detector
    progress: VideoProgress = lambda stage, done, total: None

    def run(self) -> VideoReport:
        """Perturbs the faces so that no surrogate matches them, and judges the written file.

        The file is written whole or not at all. It is also written if a recogniser still
        matches a face, which the report then says. If no face is found, nothing is written.

        Raises:
          InputError: bad arguments, or the source cannot be read or written again, or is
            marked as protected.
        """
        if self.target.suffix.lower() not in FORMATS:
            raise InputError(f"video {self.target} must end in one of {', '.join(FORMATS)}")
        info = look(self.source)
        if info.is_marked:
            raise ProtectedError(self.name)
        followed, num_frames = self._find(info.num_frames)
        size = (info.width, info.height, num_frames)
        if not followed:
            return VideoReport(False, *size)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.target.parent / f".{uuid.uuid4().hex}{UNFINISHED}"
        key = self.protector.key_of(self.name)
        attack = VideoAttack(self.protector, key, followed)
        try:
            for margin in MARGINS:
                attack.begin(margin, last=margin == MARGINS[-1])
                self._write(attack, unfinished, num_frames)
                num_face_frames = self._judge(followed, unfinished, num_frames)
                if not attack.may_improve():
                    break
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            unfinished.replace(self.target)
        finally:
            unfinished.unlink(missing_ok=True)
        tracks = tuple(self._report(one) for one in followed if one.num_frames)
        return VideoReport(True, *size, num_face_frames, tracks)

    def _find(self, num_frames: int) -> tuple[list[FollowedFace], int]:
        """Finds the faces of the video, and counts its frames."""
        verifiers = self.protector.verifiers
        tracker = Tracker(EVERY, _alike(verifiers), NUM_REFERENCES)
        number = -1
        for number, frame in enumerate(read_frames(self.source)):
            if number % EVERY == 0:
                faces = self.detector(frame.pixels)
                tracker.see(number, faces, face_embeddings(verifiers, frame.pixels, faces))
            self.progress("find", number + 1, max(num_frames, number + 1))
        tracks = enumerate(tracker.tracks(number + 1))
        return [FollowedFace(track, verifiers, place) for place, track in tracks], number + 1

    def _write(self, attack: VideoAttack, target: Path, num_frames: int) -> None:
        def change(number: int, pixels: NumpyArray) -> NumpyArray | None:
            changed = attack.perturb(number, pixels)
            self.progress("protect", number + 1, num_frames)
            return changed

        rewrite(
            self.source,
            target,
            change,
            suffix=self.target.suffix.lower(),
            quality=QUALITY,
            keep_metadata=self.protector.keep_metadata,
            mark=self.protector.mark,
        )

    def _judge(self, followed: Sequence[FollowedFace], written: Path, num_frames: int) -> int:
        """Judges the written file; returns the number of frames with a face."""
        judge = VideoJudge(self.protector.verifiers, self.detector, followed, EVERY)
        for number, (before, after) in enumerate(self._pairs(written)):
            judge.see(number, before.pixels, after.pixels)
            self.progress("judge", number + 1, num_frames)
        judge.finish()
        return len(judge.face_frames)

    def _pairs(self, written: Path) -> Iterator[tuple[TimedFrame, TimedFrame]]:
        """Pairs of frames of the source and the written file, whose times must be equal."""
        pairs = itertools.zip_longest(read_frames(self.source), read_frames(written))
        for before, after in pairs:
            if before is None or after is None or before.time != after.time:
                suffix = self.target.suffix
                raise InputError(f"video {self.source}: {suffix} cannot keep its frames' times")
            yield before, after

    def _report(self, one: FollowedFace) -> TrackReport:
        verdicts = tuple(
            TrackVerdict(**vars(verdict_of(verifier, similarity)), fooled_frames=share)
            for verifier, similarity, share in zip(
                self.protector.verifiers,
                one.similarities.tolist(),
                (one.fooled / one.num_frames).tolist(),
                strict=True,
            )
        )
        return TrackReport(
            box=one.track.at(one.first).box,
            score=one.track.score,
            first_frame=one.first,
            last_frame=one.last,
            num_frames=one.num_frames,
            status=status_of(verdicts, one.track.score),
            strength_db=self.protector.strength.psnrs[one.level],
            psnr=one.lowest_psnr,
            mean_psnr=one.sum_psnr / one.num_frames,
            verdicts=verdicts,
            in_gallery=one.in_gallery,
        )


def _alike(
    verifiers: Sequence[Verifier],
) -> Callable[[Sequence[FaceEmbeddings], FaceEmbeddings], bool]:
    """A function that says whether every surrogate matches a face with a track."""

    def alike(known: Sequence[FaceEmbeddings], new: FaceEmbeddings) -> bool:
        return all(
            verifier.similarities(seen[None], verifier.mean_of(np.stack(own))[None]).item()
            >= verifier.threshold
            for verifier, seen, *own in zip(verifiers, new, *known, strict=True)
            if verifier.is_surrogate
        )

    return alike
