"""What tests of `experiments.protect` share: recognisers, photos, a quick command."""

import hashlib
import json
import os

import jax.numpy as jnp
import numpy as np
from PIL import Image

CELLS, WIDTH = 4, 12
OWN = "tests.experiments.protect_helpers"
ONE, TWO, CONSTANT = f"{OWN}:one", f"{OWN}:two", f"{OWN}:constant"
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
    """No vector a picture."""
    return images.mean((1, 2, 3))


number = 3


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
        "--num_steps=2",
        FACES,
        *more,
    ]


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
