"""What other libraries' errors say, for messages of one line."""


def one_line(error: Exception) -> str:
    """The message's first line, shortened; the exception's name where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
