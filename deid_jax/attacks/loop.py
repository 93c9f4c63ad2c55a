"""The one compiled loop that the fixed-length attacks share.

An attack gives its update rule; `descend` evaluates the objective's gradient, applies the
rule, clips to [0, 1] and repeats, as a single `jax.lax.scan`. Asked for several numbers of
steps, it runs once to the largest and keeps what it passes on the way.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deid_jax import _validate
from deid_jax.types import AttackResult, Objective

# (x̂ₙ, ∇l(x̂ₙ)) -> x̂ₙ₊₁ before clipping to [0, 1]; all float32[B, H, W, C].
UpdateRule = Callable[[jax.Array, jax.Array], jax.Array]


def input_gradient(objective: Objective, images: jax.Array, key: jax.Array) -> jax.Array:
    """∇ₓ Σ_b l_b: the loss is summed, so every image gets its own gradient, unscaled."""

    def total_loss(images: jax.Array) -> jax.Array:
        loss, _ = objective(images, key)
        return loss.sum()

    return jax.grad(total_loss)(images)


def per_image_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key per image: `key` itself if it is key[B], else key split B ways."""
    return key if key.ndim else jax.random.split(key, batch_size)


def fold_in_all(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    """`jax.random.fold_in` of the same number into every key of key[B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal(images: jax.Array, key: jax.Array) -> jax.Array:
    """N(0, 1) per pixel and channel, each picture's from its own key.

    Args:
      images: float[B, H, W, C], read for shape and dtype only.
      key: one key or key[B].
    """

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, images.shape[1:], images.dtype)

    return jax.vmap(draw)(per_image_keys(key, len(images)))


def gaussian_noise(images: jax.Array, key: jax.Array) -> jax.Array:
    """A first iterate without any of the picture: N(0.5, 0.25²) per pixel, clipped to [0, 1].

    Args:
      images: float[B, H, W, C], read for shape and dtype only.
      key: one key or key[B].
    """
    return jnp.clip(0.5 + 0.25 * normal(images, key), 0, 1)


def finish(
    objective: Objective, images: jax.Array, key: jax.Array, *, num_gradients: int | jax.Array
) -> AttackResult:
    """Judges the final pictures with one forward pass."""
    loss, success = objective(images, per_image_keys(key, len(images)))
    counts = jnp.zeros(len(images), jnp.int32)
    return AttackResult(images, loss, success, counts + num_gradients, counts + 1)


def descend(
    update: UpdateRule,
    objective: Objective,
    images: jax.Array,
    key: jax.Array,
    *,
    num_steps: int | tuple[int, ...],
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ₙ₊₁ = clip₀₁(update(x̂ₙ, ∇l(x̂ₙ))), `num_steps` times from x̂₀.

    Zero steps return x̂₀ bit for bit.

    Args:
      update: the method's rule.
      objective: see `deid_jax.types.Objective`.
      images: float32[B, H, W, C] in [0, 1].
      key: one key or key[B]; step n hands the objective fold_in(key, n).
      num_steps: N ≥ 0, static; or S increasing numbers of steps, of which every one gets the
        result that it would get alone, along a leading axis S of the result's entries.
      initial: x̂₀; `images` if None.

    Raises:
      InputError: `images` or `initial` is not a batch of pictures.
    """
    _validate.images("images", images)
    images = jnp.asarray(images)
    start = images
    if initial is not None:
        _validate.images("initial", initial)
        start = jnp.asarray(initial, images.dtype)
        if start.shape != images.shape:
            raise _validate.InputError(
                f"initial must have the images' shape {images.shape}, got {start.shape}"
            )
    keys = per_image_keys(key, len(images))

    def step(adversarial: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        gradient = input_gradient(objective, adversarial, fold_in_all(keys, number))
        return jnp.clip(update(adversarial, gradient), 0, 1), None

    def judge(adversarial: jax.Array, steps_done: int | jax.Array) -> AttackResult:
        final_keys = fold_in_all(keys, steps_done)
        return finish(objective, adversarial, final_keys, num_gradients=steps_done)

    def leg(
        adversarial: jax.Array, ends: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, AttackResult]:
        adversarial = jax.lax.fori_loop(*ends, lambda n, x: step(x, n)[0], adversarial)
        return adversarial, judge(adversarial, ends[1])

    if isinstance(num_steps, tuple):
        ends = jnp.array((0, *num_steps), jnp.int32)
        return jax.lax.scan(leg, start, (ends[:-1], ends[1:]))[1]
    adversarial, _ = jax.lax.scan(step, start, jnp.arange(num_steps))
    return judge(adversarial, num_steps)
