"""The paper's subset of a larger data set: 30 persons with 30 images each."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from deid_jax import checks
from deid_jax.errors import InputError

NUM_PERSONS = 30
NUM_IMAGES = 30


def choose_subset(
    name: str, images: Mapping[str, Sequence[str]], seed: int
) -> dict[str, list[str]]:
    """Draws `NUM_PERSONS` persons, and `NUM_IMAGES` images of each.

    The draw depends on the names and the seed, not on the order of the names; a person's
    images are drawn independently of the other persons.

    Images are person -> image names; so is the result, both sorted.

    Raises:
      InputError: too few persons have enough images, or the seed is negative.
    """
    checks.count("seed", seed)
    eligible = sorted(person for person in images if len(images[person]) >= NUM_IMAGES)
    if len(eligible) < NUM_PERSONS:
        raise InputError(
            f"{name} has {len(eligible)} persons with {NUM_IMAGES} images or more, "
            f"{NUM_PERSONS} are needed"
        )
    persons = np.random.default_rng([seed, 0]).choice(eligible, NUM_PERSONS, replace=False)
    chosen = {}
    for person in sorted(str(person) for person in persons):
        generator = np.random.default_rng([seed, 1, zlib.crc32(person.encode())])
        names = sorted(images[person])
        drawn = generator.choice(len(names), NUM_IMAGES, replace=False)
        chosen[person] = [names[position] for position in sorted(drawn)]
    return chosen
