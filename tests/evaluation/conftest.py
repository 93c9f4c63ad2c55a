"""A recogniser that compiles in no time, eleven images of noise, and evaluations of them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from deid_jax.attacks import METHODS
from deid_jax.evaluation import Evaluation, Protocol, WeightedModel
from tests.helpers import noise_faces

SIZE = 16


class TinyNet(nn.Module):
    """Two dense layers; logits of five persons."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images):
        hidden = nn.Dense(16, dtype=self.dtype)(images.reshape(len(images), -1) - 0.5)
        return nn.Dense(5, dtype=self.dtype)(nn.tanh(hidden)).astype(jnp.float32)


@pytest.fixture(scope="session")
def faces():
    return noise_faces(SIZE)


@pytest.fixture(scope="session")
def recogniser():
    model = TinyNet()
    return WeightedModel(model, model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))))


@pytest.fixture(scope="session")
def evaluation_of(recogniser, faces):
    """Makes evaluations: of a method at settings, with a protocol."""

    def make(method="pfgvm", settings=None, *, dataset=faces, memory=None, **protocol):
        defaults = {"step_size": 0.5, "penalty_weight": 0.1, "num_steps": 8}
        chosen = (defaults if method == "pfgvm" else {}) | (settings or {})
        config = METHODS[method].config(**chosen)
        evaluation = Evaluation(recogniser, dataset, method, config, Protocol(**protocol))
        return dataclasses.replace(evaluation, memory=memory)

    return make
