"""The sheet of a run: original | de-identified | perturbation ×k, one row a picture.

Pictures are uint8[H, W, 3].
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE = 192
_GAP = 8
_CAPTION = 22
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
    headings = ("original", f"de-identified ({method})", f"perturbation ×{factor}")
    blocks = 1 if len(rows) <= 4 else 2
    per_block = -(-len(rows) // blocks)
    block_width = 3 * (_TILE + _GAP) + 2 * _GAP
    row_height = _TILE + _CAPTION + _GAP
    size = (blocks * block_width + _GAP, _CAPTION + per_block * row_height + 2 * _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for block in range(blocks):
        for column, heading in enumerate(headings):
            x = 2 * _GAP + block * block_width + column * (_TILE + _GAP)
            pen.text((x, _GAP), heading, fill=_INK, font=_font(15))
    for number, row in enumerate(rows):
        block, line = divmod(number, per_block)
        corner = (2 * _GAP + block * block_width, _CAPTION + 2 * _GAP + line * row_height)
        _draw_row(sheet, pen, row, corner, factor)
    return np.asarray(sheet)


def _draw_row(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Row,
    corner: tuple[int, int],
    factor: int,
) -> None:
    left, top = corner
    tiles = (row.original, row.modified, amplified(row, factor))
    captions = (row.before, row.after, None)
    for column, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = left + column * (_TILE + _GAP)
        scale = Image.Resampling.NEAREST if column == 2 else Image.Resampling.BICUBIC
        sheet.paste(Image.fromarray(tile).resize((_TILE, _TILE), scale), (x, top))
        if caption:
            name, probability = caption
            ink = _INK if name == row.true_name else _WRONG
            text = _fit(f"{name}  {probability:.0%}")
            pen.text((x, top + _TILE + 3), text, fill=ink, font=_font(13))


def _fit(text: str, width: int = 28) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
