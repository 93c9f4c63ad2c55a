"""The shape of a person as signed fields, in head units, negative inside.

Fields are quadratic, (|p|² - r²) / 2r for a sphere: near the surface this is the distance d;
farther away it grows to d + d² / 2r. This avoids square roots, which would be most of the cost;
ray marching shortens its steps accordingly (`stride`). Parts are joined by the polynomial
smooth minimum. A point is a tuple (x, y, z) of arrays of one shape, in the head's frame (see
`identity`) unless the camera's frame is stated.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.data.synthetic.identity import Hair, Head, Identity
from deid_jax.data.synthetic.variation import Expression, Pose

Point = tuple[jax.Array, jax.Array, jax.Array]

FACE_FRONT = 0.1  # faces are painted where z is above this


class Figure(NamedTuple):
    """A person in one pose: rotation [3, 3] head -> camera, and the head's centre [3]."""

    identity: Identity
    expression: Expression
    rotation: jax.Array
    centre: jax.Array


def rotation_matrix(pose: Pose) -> jax.Array:
    """Roll · yaw · pitch as a matrix [3, 3] that takes head to camera coordinates."""
    yaw, pitch, roll = (jnp.deg2rad(v) for v in (pose.yaw, pose.pitch, pose.roll))
    zero, one = jnp.zeros(()), jnp.ones(())

    def matrix(*rows: list[jax.Array]) -> jax.Array:
        return jnp.stack([jnp.stack(row) for row in rows])

    c, s = jnp.cos(yaw), jnp.sin(yaw)
    about_y = matrix([c, zero, s], [zero, one, zero], [-s, zero, c])
    c, s = jnp.cos(pitch), jnp.sin(pitch)
    about_x = matrix([one, zero, zero], [zero, c, s], [zero, -s, c])
    c, s = jnp.cos(roll), jnp.sin(roll)
    about_z = matrix([c, -s, zero], [s, c, zero], [zero, zero, one])
    return about_z @ about_y @ about_x


def to_head(figure: Figure, point: Point) -> Point:
    """Camera coordinates -> head coordinates: Rᵀ (p - centre)."""
    x, y, z = (p - figure.centre[i] for i, p in enumerate(point))
    R = figure.rotation
    return tuple(R[0, i] * x + R[1, i] * y + R[2, i] * z for i in range(3))  # type: ignore


def smooth_min(a: jax.Array, b: jax.Array, k: float) -> jax.Array:
    """The minimum, with the edge rounded over a distance k."""
    h = jnp.maximum(k - jnp.abs(a - b), 0.0)
    return jnp.minimum(a, b) - h * h * (0.25 / k)


def smooth_max(a: jax.Array, b: jax.Array, k: float) -> jax.Array:
    """The maximum, with the edge rounded over a distance k."""
    h = jnp.maximum(k - jnp.abs(a - b), 0.0)
    return jnp.maximum(a, b) + h * h * (0.25 / k)


def _square(point: Point, centre: tuple) -> jax.Array:
    """Squared distance to a point."""
    x, y, z = (p - c for p, c in zip(point, centre, strict=True))
    return x * x + y * y + z * z


def _ellipsoid(point: Point, centre: tuple, radii: tuple) -> jax.Array:
    """The field of an axis-aligned ellipsoid, (|p/r|² - 1) min(r) / 2."""
    x, y, z = ((p - c) * (1.0 / r) for p, c, r in zip(point, centre, radii, strict=True))
    least = jnp.minimum(jnp.minimum(radii[0], radii[1]), radii[2])
    return (x * x + y * y + z * z - 1.0) * (0.5 * least)


def _sphere(point: Point, centre: tuple, radius: jax.Array | float) -> jax.Array:
    """The field of a sphere, (|p|² - r²) / 2r."""
    return _square(point, centre) * (0.5 / radius) - 0.5 * radius


def _segment(point: Point, start: tuple, end: tuple, radii: tuple) -> jax.Array:
    """The field of a round rod whose radius goes from radii[0] to radii[1]."""
    p = [a - b for a, b in zip(point, start, strict=True)]
    e = [b - a for a, b in zip(start, end, strict=True)]
    inverse = 1.0 / sum(a * a for a in e)
    along = jnp.clip(sum(a * b for a, b in zip(p, e, strict=True)) * inverse, 0.0, 1.0)
    x, y, z = (a - along * b for a, b in zip(p, e, strict=True))
    radius = radii[0] + (radii[1] - radii[0]) * along
    return (x * x + y * y + z * z) / (2.0 * radius) - 0.5 * radius


