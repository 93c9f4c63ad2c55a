"""What tests of `experiments.transfer` share: recognisers that are brought along, and steps."""

import csv

import jax.numpy as jnp
import numpy as np

CELLS, WIDTH = 4, 12
SIZE = 16
FARS = (0.1, 0.05)
OWN = "tests.experiments.transfer_helpers"
ONE, TWO = f"{OWN}:one", f"{OWN}:two"


def weights(seed):
    """float64[CELLS * CELLS * 3, WIDTH]."""
    return np.random.default_rng(seed).standard_normal((CELLS * CELLS * 3, WIDTH))


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


def scalar(images):
    """No vector a picture."""
    return images.mean((1, 2, 3))


number = 3


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


def rows_of(folder):
    with (folder / "transfer.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
