"""Work spread over devices: JAX's meshes, and the placement of arrays on them.

A mesh has two axes: along `BATCH` every device has its own images; along `MODEL` dense layers
are divided if they do not fit on one device. Attacks treat every image independently, so no
device waits for another; training exchanges gradients.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deid_jax.errors import InputError
from deid_jax.types import NumpyArray, PyTree

P = ParamSpec("P")
R = TypeVar("R")

BATCH = "batch"
MODEL = "model"


def local_mesh(model_parallel: int = 1) -> Mesh:
    """The devices of this process, dense layers divided over `model_parallel` of them.

    Raises:
      InputError: the devices cannot be divided in this way.
    """
    return _mesh(jax.local_devices(), model_parallel)


def global_mesh(model_parallel: int = 1, *, parts: int | None = None) -> Mesh:
    """The devices of all processes; a layer is never divided between two processes.

    `parts` is into how many parts a process divides its part of a batch, the same in all
    processes; None: as many as possible. See `local_mesh`.
    """
    _mesh(jax.local_devices(), model_parallel)
    of_process: dict[int, list[jax.Device]] = {}
    for device in sorted(jax.devices(), key=lambda device: device.id):
        of_process.setdefault(device.process_index, []).append(device)
    most = None if parts is None else parts * model_parallel
    chosen = [device for _, own in sorted(of_process.items()) for device in own[:most]]
    return _mesh(chosen, model_parallel)


def _mesh(devices: Sequence[jax.Device], model_parallel: int) -> Mesh:
    if model_parallel < 1 or len(devices) % model_parallel:
        raise InputError(
            f"model_parallel must divide the {len(devices)} devices of a process, "
            f"got {model_parallel}"
        )
    grid = np.array(devices, dtype=object).reshape(-1, model_parallel)
    return Mesh(grid, (BATCH, MODEL))


def narrowed(mesh: Mesh, size: int) -> Mesh:
    """The largest part of a mesh whose devices get equal shares of `size` images."""
    count = int(np.gcd(size, num_parts(mesh)))
    return mesh if count == num_parts(mesh) else Mesh(mesh.devices[:count], mesh.axis_names)


def num_parts(mesh: Mesh) -> int:
    """The number of parts into which a batch is divided."""
    return mesh.shape[BATCH]


def whole_parts(mesh: Mesh, size: int) -> int:
    """The smallest batch size >= `size` that divides into equal parts."""
    return -(-size // num_parts(mesh)) * num_parts(mesh)


def place_variables(variables: PyTree, mesh: Mesh) -> PyTree:
    """Places a recogniser's weights, or a training state: one copy per part of the batch.

    Kernels of dense layers [D, K] are divided along K over the devices of `MODEL`, if their
    number divides K; so are arrays of the same shape in an optimiser's state. All processes
    hold the same arrays.
    """
    return jax.tree.map(lambda leaf: _place(leaf, mesh, _layout(leaf, mesh)), variables)


def layouts(variables: PyTree, mesh: Mesh) -> PyTree:
    """The `NamedSharding` that `place_variables` gives each array; shapes are enough."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _layout(leaf, mesh)), variables)


def place_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places arrays [B, ...] divided along B; with several processes, this one's part."""
    layout = NamedSharding(mesh, PartitionSpec(BATCH))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(layout, a), batch)


def batch_layout(batch: PyTree, mesh: Mesh) -> PyTree:
    """The layout of `place_batch` for arrays of which only the shapes are known."""
    layout = NamedSharding(mesh, PartitionSpec(BATCH))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout), batch
    )


def place_everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """Places a full copy of the arrays on every device."""
    return jax.tree.map(lambda leaf: _place(leaf, mesh, PartitionSpec()), tree)


def _layout(leaf: jax.Array | NumpyArray | jax.ShapeDtypeStruct, mesh: Mesh) -> PartitionSpec:
    over = mesh.shape[MODEL]
    if over > 1 and leaf.ndim == 2 and leaf.shape[1] % over == 0:
        return PartitionSpec(None, MODEL)
    return PartitionSpec()


def _place(leaf: jax.Array | NumpyArray, mesh: Mesh, layout: PartitionSpec) -> jax.Array:
    sharding = NamedSharding(mesh, layout)
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = _place(jax.random.key_data(leaf), mesh, layout)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def to_host(tree: PyTree) -> PyTree:
    """Arrays from `place_variables` as NumPy arrays, complete in every process."""
    return jax.tree.map(_to_host, tree)


def _to_host(leaf: jax.Array | NumpyArray) -> NumpyArray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    whole = np.empty(leaf.shape, leaf.dtype)
    for part in leaf.addressable_shards:
        whole[part.index] = part.data
    return whole


def over_batch(
    function: Callable[P, R],
    mesh: Mesh,
    divided: Sequence[bool],
    results: PyTree,
) -> Callable[P, R]:
    """A version of a function of batches of independent images that uses all devices at once.

    Every device runs the program on its own images, so that dividing a batch changes
    results only by the rounding of another batch size.

    Args:
      function: takes positional arguments.
      mesh: the devices; with one, the function is returned unchanged.
      divided: for each argument, whether it is divided along its first axis; the others are
        the same for all devices.
      results: `PartitionSpec` of what it returns.
    """
    if mesh.size == 1:
        return function
    specs = tuple(PartitionSpec(BATCH) if d else PartitionSpec() for d in divided)
    return functools.wraps(function)(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=results,
            axis_names={BATCH},
            check_vma=False,
        )
    )


class _ThreadDevices:
    """The devices of one of several threads, and the weights placed on them."""

    def __init__(self, devices: Sequence[jax.Device]):
        self._mesh = _mesh(devices, len(devices))
        self._placed: dict[int, tuple[PyTree, PyTree]] = {}

    def placed(self, variables: PyTree) -> PyTree:
        """Places weights on the devices, once."""
        if id(variables) not in self._placed:
            # A reference to the original is kept, so that its id is not reused.
            self._placed[id(variables)] = variables, place_variables(variables, self._mesh)
        return self._placed[id(variables)][1]


_thread = threading.local()


@contextlib.contextmanager
def working_on(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Makes this thread compute on its own devices, over which dense layers are divided."""
    _thread.devices = _ThreadDevices(devices)
    try:
        with jax.default_device(devices[0]):
            yield
    finally:
        del _thread.devices


def placed_on_devices(variables: PyTree) -> PyTree:
    """Places weights on this thread's devices; outside `working_on`, on the default one."""
    devices: _ThreadDevices | None = getattr(_thread, "devices", None)
    return jax.device_put(variables) if devices is None else devices.placed(variables)
