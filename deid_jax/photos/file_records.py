"""Records of files and of each face in them: the lines of `manifest.jsonl`.

Boxes are left, top, width, height in pixels; PSNR is in dB. Numbers are rounded when written,
to the digits that their fields declare.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deid_jax.photos.faces import Box
from deid_jax.types import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Of faces and files. A face is protected if no recogniser matches it and one or more of them
# are judges. Without a judge it is unjudged: it is only known to fool the surrogates. A box in
# which no face is detected is at best unjudged: verdicts on it mean little.
PROTECTED, UNJUDGED, NOT_PROTECTED = "protected", "unjudged", "not protected"
# Of files alone.
NO_FACE, UNREADABLE = "no face found", "unreadable"


_DIGITS = {
    "box": 2,
    "score": 4,
    "psnr": 3,
    "mean_psnr": 3,
    "ssim": 5,
    "similarity": 5,
    "margin": 5,
    "fooled_frames": 5,
}


@dataclasses.dataclass(frozen=True)
class FaceVerdict:
    """The verdict of one recogniser on a protected face.

    `fitted` means that it is a surrogate. The similarity, a cosine or minus a distance, is the
    largest to the person's reference embeddings. The recogniser is fooled if the margin,
    threshold − similarity, is above 0.
    """

    recogniser: str
    fitted: bool
    similarity: float
    threshold: float
    margin: float
    fooled: bool


@dataclasses.dataclass(frozen=True)
class TrackVerdict(FaceVerdict):
    """The verdict on a face in a video, and the share of frames in which it is fooled.

    `fooled` means in all of them.
    """

    fooled_frames: float


@dataclasses.dataclass(frozen=True)
class FaceReport:
    """One face of a protected photo.

    Attributes:
      status: by the verdicts, see `status_of`.
      score: the detector's confidence, see `Face`; 0 if it detects no face in a given box.
      strength_db: the budget of the last try, as PSNR.
      psnr: PSNR of the face in the decoded file, see `Canvas.error`.
      ssim: mean SSIM of its crop.
      in_gallery: whether the original matches the gallery, see `verifiers.all_match_gallery`.
    """

    box: Box
    score: float
    status: str
    strength_db: float
    psnr: float
    ssim: float
    verdicts: tuple[FaceVerdict, ...]
    in_gallery: bool | None = None


@dataclasses.dataclass(frozen=True)
class TrackReport:
    """One face of a protected video, with the frames, from 0, in which it was judged.

    Attributes:
      box: where it is in its first frame.
      score: median confidence of its detections, see `Track.score`.
      strength_db: the PSNR of its strongest perturbation, before encoding.
      psnr: lowest PSNR of the face in a frame, see `Canvas.error`.
      in_gallery: as in `FaceReport`.
    """

    box: Box
    score: float
    first_frame: int
    last_frame: int
    num_frames: int
    status: str
    strength_db: float
    psnr: float
    mean_psnr: float
    verdicts: tuple[TrackVerdict, ...]
    in_gallery: bool | None = None


def status_of(verdicts: Sequence[FaceVerdict], score: float) -> str:
    """`PROTECTED`, `UNJUDGED` or `NOT_PROTECTED`, by the verdicts on one face and its score."""
    if not all(verdict.fooled for verdict in verdicts):
        return NOT_PROTECTED
    judged = score > 0 and not all(verdict.fitted for verdict in verdicts)
    return PROTECTED if judged else UNJUDGED


def worst_of(statuses: Iterable[str]) -> str:
    """The worst status of faces; without any, `NOT_PROTECTED`."""
    order = (NOT_PROTECTED, UNJUDGED, PROTECTED)
    return min(statuses, key=order.index, default=NOT_PROTECTED)


def fools_fitted(face: FaceReport | TrackReport) -> bool:
    """Whether a face fools every surrogate."""
    return all(verdict.fooled for verdict in face.verdicts if verdict.fitted)


def reason_of(faces: Sequence[FaceReport | TrackReport]) -> str | None:
    """Why a file with these faces is not protected; None if it is."""
    status = worst_of(face.status for face in faces)
    if status == PROTECTED:
        return None
    if status == NOT_PROTECTED and all(map(fools_fitted, faces)):
        return "fools every surrogate, but a judge still matches a face"
    if status == NOT_PROTECTED:
        return "a surrogate still matches a face"
    if not all(face.score > 0 for face in faces):
        return "no face was detected in a given box: boxes are in pixels of the upright photo"
    return "fools every surrogate; there was no judge"


@dataclasses.dataclass(frozen=True)
class PhotoFigures:
    """Upright size, quality (None if lossless), and number of faces found but not chosen."""

    faces_left: int
    height: int
    width: int
    quality: int | None


@dataclasses.dataclass(frozen=True)
class VideoFigures:
    """Upright size, frames, and the most faces of a frame found but not chosen."""

    faces_left: int
    height: int
    width: int
    num_frames: int
    num_face_frames: int


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """The outcome of one file.

    Attributes:
      file: its name below the input folder.
      status: one of the five above, the worst of its faces'.
      reason: why it is not protected; None if it is.
      output: its name below the output folder; None if nothing was written. Of a file that was
        refused or could not be read this time it is an earlier run's.
      source_sha256: of its content; empty if that does not decide the outcome, or cannot be
        read.
      settings: digest of everything but the file itself that determines the output.
    """

    file: str
    status: str
    reason: str | None
    output: str | None = None
    source_sha256: str = ""
    output_sha256: str | None = None
    faces: tuple[FaceReport | TrackReport, ...] = ()
    figures: PhotoFigures | VideoFigures | None = None
    settings: str = ""

    @property
    def num_face_frames(self) -> int:
        """Number of perturbed faces; in a video, each face counts once per frame."""
        return sum(f.num_frames if isinstance(f, TrackReport) else 1 for f in self.faces)


def write_record(record: FileRecord) -> str:
    """The record as one line of JSON."""
    fields = _fields(record)
    settings, figures = fields.pop("settings"), fields.pop("figures")
    if isinstance(figures, dict):
        fields |= figures
    fields["settings"] = settings
    line = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    # File names need not be valid text; JSON's escapes preserve them.
    if any("\ud800" <= letter <= "\udfff" for letter in line):
        line = json.dumps(fields, allow_nan=False)
    return line + "\n"


def read_record(line: str) -> FileRecord | None:
    """The record in a line written by `write_record`; None for any other text."""
    try:
        fields = json.loads(line)
        is_video = "num_frames" in fields
        rows = fields.pop("faces")
        report, verdict = (TrackReport, TrackVerdict) if is_video else (FaceReport, FaceVerdict)
        for row in rows:
            row["box"] = tuple(row["box"])
            row["psnr"] = math.inf if row["psnr"] is None else row["psnr"]
            row["verdicts"] = tuple(verdict(**one) for one in row["verdicts"])
        faces = tuple(report(**row) for row in rows)
        figures = None
        if "faces_left" in fields:
            kind = VideoFigures if is_video else PhotoFigures
            names = [field.name for field in dataclasses.fields(kind)]
            figures = kind(**{name: fields.pop(name) for name in names})
        record = FileRecord(**fields, faces=faces, figures=figures)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    whole = len(fields) == len(dataclasses.fields(FileRecord)) - 2
    return record if whole and isinstance(record.file, str) else None


def _fields(record: "DataclassInstance") -> dict[str, Json]:
    """A dataclass as JSON, with numbers rounded; an infinite PSNR becomes null."""
    return {
        field.name: _json(getattr(record, field.name), _DIGITS.get(field.name))
        for field in dataclasses.fields(record)
    }


def _json(value: object, digits: int | None) -> Json:
    if isinstance(value, tuple):
        return [_json(entry, digits) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, float) and digits is not None:
        return round(value, digits) if math.isfinite(value) else None
    # All other fields are texts, numbers, flags or None.
    return value  # type: ignore[return-value]
