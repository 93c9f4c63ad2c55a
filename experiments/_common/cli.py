"""What all binaries share: flags from dataclasses, --help, progress bars, how errors end.

A binary declares its settings once, as a frozen dataclass of `setting` fields; `binary` makes
absl flags of them and hands an instance to the binary's `run`, which never sees a flag.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import sys
import textwrap
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import flags, logging

from deid_jax.devices import processes
from deid_jax.errors import InputError
from deid_jax.recognisers import weights
from deid_jax.recognisers.embedders import Embedder, load_embedder

_WIDTH = 80


class ShortfallError(Exception):
    """The work was done and fell short of what was asked for: one line, and status 1."""


class Update(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Shows `done` of `total`, and a text beside the bar."""
        ...


class Flag(typing.NamedTuple):
    """One flag.

    Attributes:
      kind: bool, int, float, str, or tuple: text, given as often as one likes.
      default: its value where it is not given.
      help: what it means, a sentence or two.
      choices: the values allowed; any if None.
    """

    kind: type
    default: Any
    help: str
    choices: Sequence[str] | None = None


def setting(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A field of a settings dataclass, and so a flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def settings_of_others(settings: Mapping[str, Flag]) -> Any:
    """A field that maps the names of flags to their values, those that were given only."""
    return dataclasses.field(default_factory=dict, metadata={"flags": settings})


def flags_of(settings: type) -> dict[str, Flag]:
    """The flags of a settings dataclass, in its order."""
    hints = typing.get_type_hints(settings)
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(settings):
        if "help" in field.metadata:
            found[field.name] = Flag(_kind(hints[field.name]), field.default, **field.metadata)
        found |= field.metadata.get("flags", {})
    return found


def _kind(hint: Any) -> type:
    """The type T of an annotation T or T | None."""
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in alternatives if kind is not types.NoneType)
    return typing.get_origin(kind) or kind


def parse(settings: type, arguments: Sequence[str]) -> Any:
    """An instance of a settings dataclass.

    Args:
      settings: the dataclass.
      arguments: what follows the binary's name on the command line.

    Raises:
      InputError: an unknown flag, a bad value, or an argument that is no flag.
    """
    values = flags.FlagValues()
    for name, flag in flags_of(settings).items():
        _define(values, name, flag)
    try:
        _, *strays = values(["", *arguments])
    except flags.Error as error:
        raise InputError(f"{error}; --help lists the flags") from error
    if strays:
        raise InputError(f"unexpected argument {strays[0]!r}: settings are given as --flags")
    given: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if "help" in field.metadata:
            value = values[field.name].value
            given[field.name] = tuple(value) if isinstance(value, list) else value
        elif "flags" in field.metadata:
            own = {name: values[name].value for name in field.metadata["flags"]}
            given[field.name] = {k: value for k, value in own.items() if value is not None}
    empty = [name for name, value in given.items() if value == "" or value == ("",)]
    if empty:
        raise InputError(f"--{empty[0]} is empty")
    return settings(**given)


def _define(values: flags.FlagValues, name: str, flag: Flag) -> None:
    if flag.choices:
        choices = list(flag.choices)
        flags.DEFINE_enum(name, flag.default, choices, flag.help, flag_values=values)
        return
    defines: dict[type, Callable] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_multi_string,
    }
    defines[flag.kind](name, flag.default, flag.help, flag_values=values)


def help_text(run: Callable, settings: type) -> str:
    """What --help prints: the binary's docstring and its flags."""
    lines = [(sys.modules[run.__module__].__doc__ or "").strip(), "", "Flags:"]
    indent = " " * 6
    for name, flag in flags_of(settings).items():
        has_default = flag.default not in (None, (), "") and flag.default is not False
        default = f" Default: {flag.default}." if has_default else ""
        usage, text = f"  {_usage(name, flag)}", flag.help
        if flag.choices and len(usage) > _WIDTH:
            usage, text = f"  --{name}=NAME", f"{text} One of {', '.join(flag.choices)}."
        lines.append(usage)
        lines += textwrap.wrap(
            text + default, _WIDTH, initial_indent=indent, subsequent_indent=indent
        )
    return "\n".join(lines)


def _usage(name: str, flag: Flag) -> str:
    if flag.kind is bool:
        return f"--[no]{name}"
    kinds = {int: "INTEGER", float: "NUMBER", str: "TEXT", tuple: "TEXT"}
    return f"--{name}=" + ("|".join(flag.choices) if flag.choices else kinds[flag.kind])


def binary(run: Callable[[Any], Any], settings: type) -> Callable[[Sequence[str]], int]:
    """A binary's main function: arguments in, one call of `run`, exit status out.

    Bad input (`InputError`) and failures of the file system (`OSError`) end in one line on
    standard error and status 2, `ShortfallError` in one and status 1, Ctrl-C in status 130; any
    other exception is a defect.

    Args:
      run: the binary's work; its module's docstring heads --help.
      settings: its settings dataclass.
    """

    def main(arguments: Sequence[str]) -> int:
        logging.set_verbosity(logging.ERROR)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # Not every terminal knows "∞".
        if not {"--help", "-help", "-h", "-?"}.isdisjoint(arguments):
            print(help_text(run, settings))
            return 0
        keep_compiled_programs()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _status_of(lambda: run(parse(settings, arguments)))
        processes.end(status)
        return status

    return main


def keep_compiled_programs() -> None:
    """Has JAX keep what it compiles on disk, so that a second run does not compile again.

    Under `~/.cache/deid_jax` (or XDG_CACHE_HOME), 2 GiB at most, oldest first out; a folder
    that JAX was told of (JAX_COMPILATION_CACHE_DIR), and JAX_ENABLE_COMPILATION_CACHE=0, stand.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "deid_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # No place to write, or nobody's home.
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 2 * 2**30)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load_recogniser(text: str, image_size: int) -> Embedder:
    """`embedders.load_embedder`, with a bar while weights are downloaded."""
    with progress_bar("weights", at_once=False) as update:
        return load_embedder(text, image_size=image_size, progress=update)


def fetch_weights(name: str, sha256: str | None) -> Path:
    """`deid_jax.recognisers.weights.fetch`, with a bar while it downloads."""
    with progress_bar("weights", at_once=False) as update:
        return weights.fetch(name, sha256=sha256, progress=update)


def _status_of(work: Callable[[], Any]) -> int:
    """Exit status of a piece of work; says on standard error what stopped it."""
    try:
        work()
    except InputError as error:
        return _say(error, f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        return _say(error, f"error: {where}{reason}", 2)
    except ShortfallError as error:
        return _say(error, str(error), 1)
    except KeyboardInterrupt as error:
        return _say(error, "interrupted", 130)
    except Exception:
        if not processes.is_broken():
            raise
        # To be told before `processes.end`: Python's own end would wait for the others.
        traceback.print_exc()
        return 1
    return 0


def _say(error: BaseException, text: str, status: int) -> int:
    """One line, and what is to be known beside it; returns the status."""
    notes = "; ".join(getattr(error, "__notes__", []))
    print(_one_line(f"{text}; {notes}" if notes else text), file=sys.stderr)
    return status


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {_one_line(str(message))}", file=sys.stderr)


@contextlib.contextmanager
def progress_bar(description: str, *, at_once: bool = True) -> Iterator[Update]:
    """A bar while the block runs: on standard error if that is a terminal, or in a notebook.

    Args:
      description: stands before the bar.
      at_once: whether it shows before it first moves.
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
