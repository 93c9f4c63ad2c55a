"""Attacks on embeddings, fitted on one or several surrogates.

The objective dodges a person's gallery on every surrogate at once, optionally in expectation
over random transformations. `perturb_on_grid` is a compiled program that gives 8-bit images.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from deid_jax.arrays import fold_in_all
from deid_jax.attacks import METHODS
from deid_jax.attacks.budgets import at_budget, l2_of_psnr
from deid_jax.attacks.quantizing import finish_on_grid
from deid_jax.devices.sharding import placed_on_devices
from deid_jax.metrics.verification import Distance
from deid_jax.objectives.embeddings import Reduction, dodge, ensemble, expectation
from deid_jax.pixels import LEVELS, on_grid, to_uint8
from deid_jax.recognisers.embedders import Embedder
from deid_jax.transforms.random_transforms import TRANSFORMATIONS, compose
from deid_jax.types import Model, NumpyArray, Objective, PyTree, Variables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surrogates:
    """The recognisers that an attack is fitted on, with their galleries and thresholds.

    Attributes:
      models: the networks; static.
      distances: how each compares embeddings; static.
      variables: their weights.
      galleries: float32[B, D] for each, the centroid of each image's person.
      thresholds: float32[] or [B] for each: a person is dodged if the similarity is below.

    Galleries and thresholds stay on the host until a program uses them.
    """

    models: tuple[Model, ...] = dataclasses.field(metadata={"static": True})
    distances: tuple[Distance, ...] = dataclasses.field(metadata={"static": True})
    variables: tuple[Variables, ...]
    galleries: tuple[NDArray[np.float32], ...]
    thresholds: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(
        cls,
        embedders: Sequence[Embedder],
        galleries: Sequence[NumpyArray],
        thresholds: Sequence[float | NumpyArray],
    ) -> "Surrogates":
        """Makes surrogates from embedders and puts their weights on the current device."""
        return cls(
            models=tuple(embedder.module for embedder in embedders),
            distances=tuple(embedder.distance for embedder in embedders),
            variables=tuple(placed_on_devices(embedder.variables) for embedder in embedders),
            galleries=tuple(np.asarray(gallery, np.float32) for gallery in galleries),
            thresholds=tuple(np.asarray(one, np.float32) for one in thresholds),
        )

    def take(self, places: NDArray[np.int64]) -> "Surrogates":
        """The same with the galleries of the images at `places`; thresholds are kept."""
        taken = tuple(gallery[places] for gallery in self.galleries)
        return dataclasses.replace(self, galleries=taken)


@dataclasses.dataclass(frozen=True)
class SurrogateAttack:
    """A method and its objective: everything but shapes that determines the compiled program.

    Attributes:
      method: a key of `METHODS`.
      reduction: over surrogates, see `objectives.embeddings.ensemble`.
      foreseen: keys of `TRANSFORMATIONS`, applied one after the other in every step.
      num_samples: draws of the transformations per step.
      over_samples: reduction over these draws.
    """

    method: str = "mifgvm"
    reduction: Reduction = "smooth"
    foreseen: tuple[str, ...] = ()
    num_samples: int = 1
    over_samples: Reduction = "mean"

    def goal(self, surrogates: Surrogates) -> Objective:
        """Dodges all surrogates, without transformations; always reached if there are none."""
        goals = [
            dodge(functools.partial(model.apply, variables), gallery, limit, distance)
            for model, variables, gallery, limit, distance in zip(
                surrogates.models,
                surrogates.variables,
                surrogates.galleries,
                surrogates.thresholds,
                surrogates.distances,
                strict=True,
            )
        ]
        return ensemble(goals, self.reduction) if goals else _always_reached

    def fitted(self, surrogates: Surrogates) -> Objective:
        """The objective of the attack: `goal` in expectation over the transformations."""
        goal = self.goal(surrogates)
        if not self.foreseen:
            return goal
        transformation = compose(*(TRANSFORMATIONS[name] for name in self.foreseen))
        return expectation(goal, transformation, self.num_samples, self.over_samples)


@functools.partial(jax.jit, static_argnames="attack")
def perturb_on_grid(
    surrogates: Surrogates,
    images: jax.Array,
    config: PyTree,
    psnr: jax.Array | None,
    key: jax.Array,
    *,
    attack: SurrogateAttack,
) -> tuple[jax.Array, jax.Array]:
    """Perturbs one batch of 8-bit images, uint8[B, H, W, 3], with key[B].

    The perturbation is scaled to a PSNR in dB. None keeps the method's own size and rounds to
    the 8-bit grid, within ε if the method bounds pixels, otherwise so that the attack still
    succeeds.

    Returns:
      uint8[B, H, W, 3], and bool[B]: whether all surrogates are dodged.
    """
    clean = jnp.asarray(LEVELS)[images]
    goal = attack.goal(surrogates)
    attack_key, finish_key = fold_in_all(key, 0), fold_in_all(key, 1)
    method = METHODS[attack.method]
    config = method.with_quantize(config, psnr is None)
    result = method.function(attack.fitted(surrogates), clean, config, attack_key)
    if psnr is None and not method.bounds_pixels:
        result = finish_on_grid(goal, clean, result, key=finish_key)
        return to_uint8(result.images), result.success
    if psnr is None:
        perturbed = _within_levels(clean, result.images, config.epsilon)
    else:
        # With equal steps everywhere, all pixels would reach the next grid level at once.
        dither_key = fold_in_all(key, 2) if method.bounds_pixels else None
        size = l2_of_psnr(psnr, clean[0].size)
        perturbed = at_budget(clean, result.images, size, dither_key=dither_key)
    return to_uint8(perturbed), goal(perturbed, finish_key)[1]


def _within_levels(
    images: jax.Array, perturbed: jax.Array, epsilon: float | jax.Array
) -> jax.Array:
    """Rounds to the 8-bit grid, with no pixel farther from `images` than ε in whole levels."""
    most = jnp.floor(255 * jnp.asarray(epsilon, images.dtype) + 1e-3)
    levels = jnp.clip(jnp.round(255 * (perturbed - images)), -most, most)
    return on_grid(jnp.clip(images + levels / 255, 0, 1)).astype(images.dtype)


def _always_reached(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    del key
    return jnp.zeros(len(images), images.dtype), jnp.ones(len(images), bool)
