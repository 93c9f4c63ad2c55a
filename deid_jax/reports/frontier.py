"""Plots misclassification against distortion for every method and setting.

One row of panels per recogniser shows MR against L2 and against MSSIM, on scales that spread
out the region where methods differ. Up and to the left is better in both. A line connects the
Pareto-optimal points of each method: solid for the 8-bit images, dashed for the float results.
Rings mark each method's smallest L2 at an MR of 99 % and of 99.5 %.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.models import MODELS
from deid_jax.reports import plotting
from deid_jax.reports.comparison import MIN_MR
from deid_jax.reports.measured import KINDS, MeasuredPoint, choose, known_first
from deid_jax.reports.report import title_of_method
from deid_jax.reports.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Followed by some of Tol's colours, which are also safe for colour-blind readers, then grey.
_COLOURS = (
    *(*plotting.COLOURS, "#882255", "#117733", "#332288", "#AA4499", "#999933", "#44AA99"),
    *("#661100", "#6699CC", "#DDCC77"),
)
_MARKERS = "osD^vPXp<>hd8sDo"
_FLOAT_MARKER = "x"
# To separate 99 % from 99.5 %, MR is drawn as the distance to just above 100 %, on a log scale.
_ABOVE = 0.003
_RATES = (0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 1)
_LEAST = 1e-4


def draw_frontier(points: Sequence[MeasuredPoint]) -> bytes:
    """Draws at least one point, all measured on the same images, as a PNG file."""
    models = known_first((point.model for point in points), MODELS)
    figure = plotting.new_figure(11, 1.1 + 4.3 * len(models))
    axes = figure.subplots(len(models), 2, squeeze=False, sharey=True)
    for row, model in zip(axes, models, strict=True):
        own = [point for point in points if point.model == model]
        for axis, metric in zip(row, ("l2", "mssim"), strict=True):
            for method in dict.fromkeys(point.method for point in own):
                _draw_method(axis, [p for p in own if p.method == method], metric)
            _draw_axes(axis, own, metric)
        row[0].set_ylabel(f"{model}: misclassified (MR)")
    handles = _legend(known_first((point.method for point in points), METHODS))
    if choose(points, "uint8", min(MIN_MR)) is None:
        handles.pop()  # The ring's.
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    first = points[0]
    figure.suptitle(
        f"Distortion against misclassification: {first.metrics.num_images} images of "
        f"{first.dataset}, split {first.split}"
    )
    return plotting.png_of(figure)


def _legend(methods: Sequence[str]) -> list["Line2D"]:
    from matplotlib.lines import Line2D

    styles = [(title_of_method(method), *_style(method)) for method in methods]
    kept, measured, ring = (Line2D([], [], color="0.4", marker="o") for _ in range(3))
    kept.set(label="8-bit image")
    measured.set(label="float", linestyle="--", marker=_FLOAT_MARKER)
    ring.set(label="least L2 at MR ≥ 99, 99.5 %", linestyle="", fillstyle="none")
    ring.set(color="black", markersize=11)
    return [
        *(Line2D([], [], color=colour, marker=m, label=name) for name, colour, m in styles),
        *(kept, measured, ring),
    ]


def _style(method: str) -> tuple[str, str]:
    """A method's colour and marker, the same in every figure."""
    looks = dict(zip(METHODS, zip(_COLOURS, _MARKERS, strict=True), strict=False))
    return looks.get(method, ("#777777", "*"))


def _place(point: MeasuredPoint, kind: str, metric: str) -> tuple[float, float]:
    """A point's coordinates: L2 or 1 − MSSIM, clipped from below for the log scale, and MR."""
    means = point.means(kind)
    return max(means.l2 if metric == "l2" else 1 - means.mssim, _LEAST), means.mr


def _draw_method(axis: "Axes", points: Sequence[MeasuredPoint], metric: str) -> None:
    """Draws a marker for every point, a line along the frontier, and rings at the goals."""
    colour, marker = _style(points[0].method)
    # Attacks are drawn on top of the baselines.
    zorder = 4 if points[0].method in ATTACKS else 3
    for kind in KINDS:
        is_kept = kind == "uint8"
        places = [_place(point, kind, metric) for point in points]
        axis.plot(
            *zip(*unbeaten(places), strict=True),
            linestyle="-" if is_kept else "--",
            linewidth=1.6 if is_kept else 1.0,
            color=colour,
            clip_on=False,
            zorder=zorder,
        )
        axis.plot(
            *zip(*places, strict=True),
            linestyle="",
            marker=marker if is_kept else _FLOAT_MARKER,
            markersize=5,
            color=colour,
            clip_on=False,
            zorder=zorder,
        )
    for goal in MIN_MR:
        chosen = choose(points, "uint8", goal)
        if chosen:
            x, y = _place(chosen, "uint8", metric)
            axis.plot(
                [x], [y], "o", color="black", fillstyle="none", markersize=13, clip_on=False
            )


def unbeaten(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto-optimal points (distortion, MR), sorted by distortion."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _draw_axes(axis: "Axes", points: Sequence[MeasuredPoint], metric: str) -> None:
    """Draws axes, grid, and a line at the clean error."""
    axis.set_yscale(
        "function",
        functions=(
            lambda y: -np.log10(np.maximum(1 + _ABOVE - y, 1e-9)),
            lambda y: 1 + _ABOVE - 10 ** (-y),
        ),
    )
    axis.set_ylim(0, 1)
    rates = [percent(rate).replace(".0", "") for rate in _RATES]
    plotting.set_ticks(axis.yaxis, _RATES, rates)
    axis.grid(color=plotting.GRID)
    clean = points[0].metrics.clean_error
    if clean:
        axis.axhline(clean, color="0.5", linewidth=0.9, linestyle=":", zorder=1)
        axis.annotate(
            f"clean error {percent(clean)}",
            (1, clean),
            xycoords=axis.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.4",
        )
    values = [_place(point, kind, metric)[0] for point in points for kind in KINDS]
    low, high = min(values) / 1.3, max(values) * 1.3
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    shown = plotting.round_ticks(low, high, (plotting.HALVES, plotting.FINE), least=3)
    similarity = metric == "mssim"
    labels = [f"{tick:.6g}" for tick in shown]
    if similarity:
        labels = [
            np.format_float_positional(1 - tick, precision=6, min_digits=2) for tick in shown
        ]
    plotting.set_ticks(axis.xaxis, shown, labels)
    axis.set_xlabel(
        "MSSIM, structural similarity (1 = unchanged)"
        if similarity
        else "L2, mean distance to the original (pixels of 0 to 1)"
    )
