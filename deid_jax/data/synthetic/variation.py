"""Variation between two images of one person: pose, expression, light, scene, camera.

Angles are in degrees: yaw > 0 turns the face to the viewer's right, pitch > 0 lifts it, roll
> 0 tilts it counter-clockwise. Lengths are in head units, colours linear RGB.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.data.synthetic.draws import Draws

NUM_SHAPES = 6


class Pose(NamedTuple):
    """Rotation in degrees, shift of the head, and its scale in the image."""

    yaw: jax.Array
    pitch: jax.Array
    roll: jax.Array
    shift: jax.Array
    scale: jax.Array


class Expression(NamedTuple):
    """Smile in [-0.2, 1], opening of mouth and eyes in [0, 1], brow raise, gaze [2]."""

    smile: jax.Array
    mouth_open: jax.Array
    eyes_open: jax.Array
    brow_raise: jax.Array
    gaze: jax.Array


class Light(NamedTuple):
    """Direction to the key light (degrees; azimuth > 0 is the viewer's right) and colours."""

    azimuth: jax.Array
    elevation: jax.Array
    key: jax.Array
    ambient: jax.Array
    rim: jax.Array


class Scene(NamedTuple):
    """Background: two colours of a gradient, its angle, soft shapes [K, 6] and their colours.

    A shape is (x, y, half width, half height, softness, roundness).
    """

    top: jax.Array
    bottom: jax.Array
    angle: jax.Array
    shapes: jax.Array
    colours: jax.Array
    stripes: jax.Array


class Wear(NamedTuple):
    """Glasses (0 or 1), tint of the lenses, frame colour and shape; clothes and neckline."""

    glasses: jax.Array
    tint: jax.Array
    frame: jax.Array
    roundness: jax.Array
    thickness: jax.Array
    cloth: jax.Array
    accent: jax.Array
    neckline: jax.Array


class Camera(NamedTuple):
    """Exposure and contrast as factors, white balance [3], blur and noise, and its seed.

    Blur is a fraction of the image's height, noise a standard deviation in sRGB.
    """

    exposure: jax.Array
    contrast: jax.Array
    white: jax.Array
    saturation: jax.Array
    blur: jax.Array
    noise: jax.Array
    seed: jax.Array


class Variation(NamedTuple):
    """Everything in an image that is not the person."""

    pose: Pose
    expression: Expression
    light: Light
    scene: Scene
    wear: Wear
    camera: Camera


def _sample_pose(draws: Draws) -> Pose:
    """Heads turn by up to 25 degrees, nod by 8 and tilt by 9."""
    yaw = draws.bell(17.0)
    pitch = draws.between(-8.0, 7.0)
    roll = draws.bell(6.0)
    shift = draws.between(-0.08, 0.08, (2,))
    return Pose(yaw, pitch, roll, shift, draws.between(1.0, 1.06))


def _sample_expression(draws: Draws) -> Expression:
    """Half of the faces smile, 45 % open the mouth, 14 % close the eyes."""
    smile = jnp.where(
        draws.chance(0.5) > 0, draws.between(0.55, 1.0), draws.between(-0.3, 0.15)
    )
    mouth = draws.chance(0.45) * draws.between(0.4, 1.0)
    eyes = jnp.where(draws.chance(0.14) > 0, 0.05, draws.between(0.7, 1.1))
    raised, gaze = draws.between(-0.3, 1.0), draws.between(-1.0, 1.0, (2,))
    return Expression(smile, mouth, eyes, raised, gaze)


def _temperature(draws: Draws, spread: float) -> jax.Array:
    """A light colour between candle and blue sky, float32[3] around 1."""
    degree, green = draws.between(-spread, spread), draws.between(-0.25, 0.25) * spread
    return jnp.exp(jnp.stack([degree, green, -1.2 * degree]))


def _sample_light(draws: Draws) -> Light:
    """A key light anywhere in front, ambient light of another colour, and a rim light."""
    strength, fill = draws.between(0.7, 1.3), draws.between(0.28, 0.65)
    return Light(
        draws.between(-65.0, 65.0),
        draws.between(5.0, 50.0),
        strength * _temperature(draws, 0.16),
        fill * _temperature(draws, 0.2),
        draws.between(0.0, 0.5) ** 2,
    )


def _colours(draws: Draws, count: int) -> jax.Array:
    """Linear RGB of random brightness and mostly moderate saturation, [count, 3]."""
    grey = draws.between(0.05, 0.98, (count, 1)) ** 2.0
    hue = draws.between(0.1, 1.0, (count, 3))
    saturation = draws.between(0.0, 1.0, (count, 1)) ** 1.5
    return grey * (1 - saturation + 1.5 * saturation * hue)


def _sample_scene(draws: Draws) -> Scene:
    """A gradient with a few soft shapes; two in five scenes have stripes."""
    places = draws.between(-1.2, 1.2, (NUM_SHAPES, 2))
    sizes = draws.between(0.06, 0.6, (NUM_SHAPES, 2))
    softness = draws.between(0.015, 0.25, (NUM_SHAPES, 1))
    roundness = draws.between(0.0, 1.0, (NUM_SHAPES, 1))
    top, bottom = _colours(draws, 2)
    return Scene(
        top,
        bottom,
        draws.between(-3.14, 3.14),
        jnp.concatenate([places, sizes, softness, roundness], axis=1),
        _colours(draws, NUM_SHAPES),
        jnp.maximum(draws.between(-0.8, 0.5), 0.0),
    )


def _sample_wear(draws: Draws) -> Wear:
    """Two in five wear glasses, few of them dark ones; clothes of any colour."""
    glasses = draws.chance(0.4)
    tint = jnp.where(draws.chance(0.12) > 0, 0.88, 0.06)
    frame, cloth, accent = _colours(draws, 3)
    frame = frame * jnp.where(draws.chance(0.6) > 0, 0.04, 1.0)
    roundness, neckline = draws.between(0.0, 1.0), draws.between(0.0, 1.0)
    thickness = draws.between(0.014, 0.03)
    return Wear(glasses, tint, frame, roundness, thickness, cloth, accent, neckline)


def _sample_camera(draws: Draws) -> Camera:
    """Exposure, contrast, white balance, blur and sensor noise."""
    return Camera(
        jnp.exp(draws.between(-0.5, 0.4)),
        draws.between(0.95, 1.25),
        _temperature(draws, 0.1),
        draws.between(0.85, 1.3),
        0.008 * draws.between(0.0, 1.0) ** 2,
        draws.between(0.002, 0.014),
        jnp.floor(draws.between(0.0, 1.0) * 2**23).astype(jnp.uint32),
    )


def sample_variation(key: jax.Array) -> Variation:
    """Draws a variation: key -> `Variation`, a pure function, independent of persons."""
    draws = Draws(key, 160)
    return Variation(
        _sample_pose(draws),
        _sample_expression(draws),
        _sample_light(draws),
        _sample_scene(draws),
        _sample_wear(draws),
        _sample_camera(draws),
    )
