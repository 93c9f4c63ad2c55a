"""The sheet of a run: original | de-identified | perturbation ×k, one row a picture.

Pictures are uint8[H, W, 3].
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE = 192
_GAP = 10
_HEADING = 26
_LINE = 17
_CAPTION = 2 * _LINE + 10
_INK = (32, 32, 32)
_WRONG = (176, 0, 32)
_PAPER = (255, 255, 255)


class Row(NamedTuple):
    """One picture of the sheet.

    Attributes:
      original: uint8[H, W, 3].
      modified: uint8[H, W, 3].
      true_name: the person shown.
      before: (name, probability) that the recogniser gives the original.
      after: the same for the modified picture.
    """

    original: np.ndarray
    modified: np.ndarray
    true_name: str
    before: tuple[str, float]
    after: tuple[str, float]


def amplification(rows: Sequence[Row]) -> int:
    """The k of 1, 2, 5, 10, 20, 50, 100 that best fills the grey scale without clipping much.

    The 99th percentile of |x̂ − x| over all rows, times k, stays within half the range.
    """
    changes = np.concatenate(
        [np.abs(row.modified.astype(float) - row.original).ravel() for row in rows]
    )
    strong = max(float(np.percentile(changes, 99)), 1.0)
    return max([k for k in (1, 2, 5, 10, 20, 50, 100) if k * strong <= 127.5], default=1)


def amplified(row: Row, factor: int) -> np.ndarray:
    """Mid-grey plus k·(x̂ − x), clipped: uint8[H, W, 3]."""
    change = row.modified.astype(float) - row.original
    return np.clip(np.round(127.5 + factor * change), 0, 255).astype(np.uint8)


def draw(rows: Sequence[Row], *, method: str) -> np.ndarray:
    """Draws the sheet.

    Args:
      rows: at least one picture.
      method: the method's name, for the heading.

    Returns:
      uint8[H, W, 3].
    """
    factor = amplification(rows)
    headings = ("original", f"de-identified ({method})", f"perturbation x{factor}")
    blocks = 1 if len(rows) <= 4 else 2
    per_block = -(-len(rows) // blocks)
    block_width = 3 * (_TILE + _GAP) + _GAP
    row_height = _TILE + _CAPTION
    size = (blocks * block_width + _GAP, _GAP + _HEADING + per_block * row_height)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        block, line = divmod(number, per_block)
        left, top = 2 * _GAP + block * block_width, _GAP + _HEADING + line * row_height
        if line == 0:
            for column, heading in enumerate(headings):
                x = left + column * (_TILE + _GAP)
                _write(pen, (x, _GAP), heading, size=15)
        _draw_row(sheet, pen, row, (left, top), factor)
    return np.asarray(sheet)


def _draw_row(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Row,
    corner: tuple[int, int],
    factor: int,
) -> None:
    """Draws three tiles side by side; below them who it is and whom the recogniser names."""
    left, top = corner
    tiles = (row.original, row.modified, amplified(row, factor))
    for column, tile in enumerate(tiles):
        scale = Image.Resampling.NEAREST if column == 2 else Image.Resampling.BICUBIC
        picture = Image.fromarray(tile).resize((_TILE, _TILE), scale)
        sheet.paste(picture, (left + column * (_TILE + _GAP), top))
    below = top + _TILE + 3
    _write(pen, (left, below), row.true_name)
    for column, (name, probability) in enumerate((row.before, row.after)):
        corner = (left + column * (_TILE + _GAP), below + _LINE)
        ink = _INK if name == row.true_name else _WRONG
        _write(pen, corner, f"named {name}", f" {probability:.0%}", ink=ink)


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    ending: str = "",
    *,
    ink: tuple[int, int, int] = _INK,
    size: int = 13,
) -> None:
    """Writes one line no wider than a tile, `text` cut with "..." if it must be."""
    font = _font(size)
    text = _drawable(text)
    shown, length = text + ending, len(text)
    while length and font.getlength(shown) > _TILE:
        length -= 1
        shown = text[:length].rstrip() + "..." + ending
    pen.text(corner, shown, fill=ink, font=font)


def _drawable(text: str) -> str:
    """The text in ASCII, all that the font has: without accents, "?" for what is left."""
    parts = unicodedata.normalize("NFKD", text)
    plain = "".join(part for part in parts if not unicodedata.combining(part))
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in plain)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
