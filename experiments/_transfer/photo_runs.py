"""Whole photos: protects them by every fit, and has strangers judge the files."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from deid_jax.errors import InputError
from deid_jax.photos import Detector, Face, Protector, Strength, Verifier, parse_photo
from deid_jax.photos.alignment import crop_matrix, scale_of
from deid_jax.photos.named_faces import face_again, named_faces
from deid_jax.photos.photo_processing import PHOTO_PROCESSING
from deid_jax.photos.strangers import COMPARED, Comparisons, Stranger, StrangerRates
from deid_jax.photos.verifiers import THRESHOLDS, comparable_of, crops_of, thresholds_of
from deid_jax.recognisers.embedders import Embedder
from deid_jax.transfer.transfer_tables import Cell
from deid_jax.types import NumpyArray
from deid_jax.videos import content

# (kind of processing, judge) -> each photo's comparisons, None where no face is detected.
_Seen = dict[tuple[str, str], list[Comparisons | None]]


@dataclasses.dataclass(frozen=True)
class PhotoPlan:
    """What is run.

    Fits and judges by name, budgets in dB, keys of `PHOTO_PROCESSING`, false accept rates.
    """

    fits: tuple[tuple[str, ...], ...]
    judges: tuple[str, ...]
    psnrs: tuple[float, ...]
    processing: tuple[str, ...]
    fars: tuple[float, ...]
    num_steps: int
    seed: int

    def runs(self) -> list["PhotoRun"]:
        """Every fit with every budget."""
        return [PhotoRun(fit, psnr) for fit in self.fits for psnr in self.psnrs]


class PhotoRun(NamedTuple):
    """A fit and its budget in dB; if empty, the unprotected photos."""

    fit: tuple[str, ...] = ()
    psnr: float | None = None


class CleanPhoto(NamedTuple):
    """A photo of a person, "person/name", and the person's face in it."""

    name: str
    path: Path
    face: Face


def person_of(name: str) -> str:
    """The person of a photo's name."""
    return name.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class WholePhotos:
    """Clean photos in which the person's face was found, and its embeddings.

    Attributes:
      to_protect: indices of those that are to be protected; the others are the gallery.
      labels: int[N], the photos' persons.
      embeddings: by recogniser, comparable ones, float64[N, D].
      not_found: names of the photos in which the person's face was not found.
      left_out: names of other files, and why each is left out.
    """

    photos: list[CleanPhoto]
    to_protect: list[int]
    labels: NumpyArray
    embeddings: dict[str, NumpyArray]
    not_found: list[str]
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class PhotoRow:
    """A line of photos.csv: a run judged by one stranger, after one kind of processing.

    Attributes:
      psnr_mean: mean PSNR of the faces in the written files.
      lost: share of photos in which the face is no longer detected.
    """

    run: PhotoRun
    judge: str
    processing: str
    far: float
    psnr_mean: float | None
    num_photos: int
    lost: float
    judged: dict[str, StrangerRates]

    def columns(self) -> dict[str, Cell]:
        """The line's entries; None is an empty one."""
        found: dict[str, Cell] = {
            "fit": "+".join(self.run.fit),
            "test": self.judge,
            "fitted": self.judge in self.run.fit,
            "psnr": self.run.psnr,
            "transformation": self.processing,
            "far": self.far,
            "psnr_mean": self.psnr_mean,
            "num_photos": self.num_photos,
            "lost": self.lost,
        }
        for name, (rate, survival) in self.judged.items():
            found |= {name: rate.share, f"{name}_low": rate.low, f"{name}_high": rate.high}
            found |= {f"{name}_count": rate.num_comparisons, f"{name}_survival": survival}
        return found


class PhotoTables(NamedTuple):
    """The lines of photos.csv and per_photo.csv, and the strangers by name."""

    rows: list[PhotoRow]
    photos: list[dict[str, Cell]]
    strangers: dict[str, Stranger]


