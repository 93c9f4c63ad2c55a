"""The page's server: its settings, whom it answers, what it leaves behind."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deid_jax.errors import InputError
from experiments import protect, webapp
from experiments._common import flags
from tests.experiments.conftest import REPOSITORY, finish, process
from tests.experiments.protect_helpers import ONE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "port"),
        ({"port": -1}, "port"),
        ({"num_steps": 0}, "num_steps"),
        ({"seed": -1}, "seed"),
        ({"detector": "missing.onnx"}, "missing.onnx|OpenCV"),
        ({"threshold": "1.5"}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"judge": ONE}, "twice"),
        ({"recogniser": "nobody"}, "nobody"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    given = {"recogniser": ONE, "threshold": "0.9"} | settings
    with (
        pytest.raises(InputError, match=message),
        webapp.serve(webapp.WebappSettings(**given)),
    ):
        pass


def test_settings_mean_what_they_mean_to_protect():
    own, others = flags.flags_of(webapp.WebappSettings), flags.flags_of(protect.ProtectSettings)
    assert own.pop("port").default == 7860
    assert own == {name: others[name] for name in own}


def test_a_taken_port_is_one_clear_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = [f"--recogniser={ONE}", "--threshold=0.9", f"--port={port}"]
        assert webapp.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: port {port} cannot be used (Address already in use)\n"


def test_without_gradio_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = webapp.WebappSettings(recogniser=ONE, threshold="0.9", port=0)
    with pytest.raises(InputError, match=r"deid_jax\[webapp\]"), webapp.serve(settings):
        pass
    assert list(tmp_path.iterdir()) == []
    assert "GRADIO_TEMP_DIR" not in os.environ


@contextlib.contextmanager
def served(folder):
    """(process, address, port) of the page, temporary files of which lie in a folder."""
    arguments = [f"--recogniser={ONE}", "--threshold=0.9", "--num_steps=2", "--port=0"]
    environment = pytest.MonkeyPatch()
    environment.setenv("TMPDIR", str(folder))
    started = process("webapp", *arguments, cwd=folder)
    environment.undo()
    try:
        line = started.stdout.readline()
        found = re.match(r"Photos are protected at (http://127\.0\.0\.1:(\d+)) \(Ctrl-C", line)
        yield started, found[1], int(found[2])
    finally:
        started.kill()
        started.communicate()


def status(address, host):
    """Of an answer to somebody who calls this machine `host`."""
    request = urllib.request.Request(address, headers={"Host": host})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def listening(port):
    """Addresses at which this machine waits on a port, as the kernel writes them."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = Path(table).read_text().splitlines()[1:] if Path(table).exists() else []
        for own, state in (row.split()[1:4:2] for row in rows):
            if state == "0A" and own.endswith(f":{port:04X}"):
                found.append(own.partition(":")[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_only_this_machine_is_answered_and_nothing_stays(ending, tmp_path):
    with served(tmp_path) as (started, address, port):
        assert listening(port) == ["0100007F"]
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert status(address, host) == 200
        # A page elsewhere whose name was made to lead here.
        assert status(address, f"photos.example:{port}") == 400
        (folder,) = tmp_path.glob("deid_jax_webapp_*")
        assert folder.stat().st_mode & 0o077 == 0
        started.send_signal(ending)
        assert finish(started) == (0, "ended\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_killed_pages_left_behind_is_removed(tmp_path):
    """Not what a page that runs has, nor what is somebody else's."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f"deid_jax_webapp_{gone.pid}_ab"
    kept = [
        tmp_path / f"deid_jax_webapp_{os.getpid()}_cd",
        tmp_path / "deid_jax_webapp_notes_of_mine",
        tmp_path / f"other_{gone.pid}_ab",
    ]
    for folder in (left, *kept):
        folder.mkdir()
        (folder / "photo.png").write_bytes(b"somebody")
    with served(tmp_path) as (started, _, _):
        assert not left.exists()
        started.send_signal(signal.SIGINT)
        finish(started)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert all((folder / "photo.png").exists() for folder in kept)


# Whom the server of a page asks, and what it was told of telemetry.
WATCHED = f"""
import json, os, socket, sys, time

asked, find, connect = [], socket.getaddrinfo, socket.socket.connect

def getaddrinfo(host, *rest, **named):
    asked.append(str(host))
    return find(host, *rest, **named)

def connected(own, address):
    asked.append(str(address[0]))
    return connect(own, address)

socket.getaddrinfo, socket.socket.connect = getaddrinfo, connected
from experiments import webapp

with webapp.serve(webapp.WebappSettings(recogniser={ONE!r}, threshold="0.9", port=0)):
    import gradio, huggingface_hub
    time.sleep(2)
    print(json.dumps([
        sorted(set(asked)),
        gradio.analytics.analytics_enabled(),
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY,
    ]))
assert "GRADIO_TEMP_DIR" not in os.environ
"""


@pytest.mark.slow
def test_nobody_is_told(tmp_path):
    environment = dict(
        os.environ, PYTHONPATH=str(REPOSITORY), TMPDIR=str(tmp_path), JAX_PLATFORMS="cpu"
    )
    environment |= {"http_proxy": "http://proxy.example:1", "no_proxy": "example.com"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked, analytics, silent = json.loads(done.stdout)
    assert set(asked) <= {"127.0.0.1"}
    assert asked
    assert (analytics, silent) == (False, True)
