import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from deid_jax.data import DataOptions, load_dataset, selection
from deid_jax.errors import InputError


def _jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((250, 250), Image.Resampling.NEAREST).save(content, "JPEG")
    return content.getvalue()


def _prepare(root, people):
    """Writes a TFDS lfw; the image at position p shows people[p] and is _jpeg(p)."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    builder = tfds.builder("lfw", data_dir=str(root), file_format="array_record")
    folder = root / "lfw" / str(builder.version)
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="lfw", split="train", filetype_suffix="array_record"
    )
    path = template.sharded_filepath(shard_index=0, num_shards=1)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for position, person in enumerate(people):
        example = {"label": person, "image": io.BytesIO(_jpeg(position))}
        writer.write(builder.info.features.serialize_example(example))
    writer.close()
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[len(people)], num_bytes=1, filename_template=template
    )
    builder.info.set_splits(tfds.core.splits.SplitDict([split]))
    builder.info.write_to_directory(folder)


def _load(root, split="all", **options):
    options = {"image_size": 20, **options}
    return load_dataset("lfw", DataOptions(data_dir=str(root), split=split, **options))


@pytest.fixture
def people(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "NUM_PERSONS", 3)
    monkeypatch.setattr(selection, "NUM_IMAGES", 4)
    counts = {"Ada_Lovelace": 5, "José_Serra": 4, "One_Only": 1, "Bo_Li": 7, "Cy_Ng": 4}
    names = [name for name, count in counts.items() for _ in range(count)]
    names = np.random.default_rng(0).permutation(names).tolist()
    _prepare(tmp_path, names)
    return names


def test_pictures_and_names(people, tmp_path):
    met = set()
    for seed in range(6):
        dataset = _load(tmp_path, seed=seed)
        assert len(dataset.persons) == 3 and len(dataset) == 12
        assert np.bincount(dataset.labels).tolist() == [4, 4, 4]
        met |= set(dataset.persons)
    assert met == {"Ada_Lovelace", "José_Serra", "Bo_Li", "Cy_Ng"}
    for index, (label, name) in enumerate(zip(dataset.labels, dataset.names, strict=True)):
        position = int(name.removeprefix("train_"))
        assert people[position] == dataset.persons[label]
        with Image.open(io.BytesIO(_jpeg(position))) as image:
            face = image.resize((20, 20), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(dataset.read(index), np.asarray(face))
    assert dataset.attributes == {}


def test_selection_is_recorded_and_splits_divide_it(people, tmp_path):
    train, test = _load(tmp_path, "train"), _load(tmp_path, "test")
    chosen = train.provenance["selection"]
    assert chosen == test.provenance["selection"]
    listed = {f"{person}/{name}" for person, names in chosen.items() for name in names}
    assert len(train) == 9 and len(test) == 3
    assert {*train.image_names, *test.image_names} == listed
    assert train.provenance["origin"] == "tfds lfw 0.1.1"


def test_too_few_persons(people, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "NUM_PERSONS", 5)
    with pytest.raises(InputError, match="lfw has 4 persons with 4 images or more, 5 are n"):
        _load(tmp_path)


def test_without_data_and_tensorflow_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"no prepared lfw in .*pip install .*--dataset=folder"
    ):
        _load(tmp_path)
