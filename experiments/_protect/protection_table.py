"""The table and totals that `experiments.protect` prints."""

from collections.abc import Iterator, Sequence
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
    fools_fitted,
)
from deid_jax.photos.files import printable
from deid_jax.photos.manifest import NAME
from experiments._common.terminal import counted

_SHOWN = 40
# The most files that a line names.
_NAMED = 5
_ENCODING = ", for videos before encoding"


def print_protection(records: Sequence[FileRecord], protector: Protector, output: Path) -> None:
    """Prints the totals and every face; of many files, only those that need attention."""
    console = Console(highlight=False, markup=False)
    flagged = [record for record in records if _needs_attention(record)]
    verifiers = protector.verifiers
    for number, one in enumerate(verifiers, 1):
        role = "surrogate" if one.is_surrogate else "judge"
        console.print(
            f"{number}: {one.embedder.name}, {role}; match: {one.rule}", soft_wrap=True
        )
    shown = records if len(records) <= _SHOWN else flagged[:_SHOWN]
    if shown:
        console.print(_table(shown, len(verifiers)))
    videos = [r for r in records if isinstance(r.figures, VideoFigures)]
    for line in _verdict_lines(records, protector, _ENCODING * bool(videos)):
        console.print(line, soft_wrap=True)
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


def _needs_attention(record: FileRecord) -> bool:
    """Whether the user should look at a file."""
    empty = any(face.score == 0 for face in record.faces)
    return empty or _is_other_person(record) or record.status not in (PROTECTED, UNJUDGED)


def _is_other_person(record: FileRecord) -> bool:
    """Whether there is a gallery, and no face in the file is of its person."""
    found = [face.in_gallery for face in record.faces]
    return False in found and True not in found


def _verdict_lines(
    records: Sequence[FileRecord], protector: Protector, encoding: str
) -> Iterator[str]:
    """Lines on what surrogates and judges say of all faces, and on what is doubtful."""
    faces = [face for record in records for face in record.faces]
    if not faces:
        return

    def counts(good_faces: int, good_files: int) -> str:
        of_faces, of_files = counted(len(faces), "face"), counted(len(records), "file")
        return f"{good_faces} of {of_faces}, {good_files} of {of_files}."

    fooling = (bool(one.faces) and all(map(fools_fitted, one.faces)) for one in records)
    yield (
        f"Fool every surrogate (budget: {protector.strength.psnrs[-1]:g} dB{encoding}): "
        f"{counts(sum(map(fools_fitted, faces)), sum(fooling))}"
    )
    if all(one.is_surrogate for one in protector.verifiers):
        yield "There was no judge: --judge=NAME:FILE adds recognisers that only judge."
    else:
        good = [sum(one.status == PROTECTED for one in kind) for kind in (faces, records)]
        yield f"Protected (fool every judge as well): {counts(*good)}"
    if any(one.status == NOT_PROTECTED for one in faces):
        yield (
            "Faces that are not protected are still recognised: do not publish them as they "
            "are, or try a higher --strength."
        )
    empty = sum(face.score == 0 for face in faces)
    if empty:
        yield (
            f"No face was detected in {empty} of the boxes given by --faces or --boxes: their "
            "verdicts mean little. Boxes are of the upright photo, as viewers show it."
        )
    others = [printable(one.file) for one in records if _is_other_person(one)]
    if others:
        more = f" and {len(others) - _NAMED} more" * (len(others) > _NAMED)
        yield (
            f"In {', '.join(others[:_NAMED])}{more}, no face is matched with the gallery by "
            "every recogniser. Such files may show somebody else, or have been protected "
            "before; in the second case, give the originals."
        )


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
    empty = ", no face detected" * (face.score == 0)
    return [place, psnr, ssim, *similarities, face.status + empty]
