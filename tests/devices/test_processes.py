"""Processes that agree, tell each other what stopped them, and miss one that is lost."""

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

REPOSITORY = Path(__file__).parents[1]

# What every process of a group does first: it takes its place and counts others as lost soon.
# As a binary does, it says in a line what stopped it.
SCRIPT = """
import signal, sys, time
from deid_jax import distributed
from deid_jax._validate import InputError
from experiments import cli

address, count, index, lost_after = sys.argv[1:]
index = int(index)
if float(lost_after):
    processes.LOST_AFTER = float(lost_after)

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
    assert start(work).ended() == [(0, "joined\n", "")] * COUNT


STOPPED = "process {index} of 3 stopped: {reason}"
LAST_WORD = (
    "error: process {index} of 3 was ended, by a signal or because the first process is lost; "
    f"{GOES_ON}\n"
)
LOST = f"error: process 1 of 3 is lost: no sign of it for 4 s; {GOES_ON}\n"


@pytest.mark.parametrize(
    ("failing", "others"),
    [(0, "time.sleep(100)"), (2, "group.gather(index)")],
    ids=["the first, the others are busy", "another, which they wait for"],
)
def test_one_that_fails_tells_the_others(start, failing, others):
    work = f"""
if index == {failing}:
    raise InputError("the disk is\\nfull")
{others}
"""
    processes = start(work)
    since = processes.joined()
    ended = processes.ended()
    assert time.monotonic() - since < 15
    for index, (status, out, err) in enumerate(ended):
        assert (status, out) == (2, "")
        if index == failing:
            assert err == "error: the disk is full\n"
        else:
            assert err == f"error: {STOPPED.format(index=failing, reason='the disk is full')}\n"


def test_ctrl_c_in_one_ends_all(start):
    processes = start("time.sleep(100)")
    since = processes.joined()
    processes.started[1].send_signal(signal.SIGINT)
    ended = processes.ended()
    assert time.monotonic() - since < 15
    assert ended[1] == (130, "", "interrupted\n")
    for index in (0, 2):
        text = STOPPED.format(index=1, reason="KeyboardInterrupt")
        assert ended[index] == (2, "", f"error: {text}\n")


def test_one_that_is_killed_is_missed(start):
    processes = start("time.sleep(100)", lost_after=4)
    since = processes.joined()
    processes.started[1].kill()
    ended = processes.ended()
    assert 3 < time.monotonic() - since < 20
    assert ended[1] == (-signal.SIGKILL, "", LAST_WORD.format(index=1))
    for index in (0, 2):
        assert ended[index] == (3, "", LOST)


@pytest.mark.slow
@pytest.mark.parametrize("others", ["time.sleep(200)", "group.gather(index)"])
def test_one_that_is_killed_is_missed_within_a_minute(start, others):
    processes = start(f"time.sleep(200 * (index == 1))\n{others}")
    since = processes.joined()
    processes.started[1].kill()
    ended = processes.ended()
    assert processes.LOST_AFTER <= time.monotonic() - since < 60
    for index in (0, 2):
        status, _, err = ended[index]
        assert status == 3
        assert err == LOST.replace("4 s", "30 s")


def test_the_others_of_a_first_one_that_is_killed_have_a_last_word(start):
    processes = start("time.sleep(100)")
    since = processes.joined()
    processes.started[0].kill()
    ended = processes.ended()
    assert time.monotonic() - since < 60
    # JAX ends them with a page of text; what the guard says comes after it.
    for index in (1, 2):
        status, _, err = ended[index]
        assert status != 0
        assert err.endswith("\n" + LAST_WORD.format(index=index))


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


def test_the_cluster_fills_in_what_is_not_given(no_cluster, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    processes._check("h:1", None, None)
    with pytest.raises(InputError, match="coordinator_address must be HOST:PORT, got h"):
        processes._check("h", None, None)


# JAX ends the process from C++, so that the last line is another process's.
@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_do_not_come_are_not_waited_for_forever(index):
    script = SCRIPT.format(work="pass").replace(
        "\ndef run():", "\ndistributed.START_TIMEOUT = 1\ndef run():"
    )
    alone = subprocess.run(
        [sys.executable, "-c", script, f"127.0.0.1:{free_port()}", "2", str(index), "0"],
        cwd=REPOSITORY,
        env=dict(os.environ, JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "did not come together" in alone.stderr.splitlines()[-1]


# At its own end Python would wait for the others, which are gone.
@pytest.mark.slow
def test_a_defect_in_one_ends_all_soon(start):
    processes = start("""
if index == 0:
    raise RuntimeError("broken")
time.sleep(100)
""")
    since = processes.joined()
    ended = processes.ended()
    for index in (1, 2):
        text = STOPPED.format(index=0, reason="broken")
        assert ended[index] == (2, "", f"error: {text}\n")
    assert time.monotonic() - since < 15
    assert ended[0][0] == 1


@pytest.mark.parametrize("kind", ["GceTpuCluster", "GkeTpuCluster"])
def test_hosts_of_tpus_ask_for_the_others(no_cluster, monkeypatch, kind):
    from jax._src.clusters import cloud_tpu_cluster

    assert not processes._is_tpu_vm()
    monkeypatch.setattr(getattr(cloud_tpu_cluster, kind), "is_env_present", lambda: True)
    assert processes._is_tpu_vm()
    started = []
    monkeypatch.setattr(processes, "_initialize", lambda *given: started.append(given))
    with processes.joined() as group:
        assert (group.index, group.count) == (0, 1)
    assert started == [(None, None, None)]
