"""What several tests need: small recognisers and images."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.data import FaceDataset
from deid_jax.devices import programs
from deid_jax.errors import InputError
from deid_jax.models import create_model


def randomised(model, size, seed=0):
    """Variables in which BatchNorm's parameters and statistics are not the trivial ones."""
    # Compiled: op by op it takes four times as long.
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, size, size, 3)))

    def shake(path, leaf):
        name = path[-1].key
        key = jax.random.fold_in(jax.random.key(seed + 1), hash_path(path))
        noise = jax.random.uniform(key, leaf.shape)
        if name in ("scale", "var"):
            return 0.5 + noise
        if name in ("bias", "mean"):
            return 0.2 * (noise - 0.5)
        return leaf

    return jax.tree_util.tree_map_with_path(shake, variables)


def hash_path(path):
    """A number that is the same in every process."""
    return sum(ord(c) * (i + 1) for i, c in enumerate(jax.tree_util.keystr(path))) % 2**31


def small_model(seed=0, size=16, num_classes=5):
    """Model A at a small size: (logits_fn, model, variables)."""
    model = create_model("model_a", num_classes=num_classes, image_size=size)
    variables = randomised(model, size, seed)
    return (lambda images: model.apply(variables, images)), model, variables


def noise_faces(size=16):
    """Eleven images of five persons, pure noise, as a data set."""
    pixels = np.random.default_rng(3).integers(256, size=(11, size, size, 3), dtype=np.uint8)
    return FaceDataset(
        name="noise",
        persons=tuple("abcde"),
        labels=np.arange(11, dtype=np.int32) % 5,
        names=tuple(f"{i:03}" for i in range(11)),
        read=lambda index: pixels[index],
        image_size=size,
        split="all",
    )


def random_images(count, size=16, seed=0):
    """float32[count, size, size, 3] in [0, 1]."""
    return jax.random.uniform(jax.random.key(seed), (count, size, size, 3))


@contextlib.contextmanager
def refused(message):
    """The block raises an `InputError` whose one line matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def let_batches_above_run_out_of_memory(monkeypatch, largest):
    """Compiled programs fail for more than `largest` images, as accelerators say it."""
    real = programs.compile_once

    def compile_once(function, variables, batch, *rest, **static):
        compiled = real(function, variables, batch, *rest, **static)
        if len(batch.label) <= largest:
            return compiled
        return _FullDevice(compiled)

    monkeypatch.setattr(programs, "compile_once", compile_once)


class _FullDevice:
    def __init__(self, compiled):
        self.memory_analysis = compiled.memory_analysis

    def __call__(self, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


def num_compiled():
    """How many programs `compile_once` has compiled in this process."""
    return len(programs._compiled)
