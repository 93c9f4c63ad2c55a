"""What `experiments.protect` tells of photos, in the manifest and on the terminal."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax.photos.judging import Witness
from deid_jax.photos.manifest import NAME, Record
from deid_jax.photos.photo import Protected
from deid_jax.videos.video import VideoReport

PROTECTED, NOT_PROTECTED = "protected", "not protected"
NO_FACE, UNREADABLE = "no face found", "unreadable"


def figures(done: Protected) -> Record:
    """The manifest's figures of a photo."""
    return {
        "height": done.pixels.shape[0],
        "width": done.pixels.shape[1],
        "quality": done.quality,
        "faces": [
            {
                "box": [round(edge, 2) for edge in face.face.box],
                "protected": face.protected,
                "strength_db": face.tried,
                "psnr": round(face.psnr, 3) if np.isfinite(face.psnr) else None,
                "ssim": round(face.ssim, 5),
                "verdicts": [
                    {
                        "recogniser": verdict.recogniser,
                        "fitted": verdict.fitted,
                        "cosine": round(verdict.cosine, 5),
                        "threshold": verdict.threshold,
                        "margin": round(verdict.threshold - verdict.cosine, 5),
                        "fooled": verdict.fooled,
                    }
                    for verdict in face.verdicts
                ],
            }
            for face in done.faces
        ],
    }


def figures_of_video(done: VideoReport) -> Record:
    """The manifest's figures of a video: a face is one that is followed through frames."""
    return {
        "height": done.height,
        "width": done.width,
        "num_frames": done.num_frames,
        "num_face_frames": done.num_face_frames,
        "faces": [
            {
                "box": [round(edge, 2) for edge in track.box],
                "first_frame": track.first,
                "last_frame": track.last,
                "num_frames": track.num_frames,
                "protected": track.protected,
                "strength_db": track.tried,
                "psnr": round(track.psnr, 3),
                "mean_psnr": round(track.mean_psnr, 3),
                "verdicts": [
                    {
                        "recogniser": one.recogniser,
                        "fitted": one.fitted,
                        "cosine": round(one.cosine, 5),
                        "threshold": one.threshold,
                        "margin": round(one.threshold - one.cosine, 5),
                        "fooled": one.fooled == 1,
                        "fooled_frames": round(one.fooled, 5),
                    }
                    for one in track.witnesses
                ],
            }
            for track in done.tracks
        ],
    }


_SHOWN = 40
_ENCODING = ", of videos before encoding"


def show(
    records: Sequence[Record], witnesses: Sequence[Witness], output: Path, *, cap: float
) -> None:
    """Prints every face of a few photos, of many only what went wrong, and the sums."""
    console = Console(highlight=False, markup=False)
    wrong = [record for record in records if record["status"] != PROTECTED]
    shown = records if len(records) <= _SHOWN else wrong[:_SHOWN]
    for number, witness in enumerate(witnesses, 1):
        unseen = "" if witness.fitted else ", not known to the attack"
        console.print(
            f"{number}: {witness.embedder.name}{unseen}; takes two faces for one person's from "
            f"a likeness of {witness.threshold:g} on",
            soft_wrap=True,
        )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("file", "face"):
        table.add_column(name, overflow="fold")
    for name in ("PSNR", "SSIM", *(f"to {n + 1}" for n in range(len(witnesses)))):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for record in shown:
        if not record["faces"]:
            blanks = [""] * (2 + len(witnesses))
            table.add_row(
                plain(record["file"]), "", *blanks, plain(record["reason"] or record["status"])
            )
        for face in record["faces"]:
            likeness = [f"{verdict['cosine']:.2f}" for verdict in face["verdicts"]]
            place = "{2:.0f}x{3:.0f} at {0:.0f},{1:.0f}".format(*face["box"])
            psnr = "∞" if face["psnr"] is None else f"{face['psnr']:.1f}"
            ssim = f"{face['ssim']:.3f}" if "ssim" in face else ""
            status = PROTECTED if face["protected"] else NOT_PROTECTED
            if "first_frame" in face:
                place += f", frames {face['first_frame']} to {face['last_frame']}"
            table.add_row(plain(record["file"]), place, psnr, ssim, *likeness, status)
    if shown:
        console.print(table)
    faces = [face for record in records for face in record["faces"]]
    console.print(
        f"{sum(face['protected'] for face in faces)} of {len(faces)} faces in "
        f"{len(records)} files are protected against these recognisers (cap: "
        f"{cap:g} dB{_ENCODING * any('num_frames' in record for record in records)}); "
        f"{len(wrong)} files are not."
    )
    for record in records:
        if "num_frames" in record:
            console.print(
                f"{plain(record['file'])}: faces were found in {record['num_face_frames']} of "
                f"{record['num_frames']} frames; the others are as they were.",
                soft_wrap=True,
            )
    left = sum(record.get("faces_left", 0) for record in records)
    if left:
        console.print(f"{left} other faces were found, not chosen by --faces, and left known.")
    if all(witness.fitted for witness in witnesses):
        console.print(
            "All of them were known to the attack: how strangers' recognisers judge, nobody "
            "looked at. --judge asks some."
        )
    console.print(f"Photos and {NAME}: {output}")


def plain(text: str) -> str:
    """Text without what a terminal would obey: names of files may hold anything."""
    return "".join(
        letter if letter.isprintable() else ascii(letter).strip("'") for letter in text
    )
