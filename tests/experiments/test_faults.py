"""What breaks while a run goes on: one line says so, and the same command ends as if not."""

import builtins
import dataclasses
import io
import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from deid_jax.data import building
from deid_jax.evaluation import Evaluation
from deid_jax.recognisers import checkpoints
from deid_jax.runs import FolderStore
from experiments import attack, train
from tests.data import packing
from tests.experiments import scale_helpers
from tests.experiments.conftest import COMMON, assert_refused, finish, listing, process
from tests.experiments.scale_helpers import HIDDEN, content, group, kill, visible

TOTAL = 18
SHARDED = ("--split=all", "--shard_size=4", "--num_steps=3")
NUM_SHARDS = 5
GOES_ON = "; what is finished is kept, and the same command goes on from there\n"
# Some hosts and containers let nobody mount anything; there the others must do.
MOUNTED = [None] if scale_helpers.namespaces() else []


def flags_of(trained, faces, output="out"):
    return [
        *COMMON,
        *SHARDED,
        f"--data_dir={faces}",
        f"--checkpoint={trained[0]}",
        f"--output_dir={output}",
    ]


@pytest.fixture(scope="module")
def undisturbed(trained, faces, tmp_path_factory):
    """Output format -> what a run writes that nothing happens to."""
    found = {}
    for kind in ("png", "tfds"):
        folder = tmp_path_factory.mktemp(kind) / "whole"
        arguments = [*flags_of(trained, faces, folder), f"--output_format={kind}"]
        assert attack.main(arguments) == 0
        found[kind] = content(folder)
    return found


@pytest.fixture
def arguments(trained, faces, workplace, capsys):
    """Those of a run into "out", where an earlier run is."""
    given = flags_of(trained, faces)
    earlier = [flag for flag in given if flag not in SHARDED]
    assert attack.main([*earlier, "--method=blur", "--max_images=2"]) == 0
    capsys.readouterr()
    return given


def fails(arguments, capsys, status=2):
    """Runs what is to fail: the one line it says. The earlier run stays as it is."""
    before = visible(Path("out"))
    assert attack.main(arguments) == status
    assert visible(Path("out")) == before
    out, err = capsys.readouterr()
    assert out == ""
    *lines, last = err.splitlines(keepends=True)
    assert all(line.startswith("going on: ") for line in lines)
    return last


def goes_on(arguments, capsys, expected, finished=None):
    """The run ends like the undisturbed one, and begins where the last one stopped."""
    if finished is None:
        finished = len(scale_helpers.pieces(Path("out")))
    said = f"going on: {finished} of {NUM_SHARDS} shards are finished\n" if finished else ""
    assert attack.main(arguments) == 0
    assert capsys.readouterr().err == said
    assert content(Path("out")) == expected


def interrupted(monkeypatch, after, arguments):
    """A run that was interrupted when so many shards had been kept."""
    whole = FolderStore.write

    def write(store, key, piece, files=()):
        if len(store) == after:
            raise KeyboardInterrupt
        whole(store, key, piece, files)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", write)
        assert attack.main(arguments) == 130


# The n-th file that is opened to be written: images, finished shards, tables.
@pytest.mark.parametrize("number", [0, 13, 31, 32, 34])
def test_disk_is_full_at_the_nth_file(arguments, undisturbed, monkeypatch, capsys, number):
    real, opened = io.open, itertools.count()
    names = []

    def open_(file, mode="r", *rest, **named):
        # A number is the handle of a temporary file.
        ours = isinstance(file, int) or "out" in Path(file).parts
        if ours and set(mode) & set("wx+") and next(opened) == number:
            names.append(file)
            if not isinstance(file, int):
                Path(file).touch()
            file = "/dev/full"  # Writing there fails as on a disk without room.
        return real(file, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_)
        patch.setattr(io, "open", open_)
        line = fails(arguments, capsys)
    assert len(names) == 1
    finished = len(scale_helpers.pieces(Path("out")))
    assert finished == NUM_SHARDS or number < 31
    assert line == "error: out: No space left on device" + (GOES_ON if finished else "\n")
    goes_on(arguments, capsys, undisturbed["png"], finished)


