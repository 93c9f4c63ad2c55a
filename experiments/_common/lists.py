"""Flags that hold a list, separated by commas."""

from collections.abc import Iterable

from deid_jax.checks import count
from deid_jax.errors import InputError


def read_names(
    flag: str, text: str, known: Iterable[str], *, all_or_none: bool = False
) -> tuple[str, ...]:
    """Parses "NAME,NAME,…", each name once; also "all" and "none" if they are allowed.

    Raises:
      InputError: an unknown name.
    """
    choices = tuple(known)
    if all_or_none and text in ("all", "none"):
        return choices if text == "all" else ()
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in choices:
            ending = ", all or none" if all_or_none else ""
            raise InputError(f"{flag} must be of {', '.join(choices)}{ending}, got {name}")
    return names


def read_counts(flag: str, text: str, *, least: int = 1) -> tuple[int, ...]:
    """Parses "N,N,…".

    Raises:
      InputError: anything but increasing integers of at least `least`.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} must be integers by commas, got {text!r}") from None
    for number in numbers:
        count(flag, number, least=least)
    if list(numbers) != sorted(set(numbers)):
        raise InputError(f"{flag} must increase, got {text}")
    return numbers
