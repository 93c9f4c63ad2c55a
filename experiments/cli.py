"""What all binaries share: flags from dataclasses, progress bars, and how errors end.

A binary declares its settings once, as a frozen dataclass of `setting` fields; `launch` makes
absl flags of them and hands an instance to the binary's `run`, which never sees a flag.
"""

import contextlib
import dataclasses
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from absl import app, flags, logging

from deid_jax._validate import InputError


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Shows `done` of `total`, and a text beside the bar."""
        ...


def setting(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A field of a settings dataclass, and so a flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def define_flags(settings: type) -> None:
    """Makes an absl flag of every field of a settings dataclass."""
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata:
            continue
        define_flag(field.name, hints[field.name], field.default, **field.metadata)


def define_flag(
    name: str, hint: Any, default: Any, help: str, choices: Sequence[str] | None = None
) -> None:
    """Makes one absl flag, of the type that an annotation names."""
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if choices:
        flags.DEFINE_enum(name, default, list(choices), help)
    else:
        defines: dict[type, Callable] = {
            bool: flags.DEFINE_bool,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            str: flags.DEFINE_string,
        }
        defines[kinds[0]](name, default, help)
    flags.declare_key_flag(name)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def from_flags(settings: type, **more: Any) -> Any:
    """An instance of a settings dataclass, from the parsed flags and what else is given."""
    names = [field.name for field in dataclasses.fields(settings) if "help" in field.metadata]
    return settings(**{name: flags.FLAGS[name].value for name in names}, **more)


def launch(
    run: Callable[[Any], Any],
    settings: type,
    *,
    define_more: Callable[[], None] = lambda: None,
    read_more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Runs a binary: flags in, one call, and bad input ends in one line and status 2.

    Args:
      run: the binary's work.
      settings: its settings dataclass.
      define_more: defines flags that do not stand in the dataclass.
      read_more: turns those into further arguments of the dataclass.
    """
    define_flags(settings)
    define_more()
    # Shown by --help like the binary's own.
    flags.adopt_module_key_flags(sys.modules[__name__])
    logging.set_verbosity(logging.ERROR)
    warnings.showwarning = _show_warning

    def main(arguments: list[str]) -> int:
        try:
            if len(arguments) > 1:
                raise InputError(f"unexpected argument {arguments[1]!r}: settings are --flags")
            run(from_flags(settings, **read_more()))
        except (InputError, OSError) as error:
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    app.run(main)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Update]:
    """A bar on standard error while the block runs, if that is a terminal."""
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
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None, text="")

        def update(done: int, total: int, text: str = "") -> None:
            progress.update(task, completed=done, total=total, text=text)

        yield update
