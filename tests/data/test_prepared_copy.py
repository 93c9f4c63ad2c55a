"""Copies read back through TFDS itself: the new images, everything else as it was."""

import functools
import io
import multiprocessing
import sys

import numpy as np
import pytest

from deid_jax.data import selection
from deid_jax.data.prepared_copy import PreparedCopy, subfolder
from tests.data import copying
from tests.data.tfds_sets import (
    celeba_example,
    load,
    noise,
    png,
    prepare,
    prepare_known,
    read,
)
from tests.helpers import refused

PEOPLE = ("bob", "ada", "eve")


_load = functools.partial(load, image_size=copying.SIZE)


@pytest.fixture
def original(tmp_path):
    """A set of two splits, one empty one, and features of many kinds."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(40, 30, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=PEOPLE),
        "box": tfds.features.BBoxFeature(),
        "words": tfds.features.Sequence(tfds.features.Text()),
        "pose": {"yaw": np.float32, "deep": {"pitch": np.int64}},
        "attributes": {"young": np.bool_},
    }
    examples = [
        {
            "image": io.BytesIO(png(noise(number))),
            "label": number % 3,
            "box": tfds.features.BBox(0.0, 0.25, 0.5, 1.0 - number / 100),
            "words": ["x"] * (number % 4),
            "pose": {"yaw": number / 7, "deep": {"pitch": number}},
            "attributes": {"young": number % 2 == 0},
        }
        for number in range(30)
    ]
    splits = {"train": examples[:20], "validation": [], "test": examples[20:]}
    return prepare(tmp_path / "faces" / "3.2.1", features, splits, shard_length=11)


def _assert_same_but_image(found, expected):
    import jax

    assert found.keys() == expected.keys()
    others = [{**example, "image": 0} for example in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *others)


@pytest.mark.parametrize("length", [1, 7, 20, 100])
def test_a_copy_of_a_tfds_set_differs_in_the_pictures_alone(tmp_path, original, length):
    dataset = _load("tfds", original)
    counts = copying.write_copy(tmp_path / "copy", dataset, length)
    assert counts == {"train": 20, "test": 10}
    before, after = read(original), read(tmp_path / "copy")
    import tensorflow_datasets as tfds

    sources = tfds.builder_from_directory(tmp_path / "copy").as_data_source()
    assert list(sources) == list(after) == ["train", "test"]
    for split, start in (("train", 0), ("test", 20)):
        for number, example in enumerate(after[split]):
            _assert_same_but_image(example, before[split][number])
            np.testing.assert_array_equal(example["image"], copying.new_picture(start + number))


def test_what_describes_the_copy(tmp_path, original):
    import tensorflow_datasets as tfds

    copying.write_copy(tmp_path / "copy", _load("tfds", original), 8)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "dataset_info.json",
        "faces-test.array_record-00000-of-00002",
        "faces-test.array_record-00001-of-00002",
        "faces-train.array_record-00000-of-00003",
        "faces-train.array_record-00001-of-00003",
        "faces-train.array_record-00002-of-00003",
        "features.json",
        "label.labels.txt",
    ]
    before = tfds.builder_from_directory(original).info
    after = tfds.builder_from_directory(tmp_path / "copy").info
    assert after.full_name == before.full_name == "faces/3.2.1"
    assert after.splits["train"].shard_lengths == [8, 8, 4]
    assert after.splits["test"].shard_lengths == [4, 6]
    assert after.description == "A de-identified copy: the images differ.\n\nFaces."
    assert after.features["image"].shape == (copying.SIZE, copying.SIZE, 3)
    assert after.features["image"].encoding_format == "png"
    assert after.features["label"].names == list(PEOPLE)
    for name in set(before.features) - {"image"}:
        assert after.features[name].to_json() == before.features[name].to_json()
    assert set(after.features) == set(before.features)


@pytest.mark.parametrize(
    "shape", [(None, None, 3), (copying.SIZE, copying.SIZE, 3), (None, copying.SIZE, 3)]
)
def test_a_shape_that_fits_stays(tmp_path, shape):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=shape), "person": tfds.features.Text()}
    examples = [
        {
            "image": io.BytesIO(png(noise(number, copying.SIZE, copying.SIZE))),
            "person": PEOPLE[number],
        }
        for number in range(3)
    ]
    prepare(tmp_path / "in", features, {"train": examples})
    copying.write_copy(tmp_path / "copy", _load("tfds", tmp_path / "in"))
    info = tfds.builder_from_directory(tmp_path / "copy").info
    assert info.features["image"].shape == shape


def test_the_copy_loads_as_the_original_does(tmp_path, original):
    dataset = _load("tfds", original)
    copying.write_copy(tmp_path / "copy", dataset)
    for split in ("all", "train", "test"):
        # Near-duplicates may differ, so that splits need not; here there are none.
        found, expected = (
            _load("tfds", tmp_path / "copy", split),
            _load("tfds", original, split),
        )
        assert found.image_names == expected.image_names
        assert found.attributes.keys() == {"young"}
        assert found.attributes["young"].tolist() == expected.attributes["young"].tolist()
        for index, picture in enumerate(found.image_names):
            position = dataset.image_names.index(picture)
            np.testing.assert_array_equal(found.read(index), copying.new_picture(position))
    assert _load("tfds", tmp_path / "copy").fingerprint() != dataset.fingerprint()


def test_lost_pictures_leave_the_others_in_order(tmp_path, original):
    """A whole shard may be lost, a whole split too."""
    dataset = _load("tfds", original)
    lost = {0, 5, *range(7, 14), 25}
    assert copying.write_copy(tmp_path / "a", dataset, 7, lost) == {"train": 11, "test": 9}
    before, after = read(original), read(tmp_path / "a")
    for split, start, length in (("train", 0, 20), ("test", 20, 10)):
        kept = [position for position in range(start, start + length) if position not in lost]
        for example, position in zip(after[split], kept, strict=True):
            _assert_same_but_image(example, before[split][position - start])
            np.testing.assert_array_equal(example["image"], copying.new_picture(position))
    assert copying.write_copy(tmp_path / "b", dataset, 10, set(range(20, 30))) == {"train": 20}
    assert list(read(tmp_path / "b")) == ["train"]
    assert len(_load("tfds", tmp_path / "b")) == 20
    with refused(r"no image was written to .*c$"):
        copying.write_copy(tmp_path / "c", dataset, 10, set(range(30)))


def test_a_part_of_a_tfds_set_in_any_order(tmp_path, original):
    """Within a shard, examples are in the original's order."""
    chosen = np.random.default_rng(0).permutation(30)[:17]
    dataset = _load("tfds", original).take(chosen)
    copying.write_copy(tmp_path / "copy", dataset, 100)
    before, after = read(original), read(tmp_path / "copy")
    for split, start in (("train", 0), ("test", 20)):
        places = sorted(place - start for place in chosen if (place < 20) == (split == "train"))
        assert len(places) == len(after[split])
        for example, place in zip(after[split], places, strict=True):
            _assert_same_but_image(example, before[split][place])
            position = chosen.tolist().index(place + start)
            np.testing.assert_array_equal(example["image"], copying.new_picture(position))


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """TFDS's celeb_a with 6 persons and 4 or more images of each, of whom 3 are drawn."""
    monkeypatch.setattr(selection, "NUM_PERSONS", 3)
    monkeypatch.setattr(selection, "NUM_IMAGES", 4)
    examples = [
        celeba_example(png(noise(number, 218, 178)), 100 + number % 6, number % 2 == 0, number)
        for number in range(27)
    ]
    splits = {"train": examples[:9], "validation": examples[9:15], "test": examples[15:]}
    return prepare_known(tmp_path, "celeb_a", splits)


