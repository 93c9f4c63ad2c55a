"""Binaries come to the same on any number of devices."""

import contextlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from deid_jax.evaluation.batch_loop import BatchLoop
from deid_jax.models import mobilefacenet
from deid_jax.photos import face_attack
from deid_jax.recognisers import checkpoints
from deid_jax.recognisers.embedders import Embedder
from deid_jax.recognisers.weight_files import read_weights
from experiments import attack, protect, sweep, train
from tests.devices.test_sharding import assert_near, on_eight_devices, shapes_held
from tests.experiments.conftest import COMMON, finish, listing, process, write_faces
from tests.experiments.protect_helpers import FACES, picture
from tests.reports.runs_helpers import read_csv

# Eighteen images: no multiple of four or eight devices.
QUICK = ("--num_steps=3", "--split=all", "--checkpoint=recogniser")
TRAIN = ("--epochs=2", "--batch_size=8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that binaries run in: the data set, and a recogniser of one device.

    Outside of the child process it stays empty.
    """
    folder = tmp_path_factory.mktemp("devices")
    if jax.local_device_count() > 1:
        write_faces(folder / "faces")
        run(train, folder, 1, *TRAIN, "--checkpoint=recogniser", to="trained-1")
    return folder


def run(binary, place, devices, *flags, to="out", status=0):
    """Runs a binary on the first devices; returns its output folder."""
    arguments = [*COMMON, "--data_dir=faces", *flags, f"--output_dir={to}"]
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        assert binary.main(arguments) == status
    return place / to


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def pixels_of(folder):
    """uint8[N, H, W, 3], as `per_image.csv` orders them."""
    records = read_csv(folder / "per_image.csv")
    pixels = []
    for record in records:
        with Image.open(folder / f"images/{record['person']}/{record['name']}.png") as image:
            pixels.append(np.asarray(image))
    return np.stack(pixels)


def assert_same_table(ours, theirs, *, but=()):
    """Names to the letter, figures to 1e-4."""
    ours, theirs = read_csv(ours), read_csv(theirs)
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert list(own) == list(other)
        for name in own.keys() - set(but):
            try:
                expected = pytest.approx(float(other[name]), rel=1e-4, abs=1e-6)
            except ValueError:
                assert own[name] == other[name]
            else:
                assert float(own[name]) == expected, name


@on_eight_devices
@pytest.mark.slow
def test_attacks_write_the_same(place):
    folders = {n: run(attack, place, n, *QUICK, to=f"attack-{n}") for n in (1, 2, 4, 8)}
    theirs = metrics_of(folders[1])
    for devices, folder in folders.items():
        ours = metrics_of(folder)
        assert (ours["num_devices"], ours["num_processes"]) == (devices, 1)
        assert ours["num_images"] == ours["num_attacked"] == 18
        for name in ("l2", "l2_uint8", "mssim"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
        assert_same_table(folder / "per_image.csv", folders[1] / "per_image.csv")
        assert_near(pixels_of(folder), pixels_of(folders[1]))
        assert list(listing(folder)) == list(listing(folders[1]))


@pytest.mark.slow
@on_eight_devices
def test_dense_layers_may_be_divided(place):
    divided = run(attack, place, 4, *QUICK, "--model_parallel=2", to="divided")
    alone = run(attack, place, 1, *QUICK, to="whole")
    assert metrics_of(divided)["num_devices"] == 4
    assert metrics_of(divided)["l2"] == pytest.approx(metrics_of(alone)["l2"], rel=1e-4)
    assert_same_table(divided / "per_image.csv", alone / "per_image.csv")
    assert_near(pixels_of(divided), pixels_of(alone))


@pytest.mark.parametrize("binary", [attack, sweep, train])
@on_eight_devices
@pytest.mark.slow
def test_divisions_that_devices_do_not_allow_are_refused(binary, place, capsys):
    flags = TRAIN if binary is train else QUICK
    before = listing(place)
    run(binary, place, 4, *flags, "--model_parallel=3", to="none", status=2)
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "error: model_parallel must divide the 4 devices of a process, got 3\n",
    )
    assert listing(place) == before


SWEEP = ("--sweep=penalty_weight=0.2,1", "--shard_size=5")


@pytest.mark.slow
@on_eight_devices
def test_sweeps_write_the_same(place):
    folders = {n: run(sweep, place, n, *QUICK, *SWEEP, to=f"sweep-{n}") for n in (1, 2, 4, 8)}
    for devices, folder in folders.items():
        assert {row["num_devices"] for row in read_csv(folder / "sweep.csv")} == {str(devices)}
        for name in ("sweep.csv", "per_image.csv"):
            assert_same_table(folder / name, folders[1] / name, but=["num_devices"])
        assert list(listing(folder)) == list(listing(folders[1]))


def check_trainings(place, counts):
    for devices in counts:
        flags = (*TRAIN, f"--checkpoint=recogniser-{devices}")
        folder = run(train, place, devices, *flags, to=f"trained-{devices}")
        assert_same_table(folder / "history.csv", place / "trained-1/history.csv")
        ours, theirs = (
            checkpoints.load_variables(path, checkpoints.load_info(path))["params"]
            for path in (place / f"recogniser-{devices}", place / "recogniser")
        )
        # A bias before BatchNorm has a gradient of rounding alone, which Adam makes a step of.
        for layer in ("conv1", "conv2", "fc1", "fc2"):
            difference = np.abs(ours[layer]["kernel"] - theirs[layer]["kernel"])
            assert np.quantile(difference, 0.99) < 1e-5


@on_eight_devices
@pytest.mark.slow
def test_trainings_come_to_the_same(place):
    check_trainings(place, (4,))


@pytest.mark.slow
@on_eight_devices
def test_trainings_come_to_the_same_on_more_numbers_of_devices(place):
    check_trainings(place, (2, 8))


@pytest.mark.parametrize("binary", [protect, attack])
@on_eight_devices
@pytest.mark.slow
def test_no_device_holds_a_recogniser_whole(binary, recogniser_files, place, tmp_path):
    """Not when it is loaded, asked what it sees, told from others, nor when it is fooled."""
    _, variables = mobilefacenet.convert(read_weights(recogniser_files["mobilefacenet_ms1m"]))
    kernels = [leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 2]
    depth, width = max(kernels, key=np.prod)
    held = []

    def note(real):
        def noted(*args, **kwargs):
            result = real(*args, **kwargs)
            held.append(shapes_held(a for a in jax.live_arrays() if not a.is_deleted()))
            return result

        return noted

    given = [f"--recogniser=mobilefacenet_ms1m:{recogniser_files['mobilefacenet_ms1m']}"]
    given += ["--model_parallel=2", "--num_steps=1"]
    if binary is protect:
        Image.fromarray(picture(0)).save(tmp_path / "a.png")
        given += [f"--input={tmp_path / 'a.png'}", f"--output={tmp_path / 'out'}", FACES]
    else:
        given += ["--dataset=folder", f"--data_dir={place / 'faces'}", "--image_size=112"]
        given += ["--max_images=4", f"--output_dir={tmp_path / 'out'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "embed", note(Embedder.embed))
        patch.setattr(face_attack, "find_perturbation", note(face_attack.find_perturbation))
        patch.setattr(BatchLoop, "_collect", note(BatchLoop._collect))
        assert binary.main(given) in (0, 1)
    assert len(held) > 1
    assert any((depth, width // 2) in shapes for shapes in held)
    assert not any((depth, width) in shapes for shapes in held)


@pytest.mark.slow
def test_a_user_sees_devices_named(trained, faces, workplace):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
        flags = [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}", "--num_steps=3"]
        started = process("attack", *flags, "--output_dir=out", cwd=workplace)
    status, out, err = finish(started)
    assert (status, err) == (0, "")
    assert "images/s on 4 devices)" in " ".join(out.split())
    assert metrics_of(workplace / "out")["num_devices"] == 4
