"""Reads the weights of ONNX files, without the packages that run such files.

ONNX is a Protocol Buffer: each field is a key, number · 8 + wire type, and a value. Wire types
that occur: 0, a varint; 1 and 5, eight and four bytes; 2, a length and that many bytes. Source:
github.com/onnx/onnx, `onnx.proto`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.types import NumpyArray

# Numbers of fields: ModelProto.graph, GraphProto.initializer, and those of TensorProto.
_GRAPH, _INITIALISER = 7, 5
_DIMS, _KIND, _NAME = 1, 2, 8
# Little-endian values are in one of these fields: float_data or raw_data.
_VALUES = (4, 9)
# TensorProto.FLOAT; the other kinds (counters, shapes) are no weights.
_FLOAT = 1
_FIXED = {1: 8, 5: 4}


def read_initialisers(path: str | Path) -> dict[str, NumpyArray]:
    """The float32 initialisers of an ONNX file, by name.

    Raises:
      InputError: the file cannot be read or is no ONNX file.
    """
    try:
        model = memoryview(Path(path).read_bytes())
        tensors = [
            list(_fields(tensor))
            for number, graph in _fields(model)
            if number == _GRAPH and not isinstance(graph, int)
            for part, tensor in _fields(graph)
            if part == _INITIALISER and not isinstance(tensor, int)
        ]
        return {
            bytes(_only(tensor, (_NAME,))).decode(): _array(tensor)
            for tensor in tensors
            if (_KIND, _FLOAT) in tensor
        }
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"weights {path} cannot be read: {one_line(error)}") from error


def _array(tensor: list[tuple[int, int | memoryview]]) -> NumpyArray:
    shape = [value for number, value in tensor if number == _DIMS and isinstance(value, int)]
    values = np.frombuffer(_only(tensor, _VALUES), "<f4")
    if values.size != math.prod(shape):
        raise ValueError(f"an array of shape {shape} has {values.size} values")
    return values.reshape(shape)


def _only(tensor: list[tuple[int, int | memoryview]], wanted: tuple[int, ...]) -> memoryview:
    (value,) = (value for number, value in tensor if number in wanted)
    if isinstance(value, int):
        raise ValueError(f"field {wanted} is a varint")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message, (number, value); fixed-width fields are skipped."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = divmod(key, 8)
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        size, place = (_FIXED[kind], place) if kind in _FIXED else _varint(message, place)
        if kind not in (1, 2, 5) or place + size > len(message):
            raise ValueError(f"no ONNX: field {number} of wire type {kind} at byte {place}")
        if kind == 2:
            yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The varint that begins at a byte, and the byte after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
