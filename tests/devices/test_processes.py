"""Processes that agree, and end when one of them fails or is lost."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deid_jax.devices import processes
from deid_jax.devices.processes import GOES_ON, Group, joined
from deid_jax.errors import InputError

REPOSITORY = Path(__file__).parents[2]

# What every process of a group does. Like a command, it says in a line what stopped it.
SCRIPT = """
import sys, time
from deid_jax.devices import processes
from deid_jax.errors import InputError
from experiments._common import cli

address, count, index, lost_after = sys.argv[1:]
index = int(index)
if int(lost_after):
    processes.LOST_AFTER = int(lost_after)

def run():
    with processes.joined(address, int(count), index) as group:
        print("joined", flush=True)
        {work}

status = cli._status_of(run)
processes.end(status)
sys.exit(status)
"""
COUNT = 3


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Processes:
    """A group of processes that run the same lines; none outlives the test."""

    def __init__(self, work, count=COUNT, lost_after=0):
        self.began = time.monotonic()
        address = f"127.0.0.1:{free_port()}"
        script = SCRIPT.format(work=work.replace("\n", "\n        "))
        self.started = [
            subprocess.Popen(
                [sys.executable, "-c", script, address, str(count), str(index),
                 str(lost_after)],
                cwd=REPOSITORY,
                env=dict(os.environ, JAX_PLATFORMS="cpu"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]  # fmt: skip

    def joined(self):
        """Returns once all are in the group; the moment."""
        for process in self.started:
            assert process.stdout.readline() == "joined\n", process.communicate()
        return time.monotonic()

    def ended(self, timeout=120):
        """[(status, output, errors)] of all."""
        return [(process.returncode, *said) for process, said in self._said(timeout)]

    def _said(self, timeout):
        until = time.monotonic() + timeout
        for process in self.started:
            yield process, process.communicate(timeout=max(0.1, until - time.monotonic()))

    def kill(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def start():
    """Starts groups of processes."""
    with contextlib.ExitStack() as stack:

        def started(*args, **kwargs):
            processes = Processes(*args, **kwargs)
            stack.callback(processes.kill)
            return processes

        yield started


@pytest.mark.slow
def test_processes_agree_gather_and_wait(start, tmp_path):
    # The second comes late to every meeting; the key-value store is asked for no key twice,
    # also by a second group.
    work = f"""
import pathlib, jax
place = pathlib.Path({str(tmp_path)!r})
for turn in range(3):
    time.sleep(0.2 * (index == 1))
    assert group.agree([turn, "first"] if group.is_first else None) == [turn, "first"]
    assert group.gather({{"from": index}}) == [{{"from": i}} for i in range(3)]
    (place / f"{{turn}}-{{index}}").touch()
    group.wait()
    assert len(list(place.glob(f"{{turn}}-*"))) == 3
again = processes.Group(group.index, group.count)
assert again.gather(index) == [0, 1, 2]
assert again.agree(again.index) == 0
assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (3, 3, 1)
"""
    for status, _, err in start(work).ended():
        assert (status, err) == (0, "")


LOST = (
    f"error: another process of the run stopped or is lost: what it printed says why; {GOES_ON}"
)


def last_line(text):
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")][-1]


@pytest.mark.slow
def test_all_end_in_a_line_where_all_refuse(start):
    for status, _, err in start("group.check_same(index == 1, 'settings')").ended():
        assert status == 2
        assert err == "error: process 1 has other settings than the first process\n"


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["fails", "is killed"])
def test_one_that_stops_ends_those_that_wait_for_it(start, stop):
    failing = "if index == 2: raise InputError('the disk is\\nfull')\n"
    running = start(
        f"{failing if stop == 'fails' else ''}time.sleep(9 * (index == 2))\ngroup.wait()"
    )
    since = running.joined()
    if stop == "is killed":
        running.started[2].kill()
    ended = running.ended()
    assert time.monotonic() - since < 60
    expected = {
        "fails": (2, "error: the disk is full\n"),
        "is killed": (-signal.SIGKILL, ""),
    }
    assert (ended[2][0], ended[2][2]) == expected[stop]
    for status, _, err in ended[:2]:
        # Of those that wait the first may end, and with it all others, before they are told.
        assert (status, err.strip()) == (2, LOST) or "JAX distributed service" in err


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_those_that_compute_are_ended_by_jax_when_one_is_killed(start, lost):
    running = start("time.sleep(200)", count=2, lost_after=10)
    since = running.joined()
    running.started[lost].kill()
    ended = running.ended()
    assert time.monotonic() - since < 60
    assert ended[1 - lost][0] == -signal.SIGABRT
    assert "another task died" in ended[1 - lost][2]


def test_alone_there_is_nothing_to_agree_on():
    group = Group()
    value = object()
    assert group.agree(value) is value
    assert group.gather(value) == [value]
    group.wait()
    assert (group.index, group.count, group.is_first) == (0, 1, True)


@pytest.fixture
def no_cluster(monkeypatch):
    """An environment that tells of no other processes."""
    for name in list(os.environ):
        if re.match("SLURM_|TPU_|MEGASCALE_|OMPI_|JOB_|KUBERNETES_|JAX_COORDINATOR", name):
            monkeypatch.delenv(name)


def test_a_process_is_alone_unless_told(no_cluster):
    with joined() as group:
        assert group is processes.ALONE
    assert not processes._broken.is_set()


SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node1",
}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"HOME": "/root"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": ""}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"MEGASCALE_NUM_SLICES": "1"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        # A shell of `salloc`, or what it starts without `srun`.
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, False),
        # The script that sbatch runs, outside of srun.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        (SLURM | {"SLURM_NTASKS": "many"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ({"JOB_COMPLETION_INDEX": "0"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
    ],
)
def test_what_started_the_process_tells_of_others(environment, several):
    assert processes._started_as_one_of_several(environment) is several


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("h:1", None, None), "several processes need --num_processes and --process_id, too"),
        ((None, 2, 0), "several processes need --coordinator_address, too"),
        (("h:1", 2, None), "several processes need --process_id, too"),
        (("h", 2, 0), "coordinator_address must be HOST:PORT, got h"),
        ((":1", 2, 0), "coordinator_address must be HOST:PORT, got :1"),
        (("h:", 2, 0), "coordinator_address must be HOST:PORT, got h:"),
        (("h:x", 2, 0), "coordinator_address must be HOST:PORT, got h:x"),
        (("h:0", 2, 0), "coordinator_address must be HOST:PORT, got h:0"),
        (("h:65536", 2, 0), "coordinator_address must be HOST:PORT, got h:65536"),
        (("h:1", 0, 0), "num_processes must be at least 1, got 0"),
        (("h:1", 2, 2), "process_id must be of 0 to 1, got 2"),
        (("h:1", 2, -1), "process_id must be of 0 to 1, got -1"),
    ],
)
def test_bad_arguments_are_named(no_cluster, given, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"), joined(*given):
        pass


def test_the_cluster_fills_in_what_is_not_given():
    processes._check("h:1", None, None, may_be_detected=True)
    with pytest.raises(InputError, match="coordinator_address must be HOST:PORT, got h"):
        processes._check("h", None, None, may_be_detected=True)


@pytest.mark.parametrize("alone", [True, False])
def test_hosts_of_tpus_ask_for_the_others(no_cluster, monkeypatch, alone):
    """Where JAX's libtpu is installed; alone, JAX finds nobody to ask."""
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name == "libtpu")
    asked = []

    def initialize(*given, **options):
        asked.append(given)
        if alone:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with joined() as group:
        assert group.count == 1
    assert asked == [(None, None, None)]
