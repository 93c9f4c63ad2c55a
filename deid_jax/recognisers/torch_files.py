"""Reads PyTorch checkpoints as NumPy arrays, without PyTorch and without running their code.

A checkpoint is a pickle together with the raw numbers of its storages. A pickle can call any
function of any module, so `_Unpickler.find_class` allows only what state dicts consist of. Both
formats of `torch.save` (`torch/serialization.py`) are read: ZIP archives, and the sequence of
pickles that PyTorch wrote before 1.6, in which the weights of MobileFaceNet are published. The
latter has no checksums: only the SHA-256 of the whole file (`deid_jax.recognisers.weights`)
reveals damage.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.types import NumpyArray

# The dtype of each storage class; files are little-endian.
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def read_arrays(path: Path) -> dict[str, NumpyArray]:
    """Reads the tensors of a checkpoint, by name.

    Nested dicts are flattened with dots: `{"net_state_dict": {"conv.weight": w}}` gives
    "net_state_dict.conv.weight". Values that are neither tensors nor dicts (an epoch's number,
    an optimiser's lists) are left out.

    The arrays are read-only, in the shapes and dtypes of the tensors; bfloat16 becomes float32.

    Raises:
      InputError: the file cannot be read, is damaged or of another kind, has no tensors, or
        uses a function or class that state dicts do not need.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            is_archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            tree, numbers = (_read_archive if is_archive else _read_legacy)(file, size)
        arrays = dict(_arrays(tree, numbers)) if isinstance(tree, dict) else {}
    except InputError as error:
        raise InputError(f"checkpoint {path} {error}") from error
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read: {one_line(error)}") from error
    except Exception as error:  # Damaged pickles and archives raise all kinds of exceptions.
        raise InputError(f"checkpoint {path} is damaged: {one_line(error)}") from error
    if not arrays:
        raise InputError(f"checkpoint {path} has no tensors")
    return arrays


# Tuples, since a pickle can set the attributes of other objects that it is given.
class _Storage(NamedTuple):
    key: str
    dtype: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Builds dicts of `_Tensor`, and collects the storages that they refer to."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str, /) -> object:
        """The stand-in for a class or function; raises for any that is not allowed."""
        if module == "torch" and name in _DTYPES:
            return name
        allowed: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        if (module, name) not in allowed:
            raise InputError(f"is refused: it asks for {one_line(f'{module}.{name}')}")
        return allowed[module, name]

    def persistent_load(self, pid: tuple[object, ...], /) -> _Storage:
        """The storage for ("storage", type, key, location, numel, view or nothing)."""
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(dtype, str) or dtype not in _DTYPES:
            raise InputError("is damaged: a storage of unknown type")
        if not isinstance(key, str) or type(numel) is not int or any(view):
            raise InputError("is damaged: a storage without key or size, or with views")
        storage = _Storage(key, dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise InputError(f"is damaged: storage {one_line(key)} has two types or sizes")
        return storage

    def _tensor(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        requires_grad: bool = False,
        hooks: object = None,
        metadata: object = None,
    ) -> _Tensor:
        del requires_grad, hooks
        if metadata:
            raise InputError("has tensors with a conjugate or negative bit, which are not read")
        return _Tensor(storage, offset, shape, strides)

    def _parameter(self, tensor: object, requires_grad: bool, hooks: object) -> object:
        del requires_grad, hooks
        return tensor


def _read_archive(file: BinaryIO, size: int) -> tuple[object, dict[str, NumpyArray]]:
    """Reads a ZIP archive: NAME/data.pkl is the pickle, NAME/data/KEY a storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError("is a ZIP archive, but not of torch.save")
        top = pickles[0].removesuffix("data.pkl")

        def content(name: str) -> bytes:
            entry = archive.getinfo(top + name)
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise InputError(f"is refused: {one_line(name)} is compressed")
            return archive.read(entry)

        if top + "byteorder" in names and content("byteorder") != b"little":
            raise InputError("was written on a big-endian machine, which is not read")
        unpickler = _Unpickler(io.BytesIO(content("data.pkl")))
        tree = unpickler.load()
        storages = unpickler.storages
        return tree, {key: _numbers(storages[key], content(f"data/{key}")) for key in storages}


def _read_legacy(file: BinaryIO, size: int) -> tuple[object, dict[str, NumpyArray]]:
    """Reads five pickles, the last a list of keys; then each storage's length and numbers."""
    if file.read(1) != pickle.PROTO:
        raise InputError("is not of torch.save")
    file.seek(0)
    if _Unpickler(file).load() != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_VERSION:
        raise InputError("is not of torch.save")
    if _Unpickler(file).load()["little_endian"] is not True:
        raise InputError("was written on a big-endian machine, which is not read")
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    numbers = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise InputError(f"is damaged: storage {one_line(key)} has another size")
        length = storage.numel * _DTYPES[storage.dtype].itemsize
        numbers[key] = _numbers(storage, file.read(min(length, size)))
    return tree, numbers


def _numbers(storage: _Storage, content: bytes) -> NumpyArray:
    """A storage's numbers, [numel]."""
    dtype = _DTYPES[storage.dtype]
    if len(content) != storage.numel * dtype.itemsize:
        raise InputError(
            f"is damaged: storage {one_line(storage.key)} has {len(content)} bytes instead of "
            f"{storage.numel * dtype.itemsize}"
        )
    numbers = np.frombuffer(content, dtype)
    return numbers.astype(np.float32) if storage.dtype == "BFloat16Storage" else numbers


def _arrays(
    tree: dict[object, object], numbers: dict[str, NumpyArray], prefix: str = ""
) -> Iterator[tuple[str, NumpyArray]]:
    """Dotted names and arrays, in the order of the tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _arrays(value, numbers, f"{prefix}{key}.")
        elif isinstance(value, _Tensor):
            yield f"{prefix}{key}", _array(value, numbers[value.storage.key])


def _array(tensor: _Tensor, numbers: NumpyArray) -> NumpyArray:
    """A view of a storage's numbers, checked to stay within the storage."""
    _, offset, shape, strides = tensor
    counts = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in counts):
        raise InputError("is damaged: a tensor with an impossible shape")
    size = math.prod(shape)
    if not size:
        return np.zeros(shape, numbers.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if max(last, size - 1) >= len(numbers):
        raise InputError("is damaged: a tensor larger than its storage")
    in_bytes = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, in_bytes, writeable=False)