def test_a_copy_of_celeba_loads_through_tfds_by_name(tmp_path, celeba):
    import tensorflow_datasets as tfds

    dataset = _load("celeba", tmp_path)
    assert subfolder(dataset).as_posix() == f"celeb_a/{celeba.name}"
    copy = tmp_path / "copies"
    counts = copying.write_copy(copy / subfolder(dataset), dataset, 5)
    assert sum(counts.values()) == len(dataset) == 12
    found = _load("celeba", copy)
    assert found.persons == dataset.persons
    expected = sorted(copying.new_picture(position).tobytes() for position in range(12))
    assert sorted(found.read(index).tobytes() for index in range(12)) == expected
    split = next(iter(counts))
    by_name = tfds.builder("celeb_a", data_dir=str(copy)).as_data_source(split=split)
    numbers = [example["landmarks"]["nose_x"] for example in by_name]
    originals = read(celeba)
    for example, number in zip(by_name, numbers, strict=True):
        (same,) = [e for e in originals[split] if e["landmarks"]["nose_x"] == number]
        _assert_same_but_image(example, same)


def test_a_whole_copy_of_celeba_gives_the_same_subset(tmp_path, celeba):
    """Position by position: so the seed draws the same images."""
    dataset = _load("tfds", celeba)
    copying.write_copy(tmp_path / "copies" / subfolder(dataset), dataset, 4)
    before, after = _load("celeba", tmp_path), _load("celeba", tmp_path / "copies")
    assert after.image_names == before.image_names
    for name, values in before.attributes.items():
        np.testing.assert_array_equal(after.attributes[name], values)
    for index, picture in enumerate(after.image_names):
        np.testing.assert_array_equal(
            after.read(index), copying.new_picture(dataset.image_names.index(picture))
        )


