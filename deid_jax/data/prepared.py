"""Reads data sets that TFDS has prepared as ArrayRecord; only preparing needs TensorFlow.

Examples are named SPLIT_POSITION ("train_000123"): TFDS stores no file names, and shuffles the
examples once, identically on every machine, when preparing them.
"""

import importlib.util
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deid_jax.data import selection
from deid_jax.data.building import UndecodedImages, build_dataset
from deid_jax.data.dataset import DataOptions, FaceDataset, StoredExamples, TfdsObject
from deid_jax.errors import InputError, one_line
from deid_jax.types import AnyDtype, NumpyArray

FORMAT = "array_record"
# The features that may identify the person; the first one present is used.
PERSON_FEATURES = ("identity/Identity_No", "label", "person")

_BATCH = 256  # examples read at once while scanning


class Column(NamedTuple):
    """A feature with one value per example: its key, e.g. "identity/Identity_No".

    `convert` maps a stored value to its meaning, for an array of `dtype`.
    """

    key: str
    convert: Callable[[TfdsObject], object]
    dtype: np.dtype[AnyDtype]


class PreparedSet:
    """Random access to the examples of a data set that TFDS has prepared.

    Raises:
      InputError: the data set is not prepared as ArrayRecord, or has no examples.
    """

    def __init__(self, builder: TfdsObject) -> None:
        self.builder = builder
        self.name: str = builder.name
        self.version = str(builder.info.version)
        self.features: TfdsObject = builder.info.features
        self._sources = _open_splits(builder)
        if not self._sources:
            raise InputError(f"the {self.name} in {builder.data_path} has no examples")

    @property
    def lengths(self) -> dict[str, int]:
        """Split -> number of examples, for non-empty splits."""
        return {split: len(source) for split, source in self._sources.items()}

    def feature(self, key: str) -> TfdsObject:
        """The feature called "NAME" or "NAME/NAME"; None if there is none."""
        import tensorflow_datasets as tfds

        feature = self.features
        for part in key.split("/"):
            if not isinstance(feature, tfds.features.FeaturesDict) or part not in feature:
                return None
            feature = feature[part]
        return feature

    def column(self, key: str) -> Column | None:
        """The feature called `key`, if it exists and has one value per example."""
        import tensorflow_datasets as tfds

        feature = self.feature(key)
        if isinstance(feature, tfds.features.ClassLabel):
            return Column(key, lambda value: _class_name(feature, value), np.dtype(object))
        if isinstance(feature, tfds.features.Text):
            return Column(key, bytes.decode, np.dtype(object))
        if isinstance(feature, tfds.features.Tensor) and feature.shape == ():
            dtype = np.dtype(feature.np_dtype)
            return Column(key, dtype.type, dtype) if dtype.kind in "biuf" else None
        return None

    def person(self) -> Column:
        """The feature that identifies the person in an example.

        Raises:
          InputError: there is no such feature.
        """
        for key in PERSON_FEATURES:
            column = self.column(key)
            if column is not None:
                return column
        raise InputError(
            f"the {self.name} in {self.builder.data_path} has none of the features "
            f"{', '.join(PERSON_FEATURES)}, one of which must tell the person"
        )

    def attributes(self) -> dict[str, Column]:
        """The parts of the feature "attributes", if it exists, by name."""
        import tensorflow_datasets as tfds

        known = self.feature("attributes")
        names = known.keys() if isinstance(known, tfds.features.FeaturesDict) else ()
        # Sorted: their order as read from a file differs from process to process.
        columns = {name: self.column(f"attributes/{name}") for name in sorted(names)}
        return {name: column for name, column in columns.items() if column is not None}

    def scan(
        self, columns: Sequence[Column], update: Callable[[bytes], None] | None = None
    ) -> Iterator[tuple[str, int, list[object]]]:
        """Yields (split, position in it, the columns' values) for every example, in order.

        `update`, of a hash object, is called with the checksums of all examples.

        Raises:
          InputError: an example cannot be read, or lacks a value.
        """
        for split, source in self._sources.items():
            for start in range(0, len(source), _BATCH):
                stop = min(start + _BATCH, len(source))
                try:
                    records = source.__getitems__(list(range(start, stop)))
                    values = [_values(record, columns) for record in records]
                except Exception as error:  # damaged files raise all kinds
                    where = f"{self.name} {split} examples {start}..{stop - 1}"
                    raise InputError(f"{where} cannot be read: {one_line(error)}") from error
                if update is not None:
                    checksums = [zlib.crc32(record) for record in records]
                    update(np.array(checksums, dtype="<u4").tobytes())
                for position, row in enumerate(values, start):
                    yield split, position, row

    def record(self, split: str, position: int) -> bytes:
        """One serialized example; thread safe.

        Raises:
          InputError: it cannot be read.
        """
        try:
            return self._sources[split][position]
        except Exception as error:  # damaged files raise all kinds
            title = f"{self.name} {example_name(split, position)}"
            raise InputError(f"{title} cannot be read: {one_line(error)}") from error

    def image(self, split: str, position: int) -> bytes:
        """The image file in an example; thread safe.

        Raises:
          InputError: the example cannot be read, or has no image.
        """
        stored = parse_example(self.record(split, position)).features.feature
        try:
            return stored["image"].bytes_list.value[0]
        except IndexError as error:
            title = f"{self.name} {example_name(split, position)}"
            raise InputError(f"{title} has no image") from error

    def examples(
        self, split_of: Sequence[int] | NumpyArray, positions: Sequence[int] | NumpyArray
    ) -> StoredExamples:
        """The examples at these positions of these splits, numbers into `lengths`."""
        places = np.asarray(split_of, np.int32), np.asarray(positions, np.int64)
        return StoredExamples(self.builder, tuple(self.lengths), *places, self.record)

    def undecoded(
        self,
        examples: StoredExamples,
        persons: tuple[str, ...],
        labels: NumpyArray,
        names: Sequence[str],
        attributes: Mapping[str, NumpyArray],
        fingerprint: str | None = None,
    ) -> UndecodedImages:
        """The images of examples, not decoded by TFDS: all data sets are decoded one way."""

        def title(index: int) -> str:
            example = example_name(*examples.place(index))
            return f"{self.name} {example} of person {persons[labels[index]]}"

        return UndecodedImages(
            persons,
            labels,
            names,
            lambda index: self.image(*examples.place(index)),
            title,
            fingerprint,
            attributes,
            examples,
        )


