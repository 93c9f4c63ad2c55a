"""Reads the weights of a network from a file of dlib's, without dlib.

dlib writes a network from its input on. An integer is a byte, whose low four bits are the
number of little-endian bytes that follow and whose highest bit is the sign; a text is its
length and its letters. Each layer is a tag and its content. The content of layers with weights
begins with a tensor, after two integers for `fc`: version 2, four sizes, and raw little-endian
float32.
"""

import io
import math
import os
import re
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.types import NumpyArray

# The tags of layers with weights, each after its length, as texts are written; and the number
# of integers before a layer's tensor: the last layer's outputs and inputs.
_LAYERS = {b"\x01\x05con_4": 0, b"\x01\x07affine_": 0, b"\x01\x04fc_2": 2}
_TAG = re.compile(b"|".join(_LAYERS))
_TENSOR = 2
# Much more than any of dlib's recognisers.
_MOST_BYTES = 2**28


def read_dlib_arrays(path: Path) -> dict[str, NumpyArray]:
    """Reads the tensors of all layers that have one: {"con.0": float32[n], "affine.0": ...}.

    Layers of each kind, `con`, `affine` and `fc`, are numbered from the input on; the arrays
    are flat and read-only.

    Raises:
      InputError: the file cannot be read, is damaged, or is not a network of dlib's.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise InputError(f"weights {path} are too large for a recogniser of dlib's")
            content = file.read()
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {one_line(error)}") from error
    arrays: dict[str, NumpyArray] = {}
    counts: dict[str, int] = {}
    place = 0
    while tag := _TAG.search(content, place):
        kind = tag[0][2:].decode().partition("_")[0]
        name = f"{kind}.{counts.setdefault(kind, 0)}"
        counts[kind] += 1
        stream = io.BytesIO(content)
        stream.seek(tag.end())
        try:
            arrays[name] = _tensor(stream, skipped=_LAYERS[tag[0]])
        except ValueError as error:
            raise InputError(f"weights {path} are damaged: layer {name} {error}") from error
        place = stream.tell()
    if not arrays:
        raise InputError(f"weights {path} are no network of dlib's")
    return arrays


def _tensor(stream: io.BytesIO, *, skipped: int) -> NumpyArray:
    """float32[n], the next tensor, after some integers."""
    for _ in range(skipped):
        _integer(stream)
    version, *sizes = (_integer(stream) for _ in range(5))
    if version != _TENSOR or min(sizes) < 0:
        raise ValueError("does not begin with a tensor")
    length = 4 * math.prod(sizes)
    left = len(stream.getbuffer()) - stream.tell()
    if length > left:
        raise ValueError(f"has {left} bytes instead of {length}")
    return np.frombuffer(stream.read(length), "<f4")


def _integer(stream: io.BytesIO) -> int:
    head = stream.read(1)
    length = head[0] & 0x0F if head else 0
    digits = stream.read(length)
    if not 0 < length <= 8 or len(digits) != length:
        raise ValueError("holds no integer where one should be")
    return int.from_bytes(digits, "little") * (-1 if head[0] & 0x80 else 1)
