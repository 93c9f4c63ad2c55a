"""DDN, Decoupling Direction and Norm: x̂ ← clip₀₁( x + ε δ/‖δ‖₂ ), ε smaller after a success.

A peer that minimises the perturbation.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger: "Decoupling Direction and Norm for
Efficient Gradient-Based L2 Adversarial Attacks and Defenses", CVPR 2019.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import largest_change, norms, scaled_to, unit
from deid_jax.attacks.loop import Iterate, Rule, annealed, finished_by, iterate
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, checked, steps
from deid_jax.attacks.nearest import best_so_far
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DDNConfig(MethodConfig):
    """Settings of `ddn`.

    Attributes:
      step_size: α ≥ 0, the L2 norm of the first step; cosine-annealed to α/100.
      init_epsilon: ε₀ ≥ 0, ‖x̂₁ − x‖₂ before it grows or shrinks for the first time.
      gamma: γ in [0, 1), the share by which ε grows or shrinks at every step.
      num_steps: number of gradient steps N; several, increasing: one run each, since the
        schedule of α depends on N.
    """

    step_size: Setting = 1.0
    init_epsilon: Setting = 1.0
    gamma: Setting = checked(checks.below_one, 0.05)
    num_steps: NumSteps = steps(50)


def ddn(
    objective: Objective,
    images: jax.Array,
    config: DDNConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x + ε δ/‖δ‖₂ ) with δ = x̂ − αₙ ∇l(x̂)/‖∇l(x̂)‖₂ − x.

    Before each step, ε ← ε(1 − γ) where x̂ succeeds, else ε(1 + γ): direction and norm are
    decoupled. αₙ falls from α to α/100; ε never exceeds what [0, 1] allows. Returns the
    successful iterate nearest to x, counting the last one; if none succeeded, the last
    iterate. As in foolbox, and unlike the paper, iterates are not rounded to 8 bits; unlike
    foolbox, a zero gradient is not replaced by a random direction. It costs two forward
    passes in addition to the gradients.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        most = largest_change(images)

        def step(
            here: Iterate, epsilon: jax.Array, number: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            change = here.images - images
            alpha = annealed(config.step_size, config.step_size / 100, number, num_steps)
            change = change - alpha.astype(change.dtype) * unit(here.gradient)
            epsilon = epsilon * jnp.where(here.success, 1 - config.gamma, 1 + config.gamma)
            epsilon = jnp.minimum(epsilon, most)
            return jnp.clip(images + scaled_to(change, epsilon), 0, 1), epsilon

        epsilon = jnp.full_like(most, 1) * config.init_epsilon
        return best_so_far(
            Rule(step, finished_by(objective), epsilon),
            objective,
            start,
            lambda iterates: norms(iterates - images),
        )

    return iterate(rule, objective, images, key, num_steps=config.num_steps, initial=initial)
