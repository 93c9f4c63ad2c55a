"""Protects the faces in photos and videos against face recognisers.

    python -m experiments.protect --input=PHOTOS --output=PROTECTED

Finds the faces, adds a perturbation that people hardly see, and writes each file under the same
name below --output. The written files are then decoded and judged by recognisers, videos frame
by frame. `manifest.jsonl` in the output folder records the outcome of every file. Metadata
(place, time, camera, thumbnails) is left out, and originals are never changed. To resume an
interrupted run, repeat the command. Hidden files (names that begin with a dot) are skipped.
Files that were protected before, here or by the page, are refused: give the originals.

The exit status is 0 if every file has a chosen face, found or given (--faces, --boxes), and no
recogniser still matches one. A face is "protected" if it also fools one or more judges,
recognisers that the attack is not fitted on; otherwise it is "unjudged". The status is 1 if a
file has no chosen face, is not a photo or video or was refused, or a recogniser still matches a
face.
"""

import dataclasses
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from deid_jax.devices import device_threads, sharding
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.photos import (
    STRENGTHS,
    FaceChoice,
    FileRecord,
    Manifest,
    Protector,
    Strength,
    load_detector,
)
from deid_jax.photos.alignment import aligned_face
from deid_jax.photos.faces import parse_faces, read_faces
from deid_jax.photos.file_records import PROTECTED, UNJUDGED
from deid_jax.photos.manifest import NAME, sha256_of
from deid_jax.videos import FileProtector, content, folders, listed, with_gallery
from experiments._common import cli, process_settings, terminal
from experiments._common.flags import setting
from experiments._protect.protection_table import print_protection
from experiments._protect.protector_settings import ProtectorSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtectSettings(ProtectorSettings, process_settings.ModelParallelSettings):
    """Settings of `experiments.protect`."""

    input: str = setting("", "Required: a photo, a video, or a folder; folders below it count.")
    output: str = setting("", "Required: folder to write into, not within the input folder.")
    gallery: str | None = setting(
        None,
        "Folder of other photos of one person, of which the largest face counts. This person's "
        "faces are moved away from these photos, too. The report lists the files in which no "
        "face is matched with the gallery by every recogniser: they may show somebody else, or "
        "have been protected before.",
    )
    faces: str = setting(
        "all",
        "Which faces to protect: all, largest, or LEFT:TOP:WIDTH:HEIGHT, … in pixels of the "
        "upright photo, as viewers show it.",
    )
    boxes: str | None = setting(
        None,
        "CSV file of the faces: columns file, left, top, width, height, or landmarks "
        "x1, y1, … x5, y5 (eyes, nose, corners of the mouth), in pixels of the upright photo, "
        "as viewers show it.",
    )
    aligned: bool = setting(
        False,
        "Input images are aligned crops: square ones on ArcFace's template, or CelebA's "
        "178x218.",
    )
    strength: str = setting(
        "medium",
        "How visible the perturbation is; PSNR of the face in dB: "
        + ", ".join(f"{name} {psnr:g}" for name, psnr in STRENGTHS.items())
        + ".",
        choices=tuple(STRENGTHS),
    )
    least: bool = setting(
        False,
        "Stop at the least perturbation that fools the surrogates by a margin. Other "
        "recognisers are then fooled less often.",
    )
    keep_metadata: bool = setting(
        False,
        "Keep EXIF, XMP, comments and texts, but no thumbnails, nor what is damaged.",
    )

    def choice(self) -> FaceChoice:
        """Which faces to protect.

        Raises:
          InputError: flags that cannot be combined, or a file that cannot be read.
        """
        which = parse_faces(self.faces)
        given = [not isinstance(which, str), self.boxes is not None, self.aligned]
        known = None if self.boxes is None else read_faces(self.boxes)
        if sum(given) > 1:
            raise InputError("faces by boxes, boxes and aligned exclude each other: give one")
        boxes = list((known or {}).values()) + ([] if isinstance(which, str) else [which])
        pointed = all(face.landmarks is not None for faces in boxes for face in faces)
        # Where all landmarks are known, only a gallery of whole photos is searched.
        searches = not self.aligned and (not boxes or not pointed or self.gallery is not None)
        if self.detector != ProtectorSettings.detector and not searches:
            raise InputError(f"--detector={self.detector} does not apply: the faces are given")
        if self.aligned:
            return FaceChoice(which, detector=aligned_face)
        if not any(given):
            return FaceChoice(which, detector=load_detector(self.detector))
        landmarker = None if pointed else load_detector(self.detector)
        return FaceChoice(which, known, landmarker=landmarker)

    def deciding(self) -> dict[str, object]:
        """The settings that determine the output."""
        found = dataclasses.asdict(self)
        # The number of processes and devices is left out, although dividing layers changes the
        # rounding.
        processes = ("coordinator_address", "num_processes", "process_id", "model_parallel")
        for name in ("input", "output", *processes):
            del found[name]
        return found


