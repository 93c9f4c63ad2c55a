"""Checkpoints: whole or not there, damage is noticed, and none is taken for another."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax import recognisers
from deid_jax.data import DataOptions, FaceDataset
from deid_jax.models import create_model
from deid_jax.recognisers import CheckpointInfo, Recogniser, TrainConfig, checkpoints, storage
from tests.helpers import refused

SIZE = 12
PERSONS = ("ada", "bob", "cyd")
CONFIG = TrainConfig(epochs=1, learning_rate=1e-3)
INFO = CheckpointInfo(
    model="model_a",
    persons=PERSONS,
    image_size=SIZE,
    dataset="folder",
    split="train",
    seed=0,
    pictures=("ada/0", "bob/0", "cyd/0"),
    provenance={"crop": "auto", "note": "é"},
    training=dataclasses.asdict(CONFIG),
    accuracy={"train": 1.0, "test": 0.5},
)


def make_dataset(**changes):
    facts = {
        "name": "folder",
        "persons": PERSONS,
        "labels": np.arange(3, dtype=np.int32),
        "names": ("1", "1", "1"),
        "read": lambda index: np.zeros((SIZE, SIZE, 3), np.uint8),
        "image_size": SIZE,
        "split": "test",
        "provenance": {"crop": "auto"},
    }
    return FaceDataset(**(facts | changes))


@pytest.fixture(scope="module")
def recogniser():
    model = create_model("model_a", num_classes=3, image_size=SIZE)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return Recogniser(model, jax.device_get(variables), INFO)


@pytest.fixture(scope="module")
def saved(recogniser, tmp_path_factory):
    """A checkpoint; not to be changed."""
    path = tmp_path_factory.mktemp("checkpoints") / "it[1]"
    recogniser.save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_saved_is_what_is_read(saved, recogniser):
    read = recognisers.load(saved, make_dataset())
    assert (read.model, read.info) == (recogniser.model, INFO)
    assert jax.tree.structure(read.variables) == jax.tree.structure(recogniser.variables)
    jax.tree.map(np.testing.assert_array_equal, read.variables, recogniser.variables)
    assert read.describe() == recogniser.describe()
    # On the host: no device need have room for all.
    assert {type(leaf) for leaf in jax.tree.leaves(read.variables)} == {np.ndarray}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_older_checkpoint_is_replaced_or_survives_a_failure(copy, recogniser, monkeypatch):
    other = jax.tree.map(lambda leaf: leaf + 1, recogniser.variables)
    new = Recogniser(recogniser.model, other, dataclasses.replace(INFO, seed=5))

    def fail(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_digest", fail)
        with refused(r"copy cannot be written: No space left on dev"):
            new.save(copy)
    assert checkpoints.load_info(copy) == INFO
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    new.save(copy)
    assert checkpoints.load_info(copy) == new.info
    jax.tree.map(
        np.testing.assert_array_equal, checkpoints.load_variables(copy, new.info), other
    )
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_killed_between_old_and_new_loses_nothing(copy):
    """The older checkpoint has made way, and the new one is not in place yet."""
    copy.rename(copy.with_name("copy.old"))
    assert checkpoints.load_info(copy) == INFO
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_missing_and_foreign_checkpoints_are_named(copy, tmp_path):
    with refused(r"checkpoint .*nowhere does not exist"):
        checkpoints.load_info(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path):
        with refused("is no checkpoint"):
            checkpoints.load_info(path)
    # Before there was a hash of all files.
    (copy / "sha256").rename(copy / "checksums.json")
    with refused("is damaged or of an earlier version: delete it"):
        checkpoints.load_info(copy)
    storage.save(tmp_path / "other", {"a": np.zeros(2)}, {"model": "x"})
    with refused("its description is of another kind"):
        checkpoints.load_info(tmp_path / "other")


@pytest.mark.parametrize("item", ["info", "arrays"])
def test_damaged_files_are_noticed(copy, item):
    files = [path for path in (copy / item).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[:-1]):
        file.write_bytes(damaged)
        for load in (checkpoints.load_info, lambda path: storage.load_arrays(path, {})):
            with refused("copy is damaged: its files have changed"):
                load(copy)
    file.unlink()
    with refused("copy is damaged: its files have changed"):
        checkpoints.load_info(copy)


def test_other_settings_and_networks_are_refused(saved):
    for settings, message in (
        (("vgg16", "folder", SIZE), "the model model_a, not vgg16"),
        (("model_a", "synthetic", SIZE), "the data set folder, not synthetic"),
        (("model_a", "folder", 64), "images of size 12, not 64"),
    ):
        with refused(f"does not fit: it was made for {message}"):
            checkpoints.load_matching(saved, *settings)
    assert checkpoints.load_matching(saved, "model_a", "folder", SIZE) == INFO
    wrong = dataclasses.replace(INFO, persons=("ada", "bob"))
    with refused("does not fit: its weights are of another network"):
        checkpoints.load_variables(saved, wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": {"crop": "none"}}, "made for crop auto, not none"),
        ({"persons": (*PERSONS, "dan")}, "this number of classes: 3, not 4"),
        ({"persons": ("ada", "bob", "dan")}, r"it knows other persons \(dan\)"),
        ({"persons": ("bob", "ada", "cyd")}, r"it knows other persons \(in another order\)"),
        ({"names": ("1", "0", "1")}, "trained on 1 of the 3 images of the test split"),
    ],
)
def test_other_persons_and_images_are_refused(changes, message):
    with refused(message):
        checkpoints.check_fits("it", INFO, make_dataset(**changes))


def test_trained_on_images_may_be_measured_where_they_are_no_test():
    checkpoints.check_fits("it", INFO, make_dataset(split="all", names=("0", "0", "0")))


def test_target_may_be_new_or_a_checkpoint_to_overwrite(copy, tmp_path):
    checkpoints.check_target(tmp_path / "deep" / "new", overwrite=False)
    checkpoints.check_target(copy, overwrite=True)
    with refused("exists already; --overwrite"):
        checkpoints.check_target(copy, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_target_that_is_no_checkpoint_is_kept(tmp_path):
    for kind in ("file", "folder", "link", "state.unfinished"):
        path = tmp_path / kind
        path.symlink_to("no") if kind == "link" else path.mkdir()
        with refused(f"{kind} exists and is no checkpoint"):
            checkpoints.check_target(path.with_suffix(""), overwrite=True)


def test_same_training_is_known_by_its_settings_and_pretrained_layers(saved, tmp_path):
    options = DataOptions(image_size=SIZE, split="train")
    known = (saved, "model_a", "folder", options, CONFIG)
    assert checkpoints.is_same_training(*known, None)
    assert not checkpoints.is_same_training(*known, "abc")
    assert not checkpoints.is_same_training(
        *known[:4], dataclasses.replace(CONFIG, seed=1), None
    )
    assert not checkpoints.is_same_training(tmp_path / "new", *known[1:], None)


def test_default_path_names_what_decides_the_weights():
    for changes, name in (
        ({}, "model_a-folder-64px-seed0"),
        ({"data_dir": "some/faces/"}, "model_a-folder-faces-64px-seed0"),
        ({"seed": 3, "image_size": 32}, "model_a-folder-32px-seed3"),
        ({"crop": "none"}, "model_a-folder-64px-seed0-none"),
        ({"split": "all"}, "model_a-folder-64px-seed0-all"),
    ):
        options = DataOptions(**({"image_size": 64, "split": "train"} | changes))
        path = recognisers.default_path("model_a", "folder", options)
        assert path == recognisers.CHECKPOINTS / name
