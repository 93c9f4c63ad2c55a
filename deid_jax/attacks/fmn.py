"""FMN, the Fast Minimum-Norm attack: x̂ ← clip₀₁( x + δ min(1, ε/‖δ‖₂) ), ε from l/‖∇l‖.

A peer that minimises the perturbation in L2.

Pintor, Roli, Brendel, Biggio: "Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints", NeurIPS 2021.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import largest_change, norms, projected, unit
from deid_jax.attacks.loop import Iterate, Rule, annealed, finished_by, iterate
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, checked, steps
from deid_jax.attacks.nearest import best_so_far
from deid_jax.types import AttackResult, Objective

# γ falls towards this, as in the paper and in foolbox.
_LAST_GAMMA = 0.001


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FMNConfig(MethodConfig):
    """Settings of `fmn`.

    Attributes:
      step_size: α ≥ 0, the L2 norm of the first step; cosine-annealed to α/100.
      gamma: γ in [0, 1), the share by which ε grows or shrinks at first; cosine-annealed to
        0.001.
      num_steps: number of gradient steps N; several, increasing: one run each, since the
        schedules of α and γ depend on N.
    """

    step_size: Setting = 1.0
    gamma: Setting = checked(checks.below_one, 0.05)
    num_steps: NumSteps = steps(50)


class _State(NamedTuple):
    """State of `fmn`, all float32[B].

    Attributes:
      epsilon: the largest ‖x̂ − x‖₂ allowed.
      least: the smallest distance of a success so far; infinity before the first.
    """

    epsilon: jax.Array
    least: jax.Array


def fmn(
    objective: Objective,
    images: jax.Array,
    config: FMNConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x + δ min(1, ε/‖δ‖₂) ) with δ = x̂ − αₙ ∇l(x̂)/‖∇l(x̂)‖₂ − x.

    ε ← min(ε(1 − γₙ), the smallest distance of a success) where x̂ succeeds; else ε(1 + γₙ)
    if an earlier iterate succeeded; else ‖x̂ − x‖₂ + |l(x̂)|/‖∇l(x̂)‖₂, the distance to the
    boundary if l were linear. l must be zero at the boundary, as `objectives.margin` is. αₙ
    falls from α to α/100; ε never exceeds what [0, 1] allows. The attack starts at x, without
    the paper's line search towards an image that succeeds. Returns the successful iterate
    nearest to x, counting the last one; if none succeeded, the last iterate. It costs two
    forward passes in addition to the gradients.

    The projection is the paper's; foolbox 3.3.4 omits it in L2 by mistake.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        most = largest_change(images)

        def step(here: Iterate, state: _State, number: jax.Array) -> tuple[jax.Array, _State]:
            change = here.images - images
            distance = norms(change)
            least = jnp.where(here.success, jnp.minimum(state.least, distance), state.least)
            alpha = annealed(config.step_size, config.step_size / 100, number, num_steps)
            gamma = annealed(config.gamma, _LAST_GAMMA, number, num_steps)
            slope = norms(here.gradient)
            away = jnp.abs(here.loss) / jnp.where(slope > 0, slope, 1)
            away = jnp.where(slope > 0, away, jnp.inf)
            grown = state.epsilon * (1 + gamma)
            outside = jnp.where(jnp.isfinite(least), grown, distance + away)
            inside = jnp.minimum(state.epsilon * (1 - gamma), least)
            epsilon = jnp.minimum(jnp.where(here.success, inside, outside), most)
            epsilon = epsilon.astype(most.dtype)
            change = change - alpha.astype(change.dtype) * unit(here.gradient)
            return jnp.clip(images + projected(change, epsilon), 0, 1), _State(epsilon, least)

        infinite = jnp.full_like(most, jnp.inf)
        return best_so_far(
            Rule(step, finished_by(objective), _State(infinite, infinite)),
            objective,
            start,
            lambda iterates: norms(iterates - images),
        )

    return iterate(rule, objective, images, key, num_steps=config.num_steps, initial=initial)
