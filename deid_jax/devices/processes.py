"""Runs with several processes, on one machine or many, using `jax.distributed`.

Every process has its own devices, images and files. Values that they must agree on are gathered
by a computation in which all take part. A process that fails reports why and ends; JAX ends the
others once it loses a process, within `LOST_AFTER` seconds, and the same command resumes from
what is finished.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deid_jax.errors import InputError, one_line
from deid_jax.types import NumpyArray

T = TypeVar("T")

# Seconds without a heartbeat after which JAX considers a process lost.
LOST_AFTER = 30
# Seconds that processes wait for each other, to start and after a failure.
START_TIMEOUT, _END_TIMEOUT = 300, 5
# Some processes may finish their part of the work days before others.
_WAIT_TIMEOUT = 7 * 24 * 3600
GOES_ON = "what is finished is kept, and the same command goes on from there"


class Group:
    """The processes of a run, as seen by one of them; with a single process, a no-op."""

    # Shared by all groups of this process, so that no barrier is used twice.
    _turns = itertools.count()

    def __init__(self, index: int = 0, count: int = 1):
        self.index = index
        self.count = count

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, which writes what is written once."""
        return self.index == 0

    def agree(self, value: T) -> T:
        """Returns the first process's JSON-able value, in every process."""
        return self.gather(value)[0]

    def gather(self, value: T) -> list[T]:
        """Returns the JSON-able values of all processes, in order, in every process."""
        if self.count == 1:
            return [value]
        self._meet()
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = _gathered(np.array([len(data)], np.int32))[:, 0]
        # Rounded up, so that one compilation serves most values.
        padded = np.zeros(-(-sizes.max() // 1024) * 1024, np.uint8)
        padded[: len(data)] = data
        rows = zip(_gathered(padded), sizes, strict=True)
        return [json.loads(row[:size].tobytes()) for row, size in rows]

    def check_same(self, value: object, what: str) -> None:
        """Checks that all processes have the same JSON-able value.

        Raises:
          InputError: a process has other `what` than the first.
        """
        values = self.gather(value)
        others = [index for index, other in enumerate(values) if other != values[0]]
        if others:
            raise InputError(f"process {others[0]} has other {what} than the first process")

    def wait(self) -> None:
        """Returns once every process has called it."""
        if self.count > 1:
            self._meet()

    def _meet(self) -> None:
        """Waits outside any computation: on CPUs computations time out after half an hour."""
        from orbax.checkpoint import multihost

        barrier = multihost.get_barrier_sync_fn()
        barrier(key=f"deid_jax/{next(self._turns)}", timeout_ms=1000 * _WAIT_TIMEOUT)

    def check_shared(self, folder: Path, name: str) -> None:
        """Checks that a folder, which exists for the first process, is the same for all.

        Raises:
          InputError: a process does not see what the first one writes there.
        """
        if self.count == 1:
            return
        token = folder / self.agree(f".{secrets.token_hex(8)}.unfinished")
        if self.is_first:
            token.touch()
        self.wait()
        seen = self.gather(token.exists())
        if self.is_first:
            token.unlink()
        if not all(seen):
            raise InputError(
                f"{name} must be on a file system that all processes share: process "
                f"{seen.index(False)} does not see what the first one writes there"
            )


ALONE = Group()


def _gathered(row: NumpyArray) -> NumpyArray:
    """Rows [N] of all processes, of one shape: [processes, N]."""
    first_devices: dict[int, jax.Device] = {}
    for device in sorted(jax.devices(), key=lambda device: device.id):
        first_devices.setdefault(device.process_index, device)
    devices = np.array([first_devices[i] for i in sorted(first_devices)], dtype=object)
    mesh = Mesh(devices, ("process",))
    divided = NamedSharding(mesh, PartitionSpec("process"))
    everywhere = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))
    rows = jax.make_array_from_process_local_data(divided, row[None])
    return np.asarray(everywhere(rows).addressable_data(0))


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[Group]:
    """Joins the processes that run the block together.

    Without arguments that is this process alone, unless `jax.distributed` has been initialised
    or the environment describes others: a TPU pod slice, Slurm, Open MPI, GKE. It must be
    called before JAX looks for devices.

    Raises:
      InputError: some of the arguments are missing or wrong, the other processes did not join,
        or one of them stopped while this one was waiting for it.
    """
    given = (coordinator_address, num_processes, process_id)
    started = not jax.distributed.is_initialized()
    if started and not _initialized(given):
        yield ALONE
        return
    group = Group(jax.process_index(), jax.process_count())
    try:
        yield group
        group.wait()
    except BaseException as error:
        if started and group.count > 1:
            _leave()
        # What barriers and gloo report when a process is gone.
        gone = ("Gloo", "arrier")
        if isinstance(error, jax.errors.JaxRuntimeError) and any(w in str(error) for w in gone):
            raise InputError(
                "another process of the run stopped or is lost: what it printed says why; "
                f"{GOES_ON}"
            ) from error
        raise
    if started:
        jax.distributed.shutdown()


def _leave() -> None:
    """Leaves the group: at once if all others also leave, otherwise after some seconds."""
    _broken.set()
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(_END_TIMEOUT)


def end(status: int) -> None:
    """Ends a process that has left the group: JAX's own exit would wait for the others."""
    if _broken.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_broken() -> bool:
    """Whether this process has left the group."""
    return _broken.is_set()


_broken = threading.Event()


def _check(
    address: str | None, count: int | None, index: int | None, *, may_be_detected: bool
) -> None:
    named = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in named.items() if value is None]
    if missing and not may_be_detected:
        raise InputError(f"several processes need {' and '.join(missing)}, too")
    if address is not None:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise InputError(f"coordinator_address must be HOST:PORT, got {address}")
    if count is not None and count < 1:
        raise InputError(f"num_processes must be at least 1, got {count}")
    if count is not None and index is not None and not 0 <= index < count:
        raise InputError(f"process_id must be of 0 to {count - 1}, got {index}")


def _started_as_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether the variables that `jax.distributed.initialize` reads mean several processes."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else 0

    # A Slurm shell has some variables of its job, but is not a step with several tasks.
    of_steps = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"}
    slurm = number("SLURM_NTASKS") if of_steps <= environment.keys() else 0
    return (
        "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or number("MEGASCALE_NUM_SLICES") > 1
        or slurm > 1
        or number("OMPI_COMM_WORLD_SIZE") > 1
        or {"JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"} <= environment.keys()
        or "JAX_COORDINATOR_ADDRESS" in environment
    )


def _initialized(given: tuple[str | None, int | None, int | None]) -> bool:
    """Joins the other processes; False if there are none."""
    told = _started_as_one_of_several(os.environ)
    # TPU hosts ask a server for the other processes, so the only way to know is to try.
    may_be_tpu = importlib.util.find_spec("libtpu") is not None
    asked = given != (None, None, None)
    if asked:
        _check(*given, may_be_detected=told or may_be_tpu)
    elif not (told or may_be_tpu):
        return False
    # CPUs communicate by gloo; other platforms have their own libraries.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would treat SIGTERM as a preemption notice, and the process would not end.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=LOST_AFTER,
        )
    except Exception as error:  # JAX and gRPC raise all kinds of exceptions.
        if not (asked or told):
            return False
        reason = one_line(str(error).strip().partition("\n")[0])
        raise InputError(f"the processes of the run did not come together: {reason}") from error
    return True
