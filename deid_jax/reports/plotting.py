"""Shared style of all plots: colours, round ticks, reproducible PNG bytes."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRID = "0.9"
# Multiples of a power of ten, from coarse to fine.
TENS, HALVES, FINE = (1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def png_of(figure: "Figure") -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    file = io.BytesIO()
    # By default matplotlib writes its version into the file.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def round_ticks(
    low: float, high: float, multiples: Sequence[Sequence[float]], *, least: int = 1
) -> list[float]:
    """Round numbers from low to high: the coarsest steps that give at least `least` of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    shown: list[float] = []
    for chosen in multiples:
        ticks = [multiple * 10.0**power for power in powers for multiple in chosen]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) >= least:
            break
    return shown


def set_ticks(axis: "Axis", ticks: Sequence[float], labels: Sequence[str]) -> None:
    """Shows these ticks and no minor ones."""
    axis.set_ticks(ticks, labels)
    axis.set_ticks([], minor=True)
