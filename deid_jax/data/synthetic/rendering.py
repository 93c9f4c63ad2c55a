"""Rendering of synthetic persons: ray marching, shading, and a camera model.

`render` is a pure function of an identity, a variation and the size; `vmap` it over the first
two. The image is rendered at 1.5 times its size and filtered down.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.data.synthetic import paint, scenery
from deid_jax.data.synthetic.geometry import (
    Figure,
    Point,
    body_distance,
    bump,
    hair_distance,
    head_distance,
    rotation_matrix,
    smooth_min,
    stride,
    to_head,
)
from deid_jax.data.synthetic.identity import Identity
from deid_jax.data.synthetic.texture import cover, mix, tone, white_noise
from deid_jax.data.synthetic.variation import Camera, Light, Variation

_COARSENING = 2  # of the grid on which shadows are found
_MARCH_STEPS = 28
_DISTANCE = 6.5  # of the camera from the head
_HALF_VIEW = 1.30  # half of the image's height at the head
_NORMAL_STEP = 0.012


class _Layers(NamedTuple):
    """Distances to the three materials."""

    head: jax.Array
    body: jax.Array
    hair: jax.Array


def _layers(figure: Figure, point: Point) -> _Layers:
    """Signed distances at camera coordinates."""
    local = to_head(figure, point)
    relative = tuple(p - figure.centre[i] for i, p in enumerate(point))
    identity = figure.identity
    return _Layers(
        head_distance(figure, local),
        body_distance(figure, relative),  # type: ignore[arg-type]
        hair_distance(identity.hair, identity.head, local),
    )


def _distance(figure: Figure, point: Point) -> jax.Array:
    """Distance to the nearest surface."""
    layers = _layers(figure, point)
    return jnp.minimum(smooth_min(layers.head, layers.body, 0.06), layers.hair)


def _march(figure: Figure, u: jax.Array, v: jax.Array) -> Point:
    """Sphere tracing from a plane before the face; points that miss end far behind.

    Steps have a minimum length, which falls to 0, so that rays along a surface get past it.
    """
    slope = _HALF_VIEW / _DISTANCE
    dx, dy = u * slope, v * slope
    norm = jax.lax.rsqrt(dx * dx + dy * dy + 1.0)
    direction = (dx * norm, dy * norm, -norm)

    def at(t: jax.Array) -> Point:
        return t * direction[0], t * direction[1], _DISTANCE + t * direction[2]

    def step(i: jax.Array, t: jax.Array) -> jax.Array:
        field = _distance(figure, at(t))
        least = jnp.where(field > 0.004, 0.035 * (1.0 - i / _MARCH_STEPS), -0.1)
        return t + jnp.maximum(stride(field), least)

    start = (_DISTANCE - 1.15) / norm
    return at(jax.lax.fori_loop(0, _MARCH_STEPS, step, start))


def _normal(figure: Figure, point: Point) -> tuple[Point, jax.Array]:
    """Unit normal by four distances at the corners of a tetrahedron, and their mean."""
    signs = jnp.array([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])

    def probe(sums: jax.Array, sign: jax.Array) -> tuple[jax.Array, None]:
        moved = _moved(point, _NORMAL_STEP, sign)
        value = _distance(figure, moved) + bump(figure, to_head(figure, moved))
        weights = jnp.stack([sign[0], sign[1], sign[2], jnp.full_like(sign[0], 0.25)])
        return sums + weights[:, None] * value[None], None

    (x, y, z, mean), _ = jax.lax.scan(probe, jnp.zeros((4, point[0].size)), signs)
    norm = jax.lax.rsqrt(x * x + y * y + z * z + 1e-12)
    return (x * norm, y * norm, z * norm), mean


def _moved(point: Point, length: jax.Array | float, along: jax.Array | Point) -> Point:
    """The points `point + length · along`."""
    x, y, z = point
    return x + length * along[0], y + length * along[1], z + length * along[2]


def _visibility(figure: Figure, point: Point, normal: Point, aim: jax.Array) -> jax.Array:
    """Soft shadow of the key light and ambient occlusion -> [2, N] in [0, 1].

    Shadow: the minimum of d / 0.3 t at steps t along the light, as the visible share of the
    lamp. Occlusion: lack of free distance along the normal.
    """
    base = _moved(point, 0.025, normal)
    steps = jnp.concatenate([0.05 * 1.33 ** jnp.arange(10.0), jnp.array([0.065, 0.235])])
    outwards = jnp.arange(12) >= 10  # the last two go along the normal

    def probe(sums: tuple, step: tuple) -> tuple[tuple, None]:
        least, free = sums
        t, outward = step
        along = (
            jnp.where(outward, normal[0], aim[0]),
            jnp.where(outward, normal[1], aim[1]),
            jnp.where(outward, normal[2], aim[2]),
        )
        share = _distance(figure, _moved(base, t, along)) / t
        least = jnp.minimum(least, jnp.where(outward, 1.0, share / 0.3))
        return (least, free + jnp.where(outward, 0.5 * jnp.clip(share, 0.0, 1.0), 0.0)), None

    ones = jnp.ones_like(point[0])
    (least, free), _ = jax.lax.scan(probe, (ones, 0.0 * ones), (steps, outwards))
    least = jnp.maximum(least, -1.0)
    return jnp.stack([0.25 * (1.0 + least) ** 2 * (2.0 - least), 0.25 + 0.75 * free])


def _visibility_coarse(
    figure: Figure, point: Point, normal: Point, aim: jax.Array
) -> jax.Array:
    """`_visibility` [2, N] found on every other row and column, and repeated."""
    fine = math.isqrt(point[0].size)
    size = fine // _COARSENING

    def thin(p: jax.Array) -> jax.Array:
        return p.reshape(fine, fine)[::_COARSENING, ::_COARSENING].reshape(-1)

    few = _visibility(figure, tuple(map(thin, point)), tuple(map(thin, normal)), aim)  # type: ignore[arg-type]
    few = few.reshape(2, size, size)
    return jnp.repeat(jnp.repeat(few, _COARSENING, 1), _COARSENING, 2).reshape(2, -1)


def _light_direction(light: Light) -> jax.Array:
    """Unit vector [3] to the key light in camera coordinates."""
    azimuth, elevation = jnp.deg2rad(light.azimuth), jnp.deg2rad(light.elevation)
    flat = jnp.cos(elevation)
    return jnp.stack([flat * jnp.sin(azimuth), jnp.sin(elevation), flat * jnp.cos(azimuth)])


def _dot(a: Point, b: jax.Array) -> jax.Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _lighten(surface: paint.Surface, light: Light, normal: Point, seen: jax.Array) -> jax.Array:
    """Lambert light wrapped redly around the edge of shadow, sky light, gloss, rim light."""
    aim = _light_direction(light)
    slope = _dot(normal, aim)
    wrap = jnp.array([0.22, 0.10, 0.07])[:, None]
    diffuse = jnp.clip((slope[None] + wrap) / (1.0 + wrap), 0.0, 1.0) * seen[0][None]
    sky = (0.72 + 0.28 * normal[1]) * seen[1]
    half = aim + jnp.array([0.0, 0.0, 1.0])
    half = half / jnp.linalg.norm(half)
    shine = jnp.clip(_dot(normal, half), 0.0, 1.0)
    edge = (1.0 - jnp.clip(normal[2], 0.0, 1.0)) ** 3
    gloss = surface.gloss * seen[0] * (0.16 * shine**14 + 0.22 * shine**60 + 0.06 * edge)
    lamp, ambient = tone(light.key), tone(light.ambient)
    colour = surface.colour * (lamp * diffuse + ambient * sky[None])
    rim = light.rim * edge * seen[1] * jnp.clip(0.6 - slope, 0.0, 1.0)
    return colour + lamp * gloss[None] + lamp * (surface.glint + rim)[None]


def _shade_hair(figure: Figure, local: Point, normal: Point, variation: Variation) -> tuple:
    """Hair colour, and its highlight where strands are square to the light (Kajiya-Kay)."""
    colour, strands = paint.hair(figure, local)
    aim = _light_direction(variation.light)
    half = aim + jnp.array([0.0, 0.0, 1.0])
    half = half / jnp.linalg.norm(half)
    up = figure.rotation[:, 1]
    lean = _dot(normal, up)
    along = tuple(up[i] - lean * normal[i] for i in range(3))
    norm = jax.lax.rsqrt(_dot_points(along, along) + 1e-4)
    cosine = _dot(along, half) * norm + 0.35 * (strands - 0.5)  # type: ignore[arg-type]
    band = jnp.clip(1.0 - cosine * cosine, 0.0, 1.0) ** 10
    return colour, band * (0.35 + strands)


def _dot_points(a: tuple, b: tuple) -> jax.Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _figure(identity: Identity, variation: Variation) -> Figure:
    pose = variation.pose
    centre = jnp.stack([pose.shift[0], pose.shift[1] - 0.06, jnp.zeros(())])
    return Figure(identity, variation.expression, rotation_matrix(pose), centre)


def _person(figure: Figure, variation: Variation, u: jax.Array, v: jax.Array) -> tuple:
    """Radiance [3, N] of the person and coverage [N]."""
    scale = variation.pose.scale
    point = _march(figure, u / scale, v / scale)
    normal, gap = _normal(figure, point)
    aim = _light_direction(variation.light)
    seen = _visibility_coarse(figure, point, normal, aim)
    layers, local = _layers(figure, point), to_head(figure, point)
    surface = paint.face(figure, local, aim[:2])
    relative = tuple(p - figure.centre[i] for i, p in enumerate(point))
    clothes = scenery.clothing(variation.wear, relative)  # type: ignore[arg-type]
    body = cover(layers.body - layers.head, 0.02)
    dressed = body * clothes[1]
    skin = mix(surface.colour, tone(figure.identity.skin.colour), body)
    colour = mix(skin, clothes[0], dressed)
    hair, band = _shade_hair(figure, local, normal, variation)
    rough = 0.022 * (2.0 * paint.hair_edge(local) - 1.0)
    hairy = cover(layers.hair - jnp.minimum(layers.head, layers.body) + rough, 0.035)
    colour = mix(colour, hair, hairy)
    bare = (1 - hairy) * (1 - dressed)
    lit = paint.Surface(colour, surface.gloss * bare, surface.glint * bare * (1 - body))
    radiance = _lighten(lit, variation.light, normal, seen)
    sheen = (0.06 + 0.9 * figure.identity.hair.colour)[:, None] * tone(variation.light.key)
    radiance = radiance + 0.30 * sheen * (hairy * band * seen[0] * seen[1])[None]
    radiance = scenery.glasses(radiance, figure, variation, (point, u, v))
    return radiance, cover(gap - 0.045, 0.03)


def _fine(size: int) -> int:
    """The rows and columns rendered for an image: 1.5 times as many, an even number."""
    return _COARSENING * math.ceil(1.5 * size / _COARSENING)


def _filter(size: int, blur: jax.Array) -> jax.Array:
    """Rows of a Gaussian filter [size, supersampled size]: down-sampling and lens blur."""
    fine = _fine(size)
    places = (jnp.arange(fine) + 0.5) / fine
    centres = (jnp.arange(size) + 0.5) / size
    width = jnp.sqrt(blur**2 + (0.42 / size) ** 2)
    weights = jnp.exp(-0.5 * ((places[None] - centres[:, None]) / width) ** 2)
    return weights / jnp.sum(weights, 1, keepdims=True)


def _develop(radiance: jax.Array, camera: Camera) -> jax.Array:
    """Linear [H, W, 3] -> sRGB in [0, 1]: exposed, balanced, compressed, with grain."""
    light = radiance * camera.exposure * camera.white[None, None]
    light = 1.0 - jnp.exp(-1.35 * light)
    grey = jnp.mean(light, -1, keepdims=True)
    light = jnp.clip(grey + camera.saturation * (light - grey), 1e-4, 1.0)
    image = light ** (1 / 2.2)
    image = 0.5 + camera.contrast * (image - 0.5)
    grain = white_noise(camera.seed, image.shape)
    return jnp.clip(image + camera.noise * grain, 0.0, 1.0)


def rays(image_size: int) -> tuple[jax.Array, jax.Array]:
    """Positions (u, v) in [-1, 1], v upwards, of all pixels rendered for an image, each [N]."""
    fine = _fine(image_size)
    line = (jnp.arange(fine) + 0.5) / fine * 2 - 1
    u, v = jnp.meshgrid(line, -line)
    return u.reshape(-1), v.reshape(-1)


def render(
    identity: Identity,
    variation: Variation,
    image_size: int,
    places: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Renders one image, float32[image_size, image_size, 3], sRGB in [0, 1].

    `places` is `rays(image_size)`. Passing it as an argument to the jitted caller halves the
    time on a CPU, where XLA would otherwise fuse it into the shading and recompute it.
    """
    u, v = rays(image_size) if places is None else places
    fine = _fine(image_size)
    figure = _figure(identity, variation)
    radiance, coverage = _person(figure, variation, u, v)
    image = mix(scenery.background(variation.scene, u, v), radiance, coverage)
    rows = _filter(image_size, variation.camera.blur)
    planes = jnp.einsum("ih,chw,jw->ijc", rows, image.reshape(3, fine, fine), rows)
    return _develop(planes, variation.camera)
