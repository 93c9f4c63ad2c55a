"""What varies between two pictures of one person: pose, expression, light, scene, camera.

Angles are in degrees: yaw > 0 turns the face to the viewer's right, pitch > 0 lifts it, roll
> 0 tilts it counter-clockwise. Lengths are in head units, colours linear RGB.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NUM_SHAPES = 6


class Pose(NamedTuple):
    """Rotation in degrees, shift of the head, and its scale in the picture."""

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
    """Exposure and contrast as factors, white balance [3], blur and noise, and their key.

    Blur is a fraction of the picture's height, noise a standard deviation in sRGB.
    """

    exposure: jax.Array
    contrast: jax.Array
    white: jax.Array
    saturation: jax.Array
    blur: jax.Array
    noise: jax.Array
    key: jax.Array


class Variation(NamedTuple):
    """All of a picture that is not the person."""

    pose: Pose
    expression: Expression
    light: Light
    scene: Scene
    wear: Wear
    camera: Camera


def _uniform(key: jax.Array, low: float, high: float, shape: tuple = ()) -> jax.Array:
    """Uniform draws in [low, high)."""
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _sample_pose(key: jax.Array) -> Pose:
    """Heads turn by up to 32 degrees, with a dip around 0 so that left and right are clear."""
    keys = jax.random.split(key, 5)
    yaw = 30.0 * jnp.clip(jax.random.normal(keys[0]) * 0.55, -1.0, 1.0)
    pitch = _uniform(keys[1], -13.0, 12.0)
    roll = 6.0 * jax.random.normal(keys[2])
    shift = _uniform(keys[3], -0.14, 0.14, (2,))
    return Pose(yaw, pitch, jnp.clip(roll, -14.0, 14.0), shift, _uniform(keys[4], 0.88, 1.14))


def _sample_expression(key: jax.Array) -> Expression:
    """Half of the faces smile, four in ten open the mouth, one in ten close the eyes."""
    keys = jax.random.split(key, 8)
    smiling = jax.random.uniform(keys[0]) < 0.5
    smile = jnp.where(smiling, _uniform(keys[1], 0.55, 1.0), _uniform(keys[2], -0.3, 0.15))
    opened = jax.random.uniform(keys[3]) < 0.45
    mouth = jnp.where(opened, _uniform(keys[4], 0.4, 1.0), 0.0)
    shut = jax.random.uniform(keys[5]) < 0.14
    eyes = jnp.where(shut, 0.05, _uniform(keys[6], 0.7, 1.1))
    more = jax.random.split(keys[7])
    gaze = _uniform(more[1], -1.0, 1.0, (2,))
    return Expression(smile, mouth, eyes, _uniform(more[0], -0.3, 1.0), gaze)


def _temperature(key: jax.Array, spread: float) -> jax.Array:
    """A light colour between candle and blue sky, float32[3] around 1."""
    warm, tint = jax.random.split(key)
    degree = _uniform(warm, -spread, spread)
    green = _uniform(tint, -0.25, 0.25) * spread
    return jnp.exp(jnp.stack([degree, green, -1.2 * degree]))


def _sample_light(key: jax.Array) -> Light:
    """A key light anywhere before the face, ambient light of another colour, and a rim."""
    keys = jax.random.split(key, 7)
    strength = _uniform(keys[0], 0.55, 1.35)
    fill = _uniform(keys[1], 0.16, 0.62)
    return Light(
        _uniform(keys[2], -75.0, 75.0),
        _uniform(keys[3], 0.0, 60.0),
        strength * _temperature(keys[4], 0.22),
        fill * _temperature(keys[5], 0.2),
        _uniform(keys[6], 0.0, 0.5) ** 2,
    )


def _colour(key: jax.Array, shape: tuple = ()) -> jax.Array:
    """Linear RGB of random brightness and mostly moderate saturation, [*shape, 3]."""
    value, tint, amount = jax.random.split(key, 3)
    grey = _uniform(value, 0.05, 0.98, (*shape, 1)) ** 2.0
    hue = _uniform(tint, 0.1, 1.0, (*shape, 3))
    saturation = _uniform(amount, 0.0, 1.0, (*shape, 1)) ** 1.5
    return grey * (1 - saturation + 1.5 * saturation * hue)


def _sample_scene(key: jax.Array) -> Scene:
    """A gradient with a few soft shapes; a third of the scenes have stripes."""
    keys = jax.random.split(key, 8)
    size = (NUM_SHAPES, 1)
    shapes = jnp.concatenate(
        [
            _uniform(keys[0], -1.2, 1.2, (NUM_SHAPES, 2)),
            _uniform(keys[1], 0.06, 0.6, (NUM_SHAPES, 2)),
            _uniform(keys[2], 0.015, 0.25, size),
            _uniform(keys[3], 0.0, 1.0, size),
        ],
        axis=1,
    )
    stripes = _uniform(keys[4], -0.8, 0.5) * jnp.ones(())
    low, high = _colour(keys[5], (2,))
    return Scene(
        low,
        high,
        _uniform(keys[6], -3.14, 3.14),
        shapes,
        _colour(keys[7], (NUM_SHAPES,)),
        jnp.maximum(stripes, 0.0),
    )


def _sample_wear(key: jax.Array) -> Wear:
    """Two in five wear glasses, few of them dark ones; clothes of any colour."""
    keys = jax.random.split(key, 8)
    glasses = (jax.random.uniform(keys[0]) < 0.4).astype(jnp.float32)
    dark = jax.random.uniform(keys[1]) < 0.12
    frame = jnp.where(jax.random.uniform(keys[2]) < 0.6, 0.04, 1.0) * _colour(keys[3])
    cloth, accent = _colour(keys[4], (2,))
    shape = _uniform(keys[5], 0.0, 1.0)
    thickness = _uniform(keys[6], 0.014, 0.03)
    neckline = _uniform(keys[7], 0.0, 1.0)
    tint = jnp.where(dark, 0.88, 0.06)
    return Wear(glasses, tint, frame, shape, thickness, cloth, accent, neckline)


def _sample_camera(key: jax.Array) -> Camera:
    """Exposure, contrast, white balance, blur and sensor noise."""
    keys = jax.random.split(key, 7)
    return Camera(
        jnp.exp(_uniform(keys[0], -0.5, 0.4)),
        _uniform(keys[1], 0.85, 1.2),
        _temperature(keys[2], 0.1),
        _uniform(keys[3], 0.7, 1.2),
        0.008 * _uniform(keys[4], 0.0, 1.0) ** 2,
        _uniform(keys[5], 0.002, 0.014),
        keys[6],
    )


def sample_variation(key: jax.Array) -> Variation:
    """Draws a picture's circumstances: key -> `Variation`, pure; knows nothing of persons."""
    keys = jax.random.split(key, 6)
    return Variation(
        _sample_pose(keys[0]),
        _sample_expression(keys[1]),
        _sample_light(keys[2]),
        _sample_scene(keys[3]),
        _sample_wear(keys[4]),
        _sample_camera(keys[5]),
    )
