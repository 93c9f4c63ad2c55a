"""The errors that every part of the library raises, and how others' errors are told."""


class InputError(ValueError):
    """Bad input: the message is one line that a user can act on."""


class TransientError(InputError):
    """Not the input's fault; may succeed next time: a missing package, memory, disk space."""


def one_line(error: BaseException | str) -> str:
    """The message of an error, on one printable line of at most 200 characters.

    The system's own words for an `OSError`, the exception's name where it says nothing.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if len(shown) > 200:
        shown = shown[:197] + "..."
    return shown or type(error).__name__
