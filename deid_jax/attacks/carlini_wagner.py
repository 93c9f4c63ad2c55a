"""Carlini and Wagner in L2: min ‖x̂ − x‖₂² + c max(l(x̂) + κ, 0), with a search for c.

A peer that minimises the perturbation.

Carlini, Wagner: "Towards Evaluating the Robustness of Neural Networks", IEEE Symposium on
Security and Privacy 2017.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax.arrays import Bracket, norms, per_image
from deid_jax.attacks.loop import Iterate, Rule, finished_by, iterate
from deid_jax.attacks.methods import (
    MethodConfig,
    NumSteps,
    Setting,
    at_least_one,
    static,
    steps,
)
from deid_jax.attacks.nearest import best_so_far
from deid_jax.types import AttackResult, Objective, PyTree

# Keeps artanh finite at black and white.
_INSIDE = 0.999999


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CarliniWagnerConfig(MethodConfig):
    """Settings of `carlini_wagner`.

    Attributes:
      step_size: Adam's learning rate ≥ 0, in the space of artanh.
      initial_const: c ≥ 0 of the first search.
      kappa: κ ≥ 0, how far beyond the boundary l is pushed; 0 asks for success alone.
      binary_search_steps: number of searches, ≥ 1, one for each c.
      num_steps: number of gradient steps of all searches together, shared among them as
        evenly as possible (with fewer steps than searches, the first ones get one step each
        and the others are dropped); several, increasing: one run each.
    """

    step_size: Setting = 0.01
    initial_const: Setting = 0.1
    kappa: Setting = 0.0
    binary_search_steps: int = static(5, at_least_one)
    num_steps: NumSteps = steps(500)


class _State(NamedTuple):
    """State of `carlini_wagner`.

    Attributes:
      variable: float32[B, H, W, C], w.
      moments: Adam's moments.
      reached: bool[B], whether an iterate of this search has succeeded.
      const: float32[B], c of this search.
      consts: the c of earlier searches that succeeded and failed.
    """

    variable: jax.Array
    moments: PyTree
    reached: jax.Array
    const: jax.Array
    consts: Bracket


def _to_variable(images: jax.Array) -> jax.Array:
    return jnp.arctanh(_INSIDE * (2 * images - 1))


def _to_images(variable: jax.Array) -> jax.Array:
    return (jnp.tanh(variable) + 1) / 2


def _difference(one: jax.Array, other: jax.Array) -> jax.Array:
    """_to_images(one) − _to_images(other), computed to be exactly zero where they agree.

    Adam would turn the rounding error of a plain subtraction into full steps.
    """
    return jnp.tanh(one - other) * (1 - jnp.tanh(one) * jnp.tanh(other)) / 2


def carlini_wagner(
    objective: Objective,
    images: jax.Array,
    config: CarliniWagnerConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """Minimises ‖x̂ − x‖₂² + c max(l(x̂) + κ, 0) over w by Adam, where x̂ = (tanh w + 1)/2.

    Every search starts at x̂₀ with its own c for each image: ten times the previous one until
    a search succeeds, then the midpoint of the largest c that failed and the smallest that
    succeeded. l must be zero at the boundary, as `objectives.margin` is; an iterate counts as
    a success if it succeeds and, for κ > 0, l ≤ −κ. Returns the success nearest to x over all
    searches, counting the last iterate; if there is none, the last iterate. It costs two
    forward passes in addition to the gradients.

    This follows foolbox, but without early stopping and without the repeated search at the
    smallest successful c that foolbox makes from ten searches on. `num_steps` counts all
    gradients, not those of one search, and the defaults suit hundreds of gradients rather
    than foolbox's 90,000.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """
    import optax

    searches, kappa = config.binary_search_steps, config.kappa

    def confident(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, success = objective(images, key)
        return loss, success & ((kappa == 0) | (loss <= -kappa))

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        origin, first = _to_variable(images), _to_variable(start)
        optimiser = optax.adam(config.step_size)

        def moved(here: Iterate, state: _State) -> _State:
            """One step of Adam within a search."""
            pull = per_image(jnp.where(here.loss + kappa > 0, state.const, 0))
            now = _to_images(state.variable)
            away = _difference(state.variable, origin)
            slope = (pull * here.gradient + 2 * away) * 2 * now * (1 - now)
            step, moments = optimiser.update(slope, state.moments)
            return state._replace(
                variable=state.variable + step,
                moments=moments,
                reached=state.reached | here.success,
            )

        def step(here: Iterate, state: _State, number: jax.Array) -> tuple[jax.Array, _State]:
            state = moved(here, state)
            consts = state.consts.narrowed(state.const, state.reached)
            again = _State(
                variable=first,
                moments=optimiser.init(first),
                reached=jnp.zeros_like(state.reached),
                const=consts.middle(outwards=10 * state.const),
                consts=consts,
            )
            # The search of step n is floor(n · searches / N).
            search = [(n * searches) // jnp.maximum(num_steps, 1) for n in (number, number + 1)]
            ends = (search[0] != search[1]) & (number + 1 < num_steps)
            state = jax.tree.map(lambda new, old: jnp.where(ends, new, old), again, state)
            return _to_images(state.variable), state

        none = jnp.zeros(len(images), images.dtype)
        state = _State(
            variable=first,
            moments=optimiser.init(first),
            reached=none > 0,
            const=none + config.initial_const,
            consts=Bracket(none + jnp.inf, none),
        )
        return best_so_far(
            Rule(step, finished_by(objective), state),
            confident,
            start,
            lambda iterates: norms(iterates - images),
        )

    return iterate(rule, confident, images, key, num_steps=config.num_steps, initial=initial)
