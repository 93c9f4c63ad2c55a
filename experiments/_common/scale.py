"""Settings of binaries that run on many devices and machines."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import jax
from jax.sharding import Mesh

from deid_jax.checks import count
from deid_jax.data import FaceDataset
from deid_jax.devices import processes, sharding
from deid_jax.devices.processes import Group
from deid_jax.runs.run_folder import describe
from experiments._common.cli import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """The processes of a run. Each has devices of its own; all share the output folder."""

    coordinator_address: str | None = setting(
        None,
        "HOST:PORT of the first of several processes that share the work. Not needed on TPU "
        "pod slices, under Slurm, Open MPI and on GKE: these tell.",
    )
    num_processes: int | None = setting(None, "How many processes share the work.")
    process_id: int | None = setting(None, "Which of them this is, from 0.")

    def joined(self) -> contextlib.AbstractContextManager[Group]:
        """The processes of the run: `processes.joined` of the flags."""
        return processes.joined(self.coordinator_address, self.num_processes, self.process_id)

    def alone(self) -> Self:
        """The same without what decides nothing but who does the work."""
        return dataclasses.replace(
            self, coordinator_address=None, num_processes=None, process_id=None
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelParallelSettings(ProcessSettings):
    """The same where a recogniser may be too large for one device."""

    model_parallel: int = setting(
        1, "Over how many devices dense layers are divided, where one has no room for them."
    )

    def local_mesh(self) -> Mesh:
        """The devices of this process.

        Raises:
          InputError: they cannot be divided so.
        """
        return sharding.local_mesh(self.model_parallel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSettings(ModelParallelSettings):
    """The same where pictures are done shard by shard."""

    shard_size: int | None = setting(
        None,
        "Pictures in a shard: what a run that was stopped need not do again. Default: what "
        "suits the device, 32 to 256 on CPUs.",
    )

    def check_shards(self) -> None:
        """Refuses a shard size out of range.

        Raises:
          InputError: see above.
        """
        if self.shard_size is not None:
            count("shard_size", self.shard_size, least=1)


def facts_of_pictures(faces: FaceDataset, recogniser: dict[str, Any]) -> dict[str, Any]:
    """What decides a record beside method and protocol, JSON-able."""
    return {
        "versions": describe()["versions"],
        "recogniser": recogniser,
        "pictures": faces.fingerprint(),
        "data set": [faces.name, faces.split, faces.provenance],
    }


def on_all_devices(do: Callable[[str], None], names: Sequence[str], mesh: Mesh) -> None:
    """Does pieces of work at once, one on each device of this process.

    A piece is done on one device, so that how many there are changes no bit of it; or on those
    over which dense layers are divided.

    Args:
      do: does one, in a thread whose devices are its own.
      names: of the pieces.
      mesh: the devices; a row for each thread.

    Raises:
      Exception: what one of them raised; no further ones are begun then.
    """
    rows = mesh.devices[: len(names)]
    left = iter(names)
    turn, stop = threading.Lock(), threading.Event()

    def work(devices: Sequence[jax.Device]) -> None:
        with sharding.working_on(devices):
            while not stop.is_set():
                with turn:
                    name = next(left, None)
                if name is None:
                    return
                try:
                    do(name)
                except BaseException:
                    stop.set()
                    raise

    if len(rows) < 2:
        for devices in rows:
            work(devices)
        return
    with ThreadPoolExecutor(len(rows)) as pool:
        try:
            for _ in pool.map(work, rows):
                pass
        finally:
            stop.set()