def test_a_copy_of_lfw_loads_through_tfds_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "NUM_PERSONS", 2)
    monkeypatch.setattr(selection, "NUM_IMAGES", 3)
    examples = [
        {"image": io.BytesIO(png(noise(number, 250, 250))), "label": PEOPLE[number % 3]}
        for number in range(10)
    ]
    prepare_known(tmp_path, "lfw", {"train": examples})
    dataset = _load("lfw", tmp_path)
    copying.write_copy(tmp_path / "copies" / subfolder(dataset), dataset, 4)
    assert _load("lfw", tmp_path / "copies").persons == dataset.persons


@pytest.mark.parametrize(("split", "name"), [("all", "whole"), ("train",) * 2, ("test",) * 2])
def test_a_copy_of_any_other_set(tmp_path, split, name):
    import tensorflow_datasets as tfds

    dataset = copying.other_set(split=split)
    folder = tmp_path / subfolder(dataset)
    assert folder == tmp_path / "folder" / "1.0.0"
    assert copying.write_copy(folder, dataset, 4, lost={3}) == {name: 9}
    builder = tfds.builder_from_directory(folder)
    assert builder.info.features["label"].names == list(dataset.persons)
    assert builder.info.features["image"].shape == (copying.SIZE, copying.SIZE, 3)
    kept = [position for position in range(10) if position != 3]
    for example, position in zip(read(folder)[name], kept, strict=True):
        np.testing.assert_array_equal(example["image"], copying.new_picture(position))
        assert example["label"] == dataset.labels[position]
        assert example["name"].decode() == dataset.names[position]
        assert example["attributes"] == {
            "young": position % 2 == 0,
            "yaw": np.float32(position / 9),
            "hair": [b"dark", b"fair"][position % 2],
        }
    again = _load("tfds", tmp_path)
    assert again.image_names == tuple(dataset.image_names[position] for position in kept)
    for attribute, values in dataset.attributes.items():
        np.testing.assert_array_equal(again.attributes[attribute], values[kept])


def test_a_set_without_attributes(tmp_path):
    copying.write_copy(tmp_path / "copy", copying.other_set(attributes={}))
    assert read(tmp_path / "copy")["whole"][0].keys() == {"image", "label", "name"}


def test_a_copy_of_a_copy(tmp_path):
    copying.write_copy(tmp_path / "a", copying.other_set())
    copying.write_copy(tmp_path / "b", _load("tfds", tmp_path / "a"))
    first, second = read(tmp_path / "a")["whole"], read(tmp_path / "b")["whole"]
    for one, other in zip(first, second, strict=True):
        _assert_same_but_image(other, one)


def _write_one(folder, original, number):
    """In a process of its own."""
    sys.stderr = io.StringIO()
    dataset = _load("tfds", original) if original else copying.other_set()
    shards = copying.shards_of(len(dataset), 7)
    copy = PreparedCopy(folder, dataset, shards)
    copy.write(
        number, {position: png(copying.new_picture(position)) for position in shards[number]}
    )


@pytest.mark.parametrize("source", ["tfds", "other"])
def test_other_processes_write_the_same_bytes(tmp_path, original, source):
    origin = original if source == "tfds" else None
    dataset = _load("tfds", original) if origin else copying.other_set()
    copying.write_copy(tmp_path / "a", dataset)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_write_one, args=(tmp_path / "b", origin, number))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    written = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(written) == 2
    for name in written:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_writing_again_gives_the_same_bytes(tmp_path):
    dataset = copying.other_set()
    copying.write_copy(tmp_path, dataset)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    copying.write_copy(tmp_path, dataset)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
