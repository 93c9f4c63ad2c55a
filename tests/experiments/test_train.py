import dataclasses
import hashlib
import json
import shutil
import signal
import time

import numpy as np
import pytest

from deid_jax.data import DataOptions, load_dataset
from deid_jax.models import vgg16
from deid_jax.recognisers import checkpoints, weights
from experiments import train
from tests.bad_network import Server, whole
from tests.experiments.conftest import (
    COMMON,
    SIZE,
    assert_refused,
    finish,
    listing,
    process,
    write_faces,
)
from tests.reports.runs_helpers import read_csv


def test_checkpoint_says_what_it_was_made_from(trained, faces):
    checkpoint, _, recogniser = trained
    info = checkpoints.load_info(checkpoint)
    assert info == recogniser.info
    assert info.model == "model_a"
    assert info.persons == ("person_0", "person_1", "person_2")
    assert (info.image_size, info.dataset, info.split, info.seed) == (
        SIZE,
        "folder",
        "train",
        0,
    )
    assert info.training["epochs"] == 2
    assert set(info.accuracy) == {"train", "test"}
    options = DataOptions(image_size=SIZE, split="train", data_dir=str(faces))
    assert info.pictures == load_dataset("folder", options).image_names


def test_history_has_a_line_per_epoch_and_the_folder_says_how_it_was_made(trained, faces):
    checkpoint, output, recogniser = trained
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "history.csv"]
    records = read_csv(output / "history.csv")
    assert [record["epoch"] for record in records] == ["1", "2"]
    assert float(records[-1]["test_accuracy"]) == recogniser.info.accuracy["test"]
    description = json.loads((output / "config.json").read_text())
    assert description["settings"]["data_dir"] == str(faces)
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["recogniser", "run"]


VGG = ("--model=vgg16", "--image_size=32")


