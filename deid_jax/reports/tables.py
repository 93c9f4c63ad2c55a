"""A run's metrics as a terminal table, and the choice of images to show."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deid_jax.data import FaceDataset
from deid_jax.evaluation.records import RunMetrics

if TYPE_CHECKING:
    from rich.table import Table


def percent(share: float | None, decimals: int = 1) -> str:
    """A share in per cent, "75.0 %"; "–" if there is none."""
    # Adding 0 turns -0 into 0.
    return "–" if share is None else f"{round(100 * share, decimals) + 0:.{decimals}f} %"


def metrics_table(metrics: RunMetrics) -> "Table":
    """A run's metrics as a table for the terminal: float results next to 8-bit images."""
    from rich.table import Table

    table = Table("")
    table.add_column("float", justify="right")
    table.add_column("8-bit file", justify="right")
    for name, label, form in (
        ("l2", "L2", "{:.3f}".format),
        ("linf", "L∞", "{:.4f}".format),
        ("mssim", "MSSIM", "{:.4f}".format),
        ("mr", "misclassified (MR)", percent),
        ("target_rate", "predicted as the target", percent),
    ):
        values = [getattr(of, name) for of in (metrics.float_result, metrics.uint8_result)]
        table.add_row(label, *("–" if value is None else form(value) for value in values))
    table.add_row("clean error", percent(metrics.clean_error), "")
    return table


def spread_over_persons(labels: Iterable[int], count: int) -> list[int]:
    """Positions of up to `count` images from as many persons as possible, in order."""
    return sorted(_in_turns(labels)[:count])


def images_to_show(dataset: FaceDataset, count: int) -> list[int]:
    """Like `spread_over_persons`, of the images that are not left out as unreadable."""
    ranked = filter(dataset.is_readable, _in_turns(dataset.labels.tolist()))
    return sorted(itertools.islice(ranked, count))


def _in_turns(labels: Iterable[int]) -> list[int]:
    """The positions of each person's first image, then of each one's second, and so on."""
    turns: dict[int, int] = {}
    ranked = []
    for position, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], position))
    return [position for _, position in sorted(ranked)]