_FULL_DISK = """
cp -r out earlier
room=$(du -sk earlier | cut -f1)
mount -t tmpfs -o size=$((room + $1))k none out
cp -r earlier/. out
shift
"$PYTHON" -m experiments.attack "$@" || echo $? > status
cp -r out stopped
mount -o remount,size=64m out
"$PYTHON" -m experiments.attack "$@"
cp -r out ended
"""


@pytest.mark.slow
@pytest.mark.parametrize("mounted", MOUNTED)
@pytest.mark.parametrize("kind", ["png", "tfds"])
def test_disk_of_a_few_pages_is_full(arguments, undisturbed, workplace, kind, mounted):
    given = [*arguments, f"--output_format={kind}"]
    # Beside the earlier run; a shard takes 36 or 150 KiB.
    room = {"png": "80", "tfds": "400"}[kind]
    status, _, err = scale_helpers.in_namespace(_FULL_DISK, room, *given, cwd=workplace)
    assert status == 0, err
    assert (workplace / "status").read_text() == "2\n"
    stopped = workplace / "stopped"
    finished = len(scale_helpers.pieces(stopped))
    assert 0 < finished < NUM_SHARDS
    first, second = err.splitlines(keepends=True)
    assert first.startswith("error: ")
    assert "No space left on device" in first
    assert first.endswith(GOES_ON)
    assert second == f"going on: {finished} of {NUM_SHARDS} shards are finished\n"
    assert visible(stopped) == listing(workplace / "earlier")
    assert content(workplace / "ended") == undisturbed[kind]


_FULL_DISK_TRAINING = """
mkdir kept
mount -t tmpfs -o size=$1 none kept
shift
"$PYTHON" -m experiments.train "$@" || echo $? > status
ls -A kept > left
mount -o remount,size=64m kept
"$PYTHON" -m experiments.train "$@"
cp -r kept/new ended
"""


@pytest.mark.slow
@pytest.mark.parametrize("mounted", MOUNTED)
def test_disk_without_room_for_a_checkpoint(trained, faces, workplace, mounted):
    given = [*COMMON, f"--data_dir={faces}", "--epochs=2", "--batch_size=8"]
    given += ["--checkpoint=kept/new", "--output_dir=out"]
    status, _, err = scale_helpers.in_namespace(
        _FULL_DISK_TRAINING, "100k", *given, cwd=workplace
    )
    assert status == 0, err
    assert (workplace / "status").read_text() == "2\n"
    assert (workplace / "left").read_text() == ""
    assert err.startswith("error: checkpoint kept/new.unfinished cannot be written: ")
    assert err.count("\n") == 1
    info = checkpoints.load_info(workplace / "ended")
    assert info == trained[2].info
    variables = checkpoints.load_variables(workplace / "ended", info)
    jax.tree.map(np.testing.assert_array_equal, variables, trained[2].variables)


_READ_ONLY = """
mount --bind out out
mount -o remount,bind,ro out
"$PYTHON" -m experiments.attack "$@"
"""


@pytest.mark.parametrize("mounted", MOUNTED)
def test_folder_that_is_read_only(arguments, workplace, mounted):
    before = listing(workplace)
    status, out, err = scale_helpers.in_namespace(_READ_ONLY, *arguments, cwd=workplace)
    assert (status, out) == (2, "")
    assert err == "error: output_dir out cannot be written: Read-only file system\n"
    assert listing(workplace) == before


def test_folder_that_becomes_read_only(arguments, undisturbed, monkeypatch, capsys):
    whole = attack.RunFolder.write_png

    def write(folder, name, picture):
        if name.startswith("images/person_2"):
            raise OSError(30, "Read-only file system", str(folder.work_path(name)))
        return whole(folder, name, picture)

    with monkeypatch.context() as patch:
        patch.setattr(attack.RunFolder, "write_png", write)
        line = fails(arguments, capsys)
    assert line.startswith(f"error: out/{HIDDEN}/")
    assert line.endswith(".png: Read-only file system" + GOES_ON)
    goes_on(arguments, capsys, undisturbed["png"], 3)


