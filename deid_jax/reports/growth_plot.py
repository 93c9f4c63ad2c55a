"""How time and memory grow: curves, the lines fitted to them, and the picture of both.

Times are seconds, memory is bytes; what one of them grows against is a positive count.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind.
_BLUE, _RED, _GREEN = "#0072B2", "#D55E00", "#009E73"
_LABELS = {
    "images": "pictures",
    "steps": "steps of the attack",
    "pixels": "pixels of a picture",
}
_MIB = 2**20


class Fit(NamedTuple):
    """The line y = intercept + slope · x through points, and how well it holds.

    Attributes:
      intercept: y at x = 0.
      slope: growth of y per unit of x.
      r2: the share of y's variance that the line explains; 1 where y does not vary.
      exponent: slope of log y against log x: 1 for what is proportional to x, less where a
        fixed cost is added to it.
    """

    intercept: float
    slope: float
    r2: float
    exponent: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares in float64.

    Args:
      x: at least two different positive numbers.
      y: as many positive numbers.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    intercept, slope = _line(a, b)
    residue = np.sum((b - intercept - slope * a) ** 2)
    variance = np.sum((b - b.mean()) ** 2)
    return Fit(
        intercept=intercept,
        slope=slope,
        r2=float(1 - residue / variance) if variance else 1.0,
        exponent=_line(np.log(a), np.log(b))[1],
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    centred = x - x.mean()
    slope = float(np.sum(centred * (y - y.mean())) / np.sum(centred**2))
    return float(y.mean() - slope * x.mean()), slope


@dataclasses.dataclass(frozen=True)
class Curve:
    """What was measured while one count grew and all else stood still.

    Attributes:
      against: the count: "images", "steps", "pixels" or "batch".
      x: its values, increasing.
      seconds: wall time at each; None where the measurement failed.
      peak_bytes: peak memory at each; None where the measurement failed.
    """

    against: str
    x: tuple[int, ...]
    seconds: tuple[float | None, ...]
    peak_bytes: tuple[int | None, ...]

    @property
    def time(self) -> Fit | None:
        """The fit of the seconds; None with under two points and where the batch grows."""
        return None if self.against == "batch" else _fit_known(self.x, self.seconds)

    @property
    def memory(self) -> Fit | None:
        """The fit of the bytes; None with fewer than two points."""
        return _fit_known(self.x, self.peak_bytes)

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory at the largest count that did not fail over that at the smallest."""
        known = [value for value in self.peak_bytes if value is not None]
        return known[-1] / known[0] if known else None

    def summary(self) -> list[str]:
        """What it comes to, in lines for a reader."""
        lines, time, ratio = [], self.time, self.memory_ratio
        if time:
            exponent, r2 = f"{time.exponent:.2f}", f"{time.r2:.4f}"
            lines.append(f"time against {self.against}: exponent {exponent}, R² {r2}")
        if ratio:
            lines.append(f"memory against {self.against}: × {ratio:.2f}")
        return lines

    def figures(self) -> dict[str, Any]:
        """What a JSON file holds."""
        time, memory = self.time, self.memory
        return {
            "x": self.x,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "time_fit": time and time._asdict(),
            "memory_fit": memory and memory._asdict(),
            "memory_ratio": self.memory_ratio,
            "summary": self.summary(),
        }


def _fit_known(x: Sequence[int], y: Sequence[float | None]) -> Fit | None:
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if len(known) < 2:
        return None
    return fit([a for a, _ in known], [b for _, b in known])


