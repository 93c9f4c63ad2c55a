import functools
import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image

from deid_jax.data import prepared, selection
from deid_jax.errors import InputError
from tests.data.tfds_sets import celeba_example, jpeg, load, prepare_known
from tests.helpers import refused

ATTRIBUTES = ("Bald", "Male", "Smiling")


@pytest.fixture
def few(monkeypatch):
    """The subset is 3 persons with 4 images each."""
    monkeypatch.setattr(selection, "NUM_PERSONS", 3)
    monkeypatch.setattr(selection, "NUM_IMAGES", 4)


@pytest.fixture
def no_tensorflow(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
    )


def _jpeg(seed):
    return jpeg(seed, 178, 218)


_load = functools.partial(load, "celeba")


# Person -> number of images; 9 has too few of them.
COUNTS = {"2880": 4, "9": 3, "10": 6, "77": 5, "1": 4, "500": 9}


def _download(root, images="img_align_celeba", annotations="."):
    """What CelebA's download looks like; attributes follow from the image's number."""
    people = [person for person, count in COUNTS.items() for _ in range(count)]
    people = np.random.default_rng(0).permutation(people)
    (root / images).mkdir(parents=True)
    (root / annotations).mkdir(exist_ok=True)
    identities, table = [], [str(len(people)), " ".join(ATTRIBUTES) + " "]
    for number, person in enumerate(people, start=1):
        name = f"{number:06d}.jpg"
        (root / images / name).write_bytes(_jpeg(number))
        identities.append(f"{name} {person}")
        bits = [1 if number >> place & 1 else -1 for place in range(3)]
        table.append(f"{name}  " + "  ".join(map(str, bits)))
    (root / annotations / "identity_CelebA.txt").write_text("\n".join(identities) + "\n")
    (root / annotations / "list_attr_celeba.txt").write_text("\n".join(table) + "\n")
    return root


def _identities(root):
    lines = (root / "identity_CelebA.txt").read_text().splitlines()
    return dict(line.split() for line in lines)


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("img_align_celeba", "."),
        ("Img/img_align_celeba", "Anno"),
        ("Img/img_align_celeba", "."),
    ],
)
def test_download_is_read_in_its_layouts(few, tmp_path, images, annotations):
    dataset = _load(_download(tmp_path, images, annotations))
    assert len(dataset.persons) == 3 and len(dataset) == 12
    assert dataset.provenance["origin"] == "img_align_celeba"


