"""The errors that every part of the library raises."""


class InputError(ValueError):
    """Bad input: the message is one line that a user can act on."""


class PassingError(InputError):
    """What is no fault of the input and may be well next time: a package, memory or room."""
