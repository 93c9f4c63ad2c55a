"""P-FGVM: x̂ ← clip₀₁( x̂ − α ( ∇l(x̂) + λ (x̂ − x) ) ).

The Penalized Fast Gradient Value Method, the paper's attack.

Chatzikyriakidis, Papaioannidis, Pitas: "Adversarial Face De-Identification", ICIP 2019.
"""

import dataclasses
import warnings

import jax

from deid_jax.attacks.loop import descend
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, steps
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PFGVMConfig(MethodConfig):
    """Settings of `pfgvm`.

    Attributes:
      step_size: α ≥ 0.
      penalty_weight: λ ≥ 0, the weight of the 'realism' term; stable while α·λ < 2.
      num_steps: number of gradient steps.

    Warns:
      UserWarning: α·λ ≥ 2, where the iteration diverges.
    """

    step_size: Setting = 0.1
    penalty_weight: Setting = 0.3
    num_steps: NumSteps = steps(50)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Checked for plain numbers only, not for traced or stacked settings.
        if isinstance(self.step_size, int | float) and isinstance(
            self.penalty_weight, int | float
        ):
            product = self.step_size * self.penalty_weight
            if product >= 2:
                warnings.warn(
                    "step_size * penalty_weight is "
                    f"{self.step_size:g} * {self.penalty_weight:g} = {product:g} >= 2: "
                    "pfgvm diverges",
                    stacklevel=3,
                )


def pfgvm(
    objective: Objective,
    images: jax.Array,
    config: PFGVMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x̂ − α ( ∇l(x̂) + λ (x̂ − x) ) ).

    Projected gradient descent on l(x̂) + (λ/2)‖x̂ − x‖². For a constant gradient g and no
    clipping, x̂ₙ − x = −(g/λ)(1 − (1 − αλ)ⁿ): it converges to −g/λ for 0 < αλ < 2 and
    diverges beyond. With λ = 0 it is I-FGVM with ε = ∞, bit for bit.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """
    alpha, penalty = config.step_size, config.penalty_weight

    def update(images: jax.Array, adversarial: jax.Array, gradient: jax.Array) -> jax.Array:
        return adversarial - alpha * (gradient + penalty * (adversarial - images))

    return descend(update, objective, images, key, num_steps=config.num_steps, initial=initial)