def test_download_gives_pictures_identities_and_attributes(few, tmp_path):
    identities = _identities(_download(tmp_path))
    dataset = _load(tmp_path, image_size=32)
    assert "9" not in dataset.persons
    assert set(dataset.attributes) == set(ATTRIBUTES)
    for index, (label, name) in enumerate(zip(dataset.labels, dataset.names, strict=True)):
        assert identities[f"{name}.jpg"] == dataset.persons[label]
        with Image.open(io.BytesIO(_jpeg(int(name)))) as image:
            face = image.crop((25, 62, 153, 190)).resize((32, 32), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(dataset.read(index), np.asarray(face))
        bits = [bool(dataset.attributes[attribute][index]) for attribute in ATTRIBUTES]
        assert bits == [bool(int(name) >> place & 1) for place in range(3)]
    assert all(values.dtype == bool for values in dataset.attributes.values())


def test_splits_carry_their_attributes(few, tmp_path):
    test = _load(_download(tmp_path), "test")
    assert np.bincount(test.labels).tolist() == [1, 1, 1]
    for index, name in enumerate(test.names):
        assert test.attributes["Bald"][index] == int(name) % 2


def test_attributes_may_be_missing(few, tmp_path):
    _download(tmp_path)
    expected = _load(tmp_path).image_names
    (tmp_path / "list_attr_celeba.txt").unlink()
    dataset = _load(tmp_path)
    assert dataset.attributes == {}
    assert dataset.image_names == expected


def test_selection_is_recorded_and_reproducible(few, tmp_path):
    _download(tmp_path)
    first, again, train = _load(tmp_path), _load(tmp_path), _load(tmp_path, "train")
    chosen = json.loads(json.dumps(first.provenance["selection"]))
    assert chosen == again.provenance["selection"] == train.provenance["selection"]
    assert tuple(chosen) == first.persons
    listed = [f"{person}/{name[:-4]}" for person, names in chosen.items() for name in names]
    assert tuple(listed) == first.image_names == again.image_names
    # The order of the lines is no part of the choice.
    lines = (tmp_path / "identity_CelebA.txt").read_text().splitlines()
    (tmp_path / "identity_CelebA.txt").write_text("\n".join(reversed(lines)))
    assert _load(tmp_path).provenance["selection"] == chosen
    others = [_load(tmp_path, seed=seed).provenance["selection"] for seed in range(1, 6)]
    assert any(other != chosen for other in others)
    assert any(tuple(other) != tuple(chosen) for other in others)


def test_choice_of_pictures_depends_on_person_and_seed_alone(few):
    many = [f"{number:03d}" for number in range(200)]
    sets = {str(person): many for person in range(3)}
    chosen = selection.choose_subset("celeba", sets, 0)
    assert chosen["0"] != chosen["1"]
    assert selection.choose_subset("celeba", {**sets, "0": many[:4]}, 0)["2"] == chosen["2"]
    assert selection.choose_subset("celeba", sets, 1)["2"] != chosen["2"]
    assert all(len(set(names)) == 4 and names == sorted(names) for names in chosen.values())


def test_the_subset_is_30_by_30():
    names = [f"{number:03d}" for number in range(31)]
    chosen = selection.choose_subset("celeba", {str(person): names for person in range(34)}, 0)
    assert [len(names) for names in chosen.values()] == [30] * 30
    with refused("celeba has 29 persons with 30 images or more, 30 a"):
        selection.choose_subset("celeba", {str(person): names for person in range(29)}, 0)


def test_too_few_persons(tmp_path):
    with refused("celeba has 0 persons with 30 images or more, 30"):
        _load(_download(tmp_path))


def test_missing_picture_is_named(few, tmp_path):
    _download(tmp_path)
    chosen = _load(tmp_path).provenance["selection"]
    name = chosen["2880"][0] if "2880" in chosen else next(iter(chosen.values()))[0]
    (tmp_path / "img_align_celeba" / name).unlink()
    with refused(f"{name} cannot be read: No such file"):
        _load(tmp_path)
    dataset = _load(tmp_path, skip_unreadable=True)
    assert dataset.provenance["num_unreadable"] == 1
    assert len(dataset) == 11


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000001.jpg", "line 2 must be a file name and a person's number"),
        ("000001.jpg x", "line 2 must be"),
        ("000001.jpg 1 2", "line 2 must be"),
        ("../1.jpg 1", "line 2 must be"),
        ("000000.jpg 5", "line 2 names 000000.jpg again"),
    ],
)
def test_damaged_identities(tmp_path, line, message):
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "identity_CelebA.txt").write_text(f"000000.jpg 1\n{line}\n")
    with refused(f"identity_CelebA.txt {message}"):
        _load(tmp_path)


def test_identities_missing_or_binary(tmp_path):
    (tmp_path / "img_align_celeba").mkdir()
    with refused(r"but identity_CelebA.txt, which says whose, is not"):
        _load(tmp_path)
    (tmp_path / "identity_CelebA.txt").write_bytes(b"\xff\xfe\x00\x81")
    with refused(r"identity_CelebA.txt cannot be read as text"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:1], "must have a count, names of attributes"),
        (lambda lines: lines[:2], r"has no line for 0000\d\d.jpg"),
        (
            lambda lines: [*lines[:2], *(f"{line} 1" for line in lines[2:])],
            "and 3 times 1 or -1",
        ),
        (lambda lines: [line.replace("-1", "2") for line in lines], r"line \d+ must be a file"),
    ],
)
def test_damaged_attributes(few, tmp_path, edit, message):
    table = _download(tmp_path) / "list_attr_celeba.txt"
    table.write_text("\n".join(edit(table.read_text().splitlines())))
    with refused(message):
        _load(tmp_path)


def _prepare(root, examples):
    """Writes a TFDS celeb_a: split -> [(JPEG file, person's number), ...]."""
    splits = {
        split: [
            celeba_example(content, person, position % 2 == 0, Male=person % 2 == 0)
            for position, (content, person) in enumerate(images)
        ]
        for split, images in examples.items()
    }
    return prepare_known(root, "celeb_a", splits)


def _examples():
    """COUNTS spread over the splits; the image of seed s is person's number s % 1000."""
    people = [int(person) for person, count in COUNTS.items() for _ in range(count)]
    people = np.random.default_rng(1).permutation(people).tolist()
    pictures = [
        (_jpeg(1000 * (number + 1) + person), person) for number, person in enumerate(people)
    ]
    return {"train": pictures[:20], "validation": pictures[20:26], "test": pictures[26:]}


