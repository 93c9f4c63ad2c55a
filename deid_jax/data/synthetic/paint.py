"""The colours of a face, painted on its surface in head coordinates.

Each function takes the colour [3, N] painted so far and returns it with one feature added.
Features are mirrored in x; eyes follow the gaze. Distances are head units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.data.synthetic.geometry import FACE_FRONT, Figure, Point, mouth_height
from deid_jax.data.synthetic.identity import NUM_MOLES, Identity
from deid_jax.data.synthetic.texture import cover, gaussian, mix, tone, value_noise

_SCLERA = jnp.array([0.74, 0.69, 0.66])
_TEETH = jnp.array([0.80, 0.75, 0.66])
_LASHES = jnp.array([0.015, 0.011, 0.010])


class Surface(NamedTuple):
    """Albedo [3, N], share of glossy reflection [N], light added on top [N]."""

    colour: jax.Array
    gloss: jax.Array
    glint: jax.Array


def _complexion(identity: Identity, point: Point) -> jax.Array:
    """Bare skin: colour, red cheeks and nose, shaded eye sockets, freckles, moles."""
    x, y, _ = point
    side, skin = jnp.abs(x), identity.skin
    colour = tone(skin.colour) * (0.94 + 0.12 * value_noise(9.0 * x, 9.0 * y))[None]
    red = gaussian(side - 0.36, 0.16) * gaussian(y + 0.27, 0.14)
    red = red + 0.8 * gaussian(x, 0.1) * gaussian(y + identity.nose.length - 0.04, 0.1)
    blush = jnp.array([1.02, 0.78, 0.80])
    colour = mix(colour, colour * tone(blush), skin.blush * jnp.clip(red, 0.0, 1.0))
    bags = gaussian(side - identity.eyes.spacing, 0.13) * gaussian(y + 0.13, 0.05)
    inner = gaussian(side - 0.13, 0.07) * gaussian(y - 0.02, 0.09)
    dark = (0.08 + 0.22 * skin.wrinkles) * bags + 0.26 * inner
    colour = colour * (1.0 - dark)[None]
    spots = jnp.clip(value_noise(34.0 * x + 7.0, 34.0 * y) * 3.4 - 2.1, 0.0, 1.0)
    where = gaussian(side - 0.22, 0.26) * gaussian(y + 0.2, 0.2)
    brown = tone(jnp.array([0.62, 0.45, 0.36]))
    colour = mix(colour, colour * brown, skin.freckles * spots * where)
    for i in range(NUM_MOLES):
        mole_x, mole_y, size = (skin.moles[i, k] for k in range(3))
        far = jnp.sqrt((x - mole_x) ** 2 + (y - mole_y) ** 2 + 1e-9)
        seen = cover(far - size, 0.012) * (size > 0.022)
        colour = mix(colour, 0.22 * colour, seen)
    return colour


def _beard(colour: jax.Array, identity: Identity, point: Point) -> jax.Array:
    """Stubble, moustache and beard in a dark hair colour, with hairy edges."""
    x, y, _ = point
    side, beard, mouth = jnp.abs(x), identity.beard, mouth_height(identity)
    fuzz = value_noise(55.0 * x, 16.0 * y) - 0.5
    level = y - mouth
    edge = jnp.maximum(0.0, side - 0.18)
    whiskers = cover(y + 0.36 - 0.9 * edge * edge - 0.5 * edge + 0.10 * fuzz, 0.16)
    cheek = cover(0.32 - side + 0.5 * jnp.maximum(level + 0.05, 0.0) - 0.1 * fuzz, 0.14)
    bottom = cover(level + 0.17 + 0.06 * fuzz, 0.1)
    jaw = whiskers * jnp.maximum(cheek, bottom)
    lip = jnp.abs(level - 0.10 + 0.35 * side * side) - 0.045
    lip = cover(jnp.maximum(lip, side - identity.mouth.width - 0.04) + 0.03 * fuzz, 0.05)
    round_chin = jnp.sqrt((side / 0.2) ** 2 + ((level + 0.30) / 0.17) ** 2 + 1e-9) - 1.0
    chin = cover(0.16 * round_chin + 0.05 * fuzz, 0.08)
    shadow = whiskers * jnp.maximum(bottom, jnp.maximum(cheek, lip))
    full = jnp.maximum(beard.jaw * jaw, jnp.maximum(beard.moustache * lip, beard.chin * chin))
    hair = tone(0.75 * identity.hair.colour) * (0.75 + 0.8 * (fuzz + 0.5))[None]
    grey = tone(identity.skin.colour * jnp.array([0.5, 0.5, 0.56]))
    colour = mix(colour, grey, 0.55 * beard.stubble * shadow)
    return mix(colour, hair, 0.9 * full * (0.75 + 0.5 * fuzz))


def _brows(colour: jax.Array, figure: Figure, point: Point) -> jax.Array:
    """Eyebrows of single hairs, thinner at the outer end."""
    x, y, _ = point
    brows, raised = figure.identity.brows, figure.expression.brow_raise
    along = jnp.abs(x) - figure.identity.eyes.spacing - 0.005
    run = along / brows.length
    arch = brows.arch * (1.0 - (run - 0.3) ** 2) + brows.slope * along
    height = y - brows.height - 0.035 * raised - arch
    thick = brows.thickness * jnp.clip(1.05 - 0.45 * run - 0.35 * run * run, 0.0, 1.3)
    strands = value_noise(70.0 * along + 25.0 * height, 30.0 * height + 9.0) - 0.5
    distance = jnp.maximum(jnp.abs(height) - thick, jnp.abs(along) - brows.length)
    where = cover(distance + 0.018 * strands, 0.028) * (0.8 + 0.5 * strands)
    tint = jnp.minimum(figure.identity.hair.colour, 0.22) * 0.6
    return mix(colour, tone(tint), brows.density * jnp.clip(where, 0.0, 1.0))


class _Lids(NamedTuple):
    """Eye coordinates [N]: along and above the middle, heights of both lids, side -1 or 1."""

    along: jax.Array
    above: jax.Array
    upper: jax.Array
    lower: jax.Array
    side: jax.Array


def _lids(figure: Figure, point: Point) -> _Lids:
    """Where a point is relative to the almond of the nearer eye."""
    x, y, _ = point
    eyes, expression = figure.identity.eyes, figure.expression
    along = jnp.abs(x) - eyes.spacing
    above = y - eyes.tilt * along
    run = jnp.clip(along / eyes.width, -1.0, 1.0)
    smile = jnp.maximum(expression.smile, 0.0)
    wide = eyes.opening * (expression.eyes_open - 0.12 * smile)
    upper = 0.074 * wide * (1.0 - run * run) * (1.0 - 0.25 * run) - 0.012 * (1 - wide)
    lower = -0.040 * (0.55 + 0.45 * wide - 0.25 * smile) * (1.0 - run * run)
    lower = jnp.minimum(lower, upper)
    return _Lids(along, above, upper, lower, jnp.sign(x))


def _eyeball(figure: Figure, lids: _Lids, aim: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sclera, iris and pupil -> colour [3, N] and the glint of the key light [N]."""
    eyes, gaze = figure.identity.eyes, figure.expression.gaze
    x = lids.side * lids.along - 0.045 * gaze[0]
    y = lids.above - 0.012 - 0.014 * gaze[1]
    far = jnp.sqrt(x * x + y * y + 1e-9)
    corner = (lids.along / eyes.width) ** 2
    white = mix(tone(_SCLERA), tone(_SCLERA * jnp.array([0.75, 0.5, 0.46])), 0.8 * corner)
    ring = 0.55 + 1.1 * gaussian(far - 0.036, 0.016) + 0.25 * value_noise(60.0 * x, 60.0 * y)
    iris = tone(eyes.iris) * ring[None] * cover(far - 0.056, 0.03)[None]
    ball = mix(white, iris, cover(far - 0.064, 0.016))
    ball = mix(ball, tone(_LASHES), cover(far - 0.026, 0.012))
    shade = 0.42 + 0.58 * jnp.clip((lids.upper - lids.above) / 0.045, 0.0, 1.0)
    spot = jnp.sqrt((x - 0.022 * aim[0]) ** 2 + (y - 0.022 * aim[1]) ** 2 + 1e-9)
    return ball * shade[None], cover(spot - 0.012, 0.012)