def _ripple(t: jax.Array) -> jax.Array:
    """A cheap wave of period 1 in [0, 1], with a crease at whole numbers."""
    u = t - jnp.floor(t)
    return 4.0 * u * (1.0 - u)


def stride(field: jax.Array) -> jax.Array:
    """A safe step along a ray: the distance to a sphere of radius 1/4, or less."""
    return field / (1.0 + 2.0 * jnp.maximum(field, 0.0))


def mouth_height(identity: Identity) -> jax.Array:
    """The y of the closed mouth's middle."""
    return -identity.nose.length - identity.mouth.drop


def _skull(point: Point, head: Head, jaw_open: jax.Array) -> jax.Array:
    """Skull, face, jaw, chin and cheekbones; point is mirrored to x >= 0."""
    skull = _ellipsoid(
        point, (0.0, 0.27 * head.height, -0.17), (head.width, 0.74 * head.height, 0.84)
    )
    face = _ellipsoid(point, (0.0, -0.22, 0.0), (0.92 * head.width, 0.76, 0.66))
    jaw = (0.28 + head.jaw, -0.50 + head.jaw_height - jaw_open, 0.0)
    chin = (0.05 + 0.3 * head.jaw, -0.82 - head.chin_drop - jaw_open, 0.40)
    cheek = (0.34 + 0.5 * (head.width - 0.64), -0.17, 0.36)
    solid = smooth_min(skull, face, 0.2)
    solid = smooth_min(solid, _sphere(point, jaw, 0.19), 0.3)
    solid = smooth_min(solid, _sphere(point, chin, head.chin), 0.25)
    return smooth_min(solid, _sphere(point, cheek, 0.14 + head.cheek), 0.2)


def head_distance(figure: Figure, point: Point) -> jax.Array:
    """Field of the skin of the head with nose, eyeballs and ears."""
    identity, expression = figure.identity, figure.expression
    x, y, z = point
    mirrored = (jnp.sqrt(x * x + 4e-4), y, z)
    eyes, nose = identity.eyes, identity.nose
    smile = jnp.maximum(expression.smile, 0.0)
    solid = _skull(mirrored, identity.head, 0.07 * expression.mouth_open)
    ridge = (0.24, 0.19, 0.50 + identity.brows.ridge)
    solid = smooth_min(solid, _sphere(mirrored, ridge, 0.10), 0.18)
    apple = (0.31, -0.27 + 0.04 * smile, 0.44)
    solid = smooth_min(solid, _sphere(mirrored, apple, 0.10 + 0.03 * smile), 0.12)
    socket = _sphere(mirrored, (eyes.spacing - 0.02, 0.02, 0.78), 0.20)
    solid = smooth_max(solid, -socket, 0.10)
    ball = _sphere(mirrored, (eyes.spacing, 0.0, 0.425 + eyes.depth), 0.16)
    solid = smooth_min(solid, ball, 0.06)
    muzzle = (0.0, mouth_height(identity), 0.43)
    solid = smooth_min(solid, _ellipsoid(mirrored, muzzle, (0.30, 0.23, 0.20)), 0.14)
    tip = (0.0, -nose.length + 0.05 + nose.lift, 0.55 + nose.projection)
    stick = _segment(point, (0.0, 0.10, 0.60), tip, (nose.bridge, 0.75 * nose.tip))
    wing = (0.68 * nose.width, -nose.length + 0.03, 0.60 + 0.25 * nose.projection)
    flesh = smooth_min(_sphere(point, tip, nose.tip), stick, 0.07)
    flesh = smooth_min(flesh, _sphere(mirrored, wing, 0.40 * nose.width + 0.01), 0.07)
    solid = smooth_min(solid, flesh, 0.09)
    size = identity.head.ear
    ear = (identity.head.width + 0.02, -0.06, -0.14 - 0.3 * (mirrored[0] - 0.7))
    shell = _ellipsoid(mirrored, ear, (0.06 + 0.02 * size, 0.21 * size, 0.12 * size))
    return smooth_min(solid, shell, 0.05)


