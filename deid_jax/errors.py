"""The errors that the library raises, and one-line messages for all others."""


class InputError(ValueError):
    """Bad input: the message is one line that a user can act on."""


class TransientError(InputError):
    """A failure that may go away: a missing package, too little memory or disk space."""


def one_line(error: BaseException | str) -> str:
    """The message of an error, on one printable line of at most 200 characters.

    For an `OSError` this is the system's message; an error without a message gives its name.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if len(shown) > 200:
        shown = shown[:197] + "..."
    return shown or type(error).__name__
