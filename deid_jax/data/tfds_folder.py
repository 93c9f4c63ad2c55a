"""Any data set that TFDS has prepared as ArrayRecord, read from its folder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deid_jax.data import prepared
from deid_jax.data.building import build_dataset
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.data.prepared import PreparedSet
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

_INFO = "dataset_info.json"


def load(options: DataOptions) -> FaceDataset:
    """Loads the data set in `options.data_dir`, a folder with TFDS's dataset_info.json.

    The file may also be one or two folders deeper, as in NAME/VERSION, if it is the only one.
    TFDS's splits are concatenated; the images keep its order of splits and examples.

    The person is the first feature present of `identity/Identity_No`, `label` and `person`: a
    text, a class or a number. The image is the feature `image`. Its name is the feature `name`
    if that is a text, unique within a person, and a valid file name; otherwise its split and
    position, e.g. "train_000123". The parts of the feature `attributes` become the attributes.

    All examples are read once for these features; no image is decoded: see `build_dataset`.

    Raises:
      InputError: there is no such file, or several; the data set is damaged, has another
        format, or lacks the features; a person's name is not a valid folder name; or as for
        `build_dataset`.
    """
    import tensorflow_datasets as tfds

    data = prepared.open_folder(_find(options.data_dir))
    if not isinstance(data.feature("image"), tfds.features.Image):
        raise InputError(f"the {data.name} in {data.builder.data_path} has no images: image")
    digest = hashlib.sha256(json.dumps([data.builder.info.full_name, data.lengths]).encode())
    persons, labels, names, attributes = _scan(data, digest.update)
    lengths = list(data.lengths.values())
    examples = data.examples(
        np.repeat(np.arange(len(lengths)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
    )
    undecoded = data.undecoded(examples, persons, labels, names, attributes, digest.hexdigest())
    origin = {"origin": f"tfds {data.name} {data.version}"}
    return build_dataset("tfds", undecoded, options, origin)


def _find(data_dir: str | None) -> Path:
    """The folder of the only dataset_info.json in `data_dir` or up to two folders deeper."""
    if data_dir is None:
        raise InputError(f"data_dir must name a folder with TFDS's {_INFO}")
    root = Path(data_dir)
    if not root.is_dir():
        raise InputError(f"data_dir {root} is not a folder")
    if (root / _INFO).is_file():
        return root
    found = sorted([*root.glob(f"*/{_INFO}"), *root.glob(f"*/*/{_INFO}")])
    if not found:
        raise InputError(
            f"data_dir {root} has no {_INFO}, which TFDS writes with every data set"
        )
    if len(found) > 1:
        several = ", ".join(path.parent.relative_to(root).as_posix() for path in found[:5])
        raise InputError(f"data_dir {root} has {len(found)} data sets, name one: {several}")
    return found[0].parent


def _scan(
    data: PreparedSet, update: Callable[[bytes], None]
) -> tuple[tuple[str, ...], NumpyArray, list[str], dict[str, NumpyArray]]:
    """Persons, labels [N], names and attributes [N] of all examples, in order."""
    import tensorflow_datasets as tfds

    total = sum(data.lengths.values())
    attributes = data.attributes()
    values = {name: np.empty(total, column.dtype) for name, column in attributes.items()}
    columns = [data.person(), *attributes.values()]
    is_text = isinstance(data.feature("name"), tfds.features.Text)
    named = data.column("name") if is_text else None
    columns += [] if named is None else [named]
    own_names: list[str] = []
    names: list[str] = []
    numbers: dict[str, int] = {}
    labels = np.empty(total, dtype=np.int32)
    for index, (split, position, row) in enumerate(data.scan(columns, update)):
        person, *rest = row
        labels[index] = numbers.setdefault(str(person), len(numbers))
        if named is not None:
            own_names.append(str(rest.pop()))
        names.append(prepared.example_name(split, position))
        for name, value in zip(values, rest, strict=True):
            values[name][index] = value
    for person in numbers:
        if not _is_file_name(person):
            raise InputError(f"{data.name}: person {person!r} is not fit for a folder's name")
    persons = tuple(sorted(numbers))
    order = np.argsort([numbers[person] for person in persons]).astype(np.int32)
    labels = order[labels]
    texts: dict[str, NumpyArray] = {
        name: array.astype(str) if array.dtype == object else array
        for name, array in values.items()
    }
    return persons, labels, own_names if _are_names(own_names, labels) else names, texts


def _are_names(names: Sequence[str], labels: NumpyArray) -> bool:
    """Whether the names are unique within every person, and valid as file names."""
    if not names or not all(_is_file_name(name) for name in names):
        return False
    return len(set(zip(labels.tolist(), names, strict=True))) == len(names)


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not {"/", "\0"} & set(name)
