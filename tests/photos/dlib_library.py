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

SAME_PERSON = 0.6  # Faces are one person's if their descriptors are nearer than this,
SAME_FACE = 0.3  # and boxes are one face's if their intersection over union is larger.


class LibraryFace(NamedTuple):
    """A face's box, and its descriptor, float64[128]."""

    box: dlib.rectangle
    descriptor: NumpyArray


# "person/name" of photos, and the person's face in each; None where none is found.
NamedFaces: TypeAlias = dict[str, LibraryFace | None]


class Missed(NamedTuple):
    """Which pairs of faces are taken for two persons', and how many photos show no face."""

    others: NumpyArray  # Of photos and the person's other photos.
    same: NumpyArray  # Of photos and the same clean photos.
    faceless: int


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


def missed_of(photos: NamedFaces, clean: NamedFaces, gallery: NamedFaces) -> Missed:
    """Compares photos with the clean ones, of which some have their names, and the gallery."""
    known = [*clean.items(), *gallery.items()]
    others, same = list[bool](), list[bool]()
    for (name, face), (other, seen) in itertools.product(photos.items(), known):
        if face and seen and Path(other).parent == Path(name).parent:
            distance = np.linalg.norm(face.descriptor - seen.descriptor)
            (same if seen is clean[name] else others).append(bool(distance >= SAME_PERSON))
    return Missed(np.array(others), np.array(same), list(photos.values()).count(None))


def judge_folders(clean: Path, gallery: Path, protected: Path) -> tuple[Missed, Missed]:
    """What is missed of the clean photos of which there are protected ones, and of these."""
    before, known = (faces_below(folder, {}) for folder in (clean, gallery))
    after = faces_below(protected, before)
    same = {name: before[name] for name in after}
    return missed_of(same, before, known), missed_of(after, before, known)


def main() -> None:
    """Prints what the library misses of clean photos and of protected ones."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name in ("clean", "gallery", "protected"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    found = judge_folders(**vars(parser.parse_args()))
    for text, (others, same, faceless) in zip(("clean", "protected"), found, strict=True):
        print(
            f"{text}: missed are {others.mean():.1%} of {len(others)} pairs with other photos, "
            f"{same.mean():.1%} of {len(same)} with the same clean photo; {faceless} faceless"
        )


if __name__ == "__main__":
    main()
