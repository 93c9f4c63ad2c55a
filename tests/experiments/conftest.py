"""A tiny data set, a recogniser trained on it, and binaries as processes."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deid_jax.videos import FileProtector
from experiments import train
from tests.experiments.transfer_helpers import originals_of, rows_of

REPOSITORY = Path(__file__).parents[2]
SIZE = 16
# What every command on the tiny data set is given beside --data_dir.
COMMON = ("--dataset=folder", f"--image_size={SIZE}")


def write_faces(folder, persons=3, pictures=6):
    """`folder/<person>/<picture>.png`: a blob of the person's colour on noise."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    for person in range(persons):
        colour = 255 * np.eye(3)[person % 3]
        own = folder / f"person_{person}"
        own.mkdir(parents=True)
        for picture in range(pictures):
            pixels = generator.integers(0, 120, (24, 24, 3)).astype(float)
            centre = generator.uniform(8, 16, 2)
            inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 36
            pixels[inside] = 0.5 * pixels[inside] + 0.6 * colour
            pixels = np.clip(pixels, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(own / f"{picture:02d}.png")
    return folder


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """The data set's folder; not to be changed."""
    return write_faces(tmp_path_factory.mktemp("data") / "faces")


@pytest.fixture(scope="session")
def trained(faces, tmp_path_factory):
    """(checkpoint, output folder, recogniser) of two epochs of training; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    checkpoint, output = folder / "recogniser", folder / "run"
    settings = train.TrainSettings(
        dataset="folder",
        data_dir=str(faces),
        image_size=SIZE,
        epochs=2,
        batch_size=8,
        checkpoint=str(checkpoint),
        output_dir=str(output),
    )
    return checkpoint, output, train.run(settings)


@pytest.fixture
def arguments(trained, faces):
    """What attacks on the tiny data set are given."""
    return [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}", "--output_dir=out"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder):
    """Every file below a folder with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(main, arguments, message, folder, capsys):
    """A binary ends in one line that says why, and leaves the folder as it was."""
    before = listing(folder)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert listing(folder) == before


def process(name, *arguments, cwd, **options):
    """Starts a binary as a user does, on the CPU."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


_PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", *sys.argv[1:]], check=True, stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_bytes(name, *arguments, cwd):
    """The most resident memory of a binary's process.

    Linux counts what a process's parent had into it, so a small process starts the binary.
    """
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    command = [sys.executable, "-c", _PEAK, f"experiments.{name}", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


def finish(started, timeout=240):
    """(exit status, standard output, standard error)."""
    out, err = started.communicate(timeout=timeout)
    return started.returncode, out, err


@pytest.fixture
def worked_on(monkeypatch):
    """Names of the files that `FileProtector` worked on, in their order."""
    names, do = [], FileProtector.protect

    def spied(work, name, *rest):
        names.append(name)
        return do(work, name, *rest)

    monkeypatch.setattr(FileProtector, "protect", spied)
    return names


@pytest.fixture
def bar(monkeypatch):
    """What the progress bar was told: (description, done, total, text)."""
    told = []

    @contextlib.contextmanager
    def progress_bar(description, **options):
        yield lambda done, total, text="": told.append((description, done, total, text))

    monkeypatch.setattr("experiments._common.terminal.progress_bar", progress_bar)
    return told


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Three persons' folder of twelve images each; not to be changed."""
    return write_faces(tmp_path_factory.mktemp("data") / "faces", pictures=12)


@pytest.fixture(scope="session")
def originals(pictures):
    """name -> the photos as the data set gives them."""
    return originals_of(pictures)


# Of a module whose fixture `folder` is the output of `experiments.transfer`.


@pytest.fixture(scope="module")
def rows(folder):
    return rows_of(folder)


@pytest.fixture(scope="module")
def lines(folder):
    """Those of every photo."""
    return rows_of(folder, "per_image.csv")


@pytest.fixture(scope="module")
def protocol(folder):
    return json.loads((folder / "protocol.json").read_text())
