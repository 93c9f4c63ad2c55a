"""Writes a copy of a data set with its images replaced, in the format of TFDS.

The copy is stored as ArrayRecord; neither writing nor reading it needs TensorFlow.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deid_jax.data import prepared
from deid_jax.data.dataset import FaceDataset, StoredExamples, TfdsObject
from deid_jax.errors import InputError, TransientError, one_line
from deid_jax.runs import replacing
from deid_jax.types import NumpyArray

VERSION = "1.0.0"  # of a copy whose source is not a TFDS data set
# To TFDS "all" means the union of the splits, so no split can have that name.
_SPLIT_NAMES = {"all": "whole"}


def subfolder(dataset: FaceDataset) -> Path:
    """The folder in which TFDS looks for the copy: NAME/VERSION, e.g. "celeb_a/2.1.0"."""
    if dataset.examples is not None:
        return Path(dataset.examples.builder.info.full_name)
    return Path(dataset.name) / VERSION


class PreparedCopy:
    """A copy of a data set, written shard by shard, by any number of processes.

    If the data set comes from TFDS, the copy has its name, version, features and splits, and
    each example equals the original except for the bytes of `image`: identity, attributes and
    everything else are retained. If the shape of `image` is fixed to another size, it is
    adapted. Any other data set gets version 1.0.0, the features `image`, `label` (the persons),
    `name` and, if it has any, `attributes`, and one split, named after the split of the data
    set; "all" becomes "whole", since TFDS reserves that name.

    A shard becomes one file for each split that its images belong to. In a split, examples are
    ordered by shard; in a shard, they are in the order of the original. So if the data set and
    the shards are in the original order, the copy is, too.

    The folder is a valid data set once `finish` has been called: for
    `tfds.builder_from_directory(folder)`, and for `--dataset=tfds --data_dir=folder`. At
    `DIR / subfolder(dataset)` it is also found by `tfds.load(NAME, data_dir=DIR)`.

    Args:
      folder: where to write; created if missing.
      dataset: the images; the same in all processes.
      shards: disjoint, ascending ranges of positions in `dataset`; the same in all processes.

    Raises:
      InputError: TFDS cannot represent a name.
    """

    def __init__(self, folder: Path, dataset: FaceDataset, shards: Sequence[range]) -> None:
        self.folder = folder
        examples, size = dataset.examples, dataset.image_size
        self.shards = tuple(shards)
        self._contents = _original(examples, size) if examples else _new(dataset)
        self._files = _name_files(folder, self._contents, shards)

    def write(self, shard: int, images: Mapping[int, bytes]) -> list[int]:
        """Writes one shard's files, each atomically, replacing existing ones.

        The same images give the same bytes.

        `images` is position in the data set -> PNG file; the shard's other images are left out
        of the copy. Returns the positions written, ascending.

        Raises:
          InputError: an original example cannot be read.
          TransientError: a file cannot be written.
        """
        kept = np.array(sorted(images), dtype=np.int64)
        kept = kept[np.argsort(self._contents.order[kept], kind="stable")]
        split_of = self._contents.split_of[kept]
        for split, path in self._files[shard].items():
            chosen = kept[split_of == split].tolist()
            records = (
                _with_image(self._contents.record(position), images[position])
                for position in chosen
            )
            _write_records(path, records)
        return sorted(images)

    def paths(self, shard: int) -> list[Path]:
        """The files that `write` creates for a shard."""
        return list(self._files[shard].values())

    def finish(self) -> dict[str, int]:
        """Writes the description of the data set; called by one process after all shards.

        A split without any written image is left out. Returns split -> number of examples.

        Raises:
          InputError: a shard has not been written, or no shard has an image.
          TransientError: a file cannot be written.
        """
        for left in self.folder.glob(".*"):  # Files left by killed processes.
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        info = type(self._contents.info)()
        info.CopyFrom(self._contents.info)
        counts = {}
        for number, split in enumerate(self._contents.splits):
            paths = [files[number] for files in self._files if number in files]
            lengths = [_num_records(path) for path in paths]
            if not sum(lengths):
                continue
            counts[split] = sum(lengths)
            num_bytes = sum(path.stat().st_size for path in paths)
            info.splits.add(name=split, shard_lengths=lengths, num_bytes=num_bytes)
        if not counts:
            raise InputError(f"no image was written to {self.folder}")
        _write_description(self.folder, info, self._contents.features)
        return counts


@dataclasses.dataclass(frozen=True)
class _Contents:
    """Everything in a copy except the images.

    Attributes:
      info: a `DatasetInfo` message, without splits.
      features: a `FeaturesDict`.
      order: int[N], ascending within a split of the original.
      record: position -> serialized example, with any image.
    """

    info: TfdsObject
    features: TfdsObject
    splits: tuple[str, ...]
    split_of: NumpyArray
    order: NumpyArray
    record: Callable[[int], bytes]


def _original(examples: StoredExamples, image_size: int) -> _Contents:
    """The contents of a copy of a TFDS data set, with images of another size."""
    import tensorflow_datasets as tfds

    builder = examples.builder
    info = type(builder.info.as_proto)()
    info.CopyFrom(builder.info.as_proto)
    for field in ("splits", "alternative_file_formats", "data_source_accesses"):
        info.ClearField(field)
    info.file_format = prepared.FORMAT
    info.description = f"A de-identified copy: the images differ.\n\n{info.description}"
    features = dict(builder.info.features.items())
    shape = (image_size, image_size, 3)
    image = features["image"]
    fits = all(own in (None, size) for own, size in zip(image.shape, shape, strict=True))
    features["image"] = tfds.features.Image(
        shape=image.shape if fits else shape, encoding_format="png", doc=image.doc
    )
    return _Contents(
        info,
        tfds.features.FeaturesDict(features),
        examples.splits,
        examples.split_of,
        examples.positions,
        examples.record,
    )


def _new(dataset: FaceDataset) -> _Contents:
    """The contents of a copy of a data set that is not from TFDS."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.proto import dataset_info_pb2

    _check_names(dataset)
    features: dict[str, TfdsObject] = {
        "image": tfds.features.Text(),  # as text, an image is stored as its file, unencoded
        "label": tfds.features.ClassLabel(names=dataset.persons),
        "name": tfds.features.Text(),
    }
    if dataset.attributes:
        features["attributes"] = {
            name: tfds.features.Text() if values.dtype.kind == "U" else values.dtype.type
            for name, values in dataset.attributes.items()
        }
    serialize = tfds.features.FeaturesDict(features).serialize_example

    def record(position: int) -> bytes:
        example: dict[str, object] = {
            "image": b"",
            "label": int(dataset.labels[position]),
            "name": dataset.names[position],
        }
        if dataset.attributes:
            attributes = dataset.attributes.items()
            example["attributes"] = {name: values[position] for name, values in attributes}
        return serialize(example)

    shape = (dataset.image_size, dataset.image_size, 3)
    image = tfds.features.Image(shape=shape, encoding_format="png")
    info = dataset_info_pb2.DatasetInfo(
        name=dataset.name,
        version=VERSION,
        description=f"De-identified images of the data set {dataset.name}.",
        file_format=prepared.FORMAT,
    )
    return _Contents(
        info,
        tfds.features.FeaturesDict({**features, "image": image}),
        (_SPLIT_NAMES.get(dataset.split, dataset.split),),
        np.zeros(len(dataset), dtype=np.int32),
        np.arange(len(dataset)),
        record,
    )


