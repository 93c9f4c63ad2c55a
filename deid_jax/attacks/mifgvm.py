"""MI-FGVM: x̂ ← clip₀₁( x + δ min(1, ε/‖δ‖₂) ), δ one step along the running gradient.

Meant for transfer: a perturbation of fixed size, averaged over many gradients, transfers to
recognisers that the attack was not fitted on; the smallest one that succeeds against a single
surrogate does not. The momentum is MI-FGSM's (Dong et al.: "Boosting Adversarial Attacks with
Momentum", CVPR 2018); using gradient values instead of signs follows the paper.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deid_jax.arrays import per_image, projected, unit
from deid_jax.attacks.loop import Iterate, Rule, finished_by, iterate
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, steps
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MIFGVMConfig(MethodConfig):
    """Settings of `mifgvm`.

    Attributes:
      epsilon: ε ≥ 0, the largest ‖x̂ − x‖₂; float32[B] if traced: one per image.
      momentum: μ ≥ 0, the decay factor of the running gradient.
      reach: the total length of all steps in units of ε, ≥ 0: each step has length
        reach · ε / num_steps.
      num_steps: number of gradient steps.
    """

    epsilon: Setting = 1.0
    momentum: Setting = 0.9
    reach: Setting = 10.0
    num_steps: NumSteps = steps(50)


def mifgvm(
    objective: Objective,
    images: jax.Array,
    config: MIFGVMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x + δ min(1, ε/‖δ‖₂) ) with δ = x̂ − α d/‖d‖₂ − x.

    Before each step d ← μ d + ∇l(x̂)/‖∇l(x̂)‖₂, starting at zero; α = reach · ε / N. A zero
    gradient adds nothing to d. With μ = 0 it is projected gradient descent in L2 from x.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        size = jnp.broadcast_to(jnp.asarray(config.epsilon, images.dtype), len(images))
        alpha = per_image(config.reach * size / jnp.maximum(num_steps, 1))

        def step(
            here: Iterate, direction: jax.Array, number: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            direction = config.momentum * direction + unit(here.gradient)
            change = here.images - alpha.astype(images.dtype) * unit(direction) - images
            return jnp.clip(images + projected(change, size), 0, 1), direction

        return Rule(step, finished_by(objective), jnp.zeros_like(start))

    return iterate(rule, objective, images, key, num_steps=config.num_steps, initial=initial)