def read_photos(
    sources: Mapping[str, Path],
    detector: Detector,
    embedders: Mapping[str, Embedder],
    done: Callable[[int, int, str], None],
) -> WholePhotos:
    """Finds each person's face in `photos/<person>/*` and `gallery/<person>/*`.

    Raises:
      InputError: a folder holds no photos, a file of `photos` is there twice, or no face is a
        person's.
    """
    given = [own for part, folder in sources.items() for own in _listed(part, folder)]
    listed: list[_Listed] = []
    left_out: list[str] = []
    faces, found = [], []
    contents: dict[str, _Listed] = {}
    for number, own in enumerate(given):
        done(number, len(given), "finding faces")
        data, digest = content(sources[own.part], own.name)
        try:
            pixels = _pixels(data, own.name)
        except InputError as error:
            left_out.append(f"{own.part}/{error}")
            continue
        first = contents.setdefault(digest, own)
        if first is not own:
            text = f"{own.path} has the same content as {first.path}"
            if first.part != "gallery":  # "Others" would hold the photo itself.
                raise InputError(text)
            left_out.append(text)
            continue
        listed.append(own)
        faces.append(detector(pixels))
        found.append([_face_embeddings(one, pixels, faces[-1]) for one in embedders.values()])
    labels = np.unique([person_of(own.name) for own in listed], return_inverse=True)[1]
    chosen = named_faces(found, labels, [one.distance for one in embedders.values()])
    known = [(i, place) for i, place in enumerate(chosen) if place is not None]
    to_protect = [n for n, (i, _) in enumerate(known) if listed[i].part == "photos"]
    if not to_protect:
        raise InputError(
            f"photos {sources['photos']}: in none of them could the person's face be "
            "identified: it is chosen by its similarity to the person's other photos"
            + "".join(f"; left out: {one}" for one in left_out[:1])
        )
    photos = [CleanPhoto(listed[i].name, listed[i].path, faces[i][place]) for i, place in known]
    embeddings = {
        name: np.stack([found[i][column][place] for i, place in known])
        for column, name in enumerate(embedders)
    }
    missing = [f"{listed[i].part}/{listed[i].name}" for i, n in enumerate(chosen) if n is None]
    persons = np.unique([person_of(own.name) for own in photos], return_inverse=True)[1]
    return WholePhotos(photos, to_protect, persons, embeddings, missing, left_out)


class _Listed(NamedTuple):
    """A file of `photos` or `gallery`, named "person/name"."""

    part: str
    path: Path
    name: str


def _listed(part: str, folder: Path) -> list[_Listed]:
    found = [
        _Listed(part, path, f"{path.parent.name}/{path.name}")
        for path in sorted(folder.glob("*/*"))
        if path.is_file() and not path.name.startswith(".") and path.parent.name[0] != "."
    ]
    if not found:
        raise InputError(f"{part} {folder} must hold photos as <person>/<name>")
    return found


def _pixels(data: bytes | InputError | None, name: str) -> NumpyArray:
    """The pixels of a photo, by `videos.content` of its file."""
    if isinstance(data, bytes):
        return parse_photo(data, name).pixels
    raise data or InputError(f"{name} is a video")


def _face_embeddings(
    embedder: Embedder, pixels: NumpyArray, faces: Sequence[Face]
) -> NumpyArray:
    """Comparable embeddings float64[F, D] of a photo's faces; [0, 1] if there are none."""
    if not faces:
        return np.zeros((0, 1))
    return comparable_of(embedder, crops_of(pixels, faces, embedder.alignment))


