"""Plots success against distortion: one panel per goal, one step curve per trial.

Up and to the left is better. Curves of other libraries are dashed. Distances are on a log
scale; originals that already meet the goal are at its left end.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deid_jax.reports import plotting
from deid_jax.reports.tables import percent
from deid_jax.reports.trial_statistics import Distances, largest_success, success_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OTHERS = ("-",), ("--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Series:
    """One trial: its name in the legend, its distances, and whether it is a peer's."""

    name: str
    distances: Distances
    is_peer: bool = False


def draw_success_curves(panels: Mapping[str, Sequence[Series]], *, title: str) -> bytes:
    """Draws the curves of at least one trial per panel, all to the same scale, as a PNG file.

    A name looks the same in all panels.
    """
    every = [series for trials in panels.values() for series in trials]
    looks = _looks(every)
    limit = max(largest_success(series.distances) for series in every) or 1.0
    left = _left(every, limit)
    figure = plotting.new_figure(1 + 5.5 * len(panels), 5.6)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, trials) in zip(axes, panels.items(), strict=True):
        for series in trials:
            colour, line = looks[series.name]
            places, shares = success_curve(series.distances, limit)
            axis.step(
                np.maximum(places, left),
                shares,
                where="post",
                color=colour,
                linestyle=line,
                linewidth=1.4 if series.is_peer else 2.0,
                label=series.name,
            )
        _dress(axis, name, (left, 1.1 * limit))
    axes[0].set_ylabel("share of images with success up to this L2")
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    columns = min(len(handles), 3 + 2 * (len(panels) - 1))
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=columns)
    figure.suptitle(title)
    return plotting.png_of(figure)


def _looks(every: Sequence[Series]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each name: ours solid; styles vary where colours repeat."""
    looks = {}
    for is_peer, lines in ((False, _OURS), (True, _OTHERS)):
        names = dict.fromkeys(series.name for series in every if series.is_peer == is_peer)
        for place, name in enumerate(names):
            turn, colour = divmod(place, len(plotting.COLOURS))
            looks[name] = (plotting.COLOURS[colour], lines[turn % len(lines)])
    return looks


def _left(every: Sequence[Series], limit: float) -> float:
    """The start of the log scale: below all but a few distances, at most half the limit."""
    distances = np.concatenate([series.distances for series in every])
    distances = distances[np.isfinite(distances) & (distances > 0)]
    return min(limit, float(np.quantile(distances, 0.01)) if distances.size else limit) / 2


def _dress(axis: "Axes", name: str, span: tuple[float, float]) -> None:
    """Draws axes and grid, with a log scale for distances, because trials differ by factors."""
    axis.set_xscale("log")
    axis.set_xlim(*span)
    ticks = plotting.round_ticks(*span, (plotting.HALVES,))
    plotting.set_ticks(axis.xaxis, ticks, [f"{tick:.6g}" for tick in ticks])
    shares = np.linspace(0, 1, 6)
    axis.set_ylim(0, 1.02)
    axis.set_yticks(shares, [percent(share, 0) for share in shares])
    axis.grid(color=plotting.GRID)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("L2 of the 8-bit image (pixels of 0 to 1)")
