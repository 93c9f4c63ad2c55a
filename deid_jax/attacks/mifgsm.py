"""MI-FGSM: x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α sign(d) ) ), d the running gradient.

The Momentum Iterative Fast Gradient Sign Method, a peer.

Dong, Liao, Pang, Su, Zhu, Hu, Li: "Boosting Adversarial Attacks with Momentum", CVPR 2018.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.attacks.loop import Iterate, Rule, finished_by, iterate
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, checked, steps
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MIFGSMConfig(MethodConfig):
    """Settings of `mifgsm`.

    Attributes:
      step_size: α ≥ 0, how far every pixel moves in one step.
      epsilon: ε ≥ 0, the largest perturbation of a pixel; infinity means no bound.
      momentum: μ ≥ 0, the decay factor of the running gradient.
      num_steps: number of gradient steps.
    """

    step_size: Setting = 0.002
    epsilon: Setting = checked(checks.non_negative, 0.03)
    momentum: Setting = 1.0
    num_steps: NumSteps = steps(50)


def mifgsm(
    objective: Objective,
    images: jax.Array,
    config: MIFGSMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α sign(d) ) ), after d ← μ d + ∇l(x̂)/mean|∇l(x̂)|.

    d starts at zero; a zero gradient adds nothing. The paper divides by ‖∇l(x̂)‖₁, which
    only scales d and so gives the same images. With μ = 0 it is I-FGSM.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        low, high = images - config.epsilon, images + config.epsilon

        def step(
            here: Iterate, direction: jax.Array, number: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            size = jnp.mean(jnp.abs(here.gradient), axis=(1, 2, 3), keepdims=True)
            direction = config.momentum * direction
            direction = direction + here.gradient / jnp.where(size > 0, size, 1)
            moved = here.images - config.step_size * jnp.sign(direction)
            return jnp.clip(jnp.clip(moved, low, high), 0, 1), direction

        return Rule(step, finished_by(objective), jnp.zeros_like(start))

    return iterate(
        rule,
        objective,
        images,
        key,
        num_steps=config.num_steps,
        initial=initial,
        knows_end=False,
    )
