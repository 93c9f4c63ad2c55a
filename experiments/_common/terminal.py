"""The terminal: a progress bar, and wide tables."""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Shows `done` of `total`, and a text next to the bar."""


@contextlib.contextmanager
def progress_bar(description: str, *, at_once: bool = True) -> Iterator[Update]:
    """Shows a progress bar while the block runs, on standard error or in a notebook.

    `at_once`: whether the bar is shown before it first moves.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    # In notebooks rich draws through ipywidgets, which Colab has and others may lack.
    shown = bool(console.is_terminal)
    if console.is_jupyter:
        shown = importlib.util.find_spec("ipywidgets") is not None
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(description, total=None, text="", visible=at_once)

        def update(done: int, total: int, text: str = "") -> None:
            progress.update(task, completed=done, total=total, text=text, visible=True)

        yield update


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 file", "2 files"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def console() -> "Console":
    """Where tables go: as wide as the terminal, or 120 columns elsewhere."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=120)
