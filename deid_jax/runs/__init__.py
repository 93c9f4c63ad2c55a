"""Durable runs: run folders, finished pieces to resume from, locks, atomic writes.

All other code leaves these matters to this package. Imports `devices` and the base modules.
"""

from deid_jax.runs.locking import locked
from deid_jax.runs.run_files import DESCRIPTION, describe, package_versions
from deid_jax.runs.run_folder import RunFolder
from deid_jax.runs.stores import FolderStore, Store, digest_of, shards_of
from deid_jax.runs.whole_files import UNFINISHED, replacing, write_whole

__all__ = [
    "DESCRIPTION",
    "UNFINISHED",
    "FolderStore",
    "RunFolder",
    "Store",
    "describe",
    "digest_of",
    "locked",
    "package_versions",
    "replacing",
    "shards_of",
    "write_whole",
]
