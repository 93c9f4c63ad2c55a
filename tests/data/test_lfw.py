import functools
import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from deid_jax.data import selection
from tests.data.tfds_sets import jpeg, load, prepare_known
from tests.helpers import refused

_load = functools.partial(load, "lfw", image_size=20)


@pytest.fixture
def people(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "NUM_PERSONS", 3)
    monkeypatch.setattr(selection, "NUM_IMAGES", 4)
    counts = {"Ada_Lovelace": 5, "José_Serra": 4, "One_Only": 1, "Bo_Li": 7, "Cy_Ng": 4}
    names = [name for name, count in counts.items() for _ in range(count)]
    names = np.random.default_rng(0).permutation(names).tolist()
    examples = [
        {"label": person, "image": io.BytesIO(jpeg(position, 250, 250))}
        for position, person in enumerate(names)
    ]
    prepare_known(tmp_path, "lfw", {"train": examples})
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
        with Image.open(io.BytesIO(jpeg(position, 250, 250))) as image:
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
    with refused("lfw has 4 persons with 4 images or more, 5 are n"):
        _load(tmp_path)


def test_without_data_and_tensorflow_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(r"no prepared lfw in .*pip install .*--dataset=folder"):
        _load(tmp_path)
