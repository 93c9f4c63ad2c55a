"""Runs of several processes, killed at moments that can be repeated, and what they leave."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from tests.experiments.conftest import REPOSITORY, listing, process
from tests.reports.runs_helpers import read_csv

# What the clock decides of `metrics.json`, and who did the work.
VARYING = {
    "seconds", "images_per_second", "compile_seconds", "attack_seconds", "startup_seconds",
    "read_seconds", "write_seconds", "num_processes", "num_devices", "num_attacked",
}  # fmt: skip
HIDDEN = ".images.unfinished"

# Runs a binary, and kills it just before the n-th change of the file system (counted from 0)
# after one whose arguments have some text in them: a moment that is the same in every run.
_KILLER = """
import os, runpy, signal, sys
name, text, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
begun = False
if name == "train":  # After every epoch, however long the last time took.
    from deid_jax.recognisers import training
    training._StateKeeper.PAUSE = 0.0
def watch(event, arguments):
    global begun, left
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
            return
    elif event not in changes:
        return
    begun = begun or text in repr(arguments)
    if begun and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= begun
sys.addaudithook(watch)
sys.argv = ["experiments." + name, *sys.argv[4:]]
runpy.run_module("experiments." + name, run_name="__main__", alter_sys=True)
"""


def content(folder):
    """Every file of a run, hidden ones too, less what may differ from run to run."""
    files = listing(folder)
    metrics = json.loads(files["metrics.json"])
    files["metrics.json"] = {n: v for n, v in metrics.items() if n not in VARYING}
    files["config.json"] = json.loads(files["config.json"])
    del files["config.json"]["settings"]["output_dir"]
    return files


def records(folder):
    """The lines of `per_image.csv`."""
    return read_csv(folder / "per_image.csv")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def visible(folder):
    """What users see of a run's folder, whatever its hidden one holds."""
    files = listing(folder) if folder.exists() else {}
    return {name: value for name, value in files.items() if not name.startswith(HIDDEN)}


def pieces(folder):
    """The finished shards of a run that was interrupted."""
    found = sorted(folder.glob(f"{HIDDEN}/*/pieces/*.json"))
    return [json.loads(path.read_bytes().partition(b"\n")[2]) for path in found]


def group(name, arguments, *, cwd, count=1):
    """Starts `count` processes that share one run."""
    if count == 1:
        return [process(name, *arguments, cwd=cwd)]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}"]
    return [
        process(name, *arguments, *shared, f"--process_id={index}", cwd=cwd)
        for index in range(count)
    ]


def killed_at(name, arguments, text, number, *, cwd):
    """Starts a process that is killed at the `number`-th change after one with `text`."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    return subprocess.Popen(
        [sys.executable, "-c", _KILLER, name, text, str(number), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(started):
    """SIGKILL, at once."""
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGKILL)


def ends(started, timeout=240):
    """(status, standard output, standard error) of every process."""
    # One after the other: what the others say meanwhile fits into their pipes.
    results = [one.communicate(timeout=timeout) for one in started]
    return [(one.returncode, *result) for one, result in zip(started, results, strict=True)]


def wait_until(condition, started, timeout=240):
    """Returns once the condition holds, or one of the processes has ended."""
    until = time.monotonic() + timeout
    while not condition() and all(one.poll() is None for one in started):
        assert time.monotonic() < until
        time.sleep(0.002)


def namespaces():
    """Whether file systems can be mounted that no other process sees."""
    command = ["unshare", "-rm", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def in_namespace(script, *arguments, cwd):
    """Runs a shell script whose mounts nobody else sees: (status, output, errors)."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu")
    environment["PYTHON"] = sys.executable
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-euc", script, "sh", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr
