"""Plots how time and memory grow, with lines fitted to the measurements.

Times are in seconds, memory in bytes; both are functions of a positive count.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deid_jax.reports import plotting
from deid_jax.types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RED, _BLUE, _GREEN = plotting.COLOURS[:3]
_LABELS = {
    "images": "images",
    "steps": "steps of the attack",
    "pixels": "pixels of an image",
}
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class LineFit:
    """A fitted line y = intercept + slope · x, and how well it fits.

    `r2` is the share of y's variance that the line explains, 1 if y does not vary. `exponent`
    is the slope of log y against log x: 1 if y is proportional to x, less if there is also a
    fixed cost.
    """

    intercept: float
    slope: float
    r2: float
    exponent: float


def fit_line(x: Sequence[float], y: Sequence[float | None]) -> LineFit | None:
    """Fits a line by least squares in float64 to positive numbers; None without two of them."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if len(known) < 2:
        return None
    a, b = np.asarray(known, np.float64).T
    intercept, slope = _line(a, b)
    residue = np.sum((b - intercept - slope * a) ** 2)
    variance = np.sum((b - b.mean()) ** 2)
    r2 = float(1 - residue / variance) if variance else 1.0
    return LineFit(intercept, slope, r2, exponent=_line(np.log(a), np.log(b))[1])


def _line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    centred = x - x.mean()
    slope = float(np.sum(centred * (y - y.mean())) / np.sum(centred**2))
    return float(y.mean() - slope * x.mean()), slope


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds and peak bytes measured while one count, `against`, grew and all else stayed.

    The count is "images", "steps", "pixels" or "batch"; None stands for a failed measurement.
    """

    against: str
    x: tuple[int, ...]
    seconds: tuple[float | None, ...]
    peak_bytes: tuple[int | None, ...]

    @property
    def time(self) -> LineFit | None:
        """The fit of the seconds; None with fewer than two points or if the batch grows."""
        return None if self.against == "batch" else fit_line(self.x, self.seconds)

    @property
    def memory(self) -> LineFit | None:
        """The fit of the bytes; None with fewer than two points."""
        return fit_line(self.x, self.peak_bytes)

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory at the largest count that did not fail, over that at the smallest."""
        known = [value for value in self.peak_bytes if value is not None]
        return known[-1] / known[0] if known else None

    def summary(self) -> list[str]:
        """The fits, one line each."""
        lines, time, ratio = [], self.time, self.memory_ratio
        if time:
            exponent, r2 = f"{time.exponent:.2f}", f"{time.r2:.4f}"
            lines.append(f"time against {self.against}: exponent {exponent}, R² {r2}")
        if ratio:
            lines.append(f"memory against {self.against}: × {ratio:.2f}")
        return lines

    def figures(self) -> dict[str, Json]:
        """An entry of `growth.json`."""
        return {
            "x": list(self.x),
            "seconds": list(self.seconds),
            "peak_bytes": list(self.peak_bytes),
            "time_fit": dataclasses.asdict(self.time) if self.time else None,
            "memory_fit": dataclasses.asdict(self.memory) if self.memory else None,
            "memory_ratio": self.memory_ratio,
            "summary": [*self.summary()],
        }


def draw_growth(curves: Mapping[str, Curve], *, titles: Mapping[str, str], title: str) -> bytes:
    """Draws time against images, steps and pixels, and memory against batch and images.

    There is a curve for each, with a title that says what stayed constant. The same curves give
    the same bytes, a PNG file.
    """
    figure = plotting.new_figure(11, 8.2)
    axes = figure.subplots(2, 2).flat
    for axis, name in zip(axes, ("images", "steps", "pixels"), strict=False):
        _draw_time(axis, curves[name])
        axis.set_title(titles[name], fontsize=9, color="0.35")
    _draw_memory(axes[3], curves["batch"], curves["images"])
    axes[3].set_title(titles["batch"], fontsize=9, color="0.35")
    figure.suptitle(title)
    return plotting.png_of(figure)


