"""How visible perturbations are, by established perceptual metrics: FLIP and SSIMULACRA 2.

    python -m tests.photos.visibility CLEAN PROTECTED

compares photos of the same names below two folders, on the square of 3.2 eye distances around
the largest face, and prints means and the mean of the worst tenth.
"""

import io
import sys
from pathlib import Path

import flip_evaluator
import numpy as np
import ssimulacra2
from PIL import Image

from deid_jax.photos import load_detector, parse_photo
from deid_jax.photos.detectors import DEFAULT

_SIDE = 3.2


def visibility(clean: Path, protected: Path) -> tuple[float, float]:
    """SSIMULACRA 2 and FLIP of the largest face's square in two photos."""
    before, after = (parse_photo(p.read_bytes(), p.name).pixels for p in (clean, protected))
    face = max(load_detector(DEFAULT)(before), key=lambda one: one.box[2] * one.box[3])
    left, right = face.landmarks[:2]
    reach = _SIDE / 2 * np.linalg.norm(right - left)
    middle = face.landmarks.mean(axis=0)
    first = np.maximum(np.rint(middle - reach).astype(int), 0)
    last = np.rint(middle + reach).astype(int)
    pair = [one[first[1] : last[1], first[0] : last[0]] for one in (before, after)]
    files = [io.BytesIO() for _ in pair]
    for file, part in zip(files, pair, strict=True):
        Image.fromarray(part).save(file, "PNG")
    floats = [part.astype(np.float32) / 255 for part in pair]
    return ssimulacra2.compute_ssimulacra2(*files), flip_evaluator.evaluate(*floats, "LDR")[1]


def main(clean: Path, protected: Path) -> None:
    """Prints the table."""
    names = sorted(path.relative_to(protected) for path in protected.rglob("*.*"))
    found = np.array([visibility(clean / name, protected / name) for name in names])
    tenth = max(1, len(found) // 10)
    for name, values, worst in (
        ("SSIMULACRA 2", found[:, 0], np.sort(found[:, 0])[:tenth]),
        ("FLIP", found[:, 1], np.sort(found[:, 1])[-tenth:]),
    ):
        print(f"{name}: mean {values.mean():.4g}, worst tenth {worst.mean():.4g}, {len(found)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
