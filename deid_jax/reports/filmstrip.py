"""The evolution figure: how an attack's pictures come about, as a filmstrip and as a GIF.

Pictures are uint8[H, W, 3]. Below each frame stands whom the recogniser names in it, and with
which probability: dark the true person, red another.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from deid_jax.reports.drawing import GAP, HEADING, INK, LINE, PAPER, WRONG, write

_FRAME = 136
_CAPTION = 2 * LINE + 8
_MILLISECONDS = 160
_LAST_MILLISECONDS = 2500


class Frame(NamedTuple):
    """One picture at one moment.

    Attributes:
      picture: uint8[H, W, 3].
      named: whom the recogniser names.
      probability: the softmax probability of that name.
    """

    picture: np.ndarray
    named: str
    probability: float


class Film(NamedTuple):
    """The moments of one picture.

    Attributes:
      person: who is shown.
      original: the picture itself.
      frames: one per moment.
    """

    person: str
    original: Frame
    frames: Sequence[Frame]


def moments(num_steps: int, count: int) -> tuple[int, ...]:
    """Up to `count` numbers of steps from 0 to `num_steps`, evenly spaced on a log scale.

    What noise is left shrinks by a factor a step: evenly spaced moments would show it in
    the first two frames only.
    """
    if num_steps == 0 or count < 2:
        return (num_steps,)
    spaced = np.round(np.geomspace(1, num_steps, count - 1)).astype(int)
    return (0, *(int(n) for n in np.unique(spaced)))


def draw(films: Sequence[Film], steps: Sequence[int]) -> np.ndarray:
    """Draws the filmstrip: a row per picture, a column per moment, the original last.

    Args:
      films: at least one; each has a frame per entry of `steps`.
      steps: the numbers of steps that the frames stand for.

    Returns:
      uint8[H, W, 3].
    """
    columns = len(steps) + 1
    row_height = _FRAME + _CAPTION
    size = (
        columns * (_FRAME + GAP) + 3 * GAP,
        GAP + HEADING + len(films) * row_height,
    )
    strip = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(strip)
    lefts = [GAP + column * (_FRAME + GAP) for column in range(columns)]
    lefts[-1] += GAP
    headings = [*(f"{n} step{'s' * (n != 1)}" for n in steps), "original"]
    for left, heading in zip(lefts, headings, strict=True):
        write(pen, (left, GAP), heading, size=15, width=_FRAME)
    for row, film in enumerate(films):
        top = GAP + HEADING + row * row_height
        for left, frame in zip(lefts, [*film.frames, film.original], strict=True):
            _draw_frame(strip, pen, film.person, frame, (left, top))
    return np.asarray(strip)


def animate(films: Sequence[Film], steps: Sequence[int]) -> bytes:
    """The films side by side as a GIF that repeats, with a pause at the end.

    Args:
      films: see `draw`.
      steps: see `draw`.
    """
    size = (len(films) * (_FRAME + GAP) + GAP, GAP + HEADING + _FRAME + _CAPTION)
    images = []
    for moment, number in enumerate(steps):
        image = Image.new("RGB", size, PAPER)
        pen = ImageDraw.Draw(image)
        write(pen, (GAP, GAP), f"step {number} of {steps[-1]}", size=15, width=size[0])
        for column, film in enumerate(films):
            corner = (GAP + column * (_FRAME + GAP), GAP + HEADING)
            _draw_frame(image, pen, film.person, film.frames[moment], corner)
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
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    person: str,
    frame: Frame,
    corner: tuple[int, int],
) -> None:
    left, top = corner
    size = (_FRAME, _FRAME)
    # Nearest: noise is to look like noise.
    canvas.paste(Image.fromarray(frame.picture).resize(size, Image.Resampling.NEAREST), corner)
    ink = INK if frame.named == person else WRONG
    write(pen, (left, top + _FRAME + 3), frame.named, ink=ink, width=_FRAME)
    text = f"{frame.probability:.0%}"
    write(pen, (left, top + _FRAME + 3 + LINE), text, ink=ink, width=_FRAME)
