"""One run by several processes, on one machine or many, by `jax.distributed`.

Every process has devices, pictures and files of its own; what they must agree on goes through
the coordinator that `jax.distributed` starts in the first of them. A process that fails tells
the others why; one that is lost is missed within `LOST_AFTER` seconds. Either way all stop with
a line that says so, and the same command goes on from what is finished.
"""

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from deid_jax.errors import InputError

# Seconds without a sign of life after which a process counts as lost. JAX's own limit, whose
# message is a page, comes later.
LOST_AFTER = 30.0
_JAX_LOST_AFTER = 90
_PULSE = 1.0
# Seconds that processes wait for each other to start.
START_TIMEOUT = 300
_FOREVER_MS = 7 * 24 * 3600 * 1000
GOES_ON = "what is finished is kept, and the same command goes on from there"


class Group:
    """The processes of a run, as one of them sees it; alone there is nothing to do.

    Args:
      index: which one this is, from 0.
      count: how many there are.
    """

    # Of all groups of this process, one after the other: no key is used twice.
    _turns = itertools.count()

    def __init__(self, index: int = 0, count: int = 1):
        self.index = index
        self.count = count

    @property
    def is_first(self) -> bool:
        """Whether this one writes what is written once."""
        return self.index == 0

    def agree(self, value: Any) -> Any:
        """What the first process says: its JSON-able value, in every process."""
        if self.count == 1:
            return value
        key = f"deid_jax/agree/{next(self._turns)}"
        if self.is_first:
            _client().key_value_set(key, json.dumps(value))
            return value
        return json.loads(_client().blocking_key_value_get(key, _FOREVER_MS))

    def gather(self, value: Any) -> list[Any]:
        """The JSON-able values of all processes, in their order, in every process."""
        if self.count == 1:
            return [value]
        turn = next(self._turns)
        _client().key_value_set(f"deid_jax/gather/{turn}/{self.index}", json.dumps(value))
        keys = [f"deid_jax/gather/{turn}/{index}" for index in range(self.count)]
        return [json.loads(_client().blocking_key_value_get(k, _FOREVER_MS)) for k in keys]

    def check_same(self, value: Any, what: str) -> None:
        """Refuses processes that were not told the same.

        Args:
          value: JSON-able.
          what: it is, in words.

        Raises:
          InputError: a process has another value than the first.
        """
        values = self.gather(value)
        others = [index for index, other in enumerate(values) if other != values[0]]
        if others:
            raise InputError(f"process {others[0]} has other {what} than the first process")

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.count > 1:
            _client().wait_at_barrier(f"deid_jax/wait/{next(self._turns)}", _FOREVER_MS)

    def check_shared(self, folder: Path, name: str) -> None:
        """Refuses a folder that is another one for another process.

        Args:
          folder: it is there, for the first process.
          name: what messages call it.

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


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[Group]:
    """The processes that run the block together.

    Without arguments that is this process alone, unless `jax.distributed` has been initialised,
    or what started the process says that it is one of several: a TPU pod slice, Slurm, Open
    MPI, GKE. To be called before JAX looks for devices.

    Args:
      coordinator_address: HOST:PORT at which the first process can be reached.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      InputError: some of the arguments are missing or wrong, or the others did not come.
    """
    given = (coordinator_address, num_processes, process_id)
    if given == (None, None, None) and not jax.distributed.is_initialized():
        if not (_started_as_one_of_several(os.environ) or _is_tpu_vm()):
            yield ALONE
            return
    elif not jax.distributed.is_initialized():
        _check(*given)
    started = not jax.distributed.is_initialized()
    if started:
        with _Guard("the processes of the run did not come together"):
            _initialize(*given)
    group = Group(jax.process_index(), jax.process_count())
    if group.count == 1:
        yield group
        return
    last = (
        f"process {group.index} of {group.count} was ended, by a signal or because the first "
        f"process is lost; {GOES_ON}"
    )
    with _Guard(last) as guard, _Watch(group, guard) as watch:
        try:
            yield group
            group.wait()
        except BaseException as error:
            watch.tell(error)
            raise
    if started:
        jax.distributed.shutdown()


def end(status: int) -> None:
    """Ends a process whose others have stopped: JAX's own end would wait for them."""
    if _broken.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_broken() -> bool:
    """Whether the others have been told to stop."""
    return _broken.is_set()


_broken = threading.Event()


