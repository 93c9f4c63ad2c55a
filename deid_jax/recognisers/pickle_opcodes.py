"""What a pickle would do, followed opcode by opcode before any of it is done.

`deid_jax.recognisers.torch_files` reads pickles of others; what they may ask for is bounded here.
"""

import pickletools
from collections.abc import Iterable
from typing import Any

from deid_jax.errors import InputError

# What pickles of protocol 2 to 5 use for dicts, lists, tuples, texts, numbers and calls.
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1
    BINFLOAT SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES SHORT_BINUNICODE BINUNICODE
    EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
    NEWOBJ
"""  # NEWOBJ makes objects of classes: of whole networks, whose class is to be named.
_MOST_OPCODES = 2_000_000

# Kinds, by pickletools' names, that may be keys. Tuples that share tuples are hashed anew at
# every mention, in time 2^depth.
_KEYS = frozenset(("int", "bool", "float", "None", "str", "bytes", "bytes_or_str"))
# Ints up to so many bits differ in their hashes, so that a dict of them stays fast.
_MOST_BITS = 64
_NO_KEY = "is refused: a dict's key is neither text nor number"


def check(file: Any) -> None:
    """Refuses the pickle that begins here, or leaves the file behind it.

    Args:
      file: binary, with `read` and `readline`.

    Raises:
      InputError: an opcode beyond dicts, lists, tuples, texts, numbers and calls, too many, a
        memo with gaps, or a key of a dict that is no text or number.
    """
    stack, known = _Stack(), frozenset(_OPCODES.split())
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in known:
            raise InputError(f"is refused: its pickle uses {opcode.name}")
        # The C unpickler makes room for as many objects as the largest index.
        if opcode.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise InputError("is damaged: its pickle's memo has gaps")
        if count > _MOST_OPCODES:
            raise InputError(f"is refused: its pickle has over {_MOST_OPCODES} steps")
        stack.follow(opcode, argument)


def check_key(key: Any) -> None:
    """Refuses a key that comes as an argument, out of the opcodes' sight."""
    if not isinstance(key, str) and (type(key) is not int or key.bit_length() > _MOST_BITS):
        raise InputError(_NO_KEY)


class _Stack:
    """The kinds of what lies on an unpickler's stack, by pickletools' names."""

    def __init__(self) -> None:
        self._kinds: list[str] = []
        self._marks: list[int] = []
        self._memo: dict[int, str] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Does to the kinds what the opcode does to the objects."""
        name = opcode.name
        if name == "MARK":
            self._marks.append(len(self._kinds))
        elif name == "POP" and self._marks and self._marks[-1] == len(self._kinds):
            self._marks.pop()
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._kinds[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._kinds.append(self._memo[argument])
        else:
            taken = self._take([one.name for one in opcode.stack_before])
            if name == "SETITEM":
                _check_kinds(taken[1:2])
            elif name == "SETITEMS":
                _check_kinds(taken[1::2])
            elif name == "MEMOIZE":
                self._memo[len(self._memo)] = taken[0]
            self._kinds += _put(opcode, argument, taken)

    def _take(self, wanted: list[str]) -> list[str]:
        """What an opcode takes from the stack: so many, or down to a mark and what is below."""
        fixed = wanted.index("mark") if "mark" in wanted else len(wanted)
        top = self._marks.pop() if "mark" in wanted else len(self._kinds)
        if fixed > top:
            raise InputError("is damaged: its pickle takes what is not there")
        taken = self._kinds[top - fixed :]
        del self._kinds[top - fixed :]
        return taken


def _put(opcode: pickletools.OpcodeInfo, argument: Any, taken: list[str]) -> list[str]:
    """What an opcode puts onto the stack."""
    if opcode.name in ("DUP", "MEMOIZE"):
        return taken * len(opcode.stack_after)
    if opcode.name == "LONG1" and int(argument).bit_length() > _MOST_BITS:
        return ["any"]
    return [one.name for one in opcode.stack_after]


def _check_kinds(keys: Iterable[str]) -> None:
    if not _KEYS.issuperset(keys):
        raise InputError(_NO_KEY)
