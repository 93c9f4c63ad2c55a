"""Who a synthetic person is: everything that stays the same in all images of one person.

Lengths are in head units: the head is 2 high, eye level is y = 0, the chin is near y = -1.
The axes are x to the viewer's right, y up and z towards the viewer. Colours are linear RGB
in [0, 1], float32[3]; all other leaves are float32 scalars.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.data.synthetic.draws import Draws
from deid_jax.types import NumpyArray

NUM_MOLES = 3

# sRGB stops from fair to dark; hair stops: black, dark brown, brown, auburn, blond, grey.
_SKIN_STOPS = (
    (250, 219, 200),
    (238, 194, 166),
    (222, 172, 134),
    (193, 136, 96),
    (140, 88, 58),
    (84, 52, 38),
)
_HAIR_STOPS = (
    (22, 19, 20),
    (52, 34, 25),
    (98, 63, 38),
    (146, 70, 34),
    (206, 166, 100),
    (172, 170, 168),
)
_IRIS_STOPS = ((54, 32, 18), (104, 66, 30), (92, 104, 56), (82, 126, 158), (120, 136, 146))
HAIR_COLOURS = ("black", "dark_brown", "brown", "red", "blond", "grey")


class Traits(NamedTuple):
    """Traits of the person: male 0 or 1, age in [0, 1], melanin in [0, 1]."""

    male: jax.Array
    age: jax.Array
    melanin: jax.Array
    hair_class: jax.Array


class Head(NamedTuple):
    """Skull and jaw: half extents, and offsets of the jaw, chin, cheekbones and ears."""

    width: jax.Array
    height: jax.Array
    jaw: jax.Array
    jaw_height: jax.Array
    chin: jax.Array
    chin_drop: jax.Array
    cheek: jax.Array
    ear: jax.Array


class Eyes(NamedTuple):
    """Distance from the middle, half width, tilt (slope), opening, set-back, iris colour."""

    spacing: jax.Array
    width: jax.Array
    tilt: jax.Array
    opening: jax.Array
    depth: jax.Array
    crease: jax.Array
    lashes: jax.Array
    iris: jax.Array


class Brows(NamedTuple):
    """Height above the eye, half thickness, arch, slope, half length, density, ridge bulge."""

    height: jax.Array
    thickness: jax.Array
    arch: jax.Array
    slope: jax.Array
    length: jax.Array
    density: jax.Array
    ridge: jax.Array


class Nose(NamedTuple):
    """Length down from the eyes, wing and bridge half widths, tip radius, projection, lift."""

    length: jax.Array
    width: jax.Array
    bridge: jax.Array
    tip: jax.Array
    projection: jax.Array
    lift: jax.Array


class Mouth(NamedTuple):
    """Position below the nose, half width, lip heights, cupid's bow, lip colour."""

    drop: jax.Array
    width: jax.Array
    upper: jax.Array
    lower: jax.Array
    bow: jax.Array
    colour: jax.Array


class Skin(NamedTuple):
    """Colour, redness of cheeks, freckle and wrinkle strength in [0, 1], moles [M, 3].

    A mole is (x, y, radius) on the front of the face.
    """

    colour: jax.Array
    blush: jax.Array
    freckles: jax.Array
    wrinkles: jax.Array
    moles: jax.Array


class Hair(NamedTuple):
    """Hair style: volume below 0 is bald; length runs from 0 (cropped) to 1 (chest)."""

    colour: jax.Array
    volume: jax.Array
    length: jax.Array
    hairline: jax.Array
    temple: jax.Array
    part: jax.Array
    curl: jax.Array
    bun: jax.Array


class Beard(NamedTuple):
    """Strength in [0, 1] of stubble, moustache, chin beard and whiskers along the jaw."""

    stubble: jax.Array
    moustache: jax.Array
    chin: jax.Array
    jaw: jax.Array


class Identity(NamedTuple):
    """A person; otherwise an image depends only on a `Variation`."""

    traits: Traits
    head: Head
    eyes: Eyes
    brows: Brows
    nose: Nose
    mouth: Mouth
    skin: Skin
    hair: Hair
    beard: Beard


def _linear(stops: tuple[tuple[int, int, int], ...]) -> NumpyArray:
    """SRGB bytes [K, 3] -> linear RGB float32[K, 3]."""
    return (np.asarray(stops, np.float32) / np.float32(255)) ** np.float32(2.2)


def _palette(stops: tuple[tuple[int, int, int], ...], position: jax.Array) -> jax.Array:
    """Linear interpolation in a palette; position in [0, 1] -> float32[3]."""
    table = jnp.asarray(_linear(stops))
    place = position * (len(stops) - 1)
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, len(stops) - 2)
    weight = place - low
    return table[low] * (1 - weight) + table[low + 1] * weight


def _sample_traits(draws: Draws) -> Traits:
    """Draws gender presentation, age, melanin and hair colour class (0..5, as float)."""
    male, age, melanin = draws.chance(0.5), draws.between(0.0, 1.0), draws.between(0.0, 1.0)
    colour = jnp.floor(draws.between(0.0, jnp.where(melanin > 0.6, 2.0, 5.0)))
    grey = draws.chance(jnp.clip(3.0 * age - 2.1, 0.0, 0.8))
    return Traits(male, age, melanin, jnp.where(grey > 0, 5.0, colour))