def jpegs(faces, folder):
    """The same images as JPEG files."""
    for path in sorted(faces.rglob("*.png")):
        target = folder / path.parent.name / f"{path.stem}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target, quality=95)
    return folder


@pytest.fixture
def for_archives(trained, workplace):
    """The checkpoint as one that was trained on an archive of these images."""
    info = dataclasses.replace(trained[2].info, dataset="archive")
    trained[2]._replace(info=info).save(workplace / "recogniser")
    return "--checkpoint=recogniser"


def test_unreadable_picture_in_the_middle_of_an_archive(
    arguments, for_archives, faces, workplace, capsys
):
    root = jpegs(faces, workplace / "jpegs")
    packing.pack_tar(workplace / "faces.tar", root)
    given = [*arguments, for_archives, "--dataset=archive", "--data_dir=faces.tar"]
    assert attack.main([*given, "--output_dir=whole", "--skip_unreadable"]) == 0
    assert capsys.readouterr().err == ""
    damaged = root / "person_1" / "03.jpg"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    packing.pack_tar(workplace / "faces.tar", root)

    line = fails(given, capsys)
    assert line.startswith("error: faces.tar: person_1/03 cannot be read: ")
    assert "--skip_unreadable leaves such images out" in line
    assert line.endswith(GOES_ON)
    assert len(scale_helpers.pieces(Path("out"))) > 0
    assert attack.main([*given, "--skip_unreadable"]) == 0
    assert "left out 1 unreadable image\n" in capsys.readouterr().err
    ours, whole = content(workplace / "out"), content(workplace / "whole")
    assert (ours["metrics.json"]["num_images"], TOTAL) == (
        TOTAL - 1,
        whole["metrics.json"]["num_images"],
    )
    assert whole.pop("images/person_1/03.png") is not None
    for kind in (ours, whole):  # The sheet's caption has the mean L2.
        del kind["metrics.json"], kind["config.json"], kind["sheet.png"]
        lines = kind["per_image.csv"].splitlines()
        kind["per_image.csv"] = [row for row in lines if not row.startswith(b"person_1,03,")]
    # The sheet shows the first images, this one not among them.
    assert ours == whole


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is truncated"),
        (lambda path: path.write_bytes(b""), "is an empty file"),
    ],
)
def test_file_that_breaks_after_loading(
    arguments, undisturbed, faces, workplace, monkeypatch, capsys, damage, reason
):
    """Large sets are decoded on demand; what is there when they are loaded may go."""
    shutil.copytree(faces, workplace / "faces")
    picture = workplace / "faces/person_2/02.png"
    given = [*arguments, "--data_dir=faces"]
    monkeypatch.setattr(building, "MAX_CACHED_BYTES", 0)
    whole = Evaluation.over

    def over(*args, **named):
        damage(picture)
        return whole(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "over", over)
        line = fails(given, capsys)
    assert line.startswith("error: faces/person_2/02.png ")
    assert reason in line
    assert line.endswith(GOES_ON)
    # Three shards are before; the last one may not have been kept as the next was read.
    finished = len(scale_helpers.pieces(Path("out")))
    assert finished in (2, 3)
    shutil.copy(faces / "person_2/02.png", picture)
    assert attack.main(given) == 0
    assert capsys.readouterr().err == f"going on: {finished} of 5 shards are finished\n"
    ours = content(workplace / "out")
    expected = dict(undisturbed["png"])
    for files in (ours, expected):
        files["config.json"] = {**files["config.json"], "settings": None, "recogniser": None}
    assert ours == expected


def test_checkpoint_without_numbers(arguments, trained, workplace, capsys):
    broken = jax.tree.map(np.array, trained[2].variables)
    broken["params"]["fc2"]["bias"][1] = np.nan
    trained[2]._replace(variables=broken).save(workplace / "broken")
    line = fails([*arguments, "--checkpoint=broken"], capsys)
    assert line == (
        "error: the recogniser gives NaN or infinity for person_0/00: its weights are damaged, "
        "or it cannot take this image\n"
    )


