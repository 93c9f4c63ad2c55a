"""Protects the faces in photos and videos against face recognisers.

    python -m experiments.protect --input=PHOTOS --output=PROTECTED
        --recogniser=mobilefacenet_ms1m:A.npz,mobilefacenet_casia:B.npz

Finds faces, changes them so little that people hardly see it, writes the files under the same
names below --output, decodes what it writes and has recognisers judge it: videos frame by
frame. `manifest.jsonl` there tells what became of every file. Metadata (place, time, camera,
small copies) are left out. Originals are never touched. A killed run goes on where it stopped.

Exit status 0 means that in every file faces were found and every chosen one (--faces) is
protected, 1 that something is not: no face was found, a file is no photo, or a recogniser still
knows somebody. Hidden files, whose names begin with a dot, are not looked at.
"""

import dataclasses
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from deid_jax.checks import count
from deid_jax.devices import sharding
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.photos import faces as face_finding
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.judging import Witness
from deid_jax.photos.manifest import NAME, Manifest, Record, digest_of
from deid_jax.photos.photo import Strength
from experiments._common import cli, scale
from experiments._common.cli import setting
from experiments._protect import protect_inputs
from experiments._protect.protect_report import PROTECTED, show
from experiments._protect.protect_work import Work

# The first try, what follows where it does not suffice, and the cap, in dB.
STRENGTHS = {
    "light": (44.0, 43.0, 42.0, 41.0),
    "medium": (42.0, 41.0, 40.0, 39.0, 38.0),
    "strong": (40.0, 39.0, 38.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtectSettings(scale.ModelParallelSettings):
    """Settings of `experiments.protect`."""

    input: str = setting(
        "", "Required: a photo or video, or a folder: those in it and in folders below it."
    )
    output: str = setting("", "Required: folder to write into, not within the input folder.")
    recogniser: str = setting(
        "mobilefacenet_ms1m,mobilefacenet_casia",
        "Whom to fool, by commas: NAME (weights are downloaded once), NAME:FILE or "
        "package.module:function (RGB pictures in [0, 1] to embeddings). Several are fooled "
        "together, and others, never seen, more often then.",
    )
    judge: str = setting(
        "none",
        "Further recognisers, by commas, that judge and are not known to the attack: what they "
        "say is nearer to what a stranger's will.",
    )
    threshold: float | None = setting(
        None,
        "The cosine from which on recognisers take two faces for one person's, in the place of "
        "their own; those that are brought along have none.",
    )
    gallery: str | None = setting(
        None,
        "Folder of other photos of one person, the largest face in each. Faces that are this "
        "person's are kept apart from these photos, too, beside from themselves.",
    )
    faces: str = setting(
        "all", "Which: all that are found, largest, or LEFT:TOP:WIDTH:HEIGHT, … in pixels."
    )
    boxes: str | None = setting(
        None,
        "CSV file of faces, in the place of a detector: file, left, top, width, height, or "
        "landmarks x1, y1, … x5, y5 (eyes, nose, corners of the mouth).",
    )
    detector: str = setting(
        "cascade",
        "cascade (frontal faces, scikit-image), or the file of a YuNet model (.onnx, OpenCV).",
    )
    aligned: bool = setting(
        False,
        "Pictures are face crops: square ones on ArcFace's template, or CelebA's 178x218.",
    )
    strength: str = setting(
        "medium",
        "How visible the change may be, PSNR of the face in dB from the first try to the cap: "
        + "; ".join(f"{name} {', '.join(map(str, p))}" for name, p in STRENGTHS.items())
        + ".",
        choices=tuple(STRENGTHS),
    )
    num_steps: int = setting(30, "Gradient steps of each try.")
    keep_metadata: bool = setting(
        False,
        "Keep EXIF, XMP, comments and texts, but no small copies of the picture, nor what is "
        "damaged.",
    )
    seed: int = setting(0, "Decides every random choice.")


def run(settings: ProtectSettings) -> list[Record]:
    """Protects, judges, writes, prints; returns the lines of the manifest.

    Raises:
      InputError: bad settings; nothing is written then.
      ShortfallError: not everything could be protected.
    """
    with settings.joined() as group:
        output, records, witnesses = _protect(settings, group)
        if group.is_first:
            show(records, witnesses, output, cap=STRENGTHS[settings.strength][-1])
        short = group.agree(sum(record["status"] != PROTECTED for record in records))
        total = group.agree(len(records))
    if short:
        raise cli.ShortfallError(
            f"{short} of {total} files are not protected: see {output / NAME}"
        )
    return records


def _protect(
    settings: ProtectSettings, group: Group
) -> tuple[Path, list[Record], list[Witness]]:
    """Where, what became of every file (in the first process), and who judged."""
    mesh = settings.local_mesh()
    source, output = protect_inputs.folders(settings.input, settings.output)
    count("num_steps", settings.num_steps, least=1)
    count("seed", settings.seed, most=2**31 - 1)
    chosen = face_finding.parse_faces(settings.faces)
    told = None if settings.boxes is None else face_finding.from_csv(settings.boxes)
    detector = _detector(settings, chosen, told)
    # The boxes may lie beside the photos, of which they are none.
    names = protect_inputs.listed(source, but=settings.boxes)
    deciding = dataclasses.asdict(settings)
    # Who does the work, and on which devices, is not counted, though divided layers round
    # otherwise.
    who = ("coordinator_address", "num_processes", "process_id", "model_parallel")
    for name in ("input", "output", *who):
        del deciding[name]
    with sharding.working_on(mesh.devices[0]):
        witnesses = _witnesses(settings)
        work = Work(
            settings=deciding,
            source=source,
            output=output,
            chosen=chosen,
            told=told,
            detector=detector,
            witnesses=witnesses,
            known=_known(settings, witnesses, detector),
            strength=Strength(STRENGTHS[settings.strength], settings.num_steps),
            key=jax.random.key(settings.seed),
        )
        digest = work.digest()
    group.check_same(digest, "settings or recognisers")
    group.check_same(digest_of("\n".join(names).encode("utf-8", "surrogateescape")), "files")
    with Manifest(output, digest, group).open() as manifest:
        manifest.keep(set(names))
        _all(names[group.index :: group.count], work, manifest, mesh)
    records = [manifest.record(name) for name in names] if group.is_first else []
    return output, records, witnesses


def _all(names: Sequence[str], work: Work, manifest: Manifest, mesh: Mesh) -> None:
    """Does files, as many at once as there are rows of devices."""
    turn, began = threading.Lock(), time.monotonic()
    ended = faces = 0
    with cli.progress_bar("protect") as update:

        def say(text: str) -> None:
            rate = faces / (time.monotonic() - began)
            update(ended, len(names), f"{rate:.2f} faces/s {text}".rstrip())

        def do(name: str) -> None:
            nonlocal ended, faces
            content, digest = protect_inputs.content(work.source, name)
            record = manifest.done(name, digest)
            if record is None:
                record = manifest.add(work.do(name, content, digest, say))
                with turn:
                    faces += sum(face.get("num_frames", 1) for face in record["faces"])
            with turn:
                ended += 1
            say("")

        scale.on_all_devices(do, names, mesh)


def _detector(
    settings: ProtectSettings, chosen: str | list[Face], told: dict[str, list[Face]] | None
) -> Detector | None:
    """What finds faces; None where they are told."""
    ways = [not isinstance(chosen, str), told is not None, settings.aligned]
    if sum(ways) > 1:
        raise InputError("faces by boxes, boxes and aligned exclude each other: give one")
    if any(ways):
        return None
    return protect_inputs.detector(settings.detector)


def _known(
    settings: ProtectSettings, witnesses: Sequence[Witness], detector: Detector | None
) -> list[np.ndarray] | None:
    """What the gallery tells each witness; None without one."""
    if settings.gallery is None:
        return None
    return protect_inputs.known(
        Path(settings.gallery),
        witnesses,
        detector or face_finding.cascade,
        aligned=settings.aligned,
    )


def _witnesses(settings: ProtectSettings) -> list[Witness]:
    return protect_inputs.witnesses(settings.recogniser, settings.judge, settings.threshold)


main = cli.binary(run, ProtectSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
