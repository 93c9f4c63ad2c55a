"""What becomes of some pictures of a run, for figures: without the others, and step by step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deid_jax.data import loader
from deid_jax.data.dataset import FaceDataset
from deid_jax.devices import sharding
from deid_jax.evaluation.batch import Protocol, run_batch
from deid_jax.evaluation.measuring import Predictions
from deid_jax.evaluation.run import most_steps, ready_variables


class Examples(NamedTuple):
    """Some pictures of a run; where S numbers of steps were asked for, P becomes S, P.

    Attributes:
      pictures: uint8[P, H, W, 3].
      predictions: the recogniser's on them; entries of [P].
      clean: its predictions on the originals; entries of [P] in any case.
    """

    pictures: np.ndarray
    predictions: Predictions
    clean: Predictions


def run_examples(
    model: Any,
    variables: Any,
    dataset: FaceDataset,
    method: str,
    config: Any,
    protocol: Protocol,
    indices: Sequence[int],
    *,
    mesh: Mesh | None = None,
) -> Examples:
    """What becomes of some pictures, as in `evaluate`, without the others.

    Args:
      model: the recogniser's module.
      variables: its weights.
      dataset: the pictures.
      method: a key of `METHODS`.
      config: its settings; `num_steps` may hold several numbers of steps.
      protocol: everything else that decides the result.
      indices: which P pictures.
      mesh: the devices; None: the first of this process.
    """
    mesh = mesh or sharding.narrowed(sharding.local_mesh(), 1)
    few = dataset.take(indices)
    variables = ready_variables(variables, few, most_steps(config), mesh)
    size = sharding.whole_parts(mesh, len(few))
    batch = next(loader.in_order(few, size))
    # Every picture's targets and noise hang on its position in the whole set.
    batch = batch._replace(position=np.asarray(indices, np.int32)[batch.position])
    program = protocol.program(model, method, mesh)
    outcome = run_batch(
        variables,
        sharding.place_batch(batch, mesh),
        sharding.place_everywhere(jax.tree.map(jnp.float32, config), mesh),
        sharding.place_everywhere(jax.random.key(protocol.seed), mesh),
        program=program,
    )
    pictures, predictions, clean = jax.device_get(
        (outcome.uint8, outcome.uint8_result.predictions, outcome.clean)
    )
    count = len(few)
    return Examples(
        pictures[..., :count, :, :, :],
        jax.tree.map(lambda entry: entry[..., :count], predictions),
        jax.tree.map(lambda entry: entry[:count], clean),
    )