def test_tfds_gives_pictures_identities_and_attributes(few, no_tensorflow, tmp_path):
    examples = _examples()
    _prepare(tmp_path, examples)
    dataset = _load(tmp_path, image_size=32)
    assert len(dataset.persons) == 3 and len(dataset) == 12
    assert "9" not in dataset.persons
    assert dataset.provenance["origin"] == "tfds celeb_a 2.1.0"
    assert len(dataset.attributes) == 40
    for index, (label, name) in enumerate(zip(dataset.labels, dataset.names, strict=True)):
        split, position = name.split("_")
        content, person = examples[split][int(position)]
        assert str(person) == dataset.persons[label]
        with Image.open(io.BytesIO(content)) as image:
            face = image.crop((25, 62, 153, 190)).resize((32, 32), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(dataset.read(index), np.asarray(face))
        assert dataset.attributes["Male"][index] == (person % 2 == 0)
        assert dataset.attributes["Smiling"][index] == (int(position) % 2 == 0)
    splits_read = {name.split("_")[0] for name in dataset.names}
    assert splits_read == {"train", "validation", "test"}


def test_tfds_selection_is_recorded_and_reproducible(few, tmp_path, monkeypatch):
    _prepare(tmp_path, _examples())
    first = _load(tmp_path)
    chosen = json.loads(json.dumps(first.provenance["selection"]))
    listed = [f"{person}/{name}" for person, names in chosen.items() for name in names]
    assert tuple(listed) == first.image_names
    monkeypatch.setattr(prepared, "_BATCH", 7)
    again = _load(tmp_path, "test")
    assert again.provenance["selection"] == chosen
    assert np.bincount(again.labels).tolist() == [1, 1, 1]


def test_download_and_tfds_draw_the_same_persons(few, tmp_path):
    _download(tmp_path / "download")
    _prepare(tmp_path / "tfds", _examples())
    for seed in range(3):
        persons = _load(tmp_path / "download", seed=seed).persons
        assert persons == _load(tmp_path / "tfds", seed=seed).persons


def test_undecodable_picture_in_tfds_is_named(few, tmp_path):
    examples = _examples()
    _prepare(tmp_path / "whole", examples)
    name = _load(tmp_path / "whole").names[0]
    split, position = name.split("_")
    content, person = examples[split][int(position)]
    examples[split][int(position)] = (content[:2000], person)
    _prepare(tmp_path / "damaged", examples)
    with refused(f"celeb_a {name} of person {person} cannot be read: "):
        _load(tmp_path / "damaged")
    assert _load(tmp_path / "damaged", skip_unreadable=True).provenance["num_unreadable"] == 1


def test_lost_and_truncated_shards(few, tmp_path):
    shard = _prepare(tmp_path, _examples()) / "celeb_a-train.array_record-00000-of-00001"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with refused(r"^celeb_a train examples 0\.\.19 cannot be read: "):
        _load(tmp_path)
    shard.unlink()
    with refused(r"^celeb_a train examples 0\.\.19 cannot be read: "):
        _load(tmp_path)


def test_tfds_in_another_format(tmp_path):
    folder = _prepare(tmp_path, _examples())
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with refused(r"is not in the array_record format: prepare it"):
        _load(tmp_path)


def test_damaged_dataset_info(tmp_path):
    folder = _prepare(tmp_path, _examples())
    (folder / "dataset_info.json").write_text("{")
    with refused(r"^TFDS cannot read celeb_a: "):
        _load(tmp_path)


def test_without_data_and_tensorflow_the_message_says_what_to_do(no_tensorflow, tmp_path):
    with pytest.raises(
        InputError, match=r"pip install 'deid_jax\[tfds\]'; or name a --dat"
    ) as e:
        _load(tmp_path)
    assert "img_align_celeba" in str(e.value) and "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []
    with refused(r"data_dir .*nowhere is not a folder"):
        _load(tmp_path / "nowhere")


def test_with_tensorflow_the_data_is_prepared_as_array_record(few, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    calls = []

    def prepare(builder):
        calls.append(builder.info.file_format.value)
        _prepare(tmp_path, _examples())
        builder.info.read_from_directory(tmp_path / "celeb_a" / "2.1.0")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    assert len(_load(tmp_path)) == 12
    assert len(_load(tmp_path)) == 12
    assert calls == ["array_record"]


def test_failure_to_prepare_is_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(builder):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with refused(r"TFDS cannot prepare celeb_a in .*: no route to host; or"):
        _load(tmp_path)
