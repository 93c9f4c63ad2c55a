"""Prepared TFDS sets give the images, persons and names that were put into them."""

import functools
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deid_jax.data import DataOptions, building, load_dataset, prepared
from tests.data.tfds_sets import assert_memory_is_bounded, load, noise, png, prepare
from tests.helpers import refused

PEOPLE = ("bob", "ada", "eve")


_load = functools.partial(load, "tfds")


def _features(**more):
    import tensorflow_datasets as tfds

    return {"image": tfds.features.Image(), "label": tfds.features.Text(), **more}


def _example(number, **more):
    """What is at `number` of the set; 0 and 3, both bob's, show the same."""
    seed = 0 if number == 3 else number
    label = more.pop("label", PEOPLE[number % 3])
    return {"image": io.BytesIO(png(noise(seed))), "label": label, **more}


def _splits(total=30, more=lambda number: {}):
    examples = [_example(number, **more(number)) for number in range(total)]
    cut = total * 2 // 3
    return {"train": examples[:cut], "validation": [], "test": examples[cut:]}


def _prepare(folder, **named):
    return prepare(folder, _features(), _splits(), shard_length=7, **named)


def _folder(root, total=30):
    """The same images as the data set `folder` takes them."""
    for number in range(total):
        cut = total * 2 // 3
        name = f"train_{number:06d}" if number < cut else f"test_{number - cut:06d}"
        (root / PEOPLE[number % 3]).mkdir(parents=True, exist_ok=True)
        content = _example(number)["image"].getvalue()
        (root / PEOPLE[number % 3] / f"{name}.png").write_bytes(content)
    return root


def test_pictures_keep_the_order_of_the_examples(tmp_path):
    dataset = _load(_prepare(tmp_path / "faces" / "3.2.1"), image_size=30, crop="none")
    assert dataset.name == "tfds"
    assert dataset.persons == ("ada", "bob", "eve")
    assert [dataset.persons[label] for label in dataset.labels] == [*PEOPLE] * 10
    assert dataset.labels.dtype == np.int32
    assert dataset.names == tuple(
        [f"train_{n:06d}" for n in range(20)] + [f"test_{n:06d}" for n in range(10)]
    )
    assert dataset.provenance["origin"] == "tfds faces 3.2.1"
    assert dataset.provenance["num_pictures"] == 30
    assert "num_unreadable" not in dataset.provenance
    assert dataset.attributes == {}
    square = _load(tmp_path, image_size=30)
    np.testing.assert_array_equal(square.read(29), noise(29)[5:35])


@pytest.mark.parametrize("deeper", [".", "3.2.1", "faces/3.2.1"])
def test_the_folder_is_found_from_above(tmp_path, deeper):
    _prepare(tmp_path / "in" / deeper)
    assert len(_load(tmp_path / "in")) == 30


def test_no_folder_and_several(tmp_path):
    with refused(r"data_dir must name a folder with TFDS's dataset_info"):
        load_dataset("tfds", DataOptions(image_size=16))
    with refused("nowhere is not a folder"):
        _load(tmp_path / "nowhere")
    _prepare(tmp_path / "very" / "deep" / "faces" / "3.2.1")
    with refused(r"has no dataset_info\.json, which TFDS writes"):
        _load(tmp_path)
    _prepare(tmp_path / "a" / "3.2.1")
    _prepare(tmp_path / "b")
    with refused(r"has 2 data sets, name one: a/3\.2\.1, b$"):
        _load(tmp_path)


def _kinds():
    import tensorflow_datasets as tfds

    classes = tfds.features.ClassLabel(names=PEOPLE)
    text = tfds.features.Text()
    return {
        "identity": ({"identity": {"Identity_No": np.int64}, "label": text}, "7"),
        "class": ({"label": classes, "person": text}, "ada"),
        "unnamed": ({"label": tfds.features.ClassLabel(num_classes=9)}, "1"),
        "text": ({"label": text, "person": text}, "ada"),
        "number": ({"label": np.int32}, "1"),
        "person": ({"person": text}, "ada"),
    }


@pytest.mark.parametrize("kind", ["identity", "class", "unnamed", "text", "number", "person"])
def test_the_first_of_the_features_tells_the_person(tmp_path, kind):
    features, expected = _kinds()[kind]
    values = {"identity": {"Identity_No": 7}, "label": "ada", "person": "ada"}
    others = {"identity": {"Identity_No": 8}, "label": "bob", "person": "bob"}
    if kind in ("unnamed", "number"):
        values["label"], others["label"] = 1, 2
    for example in (values, others):
        if kind in ("class", "text"):
            example["person"] = "somebody"
        if kind == "identity":
            example["label"] = "somebody"
    import tensorflow_datasets as tfds

    examples = [
        {**{key: example[key] for key in features}, "image": io.BytesIO(png(noise(seed)))}
        for seed, example in enumerate((others, values))
    ]
    features = {**features, "image": tfds.features.Image()}
    prepare(tmp_path / "in", features, {"train": examples})
    dataset = _load(tmp_path / "in")
    assert dataset.persons[dataset.labels[1]] == expected
    assert len(dataset.persons) == 2