def run(settings: ProtectSettings) -> list[FileRecord]:
    """Protects, judges and writes all files; prints and returns their records.

    Raises:
      InputError: bad settings. Nothing is written in that case.
      ShortfallError: not everything could be protected.
    """
    with settings.joined() as group:
        work, records = _protect(settings, group)
        if group.is_first:
            print_protection(records, work.protector, work.output)
        good = (PROTECTED, UNJUDGED)
        short = group.agree(sum(record.status not in good for record in records))
        total = group.agree(len(records))
    if short:
        raise cli.ShortfallError(
            f"not protected: {short} of {terminal.counted(total, 'file')}; see "
            f"{work.output / NAME}"
        )
    return records


def _protect(settings: ProtectSettings, group: Group) -> tuple[FileProtector, list[FileRecord]]:
    """Protects the files; the first process also returns their records."""
    mesh = settings.local_mesh()
    source, output = folders(settings.input, settings.output)
    settings.check()
    choice = settings.choice()
    # The file with the boxes may be in the same folder as the photos.
    names = listed(source, but=settings.boxes)
    with sharding.working_on(mesh.devices[0]):
        work = FileProtector(_protector(settings, choice), choice, source, output)
        digest = work.digest(settings.deciding())
    group.check_same(digest, "settings or recognisers")
    group.check_same(sha256_of("\n".join(names).encode("utf-8", "surrogateescape")), "files")
    with Manifest(output, digest, group).open() as manifest:
        manifest.keep(set(names))
        _protect_all(names[group.index :: group.count], work, manifest, mesh)
    return work, [manifest.record(name) for name in names] if group.is_first else []


def _protector(settings: ProtectSettings, choice: FaceChoice) -> Protector:
    verifiers = settings.verifiers()
    if settings.gallery is not None:
        detector = choice.detector or load_detector(settings.detector)
        verifiers = with_gallery(verifiers, Path(settings.gallery), detector)
    return Protector(
        verifiers,
        jax.random.key(settings.seed),
        # Given boxes are judged by new detections, too, as strangers judge.
        detector=None if settings.aligned else choice.detector or choice.landmarker,
        strength=Strength.of(settings.strength, settings.num_steps, least=settings.least),
        keep_metadata=settings.keep_metadata,
        mark=settings.mark,
    )


def _protect_all(
    names: Sequence[str], work: FileProtector, manifest: Manifest, mesh: Mesh
) -> None:
    """Protects files, one per row of devices at a time."""
    turn, began = threading.Lock(), time.monotonic()
    ended = faces = 0
    with terminal.progress_bar("protect") as update:

        def say(text: str) -> None:
            rate = faces / (time.monotonic() - began)
            update(ended, len(names), f"{rate:.2f} faces/s {text}".rstrip())

        def do(name: str) -> None:
            nonlocal ended, faces
            data, digest = content(work.source, name)
            record = manifest.done(name, digest)
            if record is None:
                record = manifest.add(work.protect(name, data, digest, say))
                with turn:
                    faces += record.num_face_frames
            with turn:
                ended += 1
            say("")

        device_threads.on_all_devices(do, names, mesh)


main = cli.binary(run, ProtectSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
