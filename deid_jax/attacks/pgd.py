"""PGD: x̂ ← Π( x̂ − α d ), Π onto the ball of size ε and to [0, 1], from a random start.

Projected gradient descent in L∞ (d the gradient's signs) and in L2 (d = ∇l/‖∇l‖₂): peers.

Madry, Makelov, Schmidt, Tsipras, Vladu: "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from deid_jax.arrays import fold_in_all, normal, per_image, projected, unit
from deid_jax.attacks.loop import descend
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, steps
from deid_jax.types import AttackResult, Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PGDConfig(MethodConfig):
    """Settings of `pgd`.

    Attributes:
      step_size: α ≥ 0, how far every pixel moves in one step.
      epsilon: ε ≥ 0, the largest perturbation of a pixel.
      num_steps: number of gradient steps.
    """

    step_size: Setting = 0.002
    epsilon: Setting = 0.03
    num_steps: NumSteps = steps(50)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PGDL2Config(MethodConfig):
    """Settings of `pgd_l2`.

    Attributes:
      step_size: α ≥ 0, the L2 norm of one step, pixels in [0, 1].
      epsilon: ε ≥ 0, the largest ‖x̂ − x‖₂.
      num_steps: number of gradient steps.
    """

    step_size: Setting = 0.1
    epsilon: Setting = 1.0
    num_steps: NumSteps = steps(50)


def pgd(
    objective: Objective,
    images: jax.Array,
    config: PGDConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( clip[x−ε, x+ε]( x̂ − α sign(∇l(x̂)) ) ), from clip₀₁(x + U[−ε, ε]).

    The start is drawn for each image from its own key, unless `initial` is given; with
    `initial=images` it is I-FGSM. Zero steps draw no start: they return `initial` or x.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def draw(images: jax.Array, key: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return jax.random.uniform(key, images.shape[1:], images.dtype, -1, 1)

        return config.epsilon * jax.vmap(one)(key)

    def update(images: jax.Array, adversarial: jax.Array, gradient: jax.Array) -> jax.Array:
        moved = adversarial - config.step_size * jnp.sign(gradient)
        return jnp.clip(moved, images - config.epsilon, images + config.epsilon)

    return descend(
        update,
        objective,
        images,
        key,
        num_steps=config.num_steps,
        initial=initial,
        draw=draw,
    )


def pgd_l2(
    objective: Objective,
    images: jax.Array,
    config: PGDL2Config,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x + δ min(1, ε/‖δ‖₂) ) with δ = x̂ − α ∇l(x̂)/‖∇l(x̂)‖₂ − x.

    It starts at `initial` if given, else at clip₀₁(x + u), u uniform in the ball ‖u‖₂ ≤ ε and
    drawn for each image from its own key. Zero steps draw no start: they return `initial` or x.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def draw(images: jax.Array, key: jax.Array) -> jax.Array:
        def share(key: jax.Array) -> jax.Array:
            # In d dimensions a fraction u^d of the ball's volume is within u times its radius.
            volume = jax.random.uniform(key, (), images.dtype)
            return volume ** (1 / math.prod(images.shape[1:]))

        directions = unit(normal(images, fold_in_all(key, 0)))
        return directions * per_image(config.epsilon * jax.vmap(share)(fold_in_all(key, 1)))

    def update(images: jax.Array, adversarial: jax.Array, gradient: jax.Array) -> jax.Array:
        change = adversarial - config.step_size * unit(gradient) - images
        return images + projected(change, jnp.full(len(images), config.epsilon, change.dtype))

    return descend(
        update,
        objective,
        images,
        key,
        num_steps=config.num_steps,
        initial=initial,
        draw=draw,
    )