def _eyes(surface: Surface, figure: Figure, point: Point, aim: jax.Array) -> Surface:
    """Lids with crease and lashes around the eyeballs."""
    eyes, lids = figure.identity.eyes, _lids(figure, point)
    ball, glint = _eyeball(figure, lids, aim)
    width = jnp.abs(lids.along) - eyes.width
    crease = gaussian(lids.above - lids.upper - 0.045, 0.014) * cover(width, 0.08)
    colour = surface.colour * (1.0 - 0.5 * eyes.crease * crease)[None]
    lid = cover(jnp.abs(lids.above - lids.upper - 0.02) - 0.02, 0.03) * cover(width, 0.05)
    colour = colour * (1.0 - 0.22 * eyes.lashes * lid)[None]
    opened = jnp.maximum(lids.above - lids.upper, lids.lower - lids.above)
    seen = cover(jnp.maximum(opened, width), 0.012)
    colour = mix(colour, ball, seen)
    line = jnp.maximum(jnp.abs(lids.above - lids.upper) - 0.006 - 0.009 * eyes.lashes, width)
    colour = mix(colour, tone(_LASHES), (0.62 + 0.38 * eyes.lashes) * cover(line, 0.014))
    under = jnp.maximum(jnp.abs(lids.above - lids.lower) - 0.004, width)
    colour = mix(colour, 0.4 * colour, (0.3 + 0.4 * eyes.lashes) * cover(under, 0.014))
    gloss = surface.gloss * (1 - seen) + 0.15 * seen
    return Surface(colour, gloss, surface.glint + 0.9 * seen * glint)