def body_distance(figure: Figure, point: Point) -> jax.Array:
    """Field of neck and shoulders; point in camera coordinates relative to the head."""
    male = figure.identity.traits.male
    top = tuple(figure.rotation @ jnp.array([0.0, -0.5, -0.22]))
    width = 0.33 + 0.07 * male
    neck = _segment(point, top, (0.0, -1.7, -0.38), (width, width + 0.06))
    shoulders = _ellipsoid(point, (0.0, -2.02, -0.42), (1.5 + 0.2 * male, 0.7, 0.5))
    return smooth_min(neck, shoulders, 0.35)


def hair_distance(hair: Hair, head: Head, point: Point) -> jax.Array:
    """Field of the hair: a cap around the skull, tresses, a bun, and the face left open."""
    x, y, z = point
    volume = hair.volume
    cap = _ellipsoid(
        point,
        (0.0, 0.29 * head.height, -0.18),
        (head.width + 0.75 * volume, 0.74 * head.height + volume, 0.84 + volume),
    )
    nape = (-0.12 - y + 0.55 * z) * 0.85
    cap = smooth_max(cap, nape, 0.1)
    fall = 0.45 + 0.85 * hair.length
    tress = _ellipsoid(
        point,
        (0.0, 0.35 - fall, -0.22),
        (head.width + 0.8 * volume + 0.06, 0.35 + fall, 0.48 + volume),
    )
    tress = jnp.where(hair.length > 0, tress, 1.0)
    bun = _sphere(point, (0.0, 1.08 * head.height + 0.04, -0.35), 0.27 * hair.bun)
    bun = jnp.where(hair.bun > 0, bun, 1.0)
    solid = smooth_min(smooth_min(cap, tress, 0.12), bun, 0.06)
    bumps = _ripple(1.8 * x + 0.5 * z) * _ripple(1.6 * y + 0.3 * x) * _ripple(1.8 * z)
    solid = solid - 0.05 * hair.curl * bumps
    aside = x - 0.5 * hair.part * jnp.maximum(y - 0.2, 0.0)
    rise = jnp.maximum(y + 0.30, 0.0) / (hair.hairline + 0.30)
    width = hair.temple + 0.02
    opening = ((aside / width) ** 2 + rise * rise - 1.0) * 0.27
    opening = smooth_max(opening, -0.03 - z, 0.1)
    return smooth_max(solid, -opening, 0.12)


def bump(figure: Figure, point: Point) -> jax.Array:
    """Fine relief of the face (added to its distance for normals only): lips and folds."""
    identity, expression = figure.identity, figure.expression
    x, y, z = point
    side = jnp.abs(x)
    smile = jnp.maximum(expression.smile, 0.0)
    mouth = identity.mouth
    level = y - mouth_height(identity) - 0.9 * expression.smile * x * x
    inside = jnp.exp(-((x / (1.1 * mouth.width)) ** 4))
    gap = 0.10 * expression.mouth_open
    upper = jnp.exp(-(((level - 0.5 * mouth.upper) / (0.6 * mouth.upper)) ** 2))
    lower = jnp.exp(-(((level + gap + 0.5 * mouth.lower) / (0.6 * mouth.lower)) ** 2))
    lips = inside * (0.02 * upper + 0.03 * lower)
    start, end = -identity.nose.length + 0.06, mouth_height(identity) - 0.06
    run = jnp.clip((start - y) / (start - end), 0.0, 1.0)
    fold_x = identity.nose.width + 0.06 + (mouth.width - identity.nose.width + 0.06) * run
    ends = jnp.exp(-(((y - 0.5 * (start + end)) / (0.7 * (start - end))) ** 4))
    depth = 0.003 + 0.014 * smile + 0.012 * identity.skin.wrinkles
    fold = depth * ends * jnp.exp(-(((side - fold_x) / 0.035) ** 2))
    philtrum = 0.008 * jnp.exp(-((x / 0.03) ** 2) - ((level - 0.12) / 0.06) ** 2)
    band = jnp.exp(-(((y - 0.45) / 0.12) ** 4) - (x / 0.4) ** 4)
    worry = identity.skin.wrinkles + 0.3 * jnp.maximum(expression.brow_raise, 0.0)
    lines = 0.004 * worry * band * jnp.sin(2 * math.pi * 11.0 * (y + 0.12 * x * x))
    return jnp.where(z > FACE_FRONT, fold + philtrum + lines - lips, 0.0)
