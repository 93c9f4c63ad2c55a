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
