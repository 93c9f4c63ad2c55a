"""FMN, the Fast Minimum-Norm attack: x̂ ← clip₀₁( x + δ min(1, ε/‖δ‖₂) ), ε from l/‖∇l‖.

A peer that seeks the least perturbation in L2.

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
from deid_jax.attacks.nearest import best_so_far
from deid_jax.types import AttackResult, Objective

# γ falls towards this, as in the paper and in foolbox.
_LAST_GAMMA = 0.001


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FMNConfig:
    """Settings of `fmn`.

    Attributes:
      step_size: α ≥ 0, ‖·‖₂ of the first step; falls to a hundredth along half a cosine.
      gamma: γ in [0, 1), the share by which ε grows or shrinks at first; falls to 0.001
        along half a cosine.
      num_steps: number of gradient steps; several, increasing: one run each, since α and γ
        depend on where it ends.

    Raises:
      InputError: a setting is negative, NaN or infinite, or γ ≥ 1.
    """

    step_size: float | jax.Array = 1.0
    gamma: float | jax.Array = 0.05
    num_steps: int | tuple[int, ...] = dataclasses.field(default=50, metadata={"static": True})

    def __post_init__(self) -> None:
        checks.finite_non_negative("step_size", self.step_size)
        checks.finite_non_negative("gamma", self.gamma)
        checks.below_one("gamma", self.gamma)
        checks.step_counts("num_steps", self.num_steps)


class _State(NamedTuple):
    """State of `fmn`, all float32[B].

    Attributes:
      epsilon: the norm that iterates may have.
      least: the least distance of a success so far; infinity before.
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

    ε ← min(ε(1 − γₙ), the least distance of a success) where x̂ succeeds; else ε(1 + γₙ)
    where an iterate before succeeded; else ‖x̂ − x‖₂ + |l(x̂)|/‖∇l(x̂)‖₂, where the boundary
    would be if l were linear: l is to be zero there, as `objectives.margin` is. αₙ falls from
    α to α/100; ε never exceeds what [0, 1] allows. It starts at x without the paper's search
    along a line to an image that succeeds. Returns the successful iterate nearest to x, the
    last one included; where none succeeded, the last one. Beside gradients it spends two
    forward passes.

    The projection is the paper's; foolbox 3.3.4 leaves it out in L2, by a slip.

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

    return iterate(
        rule,
        objective,
        images,
        key,
        num_steps=config.num_steps,
        initial=initial,
        knows_end=True,
    )
