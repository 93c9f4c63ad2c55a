"""Shared by tests of protection: recognisers, photos, a quick command."""

import hashlib
import io
import itertools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from deid_jax.photos import Face, Protector, Strength, Verifier
from deid_jax.photos.alignment import aligned_crop, landmarks_of
from deid_jax.photos.canvases import Canvas
from deid_jax.photos.verifiers import crops_of
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from experiments import protect

CELLS, WIDTH = 4, 12
OWN = "tests.experiments.protect_helpers"
ONE, TWO, CONSTANT = f"{OWN}:one", f"{OWN}:two", f"{OWN}:constant"
ONE_AGAIN = f"{OWN}:one_again"
BOX = (20, 15, 60, 60)
FACES = "--faces=" + ":".join(map(str, BOX))


def weights(seed):
    """float64[CELLS * CELLS * 3, WIDTH]."""
    return np.random.default_rng(seed).standard_normal((CELLS * CELLS * 3, WIDTH))


def _embed(images, seed):
    cell = images.shape[1] // CELLS
    means = images.reshape(-1, CELLS, cell, CELLS, cell, 3).mean((2, 4))
    # How cells differ from their own mean: a small change turns it far.
    means = (means - means.mean((1, 2), keepdims=True)).reshape(len(images), -1)
    return means @ jnp.asarray(weights(seed), jnp.float32)


def one(images):
    """The first one's embeddings."""
    return _embed(images, 1)


def two(images):
    """The second one's."""
    return _embed(images, 2)


def three(images):
    """The third one's."""
    return _embed(images, 3)


def one_again(images):
    """The first one's, by another name."""
    return one(images)


def constant(images):
    """A recogniser that takes everybody for one person: nothing fools it."""
    return jnp.ones((len(images), 3)) + 0 * images.mean((1, 2))


def zero(images):
    """Embeddings without direction."""
    return 0 * _embed(images, 1)


def broken(images):
    """No numbers."""
    return _embed(images, 1) + jnp.nan


def scalar(images):
    """No vector an image."""
    return images.mean((1, 2, 3))


number = 3


def embedder(function):
    return Embedder(function.__name__, FunctionModule(function), {})


FIRST, SECOND, THIRD, NEVER, BLIND = map(embedder, (one, two, three, constant, zero))
KEY = jax.random.key(0)
QUICK = Strength((42.0, 40.0, 38.0), 2)


def verifier(embedder=FIRST, threshold=0.9, is_surrogate=True, gallery=None):
    return Verifier(embedder, threshold, is_surrogate, gallery)


def protector(*verifiers, strength=QUICK, key=KEY, **options):
    """A quick one."""
    return Protector(verifiers or (verifier(),), key, strength=strength, **options)


