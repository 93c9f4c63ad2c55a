"""The sheet of a run: original | de-identified | perturbation ×k, one row a picture.

Pictures are uint8[H, W, 3].
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from deid_jax.reports.drawing import GAP, HEADING, INK, LINE, PAPER, TILE, WRONG, write

_CAPTION = 2 * LINE + 10


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
    block_width = 3 * (TILE + GAP) + GAP
    row_height = TILE + _CAPTION
    size = (blocks * block_width + GAP, GAP + HEADING + per_block * row_height)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        block, line = divmod(number, per_block)
        left, top = 2 * GAP + block * block_width, GAP + HEADING + line * row_height
        if line == 0:
            for column, heading in enumerate(headings):
                x = left + column * (TILE + GAP)
                write(pen, (x, GAP), heading, size=15)
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
        picture = Image.fromarray(tile).resize((TILE, TILE), scale)
        sheet.paste(picture, (left + column * (TILE + GAP), top))
    below = top + TILE + 3
    write(pen, (left, below), row.true_name)
    for column, (name, probability) in enumerate((row.before, row.after)):
        corner = (left + column * (TILE + GAP), below + LINE)
        ink = INK if name == row.true_name else WRONG
        write(pen, corner, f"named {name}", f" {probability:.0%}", ink=ink)


def as_webp(png: bytes) -> bytes:
    """A PNG's picture in a tenth of the bytes; what is lost is not seen."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(file, format="WebP", quality=85)
    return file.getvalue()
