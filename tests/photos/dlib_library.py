"""What dlib's own library says of photos, by the rule of the package `face_recognition`.

    python -m tests.photos.dlib_library CLEAN GALLERY PROTECTED

These are folders of <person>/<name>: photos, others of the same persons, and protected ones,
such as photos/<fit>-<psnr>dB, which `experiments.transfer --photos=CLEAN --gallery=GALLERY
--keep_images` writes. Detector, landmarks, crop and network are dlib's.
"""

import argparse
import functools
import itertools
from pathlib import Path
from typing import NamedTuple, TypeAlias

import dlib
import numpy as np
from PIL import Image, ImageOps

from deid_jax.recognisers import weights
from deid_jax.types import NumpyArray
from experiments._common.terminal import counted

SAME_PERSON = 0.6  # Faces are one person's if their descriptors are nearer than this,
SAME_FACE = 0.3  # and boxes are one face's if their intersection over union is larger.


class LibraryFace(NamedTuple):
    """A face's box, and its descriptor, float64[128]."""

    box: dlib.rectangle
    descriptor: NumpyArray


# "person/name" of photos, and the person's face in each; None where none is found.
NamedFaces: TypeAlias = dict[str, LibraryFace | None]


class NonMatches(NamedTuple):
    """Which pairs of faces do not match, bool[n], and in how many photos no face is found."""

    others: NumpyArray  # Of photos and the person's other photos.
    self_: NumpyArray  # Of photos and the same clean photos.
    lost: int


@functools.cache
def _library():
    network = weights.fetch("dlib_resnet")
    points = network.with_name("shape_predictor_5_face_landmarks.dat")
    recogniser = dlib.face_recognition_model_v1(str(network))
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(points)), recogniser


def faces_of(pixels: NumpyArray) -> list[LibraryFace]:
    """Finds all faces in uint8[H, W, 3], upsampled once."""
    detector, predictor, recogniser = _library()
    found = [(box, predictor(pixels, box)) for box in detector(pixels, 1)]
    describe = recogniser.compute_face_descriptor
    return [LibraryFace(box, np.array(describe(pixels, points))) for box, points in found]


def named_face(faces: list[LibraryFace], box: dlib.rectangle | None) -> LibraryFace | None:
    """The largest face, or the one that lies where a box is; None if there is none."""
    if box is None:
        return max(faces, key=lambda face: face.box.area(), default=None)
    best = max(faces, key=lambda face: _overlap(face.box, box), default=None)
    return best if best and _overlap(best.box, box) > SAME_FACE else None


def _overlap(one: dlib.rectangle, other: dlib.rectangle) -> float:
    shared = one.intersect(other).area()
    return shared / (one.area() + other.area() - shared)


def faces_below(folder: Path, clean: NamedFaces) -> NamedFaces:
    """Finds the largest face of each <person>/<name>, or the one that the clean photo has."""
    found: NamedFaces = {}
    for path in sorted(folder.glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        pixels = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        known = clean.get(name)
        found[name] = named_face(faces_of(pixels), known and known.box)
    return found


def non_matches(photos: NamedFaces, clean: NamedFaces, gallery: NamedFaces) -> NonMatches:
    """Compares photos with the clean photos of the same names and with the gallery."""
    known = [*clean.items(), *gallery.items()]
    others, self_ = list[bool](), list[bool]()
    for (name, face), (other, seen) in itertools.product(photos.items(), known):
        if face and seen and Path(other).parent == Path(name).parent:
            distance = np.linalg.norm(face.descriptor - seen.descriptor)
            (self_ if seen is clean[name] else others).append(bool(distance >= SAME_PERSON))
    return NonMatches(np.array(others), np.array(self_), list(photos.values()).count(None))


def judge_folders(clean: Path, gallery: Path, protected: Path) -> tuple[NonMatches, NonMatches]:
    """Non-matches of the protected photos' clean originals, and of the protected photos."""
    before, known = (faces_below(folder, {}) for folder in (clean, gallery))
    after = faces_below(protected, before)
    originals = {name: before[name] for name in after}
    return non_matches(originals, before, known), non_matches(after, before, known)


def main() -> None:
    """Prints the library's non-matches of clean photos and of protected ones."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("clean", "gallery", "protected"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    found = judge_folders(**vars(parser.parse_args()))
    for text, (others, self_, lost) in zip(("clean", "protected"), found, strict=True):
        print(
            f"{text}, non-matches: {others.mean():.1%} of {len(others)} pairs with other "
            f"photos, {self_.mean():.1%} of {len(self_)} with the same clean photo; "
            f"{counted(lost, 'photo')} without a face"
        )


if __name__ == "__main__":
    main()