def draw(curves: Mapping[str, Curve], *, titles: Mapping[str, str], title: str) -> bytes:
    """Draws time against images, steps and pixels, and memory against batch and images.

    Args:
      curves: one for each of "images", "steps", "pixels" and "batch".
      titles: what stood still, for each of them.
      title: what was measured, and where.

    Returns:
      A PNG file; the same curves give the same bytes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.2), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2).flat
    for axis, name in zip(axes, ("images", "steps", "pixels"), strict=False):
        _draw_time(axis, curves[name])
        axis.set_title(titles[name], fontsize=9, color="0.35")
    _draw_memory(axes[3], curves["batch"], curves["images"])
    axes[3].set_title(titles["batch"], fontsize=9, color="0.35")
    figure.suptitle(title)
    file = io.BytesIO()
    # Without the version of matplotlib, so that only the figures decide the bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _draw_time(axis: "Axes", curve: Curve) -> None:
    line = curve.time
    if line:
        x = np.geomspace(curve.x[0], curve.x[-1], 200)
        y = line.intercept + line.slope * x
        # A log scale shows no line below zero.
        shown = y > 0
        axis.plot(
            x[shown],
            y[shown],
            color=_RED,
            linewidth=1.3,
            label=f"line, R² {line.r2:.4f}; exponent {line.exponent:.2f}",
        )
    _draw_points(axis, curve.x, curve.seconds, color=_BLUE, label="measured", linestyle="")
    _dress(axis, [curve.x], [curve.seconds])
    axis.set_xlabel(_LABELS[curve.against])
    axis.set_ylabel("wall time (seconds)")
    if curve.against == "pixels":
        ticks = _apart(curve.x)
        axis.set_xticks(ticks, [f"{math.isqrt(tick)}²" for tick in ticks])


def _draw_memory(axis: "Axes", batch: Curve, images: Curve) -> None:
    peaks = []
    kinds = ((batch, _GREEN, "in a batch"), (images, _BLUE, "in all"))
    for curve, colour, kind in kinds:
        values = [None if value is None else value / _MIB for value in curve.peak_bytes]
        ratio = curve.memory_ratio
        label = f"against pictures {kind}" + (f": × {ratio:.2f}" if ratio else "")
        _draw_points(axis, curve.x, values, color=colour, label=label, linestyle="-")
        peaks.append(values)
    _dress(axis, [batch.x, images.x], peaks, memory=True)
    axis.set_xlabel("pictures: in a batch, or in all")
    axis.set_ylabel("peak memory (MiB)")


def _draw_points(
    axis: "Axes",
    x: Sequence[int],
    y: Sequence[float | None],
    **look: Any,
) -> None:
    """Markers, with a gap and a cross at the foot where there is no value."""
    axis.plot(x, [math.nan if v is None else v for v in y], marker="o", markersize=6, **look)
    failed = [a for a, b in zip(x, y, strict=True) if b is None]
    if failed:
        axis.plot(
            failed,
            [0.04] * len(failed),
            "x",
            color=look["color"],
            transform=axis.get_xaxis_transform(),
            label="failed",
        )


def _dress(
    axis: "Axes",
    x: Sequence[Sequence[int]],
    y: Sequence[Sequence[float | None]],
    *,
    memory: bool = False,
) -> None:
    """Scales with round numbers, logarithmic but for memory; a grid, the legend."""
    axis.set_xscale("log")
    counts = sorted(set(itertools.chain(*x)))
    axis.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    ticks = _apart(counts) if len(x) == 1 else _round_ticks(counts[0], counts[-1])
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axis.set_xticks([], minor=True)
    known = [value for value in itertools.chain(*y) if value is not None]
    if known and memory:
        # From zero, so that what is flat looks flat.
        axis.set_ylim(0, 1.35 * max(known))
        axis.yaxis.set_major_formatter("{x:,.0f}")
    elif known:
        low, high = min(known) / 1.4, max(known) * 1.8
        axis.set_yscale("log")
        axis.set_ylim(low, high)
        heights = _round_ticks(low, high)
        axis.set_yticks(heights, [f"{tick:,.6g}" for tick in heights])
        axis.set_yticks([], minor=True)
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    axis.legend(loc="upper left", fontsize=9)


def _apart(values: Iterable[int]) -> list[int]:
    """Those that leave room for a label each on a log scale; the largest first."""
    ordered = sorted(values, reverse=True)
    least = 0.09 * math.log(ordered[0] / ordered[-1])
    kept: list[int] = []
    for value in ordered:
        if not kept or math.log(kept[-1] / value) >= least:
            kept.append(value)
    return kept[::-1]


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, some five or more where they span so much."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**power for power in powers for m in multiples]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) > 3:
            break
    return shown
