"""I-FGSM: x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α sign(∇l(x̂)) ) ).

The Iterative Fast Gradient Sign Method (also BIM), a baseline of the paper.

Kurakin, Goodfellow, Bengio: "Adversarial examples in the physical world", 2016.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.attacks.loop import descend
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, checked, steps
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IFGSMConfig(MethodConfig):
    """Settings of `ifgsm`.

    Attributes:
      step_size: α ≥ 0, how far every pixel moves in one step.
      epsilon: ε ≥ 0, the largest perturbation of a pixel; infinity means no bound.
      num_steps: number of gradient steps.
    """

    step_size: Setting = 0.002
    epsilon: Setting = checked(checks.non_negative, 0.03)
    num_steps: NumSteps = steps(50)


def ifgsm(
    objective: Objective,
    images: jax.Array,
    config: IFGSMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α sign(∇l(x̂)) ) ), with sign(0) = 0.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """
    alpha, epsilon = config.step_size, config.epsilon

    def update(images: jax.Array, adversarial: jax.Array, gradient: jax.Array) -> jax.Array:
        moved = adversarial - alpha * jnp.sign(gradient)
        return jnp.clip(moved, images - epsilon, images + epsilon)

    return descend(update, objective, images, key, num_steps=config.num_steps, initial=initial)
