"""Work in threads, one per device."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
from jax.sharding import Mesh

from deid_jax.devices import sharding


def on_all_devices(do: Callable[[str], None], names: Sequence[str], mesh: Mesh) -> None:
    """Does pieces of work in parallel, each in a thread with its own devices.

    A piece is done on one device, so that results are bit for bit the same for any number of
    devices; or on the devices over which dense layers are divided, one row of the mesh.

    Raises:
      Exception: the exception that a piece raised; no further pieces are started after it.
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
