"""The frontier: what each method's distortion buys, as a picture.

One row of panels per recogniser: MR against L2 and against MSSIM. Up and to the left is
better in both; lines lead through the points that no other of the same method beats, solid
for the 8-bit pictures, dashed for the float results.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deid_jax.attacks import ATTACKS
from deid_jax.comparison import Point
from deid_jax.evaluation import METHODS
from deid_jax.models import MODELS
from deid_jax.report import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind; grey for whatever comes after.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_GOALS = (0.99, 0.995)
_KINDS = (("_uint8", "-", "full"), ("", "--", "none"))


def draw(points: Sequence[Point]) -> bytes:
    """Draws the frontier.

    Args:
      points: at least one, of one or several recognisers, measured on the same pictures.

    Returns:
      A PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    models = sorted({p.model for p in points}, key=lambda m: (_rank(MODELS, m), m))
    methods = sorted({p.method for p in points}, key=lambda m: (_rank(METHODS, m), m))
    figure = Figure(figsize=(11, 1.1 + 4.3 * len(models)), dpi=120, layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False, sharey=True)
    for row, model in zip(axes, models, strict=True):
        own = [point for point in points if point.model == model]
        for axis, metric in zip(row, ("l2", "mssim"), strict=True):
            for method in dict.fromkeys(point.method for point in own):
                _draw_method(axis, [p for p in own if p.method == method], metric)
            _dress(axis, own, metric)
        row[0].set_ylabel(f"{model}: misclassified (MR)")
    handles = [
        Line2D([], [], color=_style(method)[0], marker=_style(method)[1], label=name_of(method))
        for method in methods
    ]
    handles += [
        Line2D([], [], color="0.4", linestyle="-", marker="o", label="8-bit picture"),
        Line2D(
            [], [], color="0.4", linestyle="--", marker="o", fillstyle="none", label="float"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9))
    first = points[0].figures
    figure.suptitle(
        f"Distortion against misclassification: {first.get('num_images', '?')} pictures of "
        f"{first.get('dataset', '?')}, split {first.get('split', '?')}"
    )
    file = io.BytesIO()
    # Without the version of matplotlib: the same points give the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _rank(table: Any, name: str) -> int:
    return list(table).index(name) if name in table else len(table)


def _style(method: str) -> tuple[str, str]:
    """Colour and marker, the same in every picture."""
    rank = _rank(METHODS, method)
    return ("#777777", "*") if rank >= len(_COLOURS) else (_COLOURS[rank], _MARKERS[rank])


def _zorder(points: Sequence[Point]) -> int:
    """Attacks lie above the ad-hoc methods."""
    return 4 if points[0].method in ATTACKS else 3


def _draw_method(axis: "Axes", points: Sequence[Point], metric: str) -> None:
    """A marker for every point, a line through those on the frontier."""
    colour, marker = _style(points[0].method)
    for suffix, line, fill in _KINDS:
        pairs = [(p.figures[metric + suffix], p.figures["mr" + suffix]) for p in points]
        look: dict[str, Any] = {"color": colour, "clip_on": False, "zorder": _zorder(points)}
        axis.plot(
            *zip(*frontier(pairs, larger_is_better=metric == "mssim"), strict=True),
            linestyle=line,
            linewidth=1.6 if suffix else 1.0,
            **look,
        )
        axis.plot(
            *zip(*pairs, strict=True),
            linestyle="",
            marker=marker,
            markersize=6 if suffix else 9,
            fillstyle=fill,
            **look,
        )


def frontier(
    points: Sequence[tuple[float, float]], *, larger_is_better: bool = False
) -> list[tuple[float, float]]:
    """The points (distortion, MR) than which no other is better in both, by distortion.

    Args:
      points: at least one.
      larger_is_better: whether the first figure is a similarity rather than a distance.
    """
    best: list[tuple[float, float]] = []
    sign = -1 if larger_is_better else 1
    for point in sorted(points, key=lambda p: (sign * p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def _dress(axis: "Axes", points: Sequence[Point], metric: str) -> None:
    """Axes, grid, and the line of the clean error."""
    from matplotlib.ticker import FixedLocator, PercentFormatter, ScalarFormatter

    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(color="0.9")
    axis.axhline(_GOALS[0], color="0.6", linewidth=0.8)
    axis.annotate(
        "99 %",
        (1, _GOALS[0]),
        xycoords=axis.get_yaxis_transform(),
        ha="right",
        va="top",
        fontsize=8,
        color="0.4",
    )
    clean = points[0].figures.get("clean_error")
    if clean:
        axis.axhline(clean, color="0.6", linewidth=0.8, linestyle=":")
        axis.annotate(
            f"clean error {clean:.1%}",
            (1, clean),
            xycoords=axis.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.4",
        )
    if metric == "mssim":
        axis.invert_xaxis()
        axis.set_xlabel("MSSIM, structural similarity (1 = unchanged)")
        return
    values = [point.figures[m] for point in points for m in ("l2", "l2_uint8")]
    if min(values) > 0 and max(values) > 5 * min(values):
        axis.set_xscale("log")
        ticks = [t * 10.0**e for e in range(-3, 4) for t in (1, 2, 5)]
        axis.xaxis.set_major_locator(
            FixedLocator([t for t in ticks if min(values) * 0.7 <= t <= max(values) * 1.4])
        )
        axis.xaxis.set_minor_locator(FixedLocator([]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("L2, mean distance to the original (pixels of 0 to 1)")
