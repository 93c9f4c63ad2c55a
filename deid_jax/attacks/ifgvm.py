"""I-FGVM: x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α ∇l(x̂) ) ).

The Iterative Fast Gradient Value Method, a baseline of the paper.

Chatzikyriakidis, Papaioannidis, Pitas: "Adversarial Face De-Identification", ICIP 2019.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.attacks.loop import descend
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IFGVMConfig:
    """Settings of `ifgvm`.

    Attributes:
      step_size: α ≥ 0.
      epsilon: ε ≥ 0, the largest perturbation of a pixel; infinity means no bound.
      num_steps: number of gradient steps; several, increasing: see `loop.descend`.

    Raises:
      InputError: a setting is negative or NaN, or α infinite.
    """

    step_size: float | jax.Array = 0.1
    epsilon: float | jax.Array = 0.1
    num_steps: int | tuple[int, ...] = dataclasses.field(default=50, metadata={"static": True})

    def __post_init__(self) -> None:
        checks.finite_non_negative("step_size", self.step_size)
        checks.non_negative("epsilon", self.epsilon)
        checks.step_counts("num_steps", self.num_steps)


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

    def update(adversarial: jax.Array, gradient: jax.Array) -> jax.Array:
        return jnp.clip(adversarial - alpha * gradient, images - epsilon, images + epsilon)

    return descend(update, objective, images, key, num_steps=config.num_steps, initial=initial)