def _sample_hair(draws: Draws, traits: Traits) -> Hair:
    male = traits.male
    colour = jnp.asarray(_linear(_HAIR_STOPS))[traits.hair_class.astype(jnp.int32)]
    colour = colour * draws.between(0.8, 1.25) * draws.between(0.94, 1.06, (3,))
    long_hair = draws.chance(jnp.where(male > 0, 0.08, 0.72))
    bald = draws.chance(0.14 * male * (1 - long_hair))
    afro = draws.chance(jnp.where(traits.melanin > 0.6, 0.35, 0.1))
    fringe = draws.chance(jnp.where(male > 0, 0.15, 0.3))
    volume, length, hairline, temple, part, curl = draws.several(
        (0.05, 0.17),
        (0.45, 1.0),
        (0.52 + 0.04 * male, 0.66 + 0.08 * traits.age),
        (0.46, 0.55),
        (-0.5, 0.5),
        (0.0, 0.5),
    )
    volume = jnp.where(bald > 0, -0.12, volume + 0.13 * afro)
    hairline = jnp.where(fringe > 0, 0.36, hairline)
    curl = jnp.where(afro > 0, 1.0, curl)
    bun = draws.chance(0.35) * (1 - male) * (1 - long_hair)
    return Hair(colour, volume, long_hair * length, hairline, temple, part, curl, bun)


def _sample_beard(draws: Draws, traits: Traits) -> Beard:
    """Draws facial hair, none for half of the men and all women."""
    bearded = traits.male * draws.chance(0.55)
    full = draws.chance(0.5)
    moustache = bearded * jnp.maximum(full, draws.chance(0.55))
    chin = bearded * jnp.maximum(full, draws.chance(0.6))
    stubble = full * (0.75 * bearded + 0.22 * traits.male) + 0.2 * traits.male * (1 - full)
    return Beard(stubble, moustache, chin, bearded * full)


def _sample_skin(draws: Draws, traits: Traits) -> Skin:
    colour = _palette(_SKIN_STOPS, traits.melanin) * draws.between(0.92, 1.08, (3,))
    freckles = draws.chance(0.35) * (1 - traits.melanin)
    spots = draws.between(0.0, 1.0, (NUM_MOLES, 3))
    low, high = jnp.array([-0.45, -0.75, 0.0]), jnp.array([0.45, 0.45, 0.035])
    moles = low[None] + (high - low)[None] * spots
    wrinkles = jnp.clip(2.0 * traits.age - 1.1, 0.0, 0.9)
    return Skin(colour, draws.between(0.1, 0.8), freckles, wrinkles, moles)


def _sample_head(draws: Draws, male: jax.Array) -> Head:
    """Draws skull and jaw; men's jaws are wider."""
    return Head(
        *draws.several(
            (0.58 + 0.02 * male, 0.69 + 0.02 * male),
            (0.94, 1.06),
            (0.02 * male, 0.09 + 0.06 * male),
            (-0.08, 0.08),
            (0.10 + 0.04 * male, 0.17 + 0.06 * male),
            (-0.07, 0.09),
            (0.0, 0.09),
            (0.75, 1.3),
        )
    )


def _sample_eyes(draws: Draws, traits: Traits) -> Eyes:
    """Draws eyes; dark skin mostly goes with dark irises."""
    shape = draws.several(
        (0.245, 0.30),
        (0.135 - 0.01 * traits.male, 0.17),
        (-0.12, 0.24),
        (0.75, 1.3),
        (-0.03, 0.03),
        (0.2, 1.0),
        (0.7 - 0.4 * traits.male, 1.0),
    )
    iris = draws.between(0.0, jnp.where(traits.melanin > 0.5, 0.35, 1.0))
    return Eyes._make([*shape, _palette(_IRIS_STOPS, iris)])


def _sample_brows(draws: Draws, male: jax.Array) -> Brows:
    """Draws eyebrows; men's are lower and thicker."""
    return Brows(
        *draws.several(
            (0.19 - 0.02 * male, 0.27 - 0.02 * male),
            (0.016 + 0.012 * male, 0.034 + 0.02 * male),
            (0.0, 0.06),
            (-0.12, 0.2),
            (0.15, 0.21),
            (0.45, 1.0),
            (0.0, 0.03 + 0.03 * male),
        )
    )


def _sample_nose(draws: Draws, male: jax.Array) -> Nose:
    return Nose(
        *draws.several(
            (0.30, 0.44),
            (0.085 + 0.01 * male, 0.155 + 0.02 * male),
            (0.04, 0.075),
            (0.06, 0.10),
            (0.16, 0.30),
            (-0.05, 0.05),
        )
    )


def _sample_mouth(draws: Draws, male: jax.Array, skin: jax.Array) -> Mouth:
    """Draws the mouth; lips are a redder and darker skin colour, or painted."""
    shape = draws.several(
        (0.16, 0.25), (0.185, 0.265), (0.035, 0.085), (0.05, 0.11), (0.0, 0.5)
    )
    redness = draws.between(0.0, 1.0)
    natural = skin * jnp.array([0.82, 0.48, 0.5]) * (1.1 - 0.25 * redness)
    painted = jnp.array([0.42, 0.05, 0.07]) * (0.5 + redness)
    lipstick = 0.75 * draws.chance(0.45) * (1 - male)
    return Mouth._make([*shape, natural * (1 - lipstick) + painted * lipstick])


def sample_identity(key: jax.Array) -> Identity:
    """Draws a person: key -> `Identity`, a pure function that can be vmapped."""
    draws = Draws(key, 96)
    traits = _sample_traits(draws)
    skin = _sample_skin(draws, traits)
    return Identity(
        traits=traits,
        head=_sample_head(draws, traits.male),
        eyes=_sample_eyes(draws, traits),
        brows=_sample_brows(draws, traits.male),
        nose=_sample_nose(draws, traits.male),
        mouth=_sample_mouth(draws, traits.male, skin.colour),
        skin=skin,
        hair=_sample_hair(draws, traits),
        beard=_sample_beard(draws, traits),
    )
