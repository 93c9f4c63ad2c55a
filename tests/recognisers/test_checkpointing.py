import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.data import FaceDataset
from deid_jax.errors import InputError
from deid_jax.models import create_model
from deid_jax.recognisers import checkpointing, storage
from deid_jax.recognisers.checkpointing import CheckpointInfo

SIZE = 12
PERSONS = ("ada", "bob", "cyd")
INFO = CheckpointInfo(
    model="model_a",
    persons=PERSONS,
    image_size=SIZE,
    dataset="folder",
    split="train",
    seed=0,
    pictures=("ada/0", "bob/0", "cyd/0"),
    provenance={"crop": "auto", "note": "é"},
    training={"epochs": 1},
    accuracy={"train": 1.0, "test": 0.5},
)


def make_dataset(**changes):
    labels = np.arange(3, dtype=np.int32)
    facts = {
        "name": "folder",
        "persons": PERSONS,
        "labels": labels,
        "names": ("1", "1", "1"),
        "read": lambda index: np.zeros((SIZE, SIZE, 3), np.uint8),
        "image_size": SIZE,
        "split": "test",
        "provenance": {"crop": "auto"},
    }
    return FaceDataset(**(facts | changes))


@pytest.fixture(scope="module")
def variables():
    model = create_model("model_a", num_classes=3, image_size=SIZE)
    return model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


@pytest.fixture(scope="module")
def saved(variables, tmp_path_factory):
    """A checkpoint; not to be changed."""
    path = tmp_path_factory.mktemp("checkpoints") / "it[1]"
    checkpointing.save(path, variables, INFO)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_saved_is_what_is_read(saved, variables):
    assert checkpointing.load_info(saved) == INFO
    read = checkpointing.load_variables(saved, INFO)
    assert jax.tree.structure(read) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, read, variables)
    # On the host: no device need have room for all.
    assert {type(leaf) for leaf in jax.tree.leaves(read)} == {np.ndarray}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_older_checkpoint_is_replaced(copy, variables):
    other = jax.tree.map(lambda leaf: leaf + 1, variables)
    info = dataclasses.replace(INFO, seed=5)
    checkpointing.save(copy, other, info)
    assert checkpointing.load_info(copy) == info
    jax.tree.map(np.testing.assert_array_equal, checkpointing.load_variables(copy, info), other)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_older_checkpoint_survives_a_failure(copy, variables, monkeypatch):
    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_checksum", fail)
    with pytest.raises(InputError, match=r"copy cannot be written: .*No space left on device"):
        checkpointing.save(copy, variables, dataclasses.replace(INFO, seed=5))
    monkeypatch.undo()
    assert checkpointing.load_info(copy) == INFO
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_killed_between_old_and_new_loses_nothing(copy):
    """The older checkpoint has made way, and the new one is not in place yet."""
    copy.rename(copy.with_name("copy.old"))
    assert checkpointing.load_info(copy) == INFO
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_missing_and_foreign_checkpoints_are_named(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint .*nowhere does not exist"):
        checkpointing.load_info(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(InputError, match="is no checkpoint"):
            checkpointing.load_info(path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("item", ["info", "arrays"])
def test_damaged_files_are_named(copy, item, damage):
    file = max((path for path in (copy / item).rglob("*") if path.is_file()), key=_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(InputError, match=f"is damaged: {item}/.* is not as it was written"):
        checkpointing.load_variables(copy, checkpointing.load_info(copy))


def _size(path):
    return path.stat().st_size


def test_description_and_weights_that_disagree_are_refused(saved):
    wrong = dataclasses.replace(INFO, persons=("ada", "bob"))
    with pytest.raises(InputError, match="its weights are not those of model_a"):
        checkpointing.load_variables(saved, wrong)


def test_description_of_another_kind_is_refused(copy, variables, monkeypatch):
    monkeypatch.setattr(checkpointing.dataclasses, "asdict", lambda info: {"model": "x"})
    checkpointing.save(copy, variables, INFO)
    with pytest.raises(InputError, match="its description is of another kind"):
        checkpointing.load_info(copy)


def test_fitting_data_is_taken():
    checkpointing.check_made_for("it", INFO, model="model_a", dataset="folder", image_size=SIZE)
    checkpointing.check_fits("it", INFO, make_dataset())
    # What was trained on may be measured where it does not pretend to be a test.
    checkpointing.check_fits("it", INFO, make_dataset(split="all", names=("0", "0", "0")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg16"}, "made for the model model_a, not vgg16"),
        ({"dataset": "synthetic"}, "made for the data set folder, not synthetic"),
        ({"image_size": 64}, "made for pictures of size 12, not 64"),
    ],
)
def test_another_kind_is_refused(changes, message):
    made_for = {"model": "model_a", "dataset": "folder", "image_size": SIZE} | changes
    with pytest.raises(InputError, match=f"checkpoint it does not fit: it was {message}"):
        checkpointing.check_made_for("it", INFO, **made_for)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": {"crop": "none"}}, "made for crop auto, not none"),
        ({"persons": (*PERSONS, "dan")}, "this number of classes: 3, not 4"),
        ({"persons": ("ada", "bob", "dan")}, r"it knows other persons \(dan\)"),
        ({"persons": ("bob", "ada", "cyd")}, r"it knows other persons \(in another order\)"),
        ({"names": ("1", "0", "1")}, "trained on 1 of the 3 pictures of the test split"),
    ],
)
def test_other_persons_and_pictures_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        checkpointing.check_fits("it", INFO, make_dataset(**changes))


def test_target_may_be_new_or_a_checkpoint_to_overwrite(copy, tmp_path):
    checkpointing.check_target(tmp_path / "deep" / "new", overwrite=False)
    checkpointing.check_target(copy, overwrite=True)
    with pytest.raises(InputError, match="exists already; --overwrite"):
        checkpointing.check_target(copy, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_target_that_is_no_checkpoint_is_kept(tmp_path, kind):
    path = tmp_path / "it"
    make = {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to("no")}
    make[kind]()
    with pytest.raises(InputError, match="it exists and is no checkpoint"):
        checkpointing.check_target(path, overwrite=True)


def test_foreign_folder_in_the_place_of_the_state_is_kept(tmp_path):
    state = checkpointing.state_dir(tmp_path / "it")
    state.mkdir()
    (state / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"it\.unfinished exists and is no checkpoint"):
        checkpointing.check_target(tmp_path / "it", overwrite=False)
