"""Single layers timed: this project's own beside XLA's and PyTorch's."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.devices.precision import dtype_of
from deid_jax.models import create_model, layers, prepare
from experiments._benchmark import naive
from experiments._common import cli, timing
from experiments._common.timing import Case, Run

# Times that a layer runs in one loop.
LAYER_REPEATS = 5


class Layer(NamedTuple):
    """float[batch, image_size, image_size, channels] -> features channels.

    `size` is the kernel's; 0 stands for 2×2 max-pooling.
    """

    size: int
    image_size: int
    batch: int
    channels: int
    features: int

    def __str__(self) -> str:
        name = f"conv {self.size}×{self.size}, {self.channels} → {self.features}"
        name = name if self.size else f"max_pool, {self.channels}"
        return f"{name}: {self.image_size} px, batch {self.batch}"


def distinct_layers(cases: Iterable[Case]) -> list[Layer]:
    """The convolutions and poolings of recognisers, each size once."""
    found = []
    for model_name, image_size, batch in cases:
        model = create_model(model_name, num_classes=timing.NUM_CLASSES, image_size=image_size)
        images = jnp.zeros((1, image_size, image_size, 3))
        parameters = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        pools = {}
        for name in sorted(name for name in parameters if name.startswith("conv")):
            size, _, channels, features = parameters[name]["kernel"].shape
            maps = timing.map_size(name, image_size)
            found.append(Layer(size, maps, batch, channels, features))
            pools[maps] = Layer(0, maps, batch, features, features)
        found += pools.values()
    return list(dict.fromkeys(found))


def time_layers(
    cases: Iterable[Case], precision: str, *, repeats: int, seed: int, with_torch: bool
) -> list[dict[str, Any]]:
    """Median ms of every layer, forward and backward, beside XLA's and PyTorch's."""
    rows = []
    found = distinct_layers(cases)
    with cli.progress_bar("layers") as update:
        for number, layer in enumerate(found):
            update(number, len(found), str(layer))
            # The gradient of pooling depends on the images: it includes the forward pass.
            backward = "input gradient" if layer.size else "forward and gradient"
            for direction in ("forward", backward):
                runs = layer_runs(
                    layer,
                    precision,
                    seed=seed,
                    backward=direction == backward,
                    with_torch=with_torch,
                )
                seconds = timing.time_in_turn(runs, repeats)
                row = {"layer": str(layer), "pass": direction, **layer._asdict()}
                rows.append(row | timing.compared(seconds, 1000 / LAYER_REPEATS))
    return rows


def layer_runs(
    layer: Layer, precision: str, *, seed: int, backward: bool, with_torch: bool
) -> dict[str, Run]:
    """Runs of a layer, `LAYER_REPEATS` times each: ours, XLA's and PyTorch's.

    JAX's return the loop's last output; with `backward` a convolution's gradient to the
    images, or a pooling's gradient and output. PyTorch's return output or gradient.
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
        from experiments._benchmark import peers

        runs["torch"] = peers.repeat_layer(
            variables["params"],
            images,
            cotangent if backward else None,
            times=LAYER_REPEATS,
            dtype=jnp.dtype(dtype).name,
        )
    return runs


def _draw(layer: Layer, random: np.random.Generator) -> dict[str, Any]:
    """Variables of a layer; a pooling's are empty."""
    if not layer.size:
        return {"params": {}}
    shape = (layer.size, layer.size, layer.channels, layer.features)
    kernel = random.normal(size=shape) / np.sqrt(np.prod(shape[:3]))
    parameters = {"kernel": kernel, "bias": random.normal(size=shape[3])}
    return {"params": {name: value.astype(np.float32) for name, value in parameters.items()}}


def _applies(layer: Layer, dtype: Any) -> tuple[Callable, Callable]:
    """(variables, images) -> outputs: this project's way and XLA's."""
    if not layer.size:
        return lambda _, x: layers.max_pool(x), lambda _, x: naive.max_pool(x)
    return layers.conv(layer.features, layer.size, "conv", dtype).apply, naive.convolve


def _loop(
    layer: Layer, apply: Callable, arguments: tuple, precision: str, backward: bool
) -> Run:
    """A compiled loop over a layer, or over its gradient to the images."""

    def repeat(variables: Any, images: jax.Array, cotangent: jax.Array) -> Any:
        def result(images: jax.Array, cotangent: jax.Array) -> Any:
            if not backward:
                return apply(variables, images)
            outputs, pull = jax.vjp(functools.partial(apply, variables), images)
            (gradient,) = pull(cotangent)
            return gradient if layer.size else (gradient, outputs)

        def step(_: int, carry: Any) -> Any:
            (images, cotangent), last = carry
            # One number of the last result goes into the next run: no run can be left out. A
            # convolution's gradient hangs on the cotangent alone, a pooling's on the images.
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
