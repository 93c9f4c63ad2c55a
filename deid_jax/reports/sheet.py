"""The sheet of a run: original | de-identified | perturbation ×k, one row per image.

Wrong predictions are red.
Images are uint8[H, W, 3].
"""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from deid_jax.pixels import Pixels
from deid_jax.reports.drawing import GAP, HEADING, INK, LINE, PAPER, TILE, WRONG, write_line
from deid_jax.reports.measured import MeasuredPoint
from deid_jax.reports.report import settings_of, title_of_method
from deid_jax.reports.tables import percent

_CAPTION = 2 * LINE + 10


@dataclasses.dataclass(frozen=True)
class SheetRow:
    """One image of the sheet.

    `before` and `after` are the person predicted and the probability.
    """

    original: Pixels
    modified: Pixels
    true_name: str
    before: tuple[str, float]
    after: tuple[str, float]

    @property
    def perturbation(self) -> npt.NDArray[np.float64]:
        """x̂ − x in grey levels, float64[H, W, 3]."""
        return self.modified.astype(float) - self.original


def amplification(rows: Sequence[SheetRow]) -> int:
    """The factor k by which perturbations are amplified: 1, 2, 5, 10, 20, 50 or 100.

    It is the largest for which k times the 99th percentile of |x̂ − x| over all rows stays
    within half the grey scale, so that little is clipped.
    """
    levels = np.concatenate([np.abs(row.perturbation).ravel() for row in rows])
    strong = max(float(np.percentile(levels, 99)), 1.0)
    return max([k for k in (1, 2, 5, 10, 20, 50, 100) if k * strong <= 127.5], default=1)


def amplified(row: SheetRow, factor: int) -> Pixels:
    """Mid-grey plus k·(x̂ − x), clipped: uint8[H, W, 3]."""
    return np.clip(np.round(127.5 + factor * row.perturbation), 0, 255).astype(np.uint8)


def sheet_caption(point: MeasuredPoint) -> str:
    """One line for a sheet; the settings, which may be many, come last."""
    means = point.metrics.uint8_result
    return (
        f"{title_of_method(point.method)} against {point.model}, split {point.split}: MR "
        f"{percent(means.mr)} (red: misclassified), L2 {means.l2:.2f}; {settings_of(point)}"
    )


def draw_sheet(rows: Sequence[SheetRow], *, caption: str) -> Pixels:
    """Draws the sheet of at least one row, below one line of text."""
    factor = amplification(rows)
    headings = ("original", "de-identified", f"perturbation ×{factor}")
    blocks = 1 if len(rows) <= 4 else 2
    per_block = -(-len(rows) // blocks)
    block_width = 3 * (TILE + GAP) + GAP
    row_height = TILE + _CAPTION
    above = GAP + 2 * HEADING
    size = (blocks * block_width + GAP, above + per_block * row_height)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    write_line(pen, (2 * GAP, GAP), caption, width=size[0] - 3 * GAP)
    for number, row in enumerate(rows):
        block, line = divmod(number, per_block)
        left, top = 2 * GAP + block * block_width, above + line * row_height
        if line == 0:
            for column, heading in enumerate(headings):
                write_line(pen, (left + column * (TILE + GAP), top - HEADING), heading, size=14)
        _draw_row(sheet, row, (left, top), factor)
    return np.asarray(sheet)


def _draw_row(sheet: Image.Image, row: SheetRow, corner: tuple[int, int], factor: int) -> None:
    """Draws three tiles side by side; below them the person and the predictions."""
    pen, (left, top) = ImageDraw.Draw(sheet), corner
    for column, tile in enumerate((row.original, row.modified, amplified(row, factor))):
        scale = Image.Resampling.NEAREST if column == 2 else Image.Resampling.BICUBIC
        image = Image.fromarray(tile).resize((TILE, TILE), scale)
        sheet.paste(image, (left + column * (TILE + GAP), top))
    below = top + TILE + 3
    write_line(pen, (left, below), row.true_name)
    for column, (name, probability) in enumerate((row.before, row.after)):
        place = (left + column * (TILE + GAP), below + LINE)
        ink = INK if name == row.true_name else WRONG
        write_line(pen, place, f"predicted {name}", f" {percent(probability, 0)}", ink=ink)


def as_webp(png: bytes) -> bytes:
    """Converts a PNG file to WebP: a tenth of the bytes, without visible loss."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(file, format="WebP", quality=85)
    return file.getvalue()