def _bad(message, *arguments):
    return pytest.param(arguments, message, id=" ".join(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        _bad("epochs must be an integer >= 1, got 0", "--epochs=0"),
        _bad("learning_rate must be a number >= 0, got nan", "--learning_rate=nan"),
        _bad("image_size must be an integer >= 1, got 0", "--image_size=0"),
        _bad("image_size must be at least 4 for model_a, got 3", "--image_size=3"),
        _bad("--pretrained=x.h5 does not apply to --model=model_a", "--pretrained=x.h5"),
        _bad("pretrained x.h5 does not exist", *VGG, "--pretrained=x.h5"),
        _bad("must end in .h5, .mat, .npz, got file", *VGG, "--pretrained=file"),
        _bad("pretrained text.mat cannot be read", *VGG, "--pretrained=text.mat"),
        _bad("vggface_vgg16: no source states the", *VGG, "--pretrained=vggface_vgg16"),
        _bad("got mobilefacenet_ms1m, which holds", *VGG, "--pretrained=mobilefacenet_ms1m"),
        _bad("--sha256=0 needs a --pretrained of vggface", *VGG, "--sha256=0"),
        _bad("seed must be an integer >= 0, got -1", "--seed=-1"),
        _bad("--split=test", "--split=test"),
        _bad("method", "--method=pfgvm"),
        _bad("'stray'", "stray"),
        _bad("data_dir nowhere does not exist", "--data_dir=nowhere"),
        _bad("data_dir file is not a folder", "--data_dir=file"),
        _bad("data_dir empty has no images", "--data_dir=empty"),
        _bad("two persons or more, found 1", "--data_dir=alone"),
        _bad("--data_dir=", "--dataset=synthetic"),
        _bad("checkpoint file exists and is no checkpoint", "--checkpoint=file"),
        _bad("checkpoint foreign exists and is no", "--checkpoint=foreign", "--overwrite"),
        _bad("checkpoint file/x lies below file, a file", "--checkpoint=file/x"),
        _bad("taken.unfinished exists and is no", "--checkpoint=taken"),
        _bad("output_dir file is a file", "--output_dir=file"),
        _bad("output_dir history holds history.csv", "--output_dir=history"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
    faces, workplace, capsys, arguments, message
):
    (workplace / "file").write_text("mine")
    (workplace / "text.mat").write_text("mine")
    (workplace / "empty").mkdir()
    for name in ("foreign/x", "taken.unfinished/x", "history/history.csv"):
        (workplace / name).parent.mkdir()
        (workplace / name).write_text("mine")
    write_faces(workplace / "alone", persons=1)
    given = [*COMMON, f"--data_dir={faces}", *arguments]
    assert_refused(train.main, given, message, workplace, capsys)


@pytest.mark.slow
def test_existing_checkpoint_is_kept_and_unreadable_images_are_left_out_when_asked(
    trained, faces, workplace, capsys
):
    shutil.copytree(trained[0], workplace / "recogniser")
    shutil.copytree(faces, workplace / "faces")
    damaged = workplace / "faces" / "person_1" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    before = listing(workplace)
    arguments = [*COMMON, "--data_dir=faces", "--checkpoint=recogniser", "--epochs=1"]
    assert train.main(arguments) == 2
    assert "recogniser exists already; --overwrite" in capsys.readouterr().err
    assert train.main([*arguments, "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert "faces/person_1/03.png" in err and err.count("\n") == 1
    assert listing(workplace) == before
    assert train.main([*arguments, "--overwrite", "--skip_unreadable"]) == 0
    assert capsys.readouterr().err == "left out 1 unreadable image\n"
    info = checkpoints.load_info(workplace / "recogniser")
    assert info.training["epochs"] == 1 and "person_1/03" not in info.pictures
    assert {path.name for path in workplace.iterdir()} == {"faces", "recogniser", "runs"}


def _write_vgg_face(path, seed, top=True):
    """VGG-Face's layers with two channels in each convolution: layer -> kernel."""
    random = np.random.default_rng(seed)
    shapes = {f"conv{b}_{i}": (3, 3, 2, 2) for b in range(1, 6) for i in range(1, 3 + (b > 2))}
    shapes["conv1_1"] = (3, 3, 3, 2)
    if top:
        shapes |= {"fc6": (7 * 7 * 2, 4096), "fc7": (4096, 4096)}
    kernels = {
        name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    for kernel in kernels.values():
        kernel *= np.float32(np.sqrt(2 / np.prod(kernel.shape[:-1])))
    biases = {f"{name}_b": np.zeros(kernel.shape[-1], "f") for name, kernel in kernels.items()}
    np.savez(path, **{f"{name}_W": kernel for name, kernel in kernels.items()}, **biases)
    return kernels


@pytest.mark.slow
def test_head_is_trained_on_a_descriptor_from_a_file(faces, workplace, capsys, monkeypatch):
    monkeypatch.setattr(vgg16, "BLOCKS", ((2, 2), (2, 2), (3, 2), (3, 2), (3, 2)))
    kernels = _write_vgg_face("vgg_face.npz", seed=0)
    arguments = ["--dataset=folder", f"--data_dir={faces}", "--model=vgg16", "--batch_size=8"]
    arguments += ["--checkpoint=new", "--output_dir=out", "--pretrained=vgg_face.npz"]
    assert train.main([*arguments, "--epochs=1"]) == 2
    assert "image_size must be 224 for vgg_face.npz" in capsys.readouterr().err
    arguments.append("--image_size=224")
    assert train.main([*arguments, "--epochs=1"]) == 0
    info = checkpoints.load_info(workplace / "new")
    source = {
        "file": "vgg_face.npz",
        "sha256": hashlib.sha256((workplace / "vgg_face.npz").read_bytes()).hexdigest(),
    }
    assert info.provenance["pretrained"] == source
    description = json.loads((workplace / "out/config.json").read_text())
    assert description["recogniser"]["provenance"]["pretrained"] == source
    assert description["settings"]["pretrained"] == "vgg_face.npz"
    params = checkpoints.load_variables(workplace / "new", info)["params"]
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(params[name]["kernel"], kernel)
    # Trained: biases start at zero.
    assert np.abs(params["fc9"]["bias"]).max() > 0
    # Another descriptor is another training.
    before = listing(workplace)
    with np.load("vgg_face.npz") as file:
        np.savez("other.npz", **{**file, "fc7_b": np.ones(4096, "f")})
    assert train.main([*arguments, "--epochs=1", "--pretrained=other.npz"]) == 2
    assert "new exists already; --overwrite" in capsys.readouterr().err
    (workplace / "other.npz").unlink()
    assert listing(workplace) == before
    shutil.rmtree("out")
    assert train.main([*arguments, "--epochs=1"]) == 0


@pytest.mark.slow
def test_descriptor_is_downloaded_by_name(faces, workplace, capsys, monkeypatch, request):
    """With the hash that the user trusts, once; then it is in the cache."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(vgg16, "BLOCKS", ((2, 2), (2, 2), (3, 2), (3, 2), (3, 2)))
    monkeypatch.setenv("DEID_JAX_CACHE", str(workplace / "cache"))
    kernels = _write_vgg_face("served.npz", seed=0, top=False)
    content = (workplace / "served.npz").read_bytes()
    (workplace / "served.npz").unlink()
    server = Server(whole(content))
    request.addfinalizer(server.close)
    row = weights.WEIGHTS["vggface_vgg16_notop"]
    row = dataclasses.replace(row, url=server.url.replace(".bin", ".npz"))
    monkeypatch.setitem(weights.WEIGHTS, "vggface_vgg16_notop", row)
    given = [*VGG, "--dataset=folder", f"--data_dir={faces}", "--epochs=1", "--checkpoint=new"]
    given.append("--pretrained=vggface_vgg16_notop")
    assert train.main([*given, f"--sha256={'0' * 64}"]) == 2
    assert f"not have the SHA-256 {'0' * 64}" in capsys.readouterr().err.splitlines()[-1]
    assert len(server.requests) == 1 and not list(workplace.rglob("*.npz"))
    given.append(f"--sha256={hashlib.sha256(content).hexdigest()}")
    for _ in range(2):
        assert train.main(given) == 0
    assert len(server.requests) == 2
    assert capsys.readouterr().err.count("licence: ") == 1
    info = checkpoints.load_info(workplace / "new")
    assert info.provenance["pretrained"] == {
        "file": "vggface_vgg16_notop.npz",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    params = checkpoints.load_variables(workplace / "new", info)["params"]
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(params[name]["kernel"], kernel)


@pytest.mark.slow
def test_interrupted_training_goes_on_and_says_so(faces, workplace):
    arguments = [*COMMON, f"--data_dir={faces}", "--batch_size=8", "--output_dir=out"]
    whole = [*arguments, "--epochs=60", "--checkpoint=whole"]
    assert train.main([*whole, "--output_dir=other"]) == 0
    stopped = [*arguments, "--epochs=60", "--checkpoint=new"]
    started = process("train", *stopped, cwd=workplace)
    state = workplace / "new.unfinished"
    until = time.monotonic() + 120
    while not state.exists() and started.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    assert finish(started) == (130, "", "interrupted\n")
    assert state.exists()
    assert not (workplace / "new").exists()
    assert not (workplace / "out").exists()

    status, out, err = finish(process("train", *stopped, cwd=workplace))
    assert status == 0
    assert err.startswith("going on after epoch ")
    assert err.count("\n") == 1
    assert "Checkpoint: new" in out
    assert not state.exists()
    infos = [checkpoints.load_info(workplace / name) for name in ("whole", "new")]
    assert infos[0] == infos[1]
    once, twice = (
        checkpoints.load_variables(workplace / name, info)
        for name, info in zip(("whole", "new"), infos, strict=True)
    )
    np.testing.assert_array_equal(
        once["params"]["fc2"]["kernel"], twice["params"]["fc2"]["kernel"]
    )
    assert (workplace / "out/history.csv").read_bytes() == (
        workplace / "other/history.csv"
    ).read_bytes()


def test_state_of_a_training_stays_where_its_checkpoint_cannot_be_written(
    faces, workplace, capsys, monkeypatch
):
    def no_space(recogniser, path):
        raise OSError(28, "No space left on device")

    arguments = [*COMMON, f"--data_dir={faces}", "--epochs=1", "--checkpoint=new"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Recogniser, "save", no_space)
        assert train.main(arguments) == 2
    assert capsys.readouterr().err.endswith(": No space left on device\n")
    assert [path.name for path in workplace.iterdir()] == ["new.unfinished"]
    shutil.rmtree(workplace / "new.unfinished/arrays")
    assert train.main(arguments) == 2
    assert "new.unfinished is damaged: " in capsys.readouterr().err