def example_name(split: str, position: int) -> str:
    """The name given to an example that has none."""
    return f"{split}_{position:06d}"


def parse_example(record: bytes) -> TfdsObject:
    """Parses a serialized example as a `tf.train.Example`."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record)


def _values(record: bytes, columns: Sequence[Column]) -> list[object]:
    stored = parse_example(record).features.feature
    values = []
    for column in columns:
        kind = stored[column.key].WhichOneof("kind")
        if kind is None:
            raise ValueError(f"no {column.key}")
        values.append(column.convert(getattr(stored[column.key], kind).value[0]))
    return values


def _class_name(feature: TfdsObject, value: int) -> str:
    if value < 0:
        raise ValueError("no label")
    return feature.int2str(value)


def open_named(name: str, data_dir: str | None, advice: str) -> PreparedSet:
    """Opens a data set that TFDS knows, preparing it first if TensorFlow is installed.

    `data_dir` is where TFDS keeps its data sets, by default ~/tensorflow_datasets; `advice` is
    an alternative to preparing it, appended to the message if it is missing.

    Raises:
      InputError: the data set is not prepared as ArrayRecord and cannot be prepared.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if builder.info.splits:
            return PreparedSet(builder)
    except InputError:
        raise
    except Exception as error:  # damaged dataset_info.json and the like
        raise InputError(f"TFDS cannot read {name}: {one_line(error)}") from error
    place = "~/tensorflow_datasets" if data_dir is None else data_dir
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"TFDS has no prepared {name} in {place}, and preparing it needs TensorFlow: "
            f"pip install 'deid_jax[tfds]'{advice}"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format=FORMAT)
        builder.download_and_prepare()
    except Exception as error:  # network, quota, disk: each with its own exception
        raise InputError(
            f"TFDS cannot prepare {name} in {place}: {one_line(error)}{advice}"
        ) from error
    return PreparedSet(builder)


def open_folder(folder: Path) -> PreparedSet:
    """Opens the data set whose dataset_info.json is in `folder`; TFDS need not know it.

    Raises:
      InputError: the data set is damaged, or not prepared as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # damaged files raise all kinds
        raise InputError(f"TFDS cannot read {folder}: {one_line(error)}") from error
    return PreparedSet(builder)


def _open_splits(builder: TfdsObject) -> dict[str, TfdsObject]:
    """Split -> random access to its serialized examples."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise InputError(
            f"the {builder.name} that TFDS prepared in {builder.data_path} is not in the "
            f"{FORMAT} format: prepare it again in that one, or name another data_dir"
        )
    try:
        return {
            split: builder.as_data_source(
                split=split, deserialize_method=raw, file_format=FORMAT
            )
            for split, info in builder.info.splits.items()
            if info.num_examples  # a split without files cannot be opened
        }
    except Exception as error:  # damaged files
        raise InputError(f"TFDS cannot read {builder.name}: {one_line(error)}") from error


def load_subset(name: str, data: PreparedSet, options: DataOptions) -> FaceDataset:
    """Loads the images of the persons that `selection.choose_subset` draws.

    Images are taken undecoded from the feature "image", and attributes from "attributes", if
    the data set has them.

    `name` is the data set's name in this project.

    Raises:
      InputError: an example cannot be read, or as for `choose_subset` and `build_dataset`.
    """
    places: dict[str, tuple[str, int]] = {}
    images: dict[str, list[str]] = {}
    for split, position, (person,) in data.scan([data.person()]):
        image = example_name(split, position)
        places[image] = (split, position)
        images.setdefault(str(person), []).append(image)
    chosen = selection.choose_subset(name, images, options.seed)
    persons = tuple(chosen)
    names = [image for drawn in chosen.values() for image in drawn]
    columns = data.attributes()
    rows = [_values(data.record(*places[image]), list(columns.values())) for image in names]
    splits = list(data.lengths)
    undecoded = data.undecoded(
        data.examples(
            [splits.index(places[image][0]) for image in names],
            [places[image][1] for image in names],
        ),
        persons,
        np.repeat(np.arange(len(persons), dtype=np.int32), selection.NUM_IMAGES),
        names,
        {
            attribute: np.array([row[i] for row in rows], dtype=bool)
            for i, attribute in enumerate(columns)
        },
    )
    facts = {"origin": f"tfds {data.name} {data.version}", "selection": chosen}
    return build_dataset(name, undecoded, options, facts)