_OWN = """
import jax.numpy as jnp

def embed(images):
    '''The mean colours of four corners; no numbers for one image.'''
    corners = images[:, ::15, ::15].reshape(len(images), -1)
    is_odd = jnp.all(jnp.abs(corners - jnp.array([ODD])) < 1e-3, axis=-1)
    return jnp.where(is_odd[:, None], jnp.nan, corners - 0.2)
"""


@pytest.mark.parametrize("split", ["train", "test"])
def test_own_recogniser_has_no_numbers_for_one_picture(
    arguments, faces, workplace, capsys, monkeypatch, split
):
    """One of its gallery, and one that it only judges."""
    from deid_jax.data import DataOptions, load_dataset

    options = DataOptions(image_size=16, split=split, data_dir=str(faces))
    dataset = load_dataset("folder", options)
    index = len(dataset) - 1
    odd = (dataset[index]["image"][::15, ::15]).ravel().tolist()
    name = f"own_{split}"
    (workplace / f"{name}.py").write_text(_OWN.replace("ODD", repr(odd)))
    monkeypatch.syspath_prepend(str(workplace))
    given = [flag for flag in arguments if not flag.startswith("--checkpoint")]
    line = fails([*given, f"--recogniser={name}:embed", "--shard_size=1"], capsys)
    assert line.startswith("error: ")
    assert f" {dataset.image_name(index)}" in line


def flip(path, bit):
    """Turns one bit of a file round; negative ones count from the end."""
    found = bytearray(path.read_bytes())
    byte, place = divmod(bit % (8 * len(found)), 8)
    found[byte] ^= 1 << place
    path.write_bytes(bytes(found))


# One of each kind of file.
CHECKPOINT_FILES = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "sha256",
    "info/metadata",
    "info/commit_success.txt",
    "arrays/_METADATA",
    "arrays/commit_success.txt",
    "arrays/params.fc1.kernel/.zarray",
    "arrays/params.fc1.kernel/0.0",
    "arrays/batch_stats.bn1.mean/0",
)


def test_every_kind_of_file_is_flipped_in(trained):
    kinds = {path.name for path in trained[0].rglob("*") if path.is_file()}
    assert kinds == {Path(name).name for name in CHECKPOINT_FILES} | {"0.0.0.0"}


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_checkpoint_with_a_flipped_bit(arguments, trained, workplace, capsys, name):
    random = np.random.default_rng(len(name))
    size = 8 * (trained[0] / name).stat().st_size
    # The first and the last byte, and some between.
    for bit in [1, size - 6, *random.integers(size, size=4).tolist()]:
        shutil.rmtree(workplace / "flipped", ignore_errors=True)
        shutil.copytree(trained[0], workplace / "flipped")
        flip(workplace / "flipped" / name, bit)
        line = fails([*arguments, "--checkpoint=flipped"], capsys)
        assert line.startswith("error: checkpoint flipped is damaged: "), bit
        assert line.count("\n") == 1


@pytest.fixture(scope="module")
def unfinished(faces, tmp_path_factory):
    """(arguments, the state of a training that was interrupted)."""
    folder = tmp_path_factory.mktemp("unfinished")
    given = [*COMMON, f"--data_dir={faces}", "--epochs=2", "--batch_size=8"]

    def interrupt(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Recogniser, "save", interrupt)
        paths = [f"--checkpoint={folder / 'new'}", f"--output_dir={folder / 'out'}"]
        assert train.main([*given, *paths]) == 130
    return [*given, "--checkpoint=new", "--output_dir=out"], folder / "new.unfinished"


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_unfinished_training_with_a_flipped_bit(unfinished, workplace, capsys, name):
    given, state = unfinished
    shutil.copytree(state, workplace / "new.unfinished")
    flip(workplace / "new.unfinished" / name, -8 * 7)
    assert_refused(train.main, given, "new.unfinished is damaged: ", workplace, capsys)


def _cut(path):
    path.write_bytes(path.read_bytes()[:200])