def _draw_time(axis: "Axes", curve: Curve) -> None:
    if curve.time:
        x = np.geomspace(curve.x[0], curve.x[-1], 200)
        y = curve.time.intercept + curve.time.slope * x
        # A log scale shows no line below zero.
        shown = y > 0
        label = f"line, R² {curve.time.r2:.4f}; exponent {curve.time.exponent:.2f}"
        axis.plot(x[shown], y[shown], color=_RED, linewidth=1.3, label=label)
    _draw_points(axis, curve.x, curve.seconds, look=(_BLUE, ""), label="measured")
    _dress_x(axis, curve.x, _apart)
    known = [value for value in curve.seconds if value is not None]
    if known:
        low, high = min(known) / 1.4, max(known) * 1.8
        axis.set_yscale("log")
        axis.set_ylim(low, high)
        heights = _ticks(low, high)
        plotting.set_ticks(axis.yaxis, heights, [f"{tick:,.6g}" for tick in heights])
    _finish(axis, _LABELS[curve.against], "wall time (seconds)")
    if curve.against == "pixels":
        ticks = _apart(curve.x)
        axis.set_xticks(ticks, [f"{math.isqrt(tick)}²" for tick in ticks])


def _draw_memory(axis: "Axes", batch: Curve, images: Curve) -> None:
    highest = 0.0
    kinds = ((batch, _GREEN, "in a batch"), (images, _BLUE, "in all"))
    for curve, colour, kind in kinds:
        values = [None if value is None else value / _MIB for value in curve.peak_bytes]
        ratio = curve.memory_ratio
        label = f"against images {kind}" + (f": × {ratio:.2f}" if ratio else "")
        _draw_points(axis, curve.x, values, look=(colour, "-"), label=label)
        highest = max(highest, *(value or 0.0 for value in values))
    _dress_x(axis, (*batch.x, *images.x), lambda counts: _ticks(counts[0], counts[-1]))
    if highest:
        # The axis starts at zero, so that a flat curve looks flat.
        axis.set_ylim(0, 1.35 * highest)
        axis.yaxis.set_major_formatter("{x:,.0f}")
    _finish(axis, "images: in a batch, or in all", "peak memory (MiB)")


def _draw_points(
    axis: "Axes",
    x: Sequence[int],
    y: Sequence[float | None],
    *,
    look: tuple[str, str],
    label: str,
) -> None:
    """Draws markers and a line; a failure is a gap and a cross at the bottom."""
    colour, line = look
    known = [math.nan if value is None else value for value in y]
    axis.plot(x, known, marker="o", markersize=6, color=colour, linestyle=line, label=label)
    failed = [a for a, b in zip(x, y, strict=True) if b is None]
    if failed:
        foot = [0.04] * len(failed)
        transform = axis.get_xaxis_transform()
        axis.plot(failed, foot, "x", color=colour, transform=transform, label="failed")


def _dress_x(
    axis: "Axes",
    x: Iterable[int],
    ticks_of: Callable[[Sequence[int]], Sequence[float]],
) -> None:
    """Gives the x axis a log scale with round numbers."""
    counts = sorted(set(x))
    axis.set_xscale("log")
    axis.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    ticks = ticks_of(counts)
    plotting.set_ticks(axis.xaxis, ticks, [f"{tick:,.0f}" for tick in ticks])


def _finish(axis: "Axes", x_label: str, y_label: str) -> None:
    axis.grid(color=plotting.GRID)
    axis.set_axisbelow(True)
    axis.legend(loc="upper left", fontsize=9)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)


def _apart(counts: Sequence[int]) -> list[int]:
    """The counts, out of increasing ones, whose labels do not overlap; keeps the largest."""
    least = 0.09 * math.log(counts[-1] / counts[0])
    kept = [counts[-1]]
    for count in reversed(counts[:-1]):
        if math.log(kept[-1] / count) >= least:
            kept.append(count)
    return kept[::-1]


def _ticks(low: float, high: float) -> list[float]:
    return plotting.round_ticks(
        low, high, (plotting.TENS, plotting.HALVES, plotting.FINE), least=4
    )
