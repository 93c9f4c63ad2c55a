"""The evolution figure: how an attack's images change step by step, as a filmstrip and a GIF.

Images are uint8[H, W, 3]. The caption of each frame is the person that the recogniser predicts
and the probability, in dark if that is the true person and in red otherwise.
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from deid_jax.pixels import Pixels
from deid_jax.reports.drawing import GAP, HEADING, INK, LINE, PAPER, WRONG, write_line
from deid_jax.reports.tables import percent

_FRAME = 136
_CAPTION = 2 * LINE + 8
_RED = "red: misclassified"
_MILLISECONDS = 160
_LAST_MILLISECONDS = 2500


@dataclasses.dataclass(frozen=True)
class FilmFrame:
    """An image after some steps, and the person predicted for it with what probability."""

    image: Pixels
    prediction: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Film:
    """The frames of one image, one per number of steps; `original` is before the attack."""

    person: str
    original: FilmFrame
    frames: Sequence[FilmFrame]


def moments(num_steps: int, count: int) -> tuple[int, ...]:
    """Up to `count` numbers of steps from 0 to `num_steps`, evenly spaced on a log scale.

    The remaining noise shrinks by a constant factor per step: with linear spacing only the
    first two frames would show it.
    """
    if num_steps == 0 or count < 2:
        return (num_steps,)
    spaced = np.round(np.geomspace(1, num_steps, count - 1)).astype(int)
    return (0, *(int(n) for n in np.unique(spaced)))


def draw_filmstrip(films: Sequence[Film], steps: Sequence[int]) -> Pixels:
    """Draws the filmstrip: a row per image, a column per number of steps, the original last."""
    columns = len(steps) + 1
    row_height = _FRAME + _CAPTION
    above = GAP + 2 * HEADING
    size = (columns * (_FRAME + GAP) + 3 * GAP, above + len(films) * row_height)
    strip = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(strip)
    write_line(pen, (GAP, GAP), f"predicted person; {_RED}", width=size[0] - 2 * GAP)
    lefts = [GAP + column * (_FRAME + GAP) for column in range(columns)]
    lefts[-1] += GAP
    headings = [*(f"{n} step{'s' * (n != 1)}" for n in steps), "original"]
    for left, heading in zip(lefts, headings, strict=True):
        write_line(pen, (left, GAP + HEADING), heading, size=14, width=_FRAME)
    for row, film in enumerate(films):
        top = above + row * row_height
        for left, frame in zip(lefts, [*film.frames, film.original], strict=True):
            _draw_frame(strip, film.person, frame, (left, top))
    return np.asarray(strip)


def draw_animation(films: Sequence[Film], steps: Sequence[int]) -> bytes:
    """The films side by side as a GIF that repeats, with a pause at the end."""
    size = (len(films) * (_FRAME + GAP) + GAP, GAP + HEADING + _FRAME + _CAPTION)
    images = []
    for moment, number in enumerate(steps):
        image = Image.new("RGB", size, PAPER)
        pen = ImageDraw.Draw(image)
        heading = f"step {number} of {steps[-1]}; {_RED}"
        write_line(pen, (GAP, GAP), heading, size=14, width=size[0])
        for column, film in enumerate(films):
            corner = (GAP + column * (_FRAME + GAP), GAP + HEADING)
            _draw_frame(image, film.person, film.frames[moment], corner)
        images.append(image.quantize(256, method=Image.Quantize.MEDIANCUT))
    file = io.BytesIO()
    images[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[_MILLISECONDS] * (len(images) - 1) + [_LAST_MILLISECONDS],
        loop=0,
    )
    return file.getvalue()


def _draw_frame(
    canvas: Image.Image, person: str, frame: FilmFrame, corner: tuple[int, int]
) -> None:
    pen, (left, top) = ImageDraw.Draw(canvas), corner
    # Nearest-neighbour scaling, so that noise looks like noise.
    image = Image.fromarray(frame.image).resize((_FRAME, _FRAME), Image.Resampling.NEAREST)
    canvas.paste(image, corner)
    ink = INK if frame.prediction == person else WRONG
    write_line(pen, (left, top + _FRAME + 3), frame.prediction, ink=ink, width=_FRAME)
    text = percent(frame.probability, 0)
    write_line(pen, (left, top + _FRAME + 3 + LINE), text, ink=ink, width=_FRAME)
