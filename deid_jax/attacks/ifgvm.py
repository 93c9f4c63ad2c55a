"""I-FGVM: x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α ∇l(x̂) ) ).

The Iterative Fast Gradient Value Method, a baseline of the paper.

Chatzikyriakidis, Papaioannidis, Pitas: "Adversarial Face De-Identification", ICIP 2019.
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
class IFGVMConfig(MethodConfig):
    """Settings of `ifgvm`.

    Attributes:
      step_size: α ≥ 0.
      epsilon: ε ≥ 0, the largest perturbation of a pixel; infinity means no bound.
      num_steps: number of gradient steps.
    """

    step_size: Setting = 0.1
    epsilon: Setting = checked(checks.non_negative, 0.1)
    num_steps: NumSteps = steps(50)


def ifgvm(
    objective: Objective,
    images: jax.Array,
    config: IFGVMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α ∇l(x̂) ) ).

    See `deid_jax.types.Attack` for arguments, result and errors.
    """
    alpha, epsilon = config.step_size, config.epsilon

    def update(images: jax.Array, adversarial: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.clip(adversarial - alpha * gradient, images - epsilon, images + epsilon)

    return descend(update, objective, images, key, num_steps=config.num_steps, initial=initial)
