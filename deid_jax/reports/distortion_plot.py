"""Success against distortion, as a picture: one panel a goal, one step curve a run.

Up and to the left is better. Curves of other libraries are dashed. Distances are on a log
scale: originals that meet the goal by themselves stand at its left end.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deid_jax.reports.distortion import curve, largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_OURS, _OTHERS = ("-",), ("--", ":", "-.")


class Series(NamedTuple):
    """One run.

    Attributes:
      name: what the legend says.
      values: its distances, float64[N], infinite where it failed.
      is_peer: whether it is another library's.
    """

    name: str
    values: np.ndarray
    is_peer: bool = False


def draw(panels: Mapping[str, Sequence[Series]], *, title: str) -> bytes:
    """Draws the curves, all panels to the same scale.

    Args:
      panels: the runs by what stands above a panel, at least one; a name looks the same in all.
      title: what stands above them all.

    Returns:
      A PNG file.
    """
    from matplotlib.figure import Figure

    every = [series for runs in panels.values() for series in runs]
    looks = _looks(every)
    limit = max(largest(series.values) for series in every) or 1.0
    left = _left(every, limit)
    figure = Figure(figsize=(1 + 5.5 * len(panels), 5.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, runs) in zip(axes, panels.items(), strict=True):
        for series in runs:
            colour, line = looks[series.name]
            places, shares = curve(series.values, limit)
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
    axes[0].set_ylabel("share of pictures with success up to this L2")
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=min(len(handles), 3 + 2 * (len(panels) - 1)),
    )
    figure.suptitle(title)
    file = io.BytesIO()
    # Without the version of matplotlib: the same runs give the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _looks(every: Sequence[Series]) -> dict[str, tuple[str, str]]:
    """Colour and line of each name: ours solid; lines change where colours begin anew."""
    looks = {}
    for is_peer, lines in ((False, _OURS), (True, _OTHERS)):
        names = dict.fromkeys(series.name for series in every if series.is_peer == is_peer)
        for place, name in enumerate(names):
            turn, colour = divmod(place, len(_COLOURS))
            looks[name] = (_COLOURS[colour], lines[turn % len(lines)])
    return looks


def _left(every: Sequence[Series], limit: float) -> float:
    """Where a logarithmic axis begins: below all but a few of the changes; no more than D/2."""
    changes = np.concatenate([series.values for series in every])
    changes = changes[np.isfinite(changes) & (changes > 0)]
    return min(limit, float(np.quantile(changes, 0.01)) if changes.size else limit) / 2


def _dress(axis: "Axes", name: str, span: tuple[float, float]) -> None:
    """Axes and grid; distances to a log scale, as runs differ by factors."""
    axis.set_xscale("log")
    axis.set_xlim(*span)
    shown = [m * 10.0**e for e in range(-5, 4) for m in (1, 2, 5)]
    shown = [tick for tick in shown if span[0] <= tick <= span[1]]
    axis.set_xticks(shown, [f"{tick:.6g}" for tick in shown])
    axis.set_xticks([], minor=True)
    axis.set_ylim(0, 1.02)
    axis.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    axis.grid(color="0.9")
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("L2 of the 8-bit picture (pixels of 0 to 1)")
