"""Command-line flags made from dataclasses.

A command declares its settings once, as a frozen dataclass of `setting` fields. The absl flags,
the text of --help and the parsed instance are made from it.
"""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence

from absl import flags

from deid_jax.errors import InputError
from deid_jax.types import PyTree

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T")
S = typing.TypeVar("S", bound="DataclassInstance")
# The default of a flag.
Value: typing.TypeAlias = bool | int | float | str | tuple[str, ...] | None

_WIDTH = 80


class Flag(typing.NamedTuple):
    """A command-line flag.

    Its kind is bool, int, float, str, or tuple for text that may be given several times.
    """

    kind: type
    default: Value
    help: str
    choices: Sequence[str] | None = None


def setting(default: T, help: str, choices: Sequence[str] | None = None) -> T:
    """A field of a settings dataclass, and so a flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def settings_of_others(settings: Mapping[str, Flag]) -> dict[str, float | str]:
    """A field that maps the names of the given flags to their values."""
    return dataclasses.field(default_factory=dict, metadata={"flags": settings})


def flags_of(settings: type["DataclassInstance"]) -> dict[str, Flag]:
    """The flags of a settings dataclass, in its order."""
    hints = typing.get_type_hints(settings)
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(settings):
        if "help" in field.metadata:
            default = typing.cast(Value, field.default)
            found[field.name] = Flag(_kind(hints[field.name]), default, **field.metadata)
        found |= field.metadata.get("flags", {})
    return found


def _kind(hint: object) -> type:
    """The type T of an annotation T or T | None."""
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(kind for kind in alternatives if kind is not types.NoneType)
    return typing.get_origin(kind) or kind


def parse_flags(settings: type[S], arguments: Sequence[str]) -> S:
    """An instance of a settings dataclass, from what follows the command's name.

    Raises:
      InputError: an unknown flag, a bad value, or an argument that is not a flag.
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
    # absl has checked that the values have the types of the fields.
    given: dict[str, PyTree] = {}
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
        default = None if flag.default is None else str(flag.default)
        flags.DEFINE_enum(name, default, list(flag.choices), flag.help, flag_values=values)
        return
    defines = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_multi_string,
    }
    # The kind selects the function and matches the default, which mypy cannot follow.
    define = defines[flag.kind]
    define(name, flag.default, flag.help, flag_values=values)  # type: ignore[operator]


def help_text(docstring: str, settings: type["DataclassInstance"]) -> str:
    """The text of --help: a command's docstring and its flags."""
    lines = [docstring.strip(), "", "Flags:"]
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
