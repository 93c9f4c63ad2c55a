"""Shared by the sheet and the filmstrip: sizes in pixels, colours, text in images."""

import functools
import unicodedata

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
    """The text in ASCII, which is all the font has: no accents, "?" for other characters."""
    plain = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in plain)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