def test_sets_that_lack_what_is_needed(tmp_path):
    import tensorflow_datasets as tfds

    image = io.BytesIO(png(noise(0)))
    prepare(
        tmp_path / "a",
        {
            "image": tfds.features.Image(),
            "label": tfds.features.Tensor(shape=(2,), dtype=np.int64),
        },
        {"train": [{"image": image, "label": [1, 2]}]},
    )
    with refused(r"none of the features identity/Identity_No, label, pe"):
        _load(tmp_path / "a")
    prepare(tmp_path / "b", {"label": np.int64}, {"train": [{"label": 1}]})
    with refused(r"has no images: image"):
        _load(tmp_path / "b")
    prepare(tmp_path / "c", _features(), {"train": []})
    with refused(r"the faces in .* has no examples"):
        _load(tmp_path / "c")
    prepare(tmp_path / "d", _features(), {"train": [_example(0), _example(3)]})
    with refused("tfds needs readable images of two persons or more"):
        _load(tmp_path / "d")
    features = _features(label=tfds.features.ClassLabel(names=PEOPLE))
    prepare(tmp_path / "e", features, {"train": [_example(0), _example(1, label=-1)]})
    with refused(r"faces train examples 0\.\.1 cannot be read: no label"):
        _load(tmp_path / "e")
    examples = [_example(0), _example(1, label="../up")]
    prepare(tmp_path / "f", _features(), {"train": examples})
    with refused(r"faces: person '\.\./up' is not fit for a folder's na"):
        _load(tmp_path / "f")


def _named(root, names):
    import tensorflow_datasets as tfds

    examples = [_example(number, name=name) for number, name in enumerate(names)]
    prepare(root, _features(name=tfds.features.Text()), {"train": examples})
    return _load(root).names


def test_names_come_from_the_set_where_they_are_fit_for_it(tmp_path):
    assert _named(tmp_path / "a", ["x", "x", "x", "ü"]) == ("x", "x", "x", "ü")
    numbered = tuple(f"train_{number:06d}" for number in range(4))
    assert _named(tmp_path / "b", ["x", "y", "z", "x"]) == numbered
    for number, unfit in enumerate(("", ".", "..", "a/b", "a\0")):
        assert _named(tmp_path / f"c{number}", ["x", "y", "z", unfit]) == numbered


def test_a_name_that_is_no_text_is_not_used(tmp_path):
    examples = [_example(number, name=number) for number in range(4)]
    prepare(tmp_path / "in", _features(name=np.int64), {"train": examples})
    assert _load(tmp_path).names[0] == "train_000000"


