"""The table and totals that `experiments.protect` prints."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax.photos import FaceReport, FileRecord, Protector
from deid_jax.photos.file_records import (
    NO_FACE,
    NOT_PROTECTED,
    PROTECTED,
    UNJUDGED,
    TrackReport,
    VideoFigures,
)
from deid_jax.photos.files import printable
from deid_jax.photos.manifest import NAME
from experiments._common.terminal import counted

_SHOWN = 40
_ENCODING = ", of videos before encoding"


def print_protection(records: Sequence[FileRecord], protector: Protector, output: Path) -> None:
    """Prints the totals and every face, or only the failures if there are many files."""
    console = Console(highlight=False, markup=False)
    failed = [record for record in records if record.status not in (PROTECTED, UNJUDGED)]
    verifiers = protector.verifiers
    for number, one in enumerate(verifiers, 1):
        unseen = "" if one.is_surrogate else ", not known to the attack"
        console.print(
            f"{number}: {one.embedder.name}{unseen}; matches faces {one.rule}",
            soft_wrap=True,
        )
    shown = records if len(records) <= _SHOWN else failed[:_SHOWN]
    if shown:
        console.print(_table(shown, len(verifiers)))
    faces = [face for record in records for face in record.faces]
    videos = [r for r in records if isinstance(r.figures, VideoFigures)]
    if faces:
        judged = not all(one.is_surrogate for one in verifiers)
        good = sum(face.status != NOT_PROTECTED for face in faces)
        console.print(
            f"{'Protected' if judged else 'Fool the recognisers they were made for'} "
            f"(at {protector.strength.psnrs[-1]:g} dB{_ENCODING * bool(videos)}): "
            f"{good} of {counted(len(faces), 'face')}, "
            f"{len(records) - len(failed)} of {counted(len(records), 'file')}."
        )
        if not judged:
            console.print("Nobody else looked: --judge adds recognisers that only judge.")
    blank = sum(record.status == NO_FACE for record in records)
    if blank:
        console.print(f"{NO_FACE} in {counted(blank, 'file')}".capitalize() + ".")
    for record in videos:
        assert isinstance(record.figures, VideoFigures)
        console.print(
            f"{printable(record.file)}: faces were found in "
            f"{record.figures.num_face_frames} of {record.figures.num_frames} frames; the "
            "others are unchanged.",
            soft_wrap=True,
        )
    left = sum(record.figures.faces_left for record in records if record.figures is not None)
    if left:
        console.print(f"Not chosen by --faces, and left as is: {counted(left, 'other face')}.")
    console.print(f"Files and {NAME}: {output}")


def _table(records: Sequence[FileRecord], num_verifiers: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("file", "face"):
        table.add_column(name, overflow="fold")
    for name in ("PSNR", "SSIM", *(f"to {n + 1}" for n in range(num_verifiers))):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for record in records:
        if not record.faces:
            blanks = [""] * (2 + num_verifiers)
            reason = printable(record.reason or record.status)
            table.add_row(printable(record.file), "", *blanks, reason)
        for face in record.faces:
            table.add_row(printable(record.file), *_cells(face))
    return table


def _cells(face: FaceReport | TrackReport) -> list[str]:
    """Cells for one face: position, PSNR, SSIM, similarities, status."""
    place = "{2:.0f}x{3:.0f} at {0:.0f},{1:.0f}".format(*face.box)
    ssim = ""
    if isinstance(face, TrackReport):
        place += f", frames {face.first_frame} to {face.last_frame}"
    else:
        ssim = f"{face.ssim:.3f}"
    similarities = [f"{verdict.similarity:.2f}" for verdict in face.verdicts]
    psnr = f"{face.psnr:.1f}".replace("inf", "∞")
    return [place, psnr, ssim, *similarities, face.status]
