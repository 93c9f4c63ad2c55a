"""FMN, the Fast Minimum-Norm attack in L2: a peer that seeks the least change.

Pintor, Roli, Brendel, Biggio: "Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints", NeurIPS 2021.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import largest_change, norms, projected, unit
from deid_jax.attacks.loop import (
    Nearest,
    Point,
    each_alone,
    first_iterate,
    iterate,
    keep_nearest,
)
from deid_jax.attacks.minimal_norm import State, annealed, conclude_nearest
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
    α to α/100; ε never exceeds the largest change that [0, 1] allows. It starts at x without
    the paper's search along a line to a picture that succeeds. Returns the successful iterate
    nearest to x, the last one included; where none succeeded, the last one. Beside gradients
    it spends two forward passes.

    The projection is the paper's; foolbox 3.3.4 leaves it out in L2, by a slip.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """
    images, start = first_iterate(images, initial)
    most = largest_change(images)

    def run(num_steps: int | jax.Array) -> AttackResult:
        def step(point: Point, state: State, number: jax.Array) -> tuple[jax.Array, State]:
            nearest, epsilon = state
            change = point.images - images
            distance = norms(change)
            nearest = keep_nearest(nearest, point.images, distance, point.success)
            alpha = annealed(config.step_size, config.step_size / 100, number, num_steps)
            gamma = annealed(config.gamma, _LAST_GAMMA, number, num_steps)
            slope = norms(point.gradient)
            away = jnp.abs(point.loss) / jnp.where(slope > 0, slope, 1)
            away = jnp.where(slope > 0, away, jnp.inf)
            outside = jnp.where(nearest.found, epsilon * (1 + gamma), distance + away)
            inside = jnp.minimum(epsilon * (1 - gamma), nearest.distance)
            epsilon = jnp.minimum(jnp.where(point.success, inside, outside), most)
            epsilon = epsilon.astype(most.dtype)
            change = change - alpha.astype(change.dtype) * unit(point.gradient)
            adversarial = jnp.clip(images + projected(change, epsilon), 0, 1)
            return adversarial, State(nearest, epsilon)

        state = State(Nearest.none(start), jnp.full_like(most, jnp.inf))
        conclude = conclude_nearest(objective, objective, images)
        return iterate(step, conclude, objective, start, state, key, num_steps=num_steps)

    return each_alone(run, config.num_steps)
