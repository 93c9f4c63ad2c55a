"""A recogniser that compares faces, small enough for tests, and what it says in NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from deid_jax.recognisers.embedders import Embedder

SIZE = 16


@dataclasses.dataclass(frozen=True)
class TinyModule:
    """Embeddings tanh((x − ½) W) V of images; `scale` tells one program from another."""

    scale: float = 1.0

    def apply(self, variables, images):
        """float32[B, D] of float32[B, H, W, 3]."""
        flat = self.scale * (images.reshape(len(images), -1) - 0.5)
        return jnp.tanh(flat @ variables["w"]) @ variables["v"]


def tiny_embedder(seed=0, features=10, size=SIZE):
    """Its weights are drawn by the seed."""
    random = np.random.default_rng(seed)
    values = size * size * 3
    variables = {
        "w": jnp.float32(random.normal(0, 2 * values**-0.5, (values, 40))),
        "v": jnp.float32(random.normal(0, 40**-0.5, (40, features))),
    }
    return Embedder(f"tiny{seed}", TinyModule(), variables)


def tiny_in_numpy(embedder, images):
    """float64[N, D] of uint8[N, H, W, 3], or of images float in [0, 1]."""
    pixels = images / 255 if images.dtype == np.uint8 else images
    flat = np.reshape(np.float64(pixels), (len(images), -1)) - 0.5
    w, v = (np.asarray(embedder.variables[name], np.float64) for name in ("w", "v"))
    return np.tanh(flat @ w) @ v


def unit_rows(rows):
    """Each row over its length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def faces_of(num_persons, per_person, *, noise=25, size=SIZE, seed=0):
    """uint8[N, H, W, 3], ordered by person, and int32[N]: a pattern each, and noise on it."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_persons, dtype=np.int32), per_person)
    patterns = random.integers(60, 196, (num_persons, size, size, 3))
    photos = patterns[labels] + random.normal(0, noise, (len(labels), size, size, 3))
    return np.clip(np.round(photos), 0, 255).astype(np.uint8), labels
