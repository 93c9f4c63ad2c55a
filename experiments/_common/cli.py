"""The main function of a command: exit status and messages on standard error."""

import io
import os
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from deid_jax.devices import processes
from deid_jax.errors import InputError, one_line
from experiments._common.flags import help_text, parse_flags

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = typing.TypeVar("S", bound="DataclassInstance")


class ShortfallError(Exception):
    """The work was done but fell short of what was asked: gives one line and status 1."""


def binary(run: Callable[[S], object], settings: type[S]) -> Callable[[Sequence[str]], int]:
    """A command's main function: arguments in, one call of `run`, exit status out.

    Bad input (`InputError`) and failures of the file system (`OSError`) end in one line on
    standard error and status 2, `ShortfallError` in one and status 1, Ctrl-C in status 130;
    any other exception is a defect. The docstring of `run`'s module is the head of --help.
    """

    def main(arguments: Sequence[str]) -> int:
        logging.set_verbosity(logging.ERROR)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # Not every terminal can print "∞".
        if not {"--help", "-help", "-h", "-?"}.isdisjoint(arguments):
            print(help_text(sys.modules[run.__module__].__doc__ or "", settings))
            return 0
        keep_compiled_programs()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _status_of(lambda: run(parse_flags(settings, arguments)))
        processes.end(status)
        return status

    return main


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs on disk, so that a second run does not compile again.

    They are kept under `~/.cache/deid_jax` (or XDG_CACHE_HOME), up to 2 GiB; the oldest are
    deleted first.
    JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE=0 are respected.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "deid_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # No home folder, or no permission to write there.
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 2 * 2**30)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _status_of(work: Callable[[], object]) -> int:
    """Does a piece of work and returns its exit status; errors go to standard error."""
    try:
        work()
    except InputError as error:
        return _say(error, f"error: {error}", 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(error, f"error: {where}{one_line(error)}", 2)
    except ShortfallError as error:
        return _say(error, str(error), 1)
    except KeyboardInterrupt as error:
        return _say(error, "interrupted", 130)
    except Exception:
        if not processes.is_broken():
            raise
        # Printed before `processes.end`, because Python's exit would wait for other processes.
        traceback.print_exc()
        return 1
    return 0


def _say(error: BaseException, text: str, status: int) -> int:
    """Prints an error and its notes on one line; returns the status."""
    notes = "; ".join(getattr(error, "__notes__", []))
    print(" ".join((f"{text}; {notes}" if notes else text).split()), file=sys.stderr)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: typing.TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
