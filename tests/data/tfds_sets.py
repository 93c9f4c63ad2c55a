"""Small TFDS data sets, prepared without TensorFlow."""

import gc
import io
import tracemalloc

import numpy as np
from PIL import Image

from deid_jax.data import DataOptions, load_dataset


def load(name, root, split="all", image_size=16, **options):
    options |= {"image_size": image_size, "split": split, "data_dir": str(root)}
    return load_dataset(name, DataOptions(**options))


def noise(seed, height=40, width=30):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def jpeg(seed, width, height):
    """A JPEG file of coarse noise that only its seed gives."""
    image = Image.fromarray(noise(seed, 11, 9)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    content = io.BytesIO()
    image.save(content, "JPEG")
    return content.getvalue()


def assert_memory_is_bounded(load, total, held_each, peak_each, step):
    """An index takes so many bytes an image; of 1000 images read, nothing stays."""
    load().read(0)
    tracemalloc.start()
    try:
        dataset = load()
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        assert held < held_each * total
        assert peak < peak_each * total
        tracemalloc.reset_peak()
        for index in range(0, total, step):
            dataset.read(index)
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - held < 100 * 1000
        assert peak - held < 500 * 1000
    finally:
        tracemalloc.stop()


def prepare_known(root, name, splits):
    """Writes the data set of this name that TFDS knows, below `root`."""
    import tensorflow_datasets as tfds

    info = tfds.builder(name, data_dir=str(root)).info
    version, features = str(info.version), dict(info.features.items())
    return prepare(root / name / version, features, splits, name=name, version=version)


def celeba_example(content, person, value, landmark=1, **attributes):
    """An example of CelebA; all attributes but those given have the value."""
    import tensorflow_datasets as tfds

    features = tfds.builder("celeb_a").info.features
    return {
        "image": io.BytesIO(content),
        "landmarks": dict.fromkeys(features["landmarks"], landmark),
        "attributes": dict.fromkeys(features["attributes"], value) | attributes,
        "identity": {"Identity_No": person},
    }


def prepare(folder, features, splits, *, name="faces", version="3.2.1", shard_length=1000):
    """Writes a data set to `folder`.

    Args:
      folder: its NAME/VERSION.
      features: what `tfds.features.FeaturesDict` takes; images are given as files.
      splits: split -> examples.
      name: the set's.
      version: the set's.
      shard_length: the most examples in a file.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name="x"
    )
    features = tfds.features.FeaturesDict(features)
    info = tfds.core.DatasetInfo(builder=identity, features=features, description="Faces.")
    info.set_file_format("array_record")
    infos = []
    for split, examples in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        starts = range(0, len(examples), shard_length)
        shards = [examples[start : start + shard_length] for start in starts]
        for number, shard in enumerate(shards):
            path = template.sharded_filepath(shard_index=number, num_shards=len(shards))
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for example in shard:
                writer.write(features.serialize_example(example))
            writer.close()
        split_info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(shard) for shard in shards],
            num_bytes=1,
            filename_template=template,
        )
        infos.append(split_info)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
    return folder


def read(folder):
    """Split -> examples, as TFDS itself reads them; it cannot read a split without any."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    splits = [name for name, info in builder.info.splits.items() if info.num_examples]
    return {split: list(builder.as_data_source(split=split)) for split in splits}
