"""Shared by the sheet and the filmstrip: sizes in pixels, colours, text in images."""

import functools
import unicodedata
from pathlib import Path

from PIL import ImageDraw, ImageFont

TILE = 192
GAP = 10
HEADING = 26
LINE = 17
INK = (32, 32, 32)
WRONG = (176, 0, 32)
PAPER = (255, 255, 255)


def write_line(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    ending: str = "",
    *,
    ink: tuple[int, int, int] = INK,
    size: int = 13,
    width: int = TILE,
) -> None:
    """Writes one line no wider than `width`; ends `text` with "..." if it is too long."""
    font = _font(size)
    text = _drawable(text)
    shown, length = text + ending, len(text)
    while length and font.getlength(shown) > width:
        length -= 1
        shown = text[:length].rstrip() + "..." + ending
    pen.text(corner, shown, fill=ink, font=font)


def _drawable(text: str) -> str:
    """The text on one line, with "?" for control characters."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else "?" for c in composed)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has Latin, Greek and Cyrillic letters and ×."""
    import matplotlib

    return ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size
    )
