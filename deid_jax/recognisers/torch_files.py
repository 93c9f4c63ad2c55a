"""PyTorch checkpoints as NumPy arrays, without PyTorch and without running what they say.

A checkpoint is a pickle beside the raw contents of its storages, and a pickle is a program: it
can call any function of any module. Here it may build dicts, lists, tuples, texts and numbers,
and tensors through stand-ins of ours; anything else that it asks for is refused by name. The
formats are those of `torch.save` (`torch/serialization.py`): ZIP archives, since PyTorch 1.6,
and the row of pickles and storages before it. The latter holds no checksums: damage within
its numbers shows only where the whole file's SHA-256 is known (`deid_jax.recognisers.weights`).
"""

import io
import math
import mmap
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deid_jax.errors import InputError
from deid_jax.recognisers import pickle_opcodes

# Storages by the name of their class; numbers are little-endian.
_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",  # NumPy has none: read as the upper half of a float32.
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|u1",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MOST_TENSORS = 100_000
_MOST_NESTING = 16
_MOST_DIMENSIONS = 64


def read(path: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name.

    Nested dicts are flattened with dots: `{"net_state_dict": {"conv.weight": w}}` gives
    "net_state_dict.conv.weight". What is neither a tensor nor a dict (an epoch's number, an
    optimiser's lists) is left out.

    Args:
      path: what `torch.save` wrote, in either of its formats.
      prefix: take the tensors whose names begin so, and take it off ("net_state_dict.").

    Returns:
      Read-only arrays in the shapes and dtypes of the tensors, bfloat16 as the same numbers in
      float32; tensors that share a storage share its memory.

    Raises:
      InputError: it cannot be read, is damaged or of another kind, needs more than dicts of
        tensors (any function or class to be called is refused by its name), or nothing begins
        with `prefix`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            whole = _read_archive if start == b"PK\x03\x04" else _read_legacy
            tensors = _flatten(whole(file, path.stat().st_size))
    except InputError as error:
        raise InputError(f"checkpoint {path} {error}") from error
    except OSError as error:
        raise InputError(
            f"checkpoint {path} cannot be read: {error.strerror or error}"
        ) from error
    except Exception as error:  # Damaged pickles and archives raise all sorts.
        raise InputError(f"checkpoint {path} is damaged: {_one_line(error)}") from error
    chosen = {n[len(prefix) :]: a for n, a in tensors.items() if n.startswith(prefix)}
    if not chosen:
        found = sorted({name.partition(".")[0] for name in tensors})
        begin = f" that begin with {prefix}; it has {_short(', '.join(found))}"
        raise InputError(f"checkpoint {path} has no tensors{begin if found else ''}")
    return chosen


class _Inert:
    """What a pickle may hold but not change: pickles' BUILD ends in `__setstate__`."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise InputError("sets the state of what is no dict, which is not allowed")


class _Dict(dict):
    """In the place of OrderedDict, whose only state is the `_metadata` of state dicts."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _Function(_Inert):
    """A function that pickles may call, made anew for each file."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class _StorageType(_Inert):
    """The class of a storage: a name and nothing that could be called."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Storage(_Inert):
    """Where numbers are kept: `load` gives them all, [numel]."""

    __slots__ = ("array", "key", "numel", "type")

    def __init__(self, key: str, type_name: str, numel: int) -> None:
        self.key, self.type, self.numel = key, type_name, numel
        self.array: np.ndarray | None = None

    @property
    def item_size(self) -> int:
        """Bytes a number."""
        return 2 if self.type == "BFloat16Storage" else np.dtype(_DTYPES[self.type]).itemsize

    def fill(self, content: bytes) -> None:
        """Takes the storage's bytes."""
        if len(content) != self.numel * self.item_size:
            raise InputError(
                f"is damaged: storage {_short(self.key)} has {len(content)} bytes instead of "
                f"{self.numel * self.item_size}"
            )
        if self.type == "BFloat16Storage":
            upper = np.frombuffer(content, "<u2").astype(np.uint32) << np.uint32(16)
            self.array = upper.view(np.float32)
        else:
            stored = np.dtype(_DTYPES[self.type])
            # In the machine's own byte order, since JAX takes no other.
            dtype = np.dtype(bool) if self.type == "BoolStorage" else stored.newbyteorder("=")
            self.array = np.frombuffer(content, stored).astype(dtype, copy=False)
        self.array.setflags(write=False)


class _Tensor(_Inert):
    """A view of a storage, checked when it is made."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        dims = (shape, strides)
        if not isinstance(storage, _Storage) or not all(isinstance(d, tuple) for d in dims):
            raise InputError("is damaged: a tensor without storage, shape or strides")
        if len(shape) > _MOST_DIMENSIONS:
            raise InputError(f"is refused: a tensor of over {_MOST_DIMENSIONS} dimensions")
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise InputError("is damaged: a tensor with an impossible shape")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and max(last, math.prod(shape) - 1) >= storage.numel:
            raise InputError("is damaged or expanded: a tensor larger than its storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """The numbers, without a copy."""
        numbers = self.storage.array
        assert numbers is not None
        if not math.prod(self.shape):
            return np.zeros(self.shape, numbers.dtype)
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, strides, writeable=False
        )


class _Unpickler(pickle.Unpickler):
    """Builds dicts of `_Tensor`; calls nothing but our stand-ins."""

    def __init__(self, file: Any, *, most_bytes: int) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}
        self._most_bytes, self._entries = most_bytes, 0

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a class or function."""
        stand_ins: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): self._ordered,
            ("torch", "Size"): _size,
            ("torch._utils", "_rebuild_tensor"): _Tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if (module, name) in stand_ins:
            return _Function(stand_ins[module, name])
        if module == "torch" and name in _DTYPES:
            return _StorageType(name)
        raise InputError(f"is refused: it asks for {_short(f'{module}.{name}')}")

    def _ordered(self, pairs: Any = ()) -> _Dict:
        """An OrderedDict; Python 2 wrote its entries as an argument."""
        if not isinstance(pairs, list | tuple):
            raise InputError("is damaged: an OrderedDict of what is no pairs")
        self._entries += len(pairs)  # One list may be an argument again and again.
        if self._entries > _MOST_TENSORS:
            raise InputError(f"is refused: it has over {_MOST_TENSORS} entries")
        found = _Dict()
        for key, value in pairs:
            pickle_opcodes.check_key(key)
            found[key] = value
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that ("storage", type, key, location, numel, view or nothing) names."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise InputError("is damaged: it names something that is no storage")
        _, kind, key, _, numel, *view = pid
        if not isinstance(kind, _StorageType) or type(key) is not str or type(numel) is not int:
            raise InputError("is damaged: a storage without type, key or size")
        if view not in ([], [None]):
            raise InputError("has views of storages, which only PyTorch before 0.4 wrote")
        storage = self.storages.setdefault(key, _Storage(key, kind.name, numel))
        if (storage.type, storage.numel) != (kind.name, numel):
            raise InputError(f"is damaged: storage {_short(key)} has two types or sizes")
        stored = sum(one.numel * one.item_size for one in self.storages.values())
        if numel < 0 or stored > self._most_bytes:
            raise InputError(f"is damaged: {stored} bytes of storages do not fit in the file")
        return storage


def _size(sizes: Any) -> tuple[int, ...]:
    """A torch.Size, which is flat."""
    if not isinstance(sizes, list | tuple) or len(sizes) > _MOST_DIMENSIONS:
        raise InputError("is damaged: a torch.Size of no numbers, or of too many")
    if not all(type(size) is int for size in sizes):
        raise InputError("is damaged: a torch.Size of what is no number")
    return tuple(sizes)


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> _Tensor:
    del requires_grad, hooks
    if metadata:
        raise InputError("has tensors with a conjugate or negative bit, which are not read")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    del requires_grad, hooks
    if not isinstance(tensor, _Tensor):
        raise InputError("is damaged: a parameter that is no tensor")
    return tensor


def _load(file: Any, *, most_bytes: int) -> tuple[Any, dict[str, _Storage]]:
    """The next pickle of a file, and the storages that it names."""
    start = file.tell()
    pickle_opcodes.check(file)
    file.seek(start)
    unpickler = _Unpickler(file, most_bytes=most_bytes)
    return unpickler.load(), unpickler.storages


def _read_archive(file: BinaryIO, size: int) -> Any:
    """Of PyTorch 1.6 and newer: NAME/data.pkl, NAME/data/KEY a storage, NAME/byteorder."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        tops = [
            name[: -len("data.pkl")]
            for name in entries
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(tops) != 1:
            raise InputError("is a ZIP archive, but not of torch.save")
        (top,) = tops
        if f"{top}constants.pkl" in entries:
            raise InputError("is TorchScript, a program: save its state_dict instead")

        def content(name: str) -> bytes:
            entry = entries.get(top + name)
            if entry is None:
                raise InputError(f"is damaged: {_short(name)} is missing")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise InputError(f"is damaged: {_short(name)} is compressed")
            return archive.read(entry)

        if f"{top}byteorder" in entries and content("byteorder") != b"little":
            raise InputError("was written on a big-endian machine, which is not read")
        tree, storages = _load(io.BytesIO(content("data.pkl")), most_bytes=size)
        for key, storage in storages.items():
            storage.fill(content(f"data/{key}"))
    return tree


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """Before PyTorch 1.6: five pickles, then each storage's length (int64) and numbers."""
    if not size:
        raise InputError("is empty")
    # Mapped, a read never asks for more memory than there is file.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:1] != pickle.PROTO or _load(content, most_bytes=0)[0] != _LEGACY_MAGIC:
            raise InputError("is not of torch.save")
        version, _ = _load(content, most_bytes=0)
        if version != _LEGACY_VERSION:
            shown = f", {_short(version)}" if type(version) is int else ""
            raise InputError(f"is of an unknown version{shown}")
        system, _ = _load(content, most_bytes=0)
        if not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise InputError("was written on a big-endian machine, which is not read")
        tree, storages = _load(content, most_bytes=size)
        keys, _ = _load(content, most_bytes=0)
        are_texts = isinstance(keys, list) and all(type(key) is str for key in keys)
        if not are_texts or sorted(keys) != sorted(storages):
            raise InputError("is damaged: its list of storages is not that of its tensors")
        for key in keys:
            storage = storages[key]
            numel = int.from_bytes(content.read(8), "little", signed=True)
            if numel != storage.numel:
                raise InputError(f"is damaged: storage {_short(key)} has another size")
            storage.fill(content.read(numel * storage.item_size))
    return tree


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    """Dotted names to arrays, in the order of the tree."""
    tensors: dict[str, np.ndarray] = {}
    steps = 0

    def walk(node: Mapping, prefix: str, depth: int) -> None:
        nonlocal steps
        if depth > _MOST_NESTING:
            raise InputError(f"is refused: dicts nested over {_MOST_NESTING} deep")
        for key, value in node.items():
            steps += 1
            if steps > _MOST_TENSORS:
                raise InputError(f"is refused: it has over {_MOST_TENSORS} entries")
            if not isinstance(value, dict | _Tensor):
                continue
            if not isinstance(key, str | int):
                raise InputError("is refused: a tensor's name is neither text nor number")
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                walk(value, f"{name}.", depth + 1)
            elif name in tensors:
                raise InputError(f"is refused: two tensors are named {_short(name)}")
            else:
                tensors[name] = value.array()

    if not isinstance(tree, dict):
        raise InputError("holds no dict of tensors")
    walk(tree, "", 1)
    return tensors


def _short(text: Any) -> str:
    """In one line, and not too long for one."""
    shown = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _one_line(error: Exception) -> str:
    return _short(error) or type(error).__name__
