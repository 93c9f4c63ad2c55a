"""What tests of `experiments.transfer` share: recognisers that are brought along, and steps."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
from PIL import Image

from deid_jax.data import DataOptions, load_dataset
from tests.experiments.protect_helpers import CELLS, weights
from tests.reports.runs_helpers import read_csv

SIZE = 16
FARS = (0.1, 0.05)
OWN = "tests.experiments.transfer_helpers"
ONE, TWO = f"{OWN}:one", f"{OWN}:two"


def _embed(images, seed):
    cell = images.shape[1] // CELLS
    means = images.reshape(-1, CELLS, cell, CELLS, cell, 3).mean((2, 4)) - 0.3
    return jnp.tanh(means.reshape(len(images), -1) @ jnp.asarray(weights(seed), jnp.float32))


def one(images):
    """The first one's embeddings."""
    return _embed(images, 1)


def two(images):
    """The second one's."""
    return _embed(images, 2)


def zero(images):
    """Embeddings without direction."""
    return 0 * _embed(images, 1)


def arguments(pictures, *more, fit=ONE):
    return [
        f"--data_dir={pictures}",
        "--crop=auto",
        f"--image_size={SIZE}",
        f"--fit={fit}",
        "--num_steps=2",
        "--processing=jpeg75",
        "--far=0.1,0.05",
        "--per_person=3",
        *more,
    ]


def quick(pictures, *more):
    """One run, fitted on one recogniser and judged by it alone."""
    more = ("--psnr=30", "--transformations=none", "--average=0", *more)
    return arguments(pictures, *more)


def rows_of(folder, name="transfer.csv"):
    return read_csv(folder / name)


def chosen(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def tables_of(report):
    """{heading: (head, body)} of a report's tables."""
    found, heading = {}, ""
    for line in report.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(heading, []).append(cells)
    return {name: (lines[0], lines[1:]) for name, lines in found.items()}


def put_right(content):
    """A protocol that was changed by hand as JSON, with its own hash."""
    content.pop("sha256", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()})


def dataset_of(pictures):
    options = DataOptions(image_size=SIZE, data_dir=str(pictures), crop="auto")
    return load_dataset("folder", options)


def originals_of(pictures):
    """name -> the photos as the data set gives them."""
    dataset = dataset_of(pictures)
    return {name: dataset.read(i) for i, name in enumerate(dataset.image_names)}


def photos_of(folder, row):
    """name -> the photos that a run kept, and the folder's name."""
    size = f"{row['psnr']}dB" if row["psnr"] else row["epsilon"] and f"eps{row['epsilon']}"
    parts = [row["fit"], row["method"], row["foreseen"], size]
    own = folder / "photos" / "-".join(part for part in parts if part)
    return {
        f"{path.parent.name}/{path.stem}": np.asarray(Image.open(path))
        for path in sorted(own.glob("*/*.png"))
    }


def person(name):
    return name.partition("/")[0]


def embed(photos, seed):
    """float64 twin of the recognisers that are brought along."""
    cell = SIZE // CELLS
    blocks = photos.astype(float).reshape(-1, CELLS, cell, CELLS, cell, 3) / 255
    values = np.tanh((blocks.mean((2, 4)) - 0.3).reshape(len(photos), -1) @ weights(seed))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def unit(vector):
    return vector / np.linalg.norm(vector)


def gallery_of(protocol, originals, seed, role="gallery"):
    """{person: unit vector} of the clean gallery, or of the probes."""
    members = {}
    for name in protocol[role]:
        members.setdefault(person(name), []).append(name)
    return {
        who: unit(embed(np.stack([originals[n] for n in names]), seed).mean(0))
        for who, names in members.items()
    }


def threshold_of(protocol, originals, seed, known, far):
    """The lowest at which no more than `far` of the probes pass for another person."""
    probes = embed(np.stack([originals[n] for n in protocol["probes"]]), seed)
    impostors = sorted(
        (
            float(probe @ centre)
            for name, probe in zip(protocol["probes"], probes, strict=True)
            for who, centre in known.items()
            if who != person(name)
        ),
        reverse=True,
    )
    # Of n impostors ⌊n far⌋ may be accepted: the threshold lies just above the next one.
    return impostors[int(len(impostors) * far)]
