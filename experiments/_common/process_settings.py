"""Settings of commands that run on many devices and machines."""

import contextlib
import dataclasses
from typing import Self

from jax.sharding import Mesh

from deid_jax.checks import count
from deid_jax.devices import processes, sharding
from deid_jax.devices.processes import Group
from experiments._common.flags import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Settings of a run's processes: each has its own devices, all share the output folder."""

    coordinator_address: str | None = setting(
        None,
        "HOST:PORT of the first of several processes that share the work. Not needed on TPU "
        "pod slices, under Slurm, Open MPI and on GKE, which provide it.",
    )
    num_processes: int | None = setting(None, "How many processes share the work.")
    process_id: int | None = setting(None, "The number of this process, from 0.")

    def joined(self) -> contextlib.AbstractContextManager[Group]:
        """The processes of the run, as given by the flags; see `processes.joined`."""
        return processes.joined(self.coordinator_address, self.num_processes, self.process_id)

    def alone(self) -> Self:
        """The same settings without those that only say which processes do the work."""
        return dataclasses.replace(
            self, coordinator_address=None, num_processes=None, process_id=None
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelParallelSettings(ProcessSettings):
    """Adds the number of devices that share a recogniser too large for one."""

    model_parallel: int = setting(
        1, "Number of devices over which dense layers are divided, if one is too small."
    )

    def local_mesh(self) -> Mesh:
        """The devices of this process; see `sharding.local_mesh`."""
        return sharding.local_mesh(self.model_parallel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSettings(ModelParallelSettings):
    """Adds the size of shards."""

    shard_size: int | None = setting(
        None,
        "Images in a shard; a stopped run repeats unfinished shards only. Default: what "
        "suits the device, 32 to 256 on CPUs.",
    )

    def check_shards(self) -> None:
        """Refuses a shard size out of range."""
        if self.shard_size is not None:
            count("shard_size", self.shard_size, least=1)
