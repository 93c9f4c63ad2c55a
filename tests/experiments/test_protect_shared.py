"""Protection by several devices and processes: the files of one, whoever did which."""

import threading
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

from deid_jax.devices import device_threads
from experiments import protect
from tests.experiments import scale_helpers
from tests.experiments.conftest import finish, listing, process
from tests.experiments.protect_helpers import arguments, picture

NUMBER = 7
# XLA's CPU starts a thread for every device, and what it divides among them rounds otherwise.
THREADS = "4"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(NUMBER):
        path = folder / ("deep" if seed % 2 else "") / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(seed)).save(path)
    (folder / "no photo.jpg").write_bytes(b"letter")
    return folder


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory):
    """What one process with one device makes of them."""
    output = tmp_path_factory.mktemp("alone") / "out"
    given = arguments(photos, output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", THREADS)
        status, _, err = finish(process("protect", *given, cwd=output.parent))
    assert status == 1, err  # One file is no photo.
    return listing(output)


@pytest.mark.slow
def test_devices_change_no_byte(photos, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("NPROC", THREADS)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    given = arguments(photos, tmp_path / "out")
    status, _, err = finish(process("protect", *given, cwd=tmp_path))
    assert status == 1
    assert err.startswith("not protected: ")
    assert listing(tmp_path / "out") == alone


@pytest.mark.slow
def test_dense_layers_may_be_divided(photos, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("NPROC", THREADS)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    given = arguments(photos, tmp_path / "out")
    _, out, err = finish(process("protect", *given, "--model_parallel=3", cwd=tmp_path))
    said = "error: model_parallel must divide the 4 devices of a process, got 3\n"
    assert (out, err) == ("", said)
    assert not (tmp_path / "out").exists()
    status, _, err = finish(process("protect", *given, "--model_parallel=2", cwd=tmp_path))
    assert status == 1, err
    # A function has no layers to divide.
    assert listing(tmp_path / "out") == alone


@pytest.mark.slow
def test_processes_change_no_byte_and_only_the_first_reports(
    photos, alone, tmp_path, monkeypatch
):
    monkeypatch.setenv("NPROC", THREADS)
    given = arguments(photos, tmp_path / "out")
    results = scale_helpers.ends(scale_helpers.group("protect", given, cwd=tmp_path, count=3))
    assert [status for status, _, _ in results] == [1, 1, 1], results
    assert results[0][1]
    printed = [line for _, out, _ in results[1:] for line in out.splitlines()]
    assert all(line.startswith("[Gloo]") for line in printed)
    assert listing(tmp_path / "out") == alone


def test_what_one_piece_raises_ends_the_others():
    devices = jax.devices()[:1] * 3
    mesh = types.SimpleNamespace(devices=np.array(devices, dtype=object).reshape(3, 1))
    begun, all_there = [], threading.Barrier(3, timeout=60)

    def do(name):
        begun.append(name)
        if len(begun) <= 3:
            all_there.wait()
        if name == "b":
            raise ValueError("broken")
        time.sleep(0.1)

    with pytest.raises(ValueError, match="broken"):
        device_threads.on_all_devices(do, "abcdefghij", mesh)
    assert len(begun) < 10
    done = []
    device_threads.on_all_devices(done.append, "abcdef", mesh)
    assert sorted(done) == list("abcdef")
    device_threads.on_all_devices(done.append, "", mesh)
    assert len(done) == 6


def test_settings_of_processes_decide_nothing():
    settings = protect.ProtectSettings(num_processes=3, process_id=1, coordinator_address="h:1")
    assert settings.alone() == protect.ProtectSettings()
