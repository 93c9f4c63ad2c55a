import dataclasses

import numpy as np
import pytest

from deid_jax import recognisers
from deid_jax.data import DataOptions, FaceDataset
from deid_jax.errors import InputError
from deid_jax.recognisers import predicting, training
from deid_jax.recognisers.training import TrainConfig

SIZE = 12
CONFIG = TrainConfig(epochs=1, learning_rate=1e-3, batch_size=4)


def make_faces(split, per_person=4, seed=0):
    """Three persons, told apart by their colour."""
    labels = np.repeat(np.arange(3, dtype=np.int32), per_person)
    noise = np.random.default_rng(seed).integers(0, 80, (len(labels), SIZE, SIZE, 3))
    pictures = (noise + 160 * np.eye(3)[labels][:, None, None]).astype(np.uint8)
    return FaceDataset(
        name="folder",
        persons=("ada", "bob", "cyd"),
        labels=labels,
        names=tuple(f"{split}{number}" for number in range(len(labels))),
        read=pictures.__getitem__,
        image_size=SIZE,
        split=split,
        provenance={"crop": "auto"},
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    path = tmp_path_factory.mktemp("fitted") / "it"
    held_out = make_faces("test", seed=1)
    return path, *recognisers.fit(
        "model_a", make_faces("train"), CONFIG, path, held_out=held_out
    )


def test_fit_keeps_what_it_returns(fitted):
    path, recogniser, history = fitted
    faces = make_faces("train")
    read = recognisers.load(path, "model_a", faces)
    assert read.info == recogniser.info
    assert read.info.accuracy["test"] == history[-1].test_accuracy
    assert read.info.accuracy["train"] == predicting.accuracy(read.model, read.variables, faces)
    assert read.info.pictures == faces.pictures
    images = faces[0]["image"][None]
    np.testing.assert_array_equal(
        read.model.apply(read.variables, images),
        recogniser.model.apply(recogniser.variables, images),
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["it"]


def test_load_refuses_another_kind_before_it_reads_weights(fitted):
    with pytest.raises(InputError, match="made for the model model_a, not vgg16"):
        recognisers.load(fitted[0], "vgg16", make_faces("test"))
    with pytest.raises(InputError, match="made for pictures of size 12, not 64"):
        recognisers.load_info(fitted[0], "model_a", "folder", 64)
    assert recognisers.load_info(fitted[0], "model_a", "folder", SIZE) == fitted[1].info


def test_divergence_leaves_no_checkpoint_and_no_state(tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e30)
    with pytest.raises(InputError, match=r"training diverged.* less than 1e\+30"):
        recognisers.fit("model_a", make_faces("train"), config, tmp_path / "it")
    assert not list(tmp_path.iterdir())


def test_without_held_out_pictures_only_the_own_accuracy_is_known(tmp_path):
    recogniser, history = recognisers.fit("model_a", make_faces("all"), CONFIG, tmp_path / "it")
    assert recogniser.info.accuracy.keys() == {"all"}
    assert np.isnan(history[-1].test_accuracy)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "model_a-folder-64px-seed0"),
        ({"data_dir": "some/faces/"}, "model_a-folder-faces-64px-seed0"),
        ({"seed": 3, "image_size": 32}, "model_a-folder-32px-seed3"),
        ({"crop": "none"}, "model_a-folder-64px-seed0-none"),
        ({"split": "all"}, "model_a-folder-64px-seed0-all"),
    ],
)
def test_default_path_names_what_decides_the_weights(changes, name):
    options = DataOptions(**({"image_size": 64, "split": "train"} | changes))
    path = recognisers.default_path("model_a", "folder", options)
    assert path == recognisers.CHECKPOINTS / name


def test_train_config_takes_the_place_of_the_recipe_where_given():
    recipe = training.RECIPES["vgg16", "any"]
    assert recognisers.train_config("vgg16", "folder") == dataclasses.replace(
        recipe, batch_size=32
    )
    given = recognisers.train_config(
        "vgg16", "folder", epochs=2, learning_rate=0.5, batch_size=8, seed=4
    )
    assert given == dataclasses.replace(
        recipe, epochs=2, learning_rate=0.5, batch_size=8, seed=4
    )
    with pytest.raises(InputError, match="epochs must be an integer >= 1, got 0"):
        recognisers.train_config("vgg16", "folder", epochs=0)


def test_training_on_the_test_split_is_refused():
    with pytest.raises(InputError, match="split must be train or all for training, got test"):
        recognisers.load_train_and_test("folder", DataOptions(image_size=64, split="test"))
