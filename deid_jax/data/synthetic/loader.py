"""`load`: samples the people and their pictures from the seed, renders a split, labels it."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax import _validate
from deid_jax._validate import InputError
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.data.splits import split_indices
from deid_jax.data.synthetic.identity import HAIR_COLOURS, Identity, sample_identity
from deid_jax.data.synthetic.rendering import render
from deid_jax.data.synthetic.variation import Variation, sample_variation

PERSONS = tuple(f"person_{i:02d}" for i in range(30))
PICTURES_PER_PERSON = 30
SMALLEST, LARGEST = 16, 512
_CHUNK_PIXELS = 40_000  # pixels rendered by one call: bounds memory at any size


@jax.jit
def _sample(seed: jax.Array) -> tuple[Identity, Variation]:
    """All persons [P] and all pictures' circumstances [P * K] of a seed."""
    who, how = jax.random.split(jax.random.key(seed))
    persons = jax.random.split(who, len(PERSONS))
    pictures = jax.random.split(how, len(PERSONS) * PICTURES_PER_PERSON)
    return jax.vmap(sample_identity)(persons), jax.vmap(sample_variation)(pictures)


@functools.partial(jax.jit, static_argnames="image_size")
def _photograph(identities: Identity, variations: Variation, image_size: int) -> jax.Array:
    """A chunk of pictures, one after the other -> uint8[C, image_size, image_size, 3]."""

    def one(pair: tuple[Identity, Variation]) -> jax.Array:
        picture = render(*pair, image_size)
        return jnp.round(picture * 255).astype(jnp.uint8)

    return jax.lax.map(one, (identities, variations))


def _render_all(identities: Identity, variations: Variation, image_size: int) -> np.ndarray:
    """Renders pictures [N] in chunks of one size, as many at a time as there are cores."""
    total = len(jax.tree.leaves(variations)[0])
    chunk = max(1, min(total, _CHUNK_PIXELS // image_size**2))
    images = np.empty((total, image_size, image_size, 3), np.uint8)

    def work(start: int) -> None:
        wanted = np.minimum(np.arange(start, start + chunk), total - 1)
        pair = jax.tree.map(lambda leaf: leaf[wanted], (identities, variations))
        stop = min(start + chunk, total)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            images[start:stop] = np.asarray(_photograph(*pair, image_size))[: stop - start]

    work(0)  # compiles, before the threads need it
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        list(pool.map(work, range(chunk, total, chunk)))
    return images


def _attributes(identities: Identity, variations: Variation) -> dict[str, np.ndarray]:
    """Labels [N] of what is to be seen, of the picture first and then of the person."""
    pose, expression, light = variations.pose, variations.expression, variations.light
    traits, hair, beard = identities.traits, identities.hair, identities.beard
    tones = np.array(["light", "medium", "dark"])
    return {
        "smiling": expression.smile > 0.35,
        "mouth_open": expression.mouth_open > 0.2,
        "eyes_open": expression.eyes_open > 0.3,
        "glasses": variations.wear.glasses > 0.5,
        "sunglasses": (variations.wear.glasses > 0.5) & (variations.wear.tint > 0.5),
        "looking_left": pose.yaw < 0,
        "yaw": pose.yaw,
        "pitch": pose.pitch,
        "roll": pose.roll,
        "light_from_left": light.azimuth < 0,
        "light_direction": light.azimuth,
        "male": traits.male > 0.5,
        "young": traits.age < 0.5,
        "skin_tone": tones[np.minimum((traits.melanin * 3).astype(int), 2)],
        "hair_colour": np.array(HAIR_COLOURS)[traits.hair_class.astype(int)],
        "long_hair": hair.length > 0,
        "bald": hair.volume < 0,
        "facial_hair": np.maximum(beard.moustache, beard.chin) > 0.5,
    }


def load(options: DataOptions) -> FaceDataset:
    """Renders the pictures of one split: 25 (train), 5 (test) or 30 (all) of each person.

    The same options give the same bytes, and a picture is the same whichever split it is
    loaded in. Rendering is done on the CPU, whatever other devices there are.

    Raises:
      InputError: `data_dir` is set, or the image size is not an integer in 16..512.
    """
    if options.data_dir is not None:
        raise InputError(f"synthetic is embedded and takes no data_dir, got {options.data_dir}")
    _validate.count("image_size", options.image_size, least=SMALLEST)
    if options.image_size > LARGEST:
        raise InputError(f"image_size must be at most {LARGEST}, got {options.image_size}")
    labels = np.repeat(np.arange(len(PERSONS), dtype=np.int32), PICTURES_PER_PERSON)
    chosen = split_indices(labels, options.split, options.seed, persons=PERSONS)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        identities, variations = jax.tree.map(np.asarray, _sample(options.seed))
    identities = jax.tree.map(lambda leaf: leaf[labels[chosen]], identities)
    variations = jax.tree.map(lambda leaf: leaf[chosen], variations)
    images = _render_all(identities, variations, options.image_size)
    return FaceDataset(
        name="synthetic",
        persons=PERSONS,
        labels=labels[chosen],
        names=tuple(f"{i % PICTURES_PER_PERSON:03d}" for i in chosen),
        read=lambda index: images[index],
        image_size=options.image_size,
        split=options.split,
        attributes=_attributes(identities, variations),
        provenance={"seed": options.seed, "crop": "none", "pictures": len(chosen)},
    )
