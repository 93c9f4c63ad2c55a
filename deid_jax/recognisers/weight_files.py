"""Reads weights as named arrays from the files in which recognisers are published.

No file's own code is run, and what it says of its sizes is checked before it is believed.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.recognisers import dlib_files, torch_files
from deid_jax.types import NumpyArray

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
# Prefixes that training scripts add to the names of weights.
_WRAPPERS = ("net_state_dict.", "state_dict.", "model.")
# What zipfile and NumPy raise on files that are damaged or of another kind.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_weights(path: Path) -> dict[str, NumpyArray]:
    """Reads a file by its suffix: PyTorch's, dlib's `.dat`, or else `.npz`.

    Raises:
      InputError: the file does not exist, is damaged or of another kind.
    """
    if not path.is_file():
        raise InputError(f"weights {path} are no file")
    if path.suffix == ".dat":
        return dlib_files.read_dlib_arrays(path)
    if path.suffix not in _TORCH_SUFFIXES:
        return _read_npz(path)
    arrays = torch_files.read_arrays(path)
    for wrapper in _WRAPPERS:
        inner = {n.removeprefix(wrapper): a for n, a in arrays.items() if n.startswith(wrapper)}
        arrays = inner or arrays
    return arrays


def _read_npz(path: Path) -> dict[str, NumpyArray]:
    try:
        with zipfile.ZipFile(path) as file:
            file.testzip()  # raises here; an error in NumPy's own reading would leak the file
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise InputError(
            f"weights {path} are no readable .npz file: {one_line(error)}"
        ) from error
