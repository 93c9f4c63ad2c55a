"""Reading data sets that TFDS has prepared as ArrayRecord; only preparing needs TensorFlow.

An example is named SPLIT_POSITION ("train_000123"): TFDS stores no file names, and shuffles
examples once, the same way on every machine, when it prepares them.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deid_jax._validate import InputError
from deid_jax.data import selection
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.data.pictures import Source, build_dataset

_BATCH = 256  # examples read at once while scanning
_FORMAT = "array_record"


class PreparedSet:
    """A prepared TFDS data set; finds it, or prepares it where TensorFlow is installed.

    Args:
      name: the set's name in TFDS.
      data_dir: where TFDS keeps its data sets; None: its default, ~/tensorflow_datasets.
      advice: ends the message where the set is missing, an alternative to preparing it.

    Raises:
      InputError: the set is not prepared as ArrayRecord and cannot be.
    """

    def __init__(self, name: str, data_dir: str | None, advice: str = "") -> None:
        self.name = name
        builder = _builder(name, data_dir, advice)
        self.version = str(builder.info.version)
        self.features: Mapping[str, Any] = builder.info.features
        self._splits = _open_splits(name, builder)

    def scan(self, features: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yields (name, the features asked for) of every example, in order.

        Args:
          features: what TFDS's `FeaturesDict` takes; the other features are not decoded.
        """
        for split, examples in self._splits.items():
            for start in range(0, len(examples), _BATCH):
                positions = range(start, min(start + _BATCH, len(examples)))
                names = [f"{split}_{position:06d}" for position in positions]
                yield from zip(names, self._read(split, list(positions), features), strict=True)

    def read(self, name: str, features: Mapping[str, Any]) -> Any:
        """The features asked for of the example called `name`."""
        split, position = name.rsplit("_", 1)
        return self._read(split, [int(position)], features)[0]

    def _read(self, split: str, positions: list[int], features: Mapping[str, Any]) -> list[Any]:
        import tensorflow_datasets as tfds

        decode = tfds.features.FeaturesDict(dict(features)).deserialize_example_np
        try:
            records = self._splits[split].__getitems__(positions)
            return [decode(record) for record in records]
        except Exception as error:
            where = f"{self.name} {split} examples {positions[0]}..{positions[-1]}"
            raise InputError(f"{where} cannot be read: {_one_line(error)}") from error


def _builder(name: str, data_dir: str | None, advice: str) -> Any:
    """TFDS's builder of a prepared set; prepares it first if need be."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if builder.info.splits:
            return builder
    except Exception as error:  # damaged dataset_info.json and the like
        raise InputError(f"TFDS cannot read {name}: {_one_line(error)}") from error
    place = "~/tensorflow_datasets" if data_dir is None else data_dir
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"TFDS has no prepared {name} in {place}, and preparing it needs TensorFlow: "
            f"pip install 'deid_jax[tfds]'{advice}"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format=_FORMAT)
        builder.download_and_prepare()
    except Exception as error:  # network, quota, disk: each with its own exception
        raise InputError(
            f"TFDS cannot prepare {name} in {place}: {_one_line(error)}{advice}"
        ) from error
    return builder


def _open_splits(name: str, builder: Any) -> dict[str, Any]:
    """Split -> random access to its serialised examples."""
    import tensorflow_datasets as tfds

    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        return {
            split: builder.as_data_source(split=split, deserialize_method=raw)
            for split in builder.info.splits
        }
    except NotImplementedError as error:
        raise InputError(
            f"the {name} that TFDS prepared in {builder.data_path} is not in the {_FORMAT} "
            "format: delete it, or name another data_dir"
        ) from error
    except Exception as error:  # damaged files
        raise InputError(f"TFDS cannot read {name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """The message's first line, shortened; the exception's name where it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def load_subset(
    name: str,
    data: PreparedSet,
    options: DataOptions,
    features: Mapping[str, Any],
    person_of: Callable[[Any], str],
) -> FaceDataset:
    """The pictures of the persons that `selection.choose` draws.

    Pictures come undecoded from the feature "image"; "attributes", where the set has them,
    become the attributes.

    Args:
      name: the data set's name, ours.
      data: the prepared set.
      options: as for `build_dataset`.
      features: those that tell the person.
      person_of: the person, from an example's `features`.

    Raises:
      InputError: as `selection.choose` and `build_dataset`, or an example cannot be read.
    """
    import tensorflow_datasets as tfds

    pictures: dict[str, list[str]] = {}
    for example_name, example in data.scan(features):
        pictures.setdefault(person_of(example), []).append(example_name)
    chosen = selection.choose(name, pictures, options.seed)
    # As text an image is its file: decoding is ours, so that all data sets go the same way.
    wanted: dict[str, Any] = {"image": tfds.features.Text()}
    if "attributes" in data.features:
        wanted["attributes"] = data.features["attributes"]
    sources = []
    for person, names in chosen.items():
        for example_name in names:
            example = data.read(example_name, wanted)
            attributes = example.get("attributes", {})
            sources.append(
                Source(
                    person=person,
                    name=example_name,
                    content=bytes(example["image"]),
                    title=f"{data.name} {example_name} of person {person}",
                    attributes={key: bool(value) for key, value in attributes.items()},
                )
            )
    facts = {"origin": f"tfds {data.name} {data.version}", "selection": chosen}
    return build_dataset(name, sources, options, facts)
