"""Tables for the terminal, and which images to show."""

from collections.abc import Iterable, Mapping
from typing import Any


def metrics_table(figures: Mapping[str, Any]) -> Any:
    """A run's figures as a table for the terminal: float result beside 8-bit file."""
    from rich.table import Table

    table = Table()
    table.add_column("")
    table.add_column("float", justify="right")
    table.add_column("8-bit file", justify="right")
    for name, label, form in (
        ("l2", "L2", "{:.3f}"),
        ("linf", "L∞", "{:.4f}"),
        ("mssim", "MSSIM", "{:.4f}"),
        ("mr", "misclassified (MR)", "{:.1%}"),
        ("target_rate", "named as the target", "{:.1%}"),
    ):
        cells = [figures[name], figures[name + "_uint8"]]
        table.add_row(label, *("–" if cell is None else form.format(cell) for cell in cells))
    table.add_row("clean error", f"{figures['clean_error']:.1%}", "")
    return table


def spread(labels: Iterable[int], count: int) -> list[int]:
    """Positions of up to `count` pictures, of as many persons as possible, in order."""
    turns: dict[int, int] = {}
    ranked = []
    for position, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], position))
    return sorted(position for _, position in sorted(ranked)[:count])
