"""Background, clothes and glasses. Colours are linear RGB."""

import jax
import jax.numpy as jnp

from deid_jax.data.synthetic.geometry import Figure, Point
from deid_jax.data.synthetic.texture import cover, mix, tone, value_noise
from deid_jax.data.synthetic.variation import NUM_SHAPES, Scene, Variation, Wear

_EYE_DISTANCE = 6.5


def background(scene: Scene, u: jax.Array, v: jax.Array) -> jax.Array:
    """Gradient, soft shapes and stripes at image coordinates in [-1, 1] -> [3, N]."""
    c, s = jnp.cos(scene.angle), jnp.sin(scene.angle)
    along, across = c * u + s * v, c * v - s * u
    colour = mix(tone(scene.bottom), tone(scene.top), jnp.clip(0.5 + 0.5 * along, 0.0, 1.0))
    stripes = cover(jnp.sin(14.0 * across + 2.0 * scene.angle) * 0.2, 0.2)
    colour = mix(colour, 0.5 * colour, scene.stripes * stripes)
    for i in range(NUM_SHAPES):
        x, y, width, height, softness, roundness = (scene.shapes[i, k] for k in range(6))
        dx, dy = (u - x) / width, (v - y) / height
        box = jnp.maximum(jnp.abs(dx), jnp.abs(dy)) - 1.0
        disc = jnp.sqrt(dx * dx + dy * dy + 1e-9) - 1.0
        shape = jnp.where(roundness > 0.5, disc, box) * jnp.minimum(width, height)
        colour = mix(colour, tone(scene.colours[i]), 0.9 * cover(shape, softness))
    return colour


def clothing(wear: Wear, point: Point) -> tuple[jax.Array, jax.Array]:
    """Cloth colour [3, N] and where the body is dressed [N]; point relative to the head."""
    x, y, z = point
    weave = 0.85 + 0.3 * value_noise(24.0 * x, 24.0 * y)
    neck = -1.22 - 0.35 * wear.neckline * jnp.clip(1.0 - jnp.abs(x) / 0.45, 0.0, 1.0)
    edge = y - neck + 0.1 * jnp.minimum(z, 0.0)
    cloth = tone(wear.cloth) * weave[None]
    collar = cover(jnp.abs(edge + 0.05) - 0.04, 0.02)
    return mix(cloth, tone(wear.accent) * weave[None], collar), cover(edge, 0.02)


def _frame(wear: Wear, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coverage of the frame and of the lenses in the plane of the glasses."""
    side = jnp.abs(x)
    dx, dy = jnp.abs(side - 0.28), jnp.abs(y + 0.01)
    corner = 0.05 + 0.10 * wear.roundness
    half = (0.195, 0.145 + 0.05 * wear.roundness)
    qx = jnp.maximum(dx - half[0] + corner, 0.0)
    qy = jnp.maximum(dy - half[1] + corner, 0.0)
    inner = jnp.maximum(dx - half[0], dy - half[1])
    lens = jnp.where(inner < -corner, inner, jnp.sqrt(qx * qx + qy * qy + 1e-9) - corner)
    ring = jnp.abs(lens) - wear.thickness
    bridge = jnp.maximum(side - 0.09, jnp.abs(y - 0.03) - wear.thickness)
    hinge = jnp.maximum(jnp.abs(side - 0.56) - 0.06, jnp.abs(y - 0.06) - wear.thickness)
    whole = jnp.minimum(ring, jnp.minimum(bridge, hinge))
    return cover(whole, 0.012), cover(lens, 0.012)


def glasses(radiance: jax.Array, figure: Figure, variation: Variation, ray: tuple) -> jax.Array:
    """Puts glasses before the face: a plane at the nose's bridge, seen along each ray.

    `ray` is the surface point in camera coordinates and (u, v); the plane is hidden where the
    surface is in front of it.
    """
    (px, py, pz), _, _ = ray
    wear, R, c = variation.wear, figure.rotation, figure.centre
    normal = R[:, 2]
    plane = c + R @ jnp.array([0.0, 0.0, 0.69])
    eye = jnp.array([0.0, 0.0, _EYE_DISTANCE])
    dx, dy, dz = px - eye[0], py - eye[1], pz - eye[2]
    slope = dx * normal[0] + dy * normal[1] + dz * normal[2]
    t = jnp.dot(plane - eye, normal) / jnp.minimum(slope, -1e-3)
    hit = (eye[0] + t * dx - plane[0], eye[1] + t * dy - plane[1], eye[2] + t * dz - plane[2])
    x = R[0, 0] * hit[0] + R[1, 0] * hit[1] + R[2, 0] * hit[2]
    y = R[0, 1] * hit[0] + R[1, 1] * hit[1] + R[2, 1] * hit[2]
    shown = wear.glasses * cover((t - 1.0) * 6.0, 0.02)
    frame, lens = _frame(wear, x, y)
    lamp = tone(variation.light.key + variation.light.ambient)
    streak = cover(jnp.abs(x * 0.6 + y - 0.05 - 0.1 * jnp.sign(x)) - 0.03, 0.06)
    tinted = radiance * (1.0 - wear.tint) + 0.06 * lamp * streak[None]
    radiance = mix(radiance, tinted, shown * lens)
    shine = 0.55 + 0.6 * jnp.clip(y / 0.2, 0.0, 1.0)
    return mix(radiance, tone(wear.frame) * lamp * shine[None], shown * frame)
