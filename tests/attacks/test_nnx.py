"""The objective takes a function, so a `flax.nnx` model is attacked as it is."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deid_jax import PFGVMConfig, cross_entropy, pfgvm
from tests.helpers import random_images


class Network(nnx.Module):
    """Logits of five persons from images of 8 by 8 pixels."""

    def __init__(self, rngs):
        self.convolution = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(8 * 8 * 8, 5, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.convolution(images))
        return self.dense(hidden.reshape(len(images), -1))


@nnx.jit
def attack(network, images, targets, config, key):
    objective = cross_entropy(network, targets, targeted=True)
    return pfgvm(objective, images, config, key)


def test_an_nnx_model_predicts_the_target_after_the_attack():
    network, images = Network(nnx.Rngs(0)), random_images(4, size=8)
    targets = (jnp.argmax(network(images), axis=-1) + 1) % 5
    result = attack(
        network, images, targets, PFGVMConfig(penalty_weight=0.1), jax.random.key(0)
    )
    assert result.success.all()
    np.testing.assert_array_equal(jnp.argmax(network(result.images), axis=-1), targets)