@dataclasses.dataclass(frozen=True)
class PhotoEvaluation:
    """Everything that a run on whole photos needs."""

    plan: PhotoPlan
    whole: WholePhotos
    embedders: Mapping[str, Embedder]
    detector: Detector

    @functools.cached_property
    def strangers(self) -> dict[str, Stranger]:
        """All recognisers, by name, with the clean photos and thresholds.

        Raises:
          InputError: too few impostor pairs are accepted at the first false accept rate.
        """
        found = {}
        for name, one in self.embedders.items():
            embeddings, labels = self.whole.embeddings[name], self.whole.labels
            found[name] = Stranger.of(
                one.distance, embeddings, labels, self.plan.fars, seed=self.plan.seed
            )
        return found

    def verifiers(self, fit: Sequence[str]) -> tuple[Verifier, ...]:
        """The surrogates of a fit.

        Their thresholds are those of `protect`, or else the stranger's.
        """
        embedders = [self.embedders[name] for name in fit]
        given = []
        for name in fit:
            if name not in THRESHOLDS:
                far = self.plan.fars[0]
                value = np.median(self.strangers[name].thresholds[far, COMPARED[0]].values[0])
                given.append(
                    f"{name}={self.embedders[name].distance.as_similarity(float(value))}"
                )
        thresholds = thresholds_of(",".join(given) or None, embedders)
        pairs = zip(embedders, thresholds, strict=True)
        return tuple(Verifier(embedder, own, True) for embedder, own in pairs)

    def measure(
        self,
        update: Callable[[int, int, str], None],
        keep: Callable[[PhotoRun, str, bytes], None] | None = None,
    ) -> PhotoTables:
        """Judges the clean photos, then those of every run, which `keep` takes."""
        tables = PhotoTables([], [], {name: self.strangers[name] for name in self.plan.judges})
        runs = [PhotoRun(), *self.plan.runs()]
        indices = self.whole.to_protect
        for place, run in enumerate(runs):
            seen: _Seen = {}
            psnrs = []
            protector = self._protector(run) if run.fit else None
            for count, index in enumerate(indices):
                text = f"{'+'.join(run.fit)} {run.psnr:g} dB" if run.fit else "unprotected"
                update(place * len(indices) + count, len(runs) * len(indices), text)
                photo = self.whole.photos[index]
                shown = parse_photo(photo.path.read_bytes(), photo.name)
                pixels = shown.pixels
                if protector is not None:
                    done = protector.protect_photo(shown, [photo.face], photo.name)
                    pixels = done.pixels
                    psnrs.append(done.faces[0].psnr)
                    if keep is not None:
                        keep(run, photo.name, done.data)
                self._compare(seen, index, pixels)
            self._enter(tables, run, seen, psnrs)
        return tables

    def _protector(self, run: PhotoRun) -> Protector:
        assert run.psnr is not None
        strength = Strength((run.psnr,), self.plan.num_steps)
        return Protector(
            self.verifiers(run.fit), jax.random.key(self.plan.seed), strength=strength
        )

    def _compare(self, seen: _Seen, index: int, pixels: NumpyArray) -> None:
        """Adds every judge's comparisons of a photo after every kind of processing."""
        face = self.whole.photos[index].face
        for kind in self.plan.processing:
            processed = PHOTO_PROCESSING[kind](pixels, scale_of(crop_matrix(face)))
            again = face_again(face, processed.matrix, self.detector(processed.pixels))
            for name in self.plan.judges:
                own = None
                if again is not None:
                    (embedding,) = _face_embeddings(
                        self.embedders[name], processed.pixels, [again]
                    )
                    own = self.strangers[name].compare(embedding, index)
                seen.setdefault((kind, name), []).append(own)

    def _enter(
        self, tables: PhotoTables, run: PhotoRun, seen: _Seen, psnrs: Sequence[float]
    ) -> None:
        """Adds the lines of a run."""
        indices = self.whole.to_protect
        for (kind, name), found in seen.items():
            stranger = tables.strangers[name]
            for far in self.plan.fars:
                if far in stranger.left_out:
                    continue
                judged = {
                    one: stranger.judge(one, far, indices, found, seen["none", name])
                    for one in COMPARED
                }
                tables.rows.append(
                    PhotoRow(
                        run=run,
                        judge=name,
                        processing=kind,
                        far=far,
                        psnr_mean=float(np.mean(psnrs)) if psnrs else None,
                        num_photos=len(indices),
                        lost=found.count(None) / len(found),
                        judged=judged,
                    )
                )
            for place, index in enumerate(indices):
                tables.photos.append(
                    {
                        "fit": "+".join(run.fit),
                        "test": name,
                        "psnr": run.psnr,
                        "transformation": kind,
                        "photo": self.whole.photos[index].name,
                        "psnr_photo": psnrs[place] if psnrs else None,
                        **self._one(stranger, index, found[place]),
                    }
                )

    def _one(
        self, stranger: Stranger, index: int, found: Comparisons | None
    ) -> dict[str, Cell]:
        """The entries of one photo: mean similarities, and shares of non-matches."""
        far, label = self.plan.fars[0], self.whole.labels[index]
        cells: dict[str, Cell] = {"found": found is not None}
        for compared in COMPARED:
            values = np.zeros(0) if found is None else found[compared]
            thresholds = stranger.thresholds[far, compared]
            unmatched = thresholds.unmatched(values, np.full(len(values), label))
            cells[compared] = float(values.mean()) if len(values) else None
            cells[f"{compared}_unmatched"] = float(unmatched.mean()) if len(values) else None
            cells[f"{compared}_threshold"] = float(thresholds.values[0][label])
        return cells
