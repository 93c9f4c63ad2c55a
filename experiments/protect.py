"""Protects the faces in photos against face recognisers.

    python -m experiments.protect --input=PHOTOS --output=PROTECTED
        --recogniser=mobilefacenet_ms1m:A.npz,mobilefacenet_casia:B.npz

Finds faces, changes them so little that people hardly see it, writes the photos under the same
names below --output, reads each back and has recognisers judge it. `manifest.jsonl` there tells
what became of every file. Metadata (place, time, camera, small copies) are left out. Originals
are never touched. A killed run goes on where it stopped.

Exit status 0 means that every face found in every file is protected, 1 that something is not:
no face was found, a file is no photo, or a recogniser still knows somebody.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax._validate import InputError, count
from deid_jax.embedders import Embedder, FunctionModule, load_embedder
from deid_jax.photos import faces as face_finding
from deid_jax.photos import files
from deid_jax.photos.alignment import SIZE, aligned_face
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.judging import THRESHOLDS, Witness, directions_of_photos
from deid_jax.photos.manifest import NAME, Manifest, Record, digest_of
from deid_jax.photos.photo import Protected, Strength, protect
from experiments import cli
from experiments.cli import setting

# The first try, what follows where it does not suffice, and the cap, in dB.
STRENGTHS = {
    "light": (44.0, 43.0, 42.0, 41.0),
    "medium": (42.0, 41.0, 40.0, 39.0, 38.0),
    "strong": (40.0, 39.0, 38.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtectSettings:
    """Settings of `experiments.protect`."""

    input: str = setting("", "A photo, or a folder: photos in it and in folders below it.")
    output: str = setting("", "Folder to write into, not within the input folder.")
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
        "The cosine from which on recognisers that bring none take two faces for one person.",
    )
    gallery: str | None = setting(
        None,
        "Folder of other photos of one person. Faces that are this person's are kept apart "
        "from these photos, all others from themselves.",
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
        False, "Keep EXIF, XMP, comments and texts, but no small copies of the picture."
    )
    seed: int = setting(0, "Decides every random choice.")


def run(settings: ProtectSettings) -> list[Record]:
    """Protects, judges, writes, prints; returns the lines of the manifest.

    Raises:
      InputError: bad settings; nothing is written then.
      ShortfallError: not everything could be protected.
    """
    source, output = _folders(settings)
    count("num_steps", settings.num_steps, least=1)
    count("seed", settings.seed, most=2**31 - 1)
    chosen = face_finding.parse_faces(settings.faces)
    told = None if settings.boxes is None else face_finding.from_csv(settings.boxes)
    detector = _detector(settings, chosen, told)
    witnesses = _witnesses(settings)
    known = None
    if settings.gallery is not None:
        known = _known(Path(settings.gallery), witnesses, detector or face_finding.cascade)
    names = _listed(source)
    work = _Work(settings, source, output, chosen, told, detector, witnesses, known)
    with Manifest(output, work.digest()).open() as manifest:
        records = _all(names, work, manifest)
    _show(records, settings, witnesses, output)
    short = [record for record in records if record["status"] != PROTECTED]
    if short:
        raise cli.ShortfallError(
            f"{len(short)} of {len(records)} files are not protected: see {output / NAME}"
        )
    return records


PROTECTED, NOT_PROTECTED = "protected", "not protected"
NO_FACE, UNREADABLE = "no face found", "unreadable"


@dataclasses.dataclass(frozen=True)
class _Work:
    """Everything that is needed to do one file."""

    settings: ProtectSettings
    source: Path
    output: Path
    chosen: str | list[Face]
    told: dict[str, list[Face]] | None
    detector: Detector | None
    witnesses: list[Witness]
    known: list[np.ndarray] | None

    def digest(self) -> str:
        """Of all that decides what is written, but the photo."""
        settings = dataclasses.asdict(self.settings)
        for name in ("input", "output"):
            settings.pop(name)
        parts = [json.dumps(settings, sort_keys=True)]
        parts += [_digest(witness.embedder) for witness in self.witnesses]
        parts += [digest_of(direction.tobytes()) for direction in self.known or ()]
        if self.told is not None:
            parts.append(repr(sorted(self.told.items())))
        return digest_of("\n".join(parts).encode())[:16]

    def faces(self, name: str, pixels: np.ndarray) -> list[Face]:
        """The faces of a photo that are to be protected."""
        if self.settings.aligned:
            return [aligned_face(pixels.shape[:2], name)]
        if not isinstance(self.chosen, str):
            return self.chosen
        if self.told is not None:
            found = self.told.get(name, self.told.get(Path(name).name, []))
        else:
            assert self.detector is not None
            found = self.detector(pixels)
        return face_finding.choose(found, self.chosen)


def _all(names: Sequence[str], work: _Work, manifest: Manifest) -> list[Record]:
    records, done, began = [], 0, time.monotonic()
    manifest.keep(set(names))
    with cli.progress_bar("protect") as update:
        for number, name in enumerate(names):
            data = _content(work.source, name)
            digest = "" if isinstance(data, InputError) else digest_of(data)
            record = manifest.done(name, digest)
            if record is None:
                record = _one(name, data, digest, work)
                manifest.add(record)
                done += len(record["faces"])
            records.append(record)
            rate = done / (time.monotonic() - began)
            update(number + 1, len(names), f"{rate:.2f} faces/s")
    return records


def _content(source: Path, name: str) -> bytes | InputError:
    try:
        return (source / name if source.is_dir() else source).read_bytes()
    except OSError as error:
        return InputError(f"{name} cannot be read: {error.strerror}")


def _one(name: str, data: bytes | InputError, digest: str, work: _Work) -> Record:
    """Does one file; what is wrong with it goes into its record."""
    record: Record = {
        "file": name,
        "status": UNREADABLE,
        "reason": None,
        "output": None,
        "source_sha256": digest,
        "output_sha256": None,
        "faces": [],
    }
    try:
        if isinstance(data, InputError):
            raise data
        photo = files.parse_photo(data, name)
        faces = work.faces(name, photo.pixels)
    except InputError as error:
        return record | {"reason": str(error)}
    if not faces:
        return record | {"status": NO_FACE, "reason": "no face was found: nothing was written"}
    settings = work.settings
    named = int(hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16)
    done = protect(
        photo,
        faces,
        work.witnesses,
        jax.random.fold_in(jax.random.key(settings.seed), named),
        strength=Strength(STRENGTHS[settings.strength], settings.num_steps),
        known=work.known,
        detector=work.detector,
        keep_metadata=settings.keep_metadata,
    )
    files.write_whole(work.output / name, done.data)
    return record | {
        "status": PROTECTED if done.protected else NOT_PROTECTED,
        "reason": None if done.protected else "a recogniser still knows a face",
        "output": name,
        "output_sha256": digest_of(done.data),
        **_figures(done),
    }


def _figures(done: Protected) -> Record:
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


def _folders(settings: ProtectSettings) -> tuple[Path, Path]:
    for name in ("input", "output"):
        if not getattr(settings, name):
            raise InputError(f"{name} must be given")
    source, output = Path(settings.input), Path(settings.output)
    if not source.exists():
        raise InputError(f"input {source} does not exist")
    if output.exists() and not output.is_dir():
        raise InputError(f"output {output} is not a folder")
    within = source.resolve() if source.is_dir() else source.resolve().parent
    if output.resolve() == within or (
        source.is_dir() and output.resolve().is_relative_to(within)
    ):
        raise InputError(f"output {output} must not lie within the input: name another folder")
    return source, output


def _listed(source: Path) -> list[str]:
    """Names of all files, below the folder; hidden ones are none of ours."""
    if not source.is_dir():
        return [source.name]
    found = []
    for path in sorted(source.rglob("*")):
        below = path.relative_to(source)
        hidden = any(part.startswith(".") for part in below.parts)
        if not hidden and (path.is_symlink() or not path.is_dir()):
            found.append(below.as_posix())
    if not found:
        raise InputError(f"input {source} holds no files")
    return found


def _detector(
    settings: ProtectSettings, chosen: str | list[Face], told: dict[str, list[Face]] | None
) -> Detector | None:
    """What finds faces; None where they are told."""
    ways = [not isinstance(chosen, str), told is not None, settings.aligned]
    if sum(ways) > 1:
        raise InputError("faces by boxes, boxes and aligned exclude each other: give one")
    if any(ways):
        return None
    if settings.detector == "cascade":
        face_finding.cascade(np.zeros((32, 32, 3), np.uint8))  # Says what is not installed.
        return face_finding.cascade
    return face_finding.yunet(settings.detector)


def _witnesses(settings: ProtectSettings) -> list[Witness]:
    fitted = [text.strip() for text in settings.recogniser.split(",")]
    others = [] if settings.judge == "none" else [t.strip() for t in settings.judge.split(",")]
    witnesses = []
    for text in dict.fromkeys([*fitted, *others]):
        try:
            embedder = load_embedder(text, image_size=SIZE)
        except InputError as error:
            raise InputError(
                f"{error}; without a recogniser nothing real is protected: give "
                "--recogniser=NAME:FILE with weights of yours, or be online once for NAME"
            ) from error
        threshold = THRESHOLDS.get(embedder.name, settings.threshold)
        if settings.threshold is not None:
            threshold = settings.threshold
        if threshold is None:
            raise InputError(f"recogniser {embedder.name} needs a --threshold")
        if not -1 < threshold < 1:
            raise InputError(f"threshold must be a cosine > -1 and < 1, got {threshold}")
        witnesses.append(Witness(embedder, threshold, text in fitted))
    return witnesses


def _known(folder: Path, witnesses: Sequence[Witness], detector: Detector) -> list[np.ndarray]:
    """For each witness, the direction of the person in a folder's photos."""
    if not folder.is_dir():
        raise InputError(f"gallery {folder} is not a folder")
    photos = []
    for name in _listed(folder):
        pixels = files.read_photo(folder / name).pixels
        found = detector(pixels)
        if found:
            photos.append((pixels, found[0]))
    if not photos:
        raise InputError(f"gallery {folder} holds no photo with a face")
    return [directions_of_photos(witness.embedder, photos) for witness in witnesses]


