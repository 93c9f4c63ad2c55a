"""Times single layers: this project's against XLA's and PyTorch's."""

import functools
from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from deid_jax.devices.precision import dtype_of
from deid_jax.models import create_model, layers, prepare
from deid_jax.types import PyTree, Variables
from experiments._benchmark import timing
from experiments._benchmark.results import Layer, LayerResult, Times
from experiments._benchmark.timing import Run
from experiments._common import terminal
from experiments._peers.naive import naive_convolve, naive_max_pool
from experiments._peers.problem import NUM_CLASSES, Case

# How many times a layer runs in one loop.
LAYER_REPEATS = 5

Apply: TypeAlias = Callable[[Variables, jax.Array], jax.Array]


def distinct_layers(cases: Iterable[Case]) -> list[Layer]:
    """The convolutions and poolings of the recognisers, each size once."""
    found = []
    for case in cases:
        size, batch = case.image_size, case.batch
        model = create_model(case.model, num_classes=NUM_CLASSES, image_size=size)
        images = jnp.zeros((1, size, size, 3))
        parameters = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        pools = {}
        for name in sorted(name for name in parameters if name.startswith("conv")):
            kernel, _, channels, features = parameters[name]["kernel"].shape
            maps = _map_size(name, size)
            found.append(Layer(kernel, maps, batch, channels, features))
            pools[maps] = Layer(0, maps, batch, features, features)
        found += pools.values()
    return list(dict.fromkeys(found))


def _map_size(name: str, image_size: int) -> int:
    """The size of the maps in conv<block> or conv<block>_<layer>: a pooling ends each block."""
    return image_size >> int(name.removeprefix("conv").split("_")[0]) - 1


def time_layers(
    cases: Iterable[Case], *, precision: str, repeats: int, seed: int, with_torch: bool
) -> list[LayerResult]:
    """Median ms of every layer, forward and backward, for ours, XLA's and PyTorch's."""
    rows = []
    found = distinct_layers(cases)
    with terminal.progress_bar("layers") as update:
        for number, layer in enumerate(found):
            update(number, len(found), str(layer))
            # The gradient of pooling depends on the images: it includes the forward pass.
            backward = "input gradient" if layer.size else "forward and gradient"
            for direction in ("forward", backward):
                runs = layer_runs(
                    layer,
                    precision=precision,
                    seed=seed,
                    with_torch=with_torch,
                    backward=direction == backward,
                )
                seconds = timing.time_in_turn(runs, repeats)
                times = Times.of(seconds, 1000 / LAYER_REPEATS, {})
                rows.append(LayerResult(layer, direction, times))
    return rows


def layer_runs(
    layer: Layer, *, precision: str, seed: int, with_torch: bool, backward: bool
) -> dict[str, Run]:
    """Runs of a layer, `LAYER_REPEATS` times each: ours, XLA's and PyTorch's.

    JAX's runs return the loop's last output, or with `backward` the gradient with respect to
    the images (for a pooling, also the output). PyTorch's return the output or the gradient.
    """
    dtype = dtype_of(precision) or jnp.float32
    random = np.random.default_rng(seed)
    output_size = layer.image_size if layer.size else layer.image_size // 2
    images, cotangent = (
        random.normal(size=(layer.batch, size, size, channels)).astype(np.float32)
        for size, channels in (
            (layer.image_size, layer.channels),
            (output_size, layer.features),
        )
    )
    variables = _draw(layer, random)
    own, naively = _applies(layer, dtype)
    ours = prepare(variables) if layer.size else variables
    inputs = jnp.asarray(images, dtype), jnp.asarray(cotangent, dtype)
    runs = {
        name: _loop(layer, apply, (variables, *inputs), precision, backward)
        for name, apply, variables in (("ours", own, ours), ("xla", naively, variables))
    }
    if with_torch:
        from experiments._peers.torch_layers import repeat_layer

        runs["torch"] = repeat_layer(
            variables["params"],
            images,
            cotangent if backward else None,
            times=LAYER_REPEATS,
            dtype=jnp.dtype(dtype).name,
        )
    return runs


def _draw(layer: Layer, random: np.random.Generator) -> Variables:
    """Variables of a layer; a pooling's are empty."""
    if not layer.size:
        return {"params": {}}
    shape = (layer.size, layer.size, layer.channels, layer.features)
    kernel = random.normal(size=shape) / np.sqrt(np.prod(shape[:3]))
    parameters = {"kernel": kernel, "bias": random.normal(size=shape[3])}
    return {"params": {name: value.astype(np.float32) for name, value in parameters.items()}}


def _applies(layer: Layer, dtype: DTypeLike) -> tuple[Apply, Apply]:
    """(variables, images) -> outputs: this project's way and XLA's."""
    if not layer.size:
        return lambda _, x: layers.max_pool(x), lambda _, x: naive_max_pool(x)
    own = layers.conv(layer.features, layer.size, "conv", dtype).apply
    return cast("Apply", own), naive_convolve


def _loop(
    layer: Layer,
    apply: Apply,
    arguments: tuple[Variables, jax.Array, jax.Array],
    precision: str,
    backward: bool,
) -> Run:
    """A compiled loop over a layer, or over its gradient with respect to the images."""

    def repeat(variables: Variables, images: jax.Array, cotangent: jax.Array) -> PyTree:
        def result(images: jax.Array, cotangent: jax.Array) -> PyTree:
            if not backward:
                return apply(variables, images)
            outputs, pull = jax.vjp(functools.partial(apply, variables), images)
            (gradient,) = pull(cotangent)
            return gradient if layer.size else (gradient, outputs)

        def step(_: int, carry: PyTree) -> PyTree:
            (images, cotangent), last = carry
            # One number of the last result enters the next run, so that no run is optimised
            # away. A convolution's gradient depends only on the cotangent, a pooling's on the
            # images.
            first = sum(leaf[0, 0, 0, 0] for leaf in jax.tree.leaves(last)) * 1e-6
            if backward and layer.size:
                cotangent = cotangent.at[0, 0, 0, 0].add(first)
            else:
                images = images.at[0, 0, 0, 0].add(first)
            return (images, cotangent), result(images, cotangent)

        shapes = jax.eval_shape(result, images, cotangent)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        start = ((images, cotangent), nothing)
        return jax.lax.fori_loop(0, LAYER_REPEATS, step, start)[1]

    arguments = jax.device_put(arguments)
    compiled = timing.compile_at(precision, repeat, arguments)
    return lambda: jax.block_until_ready(compiled(*arguments))