def _mouth(surface: Surface, figure: Figure, point: Point) -> Surface:
    """Lips, and between them teeth and the dark of the mouth."""
    x, y, _ = point
    mouth, expression = figure.identity.mouth, figure.expression
    smile = jnp.maximum(expression.smile, 0.0)
    width = mouth.width * (1.0 + 0.22 * smile)
    run = jnp.clip(jnp.abs(x) / width, 0.0, 1.0)
    round_off = 1.0 - run * run
    level = y - mouth_height(figure.identity) - expression.smile * 0.085 * run * run
    gap = 0.115 * expression.mouth_open * jnp.sqrt(round_off) * (0.6 + 0.4 * smile)
    bow = 1.0 - mouth.bow * gaussian(x, 0.03) + 0.12 * gaussian(jnp.abs(x) - 0.06, 0.04)
    upper = mouth.upper * (1.0 - 0.2 * smile) * bow * jnp.sqrt(round_off)
    lower = mouth.lower * (1.0 - 0.15 * smile) * jnp.sqrt(round_off)
    beyond = jnp.abs(x) - width
    rim = jnp.maximum(jnp.maximum(level - upper, -gap - lower - level), beyond)
    lips = cover(rim, 0.022)
    stripes = 0.92 + 0.16 * value_noise(90.0 * x, 4.0 * level)
    shade = jnp.where(level > -0.5 * gap, 0.80, 1.05)
    colour = mix(surface.colour, tone(mouth.colour) * (stripes * shade)[None], 0.9 * lips)
    inside = cover(jnp.maximum(jnp.maximum(level, -gap - level), beyond), 0.014)
    inside = inside * jnp.clip(gap / 0.02, 0.0, 1.0)
    teeth = cover(jnp.maximum(-level - 0.075, run * 0.3 - 0.24), 0.012)
    grooves = 1.0 - 0.22 * gaussian(jnp.abs(jnp.mod(x + 0.03, 0.06) - 0.03) - 0.03, 0.006)
    throat = tone(jnp.array([0.09, 0.02, 0.02]))
    bright = grooves * jnp.clip(0.55 + level / -0.04, 0.5, 1.0) * (1.0 - 0.5 * run * run)
    inner = mix(throat + 0.0 * colour, tone(_TEETH) * bright[None], teeth)
    colour = mix(colour, inner, inside)
    line = jnp.maximum(jnp.abs(level + 0.5 * gap) - 0.006, beyond - 0.01)
    closed = (1.0 - jnp.clip(gap / 0.02, 0.0, 1.0)) * cover(line, 0.018)
    colour = mix(colour, 0.22 * colour, 0.8 * closed)
    return Surface(colour, surface.gloss + 0.5 * lips * (1 - inside), surface.glint)


def _nostrils(colour: jax.Array, identity: Identity, point: Point) -> jax.Array:
    """Two dark openings below the nose."""
    x, y, z = point
    nose = identity.nose
    dx = (jnp.abs(x) - 0.5 * nose.width) / 0.8
    dy = (y + nose.length + 0.015) / 0.55
    dz = (z - 0.60 - 0.5 * nose.projection) / 1.6
    far = jnp.sqrt(dx * dx + dy * dy + dz * dz + 1e-9)
    return mix(colour, 0.12 * colour, 0.85 * cover(far - 0.045, 0.04))


def face(figure: Figure, point: Point, aim: jax.Array) -> Surface:
    """Skin with all features; aim [2] is the position of the eyes' glint.

    Features are on the front of the head only.
    """
    identity = figure.identity
    bare = _complexion(identity, point)
    colour = _nostrils(_beard(bare, identity, point), identity, point)
    colour = _brows(colour, figure, point)
    gloss = jnp.full_like(point[0], 0.5)
    surface = _eyes(Surface(colour, gloss, jnp.zeros_like(gloss)), figure, point, aim)
    surface = _mouth(surface, figure, point)
    front = cover(FACE_FRONT - point[2], 0.05)
    return Surface(mix(bare, surface.colour, front), surface.gloss, surface.glint * front)


def hair(figure: Figure, point: Point) -> tuple[jax.Array, jax.Array]:
    """Hair colour [3, N] of strands that run down from the crown, and their relief [N]."""
    x, y, z = point
    style = figure.identity.hair
    turn = jnp.arctan2(x - 0.25 * style.part, z + 0.25)
    wave = 0.35 * style.curl * jnp.sin(9.0 * y + 2.0 * x)
    fine = value_noise(26.0 * turn + 6.0 * wave, 3.0 * y + 4.0 * style.curl * z)
    coarse = value_noise(9.0 * turn + 4.0 * wave + 40.0, 2.0 * y)
    strands = 0.55 * fine + 0.45 * coarse
    return tone(style.colour) * (0.55 + 0.95 * strands)[None], strands


def hair_edge(point: Point) -> jax.Array:
    """Noise in [0, 1] that frays the hairline, stretched along the strands."""
    x, y, z = point
    return value_noise(30.0 * x + 5.0 * z, 7.0 * y + 30.0 * z)
