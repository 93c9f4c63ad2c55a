"""Killed with SIGKILL at random moments: what stands is whole, and the next run goes on."""

import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from tests.experiments.conftest import finish, listing, process
from tests.experiments.protect_helpers import arguments, picture, state

pytestmark = pytest.mark.slow
NUMBER = 12
SUFFIXES = ("png", "jpg", "webp", "tif")
MANIFEST = "manifest.jsonl"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(input, what a run that nobody disturbs makes of it)."""
    folder = tmp_path_factory.mktemp("killed")
    source, output = folder / "in", folder / "out"
    for seed in range(NUMBER):
        path = source / ("deep/er" if seed % 3 else "") / f"{seed}.{SUFFIXES[seed % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path, quality=95)
    (source / "no photo.jpg").write_bytes(b"letter")
    status, _, err = finish(process("protect", *arguments(source, output), cwd=folder))
    assert status == 1, err
    assert len(photos(output)) == NUMBER
    return source, listing(output)


def photos(output):
    """Files that are there under their names."""
    return [
        path
        for path in output.rglob("*.*")
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    ]


def wait_for(started, output, number):
    """Until a process has written so many photos, or ended."""
    while started.poll() is None and len(photos(output)) < number:
        time.sleep(0.001)


# In seconds: about as long as two photos take.
LATEST = 0.1


@pytest.mark.parametrize("seed", range(5))
def test_killed_run_goes_on(undisturbed, tmp_path, seed):
    source, whole = undisturbed
    output = tmp_path / "out"
    before = state(source)
    generator = np.random.default_rng(seed)
    # Every third one is killed again as it goes on.
    for number in sorted(generator.integers(1, NUMBER + 1, 1 + (seed % 3 == 2))):
        started = process("protect", *arguments(source, output), cwd=tmp_path)
        wait_for(started, output, number)
        time.sleep(generator.uniform(0, LATEST))
        os.kill(started.pid, signal.SIGKILL)
        status, _, _ = finish(started)
        # At the very end it may have been quicker.
        assert status == -signal.SIGKILL or (status == 1 and number > NUMBER - 4)
        there = photos(output)
        assert len(there) >= number
        for path in there:
            assert path.read_bytes() == whole[str(path.relative_to(output))]
    stood = {path: path.stat() for path in there}
    lines = (output / MANIFEST).read_bytes().split(b"\n")[:-1]
    names = {json.loads(line)["file"] for line in lines}
    done = [path for path in there if path.relative_to(output).as_posix() in names]
    # Only between a file and its line may it have been killed.
    assert len(done) >= len(there) - 1
    status, _, err = finish(process("protect", *arguments(source, output), cwd=tmp_path))
    assert status == 1, err
    assert listing(output) == whole
    for path in done:
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (stood[path].st_ino, stood[path].st_mtime_ns)
    assert state(source) == before