def _check(address: str | None, count: int | None, index: int | None) -> None:
    missing = [
        f"--{name}"
        for name, value in (
            ("coordinator_address", address),
            ("num_processes", count),
            ("process_id", index),
        )
        if value is None
    ]
    if missing and not (_started_as_one_of_several(os.environ) or _is_tpu_vm()):
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
    """Whether the variables that `jax.distributed.initialize` reads tell of other processes."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else 0

    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = number("MEGASCALE_NUM_SLICES")
    # A shell of Slurm has some variables of its job, but is no step of several tasks.
    of_steps = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
    slurm = number("SLURM_NTASKS") if set(of_steps) <= environment.keys() else 0
    kubernetes = "JOB_COMPLETION_INDEX" in environment and "KUBERNETES_SERVICE_HOST" in (
        environment
    )
    return (
        len(hosts) > 1
        or slices > 1
        or slurm > 1
        or number("OMPI_COMM_WORLD_SIZE") > 1
        or kubernetes
        or "JAX_COORDINATOR_ADDRESS" in environment
    )


def _is_tpu_vm() -> bool:
    """Whether this is a host of Cloud TPUs, which ask Google's server who the others are."""
    try:
        from jax._src.clusters import cloud_tpu_cluster as clusters

        kinds = (clusters.GkeTpuCluster, clusters.GceTpuCluster)
        return any(kind.is_env_present() for kind in kinds)
    except Exception:  # Another version of JAX, or no answer: then the flags tell.
        return False


def _initialize(address: str | None, count: int | None, index: int | None) -> None:
    # The processes of CPUs talk to each other by gloo; other platforms by their own means.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for a notice, and the process would not end by it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=START_TIMEOUT,
            heartbeat_timeout_seconds=_JAX_LOST_AFTER,
        )
    except Exception as error:  # JAX and gRPC raise all sorts.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the processes of the run did not come together: {reason}") from error


def _client() -> Any:
    # JAX has no public name for the key-value store of its coordinator; Orbax takes it, too.
    from jax._src import distributed

    return distributed.global_state.client


class _Watch:
    """Signs of life to the others, and theirs; ends the process when one is missed.

    It ends from a thread of its own, without unwinding: the main thread may wait for the lost
    one. Whatever files are being written are unfinished for the next run, as after a kill.
    """

    def __init__(self, group: Group, guard: "_Guard"):
        self._group = group
        self._guard = guard
        self._others = [i for i in range(group.count) if i != group.index]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def tell(self, error: BaseException) -> None:
        """Tells the others what stopped this process, and waits until they have read it."""
        self._stop.set()
        self._thread.join()
        _broken.set()
        reason = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(Exception):  # The coordinator may be what failed.
            self._publish(f"{self._name(self._group.index)} stopped: {reason}", 2)
            for other in self._others:
                _client().blocking_key_value_get(f"deid_jax/heard/{other}", 5000)

    def _publish(self, text: str, status: int) -> None:
        """Has the others end with a line and a status."""
        _client().key_value_set(
            "deid_jax/end/failed", json.dumps([text, status]), allow_overwrite=True
        )

    def _name(self, index: int) -> str:
        return f"process {index} of {self._group.count}"

    def _run(self) -> None:
        heard = dict.fromkeys(self._others, (None, time.monotonic()))
        for pulse in itertools.count():
            try:
                failed = self._pulse(pulse, heard)
            except Exception:  # JAX's own watch ends the process now; _Guard speaks then.
                return
            if failed and not self._stop.is_set():
                self._end(*failed)
            if self._stop.wait(_PULSE):
                return

    def _pulse(self, pulse: int, heard: dict[int, Any]) -> tuple[str, int] | None:
        """Shows life and looks for it; what the process is to end with, if it is to."""
        client, now = _client(), time.monotonic()
        index = self._group.index
        client.key_value_set(f"deid_jax/alive/{index}", str(pulse), allow_overwrite=True)
        said = dict(client.key_value_dir_get("deid_jax/alive/"))
        for other, (life, since) in heard.items():
            latest = said.get(f"deid_jax/alive/{other}")
            if latest != life:
                heard[other] = (latest, now)
            elif now - since > LOST_AFTER:
                self._publish(
                    f"{self._name(other)} is lost: no sign of it for {LOST_AFTER:.0f} s; "
                    f"{GOES_ON}",
                    3,
                )
        failed = dict(client.key_value_dir_get("deid_jax/end/")).get("deid_jax/end/failed")
        if failed is None:
            return None
        client.key_value_set(f"deid_jax/heard/{index}", "", allow_overwrite=True)
        text, status = json.loads(failed)
        return text, status

    def _end(self, text: str, status: int) -> None:
        print(f"error: {text}", file=sys.stderr)
        if self._group.is_first:
            time.sleep(3 * _PULSE)  # The others read it here, and would lose the coordinator.
        self._guard.dismiss()
        _broken.set()
        end(status)


# Reads until the process that started it is gone; speaks if that did not say goodbye.
_GUARD = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not sys.stdin.buffer.read():
    sys.stderr.write(sys.argv[1] + "\\n")
"""


class _Guard:
    """Has the last word when JAX ends the process because its coordinator is gone.

    JAX does so from C++, at once, with a page of text and no way to put in a word.
    """

    def __init__(self, text: str):
        self._text = f"error: {text}"

    def __enter__(self) -> "_Guard":
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, self._text], stdin=subprocess.PIPE
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """Lets the process end in its own way."""
        stream = self._child.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):  # It may have been killed, or dismissed.
            stream.write(b"goodbye")
            stream.close()
        self._child.wait()