# How many of three finished shards are left.
DAMAGES = {
    "piece cut": ("png", "pieces/000001.json", _cut, 2),
    "piece flipped": ("png", "pieces/000001.json", lambda path: flip(path, 1000), 2),
    "piece empty": ("png", "pieces/000000.json", lambda path: path.write_bytes(b""), 2),
    "piece gone": ("png", "pieces/000002.json", Path.unlink, 2),
    "image cut": ("png", "images/person_0/05.png", _cut, 2),
    "image gone": ("png", "images/person_0/00.png", Path.unlink, 2),
    "images gone": ("png", "images", shutil.rmtree, 0),
    "image of the sheet cut": ("png", "shown/0.png", _cut, None),
    "image of the sheet gone": ("png", "shown/0.png", Path.unlink, None),
    "examples cut": ("tfds", "dataset/*/*/*-00001-*", _cut, 2),
    "examples gone": ("tfds", "dataset/*/*/*-00001-*", Path.unlink, 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_work_of_an_interrupted_run_is_done_again(
    arguments, undisturbed, monkeypatch, capsys, damage
):
    kind, name, spoil, left = DAMAGES[damage]
    given = [*arguments, f"--output_format={kind}"]
    interrupted(monkeypatch, 3, given)
    (path,) = Path("out").glob(f"{HIDDEN}/*/{name}")
    spoil(path)
    capsys.readouterr()
    assert attack.main(given) == 0
    if left is not None:
        said = f"going on: {left} of {NUM_SHARDS} shards are finished\n" if left else ""
        assert capsys.readouterr().err == said
    assert content(Path("out")) == undisturbed[kind]


@pytest.mark.slow
def test_two_runs_into_one_folder(arguments, undisturbed, workplace, capsys):
    """The second is refused, alone and as a group, and the first goes on."""
    first = process("attack", *arguments, cwd=workplace)
    scale_helpers.wait_until(
        lambda: list(workplace.glob(f"out/{HIDDEN}/*/images/*/*.png")), [first]
    )
    first.send_signal(signal.SIGSTOP)  # So that it is not done too early.
    stopped = os.WSTOPPED | os.WNOWAIT | os.WNOHANG
    scale_helpers.wait_until(lambda: os.waitid(os.P_PID, first.pid, stopped), [first])
    try:
        said = "output_dir out is being written by another run: name another folder"
        line = fails(arguments, capsys)
        assert line == f"error: {said}\n"
        (one, other) = scale_helpers.ends(group("attack", arguments, cwd=workplace, count=2))
        assert (one[0], one[2]) == (2, f"error: {said}\n")
        assert all(line.startswith("[Gloo]") for line in one[1].splitlines())
        # The other is told that one stopped, or JAX ends it.
        assert other[0] not in (0, 1)
    finally:
        first.send_signal(signal.SIGCONT)
    status, _, err = finish(first)
    assert (status, err) == (0, "")
    assert content(workplace / "out") == undisturbed["png"]


@pytest.mark.slow
def test_worker_that_is_lost(arguments, undisturbed, workplace, capsys):
    slowly = [*arguments, "--shard_size=1", "--num_steps=300"]
    started = group("attack", slowly, cwd=workplace, count=2)
    scale_helpers.wait_until(lambda: len(scale_helpers.pieces(Path("out"))) >= 2, started)
    kill(started[1:])
    begun = time.monotonic()
    (status, _, err), (lost, _, _) = scale_helpers.ends(started, timeout=60)
    assert time.monotonic() - begun < 60
    assert lost == -signal.SIGKILL
    # Waiting for the other it says so itself, computing it is ended by JAX.
    assert (status, err.endswith(GOES_ON)) == (2, True) or (
        status == -signal.SIGABRT and "another task died" in err
    )
    finished = len(scale_helpers.pieces(Path("out")))
    alone = [*slowly, "--output_dir=alone"]
    assert finish(process("attack", *alone, cwd=workplace))[0] == 0
    status, _, err = finish(process("attack", *slowly, cwd=workplace))
    assert (status, err) == (0, f"going on: {finished} of {TOTAL} shards are finished\n")
    assert content(Path("out")) == content(Path("alone"))