def picture(seed, size=(110, 100), contrast=6.0):
    """uint8[H, W, 3]: large soft blotches of little contrast, so that little changes them."""
    generator = np.random.default_rng(seed)
    small = generator.normal(128, contrast, (6, 6, 3)).clip(0, 255).astype(np.uint8)
    return np.array(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def write_photos(folder, number=4):
    """Photos in several formats and folders; {name: pixels}."""
    names = ["a.png", "b.jpg", "deep/c.webp", "deep/er/d.png", "e.tif", "f.bmp"][:number]
    pixels = {}
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = picture(seed)
        Image.fromarray(pixels[name]).save(path, quality=95)
    return pixels


def arguments(source, output, *more, recogniser=ONE):
    return [
        f"--input={source}",
        f"--output={output}",
        f"--recogniser={recogniser}",
        "--threshold=0.9",
        "--num_steps=8",
        FACES,
        *more,
    ]


def detected(source, output, *more):
    """Arguments that leave the faces to a detector or to a file."""
    return [one for one in arguments(source, output, *more) if one != FACES]


def records_of(folder):
    """{file: record} of a manifest, each file in one line of its own."""
    lines = (folder / "manifest.jsonl").read_text("utf-8").split("\n")
    assert lines.pop() == ""
    records = [json.loads(line) for line in lines]
    assert [record["file"] for record in records] == sorted({r["file"] for r in records})
    return {record["file"]: record for record in records}


def hashes(folder):
    """SHA-256 of every file below a folder; of links where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(arguments):
    """The command's exit status; fails where a file of the input was touched."""
    source = Path(arguments[0].removeprefix("--input="))
    before = state(source)
    status = protect.main(arguments)
    assert state(source) == before
    return status


def state(folder):
    """What a file or folder is: contents, and when and in which place of the disk written."""
    paths = [folder, *folder.rglob("*")]
    times = {os.fsencode(path): path.lstat() for path in paths}
    return hashes(folder if folder.is_dir() else folder.parent), {
        name: (status.st_mtime_ns, status.st_ino, status.st_mode, status.st_size)
        for name, status in times.items()
    }


# ArcFace's template, and which pixels of its crop may change, as canvases.py states: from left
# and top to right and bottom.
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
TOUCHED = np.array([[-6, -6], [118, 127]])


def reach(box=BOX):
    """(left, top, right, bottom) of what may change for a box, in pixels."""
    left, top, width, height = box
    middle = TEMPLATE.mean(0)
    spread = np.sqrt(((TEMPLATE - middle) ** 2).sum(1).mean())
    # The shares of a box that alignment.py states.
    centre = np.array([left + 0.5 * width, top + 0.576 * height])
    return (centre + (TOUCHED - middle) * 0.242 * width / spread).ravel()


def reach_of(matrix):
    """(left, top, right, bottom) around what may change for a face with this similarity."""
    corners = np.array(list(itertools.product(*TOUCHED.T))) - matrix[:, 2]
    corners = corners @ np.linalg.inv(matrix[:, :2]).T
    return (*corners.min(0), *corners.max(0))


def may_change(shape, *rectangles, block=1, margin=0):
    """bool[H, W]: pixels in the rectangles, or in blocks that reach into one, and a margin."""
    allowed = np.zeros(shape, bool)
    for left, top, right, bottom in rectangles:
        first_x, first_y = (max(int(np.floor(n)), 0) // block * block for n in (left, top))
        past_x, past_y = (int(np.ceil(n)) // block * block + block for n in (right, bottom))
        allowed[
            max(first_y - margin, 0) : past_y + margin,
            max(first_x - margin, 0) : past_x + margin,
        ] = True
    return allowed


def shown(path):
    """What Pillow shows of a file: mode, and uint8[H, W, channels], upright."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P":
            upright = upright.convert("RGB")
        return np.atleast_3d(np.asarray(upright).astype(np.uint8))


def _unit_vector(crop, seed):
    """A recogniser's unit vector of a crop, in NumPy's float64."""
    whole = np.rint(255 * crop).astype(np.float64) / 255
    means = whole.reshape(4, 28, 4, 28, 3).mean((1, 3))
    vector = (means - means.mean((0, 1))).ravel() @ weights(seed)
    return vector / np.linalg.norm(vector)


def embedding(pixels, matrix, seed=1):
    """A recogniser's unit vector of a face, in NumPy's float64."""
    return _unit_vector(aligned_crop(pixels, matrix), seed)


# How verdicts.py turns, scales and shifts landmarks: degrees, factor, shift in eye distances.
_VIEWS = ((4, 1, 0), (-4, 1, 0), (0, 1.1, 0), (0, 0.92, 0), (0, 1, 0.08))


def views_of(pixels, face, *found):
    """The crops by which a face is judged: its own, a found one's, and what others may see."""
    from skimage.transform import SimilarityTransform

    last = (face, *found)[-1]
    points, middle = landmarks_of(last), landmarks_of(last).mean(0)
    eyes = np.linalg.norm(points[1] - points[0])
    others = []
    for degrees, factor, shift in _VIEWS:
        turn = SimilarityTransform(rotation=np.deg2rad(degrees), scale=factor)
        others.append(Face(last.box, turn(points - middle) + middle + shift * eyes))
    part, corner = Canvas.around(last, pixels).part(pixels)
    compressed = io.BytesIO()
    Image.fromarray(part).save(compressed, "JPEG", quality=75)
    with Image.open(compressed) as image:
        again = crops_of(np.asarray(image), [Face(last.box, points - corner)])
    return np.concatenate([crops_of(pixels, [face, *found, *others]), again])


def seen(pixels, face, seed=1):
    """Unit vectors of all views of a face, float64[n, WIDTH]; a verdict is on the worst."""
    return np.stack([_unit_vector(crop, seed) for crop in views_of(pixels, face)])


def psnr_of(before, after, matrix):
    """Of all that changed where a face may change, over the area of its crop, in dB.

    Of a face that reaches over the photo's border, the area is the crop's share within.
    """
    left, top, right, bottom = reach_of(matrix)
    x, y = np.meshgrid(np.arange(np.floor(left), right), np.arange(np.floor(top), bottom))
    places = np.stack([x, y], axis=-1) @ matrix[:, :2].T + matrix[:, 2]
    # It fades within eight pixels of the crop.
    depth = np.minimum(places - TOUCHED[0], TOUCHED[1] - places).clip(0, 8) / 8
    weights = np.prod((1 - np.cos(np.pi * depth)) / 2, axis=-1)
    height, width = before.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    area = 112**2 / np.linalg.det(matrix[:, :2]) * weights[inside].sum() / weights.sum()
    inside &= weights > 0
    rows, columns = y[inside].astype(int), x[inside].astype(int)
    errors = before[rows, columns].astype(np.float64) - after[rows, columns]
    return -10 * np.log10(np.sum((errors / 255) ** 2) / (3 * area))


def ssim_of(before, after, matrix):
    """Of a face's crops, by scikit-image."""
    from skimage.metrics import structural_similarity

    crops = (aligned_crop(pixels, matrix).astype(np.float64) for pixels in (before, after))
    return structural_similarity(
        *crops,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )


def places(folder):
    """{file: inode and time of writing}, but of the manifest."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): (path.stat().st_ino, path.stat().st_mtime_ns)
        for name, path in files.items()
        if path.name != "manifest.jsonl"
    }