def _digest(embedder: Embedder) -> str:
    digest = hashlib.sha256(embedder.name.encode())
    if not isinstance(embedder.module, FunctionModule):
        for leaf in jax.tree.leaves(embedder.variables):
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


_SHOWN = 40


def _show(
    records: Sequence[Record],
    settings: ProtectSettings,
    witnesses: Sequence[Witness],
    output: Path,
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
            table.add_row(record["file"], "", *blanks, record["reason"] or record["status"])
        for face in record["faces"]:
            likeness = [f"{verdict['cosine']:.2f}" for verdict in face["verdicts"]]
            place = "{2:.0f}x{3:.0f} at {0:.0f},{1:.0f}".format(*face["box"])
            psnr = "∞" if face["psnr"] is None else f"{face['psnr']:.1f}"
            status = PROTECTED if face["protected"] else NOT_PROTECTED
            table.add_row(record["file"], place, psnr, f"{face['ssim']:.3f}", *likeness, status)
    if shown:
        console.print(table)
    faces = [face for record in records for face in record["faces"]]
    console.print(
        f"{sum(face['protected'] for face in faces)} of {len(faces)} faces in "
        f"{len(records)} files are protected against these recognisers (cap: "
        f"{STRENGTHS[settings.strength][-1]:g} dB); {len(wrong)} files are not."
    )
    if all(witness.fitted for witness in witnesses):
        console.print(
            "All of them were known to the attack: how strangers' recognisers judge, nobody "
            "looked at. --judge asks some."
        )
    console.print(f"Photos and {NAME}: {output}")


main = cli.binary(run, ProtectSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