def _check_names(dataset: FaceDataset) -> None:
    """Refuses names of persons that TFDS's list of classes, one per line, would alter."""
    for person in dataset.persons:
        if person.strip() != person or not person or {"\n", "\r"} & set(person):
            raise InputError(
                f"person {person!r} cannot be a class of TFDS, whose names are stripped lines"
            )
    for text in (*dataset.persons, *dataset.names):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"name {text!r} cannot be written as text") from error


def _name_files(
    folder: Path, contents: _Contents, shards: Sequence[range]
) -> list[dict[int, Path]]:
    """For each shard, its files by split; they are numbered consecutively in each split."""
    import tensorflow_datasets as tfds

    files: list[dict[int, Path]] = [{} for _ in shards]
    for split, name in enumerate(contents.splits):
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder,
            dataset_name=contents.info.name,
            split=name,
            filetype_suffix=prepared.FORMAT,
        )
        in_split = contents.split_of == split
        present = [n for n, s in enumerate(shards) if in_split[s.start : s.stop].any()]
        for index, shard in enumerate(present):
            path = template.relative_filepath(shard_index=index, num_shards=len(present))
            files[shard][split] = folder / path
    return files


def _with_image(record: bytes, image: bytes) -> bytes:
    """A serialized example with its image file replaced."""
    example = prepared.parse_example(record)
    example.features.feature["image"].bytes_list.value[:] = [image]
    # Without this, the order of features differs from process to process.
    return example.SerializeToString(deterministic=True)


def _write_records(path: Path, records: Iterator[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    try:
        with replacing(path) as unfinished:
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
    except (OSError, RuntimeError) as error:  # The writer raises RuntimeError: disk full.
        raise TransientError(f"{path} cannot be written: {one_line(error)}") from error


def _num_records(path: Path) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise InputError(f"{path} has not been written")
    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def _write_description(folder: Path, info: TfdsObject, features: TfdsObject) -> None:
    """Writes the metadata that TFDS needs next to the examples; dataset_info.json is last."""
    from tensorflow_datasets.core import dataset_info

    try:
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as name:
            features.save_config(name)
            for path in sorted(Path(name).iterdir()):
                path.replace(folder / path.name)
            dataset_info.write_dataset_info_proto(info, dataset_info_dir=name)
            for path in Path(name).iterdir():
                path.replace(folder / path.name)
    except OSError as error:
        raise TransientError(f"{folder} cannot be written: {one_line(error)}") from error