def test_attributes_of_every_kind(tmp_path):
    import tensorflow_datasets as tfds

    kinds = {
        "young": np.bool_,
        "age": np.float32,
        "count": np.int64,
        "hair": tfds.features.Text(),
        "nose": tfds.features.ClassLabel(names=["long", "short"]),
        "box": tfds.features.BBoxFeature(),
    }
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)

    def attributes(number):
        return {
            "young": number % 2 == 0,
            "age": number / 2,
            "count": number,
            "hair": "ä" * number,
            "nose": number % 2,
            "box": box,
        }

    splits = _splits(6, lambda number: {"attributes": attributes(number)})
    prepare(tmp_path / "in", _features(attributes=kinds), splits)
    found = _load(tmp_path).attributes
    assert list(found) == ["age", "count", "hair", "nose", "young"]
    assert {name: values.dtype.kind for name, values in found.items()} == {
        "age": "f",
        "count": "i",
        "hair": "U",
        "nose": "U",
        "young": "b",
    }
    assert found["age"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert found["count"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["hair"].tolist() == ["ä" * number for number in range(6)]
    assert found["nose"].tolist() == ["long", "short"] * 3
    assert found["young"].tolist() == [True, False] * 3


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("skip", [False, True])
def test_splits_are_those_of_the_folder(tmp_path, monkeypatch, split, skip):
    monkeypatch.setattr(building, "_DECODED_AT_ONCE", 4)
    monkeypatch.setattr(prepared, "_BATCH", 3)
    splits = _splits()
    root = _folder(tmp_path / "folder")
    if skip:
        splits["train"][5]["image"] = io.BytesIO(b"no image")
        (root / "eve" / "train_000005.png").write_bytes(b"no image")
    prepare(tmp_path / "faces", _features(), splits, shard_length=7)
    for seed in range(4):
        options = {"seed": seed, "skip_unreadable": skip}
        found = _load(tmp_path / "faces", split, **options)
        expected = load_dataset(
            "folder", DataOptions(16, data_dir=str(root), split=split, **options)
        )
        assert sorted(found.image_names) == list(expected.image_names)
        places = [expected.image_names.index(picture) for picture in found.image_names]
        np.testing.assert_array_equal(found.labels, expected.labels[places])
        for index, place in enumerate(places):
            np.testing.assert_array_equal(found.read(index), expected.read(place))
        order = [(name.startswith("test"), name) for name in found.names]
        assert order == sorted(order)
        for fact in ("num_pictures", "num_near_duplicate_pairs", "unreadable"):
            assert found.provenance[fact] == expected.provenance[fact]
        assert found.provenance["num_near_duplicate_pairs"] == 1


def test_an_unreadable_picture_is_named(tmp_path):
    splits = _splits()
    splits["test"][4]["image"] = io.BytesIO(b"no image")
    prepare(tmp_path / "faces", _features(), splits)
    dataset = _load(tmp_path)
    with refused(r"^faces test_000004 of person bob is not an image"):
        dataset.read(24)
    assert _load(tmp_path, skip_unreadable=True).skip_unreadable
    with refused(r"^faces test_000004 of person bob .*--skip_unreadable"):
        _load(tmp_path, "train")


def test_damaged_files(tmp_path):
    folder = _prepare(tmp_path / "in")
    dataset = _load(folder)
    shard = folder / "faces-test.array_record-00001-of-00002"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with refused(r"^faces test examples 0\.\.9 cannot be read: "):
        _load(folder)
    with refused(r"^faces test_000008 cannot be read: "):
        dataset.read(28)
    shard.unlink()
    with refused(r"^faces test examples 0\.\.9 cannot be read: "):
        _load(folder)
    info = folder / "dataset_info.json"
    whole = info.read_text()
    info.write_text(json.dumps({**json.loads(whole), "fileFormat": "tfrecord"}))
    with refused(r"the faces that TFDS .* not in the array_record format"):
        _load(folder)
    info.write_text("{")
    with refused(r"^TFDS cannot read "):
        _load(folder)
    info.write_text(whole)
    (folder / "features.json").unlink()
    with refused(r"^TFDS cannot read .*: Cannot restore faces"):
        _load(folder)


def test_an_example_without_a_picture(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = _prepare(tmp_path / "in")
    shard = folder / "faces-test.array_record-00000-of-00002"
    bare = tf_example_pb2.Example()
    bare.features.feature["label"].bytes_list.value.append(b"ada")
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for _ in range(7):
        writer.write(bare.SerializeToString())
    writer.close()
    with refused(r"^faces test_000000 has no image$"):
        _load(folder).read(20)


def test_eight_threads_read_the_same(tmp_path):
    dataset = _load(_prepare(tmp_path / "in"), image_size=8)
    expected = [dataset.read(index) for index in range(30)]
    again = _load(tmp_path / "in", image_size=8)
    order = np.random.default_rng(0).permutation(30).tolist() * 5
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in zip(order, pool.map(again.read, order), strict=True):
            np.testing.assert_array_equal(pixels, expected[index])


def test_take_remaps_pictures_and_examples(tmp_path):
    dataset = _load(_prepare(tmp_path / "in"))
    few = dataset.take([29, 3, 25]).take([2, 1])
    assert few.names == ("test_000005", "train_000003")
    np.testing.assert_array_equal(few.read(0), dataset.read(25))
    assert few.examples.record(0) == dataset.examples.record(25)
    assert few.examples.positions.tolist() == [5, 3]
    assert [few.examples.splits[split] for split in few.examples.split_of] == ["test", "train"]


def test_fingerprints(tmp_path):
    _prepare(tmp_path / "a" / "faces")
    first = _load(tmp_path / "a")
    prepare(tmp_path / "b" / "elsewhere", _features(), _splits(), shard_length=6)
    assert _load(tmp_path / "b").fingerprint() == first.fingerprint()
    _prepare(tmp_path / "c", name="other")
    _prepare(tmp_path / "d", version="3.2.2")
    prepare(tmp_path / "e", _features(), _splits(33), shard_length=7)
    splits = _splits()
    splits["train"][0]["image"] = io.BytesIO(png(noise(999)))
    prepare(tmp_path / "f", _features(), splits, shard_length=7)
    others = {_load(tmp_path / name).fingerprint() for name in "cdef"}
    others |= {first.take([0]).fingerprint(), _load(tmp_path / "a", crop="none").fingerprint()}
    others |= {_load(tmp_path / "a", "test").fingerprint()}
    assert len(others) == 7 and first.fingerprint() not in others


@pytest.mark.slow
def test_memory_is_bounded_and_does_not_grow_while_reading(tmp_path):
    total, content = 5000, png(noise(0, 8, 8))
    examples = [
        {"image": io.BytesIO(content), "label": f"person_{number // 20:05d}"}
        for number in range(total)
    ]
    prepare(tmp_path / "in", _features(), {"train": examples}, shard_length=1000)
    del examples
    load = functools.partial(_load, tmp_path, image_size=8)
    assert_memory_is_bounded(load, total, 300, 1000, step=5)
