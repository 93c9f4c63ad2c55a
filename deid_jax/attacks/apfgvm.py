"""A-PFGVM, adaptive P-FGVM: x̂ ← clip₀₁( x̂ − αₙ ( ∇l(x̂) + λₙ (x̂ − x) ) ).

The paper's step with a penalty weight for each image and step; new in this project.

`pfgvm` uses one λ for all images, which perturbs easy images too much and hard ones too
little. Here λ adapts to each image as its attack proceeds, and the nearest success is kept.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import Bracket, norms, per_image
from deid_jax.attacks.loop import Ending, Iterate, Rule, finish, iterate
from deid_jax.attacks.methods import MethodConfig, NumSteps, Setting, checked, static, steps
from deid_jax.attacks.nearest import best_so_far
from deid_jax.attacks.penalties import PENALTIES, Penalty
from deid_jax.errors import InputError
from deid_jax.pixels import on_grid
from deid_jax.types import AttackResult, Objective

# Forward passes of the final search: one looks outwards, the others halve the interval.
_SEARCH_PASSES = 6
# Where no iterate succeeded, each step of the search goes farther out by this factor.
_OUTWARDS = 1.5
# How far beyond zero a step aims the linearised loss, as a share of |⟨∇l, x̂ − x⟩|, at first;
# in long runs the share shrinks, to 0.04/N at step N.
_BEYOND, _BEYOND_TIMES_STEPS = 0.01, 0.04
# β falls as this power of the share of steps remaining.
_FALL = 1.5
# If nothing has succeeded after this share of the steps, the penalty is off until one does.
_PATIENCE = 0.75
# Bounds a step where the loss is almost flat; far above any step not limited by `max_step`.
_LARGEST = 1e6
# Newton steps overshoot by 5 %; while nothing has succeeded, by up to 55 % at the end.
_OVERSHOOT, _OVERSHOOT_UNTIL_FOOLED = 1.05, 0.5


def _at_most_one(name: str, value: object) -> None:
    checks.finite_non_negative(name, value)
    if isinstance(value, int | float) and value > 1:
        raise InputError(f"{name} must be <= 1, got {value}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class APFGVMConfig(MethodConfig):
    """Settings of `apfgvm`.

    Attributes:
      shrink: β₀ in [0, 1], the share of the perturbation that the first penalty step removes;
        falls to 0 as (1 − n/N)^1.5.
      max_step: the longest step, ‖x̂ₙ₊₁ − x̂ₙ‖₂, ≥ 0, before the image is clipped to [0, 1].
      num_steps: number of gradient steps; several, increasing: one run each, since β depends
        on N.
      penalty: the measure of the perturbation that is kept small, a key of
        `penalties.PENALTIES`.
      quantize: whether iterates are judged as 8-bit images, and the result is an 8-bit image.
    """

    shrink: Setting = checked(_at_most_one, 1.0)
    max_step: Setting = 1.0
    num_steps: NumSteps = steps(50)
    penalty: str = static("l2", choices=tuple(PENALTIES))
    quantize: bool = static(True)


def apfgvm(
    objective: Objective,
    images: jax.Array,
    config: APFGVMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x̂ − αₙ ( g + λₙ (x̂ − x) ) ), with αₙ and λₙ = βₙ/αₙ for each image.

    g is ∇l(x̂ₙ). This is P-FGVM's step for a loss l that is zero at the recogniser's boundary
    (`objectives.margin`). Its two parts are set as follows. The penalty removes the share
    αλ = βₙ of the perturbation δ = x̂ − x; βₙ falls from β₀ to 0, so that no λ diverges. αₙ
    brings the linearised loss l + ⟨g, x̂ₙ₊₁ − x̂ₙ⟩ to −κ, overshot by the factor s:

      αₙ = (s(l + κ) − βₙ⟨g, δ⟩) / ‖g‖²,    λₙ = βₙ / αₙ.

    At β = 1 each step gives the least perturbation that the current linearised loss requires.
    As β falls, more of the earlier perturbation is retained, and the curvature of the boundary
    averages out. So λ rises while an image is misclassified (l < 0), without bound as α goes to
    zero and only the pull remains (α < 0 goes back uphill), and falls otherwise. At a fixed
    point δ = −g/λ lies on the boundary: it solves the penalised problem l + (λ/2)‖δ‖² at the
    image's own λ. If nothing has succeeded after three quarters of the steps, β is 0 until
    something does. κ is 1 % of |⟨g, δ⟩| at first and less in long runs; s is 1.05, and larger
    while nothing has succeeded. For other penalties, g and δ in the step are replaced by the
    metric's `direction` and `pull` (see `penalties`). Where g is zero, only the pull acts.

    Each step costs one gradient. The success with the smallest penalty is kept, counting the
    last iterate. Six forward passes then move it towards x by bisection; where nothing
    succeeded, they first look farther out, at 1.5 δ, 1.5² δ and so on. Two more passes judge
    the last iterate and the result. With `quantize`, the image judged is always the 8-bit
    round(255 x̂), so rounding loses nothing: for a perturbation −μg, as at a fixed point,
    rounding to the nearest level is the cheapest choice of levels for the loss it gains.

    Returns the success, or the last iterate where there was none. From x̂₀ = x, images that
    succeed unperturbed are returned unperturbed (on the grid, with `quantize`). Zero steps
    return x̂₀.

    See `deid_jax.types.Attack` for arguments, result and errors.
    """

    def seen(images: jax.Array) -> jax.Array:
        return on_grid(images).astype(images.dtype) if config.quantize else images

    def rule(images: jax.Array, start: jax.Array, num_steps: int | jax.Array) -> Rule:
        penalty = PENALTIES[config.penalty](images)
        last_beyond = _BEYOND_TIMES_STEPS / jnp.maximum(num_steps, 1)
        last_beyond = jnp.minimum(last_beyond.astype(images.dtype), _BEYOND)

        def step(
            here: Iterate, found: jax.Array, number: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            found = found | here.success
            left = 1 - number.astype(images.dtype) / num_steps
            further = jnp.where(found, 0, _OVERSHOOT_UNTIL_FOOLED * (1 - left))
            pulls = found | (left > 1 - _PATIENCE)
            move = _move(
                here,
                penalty,
                images,
                beta=jnp.where(pulls, config.shrink * left**_FALL, 0),
                beyond=last_beyond + (_BEYOND - last_beyond) * left,
                overshoot=_OVERSHOOT + further,
            )
            length = norms(move)
            move = move * per_image(
                jnp.minimum(length, config.max_step) / jnp.where(length > 0, length, 1)
            )
            return jnp.clip(here.images + move, 0, 1), found

        def conclude(end: Ending) -> AttackResult:
            chosen = _search(objective, images, end, seen)
            return finish(
                objective,
                jnp.where(end.steps_done == 0, start, chosen),
                end.key,
                num_gradients=end.steps_done,
                num_forwards=_SEARCH_PASSES,
            )

        return best_so_far(
            Rule(step, conclude, jnp.zeros(len(images), bool), seen),
            objective,
            start,
            lambda iterates: penalty.value(seen(iterates)),
        )

    return iterate(rule, objective, images, key, num_steps=config.num_steps, initial=initial)


def _move(
    here: Iterate,
    penalty: Penalty,
    images: jax.Array,
    *,
    beta: jax.Array,
    beyond: float | jax.Array,
    overshoot: jax.Array,
) -> jax.Array:
    """The step −αₙ(M⁻¹g + λₙ M⁻¹∇R), which is −αₙ(g + λₙδ) for the paper's penalty."""
    # The gradient is scaled to at most 1, and the loss with it: the squared gradients of very
    # flat losses underflow.
    scale = jnp.max(jnp.abs(here.gradient), axis=(1, 2, 3))
    scale = jnp.where(scale > 0, scale, 1)
    gradient, loss = here.gradient / per_image(scale), here.loss / scale
    direction, pull = penalty.direction(gradient), penalty.pull(here.images)
    slope = _inner(gradient, direction)
    kappa = beyond * jnp.abs(_inner(gradient, here.images - images))
    wanted = overshoot * (loss + kappa) - beta * _inner(gradient, pull)
    alpha = jnp.where(slope > 0, wanted / jnp.where(slope > 0, slope, 1), 0)
    alpha = jnp.clip(alpha, -_LARGEST, _LARGEST)
    return -(per_image(alpha) * direction + per_image(beta) * pull)


def _search(
    objective: Objective,
    images: jax.Array,
    end: Ending,
    seen: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Returns x + t(x̂ − x) at the least t found to succeed, x̂ the run's end; x̂ if none does.

    Args:
      objective: decides what succeeds.
      images: float32[B, H, W, C], x.
      end: the end of the run; the search goes inwards where it succeeds, else outwards.
      seen: maps an image to the version that the objective sees.
    """

    def at(share: jax.Array) -> jax.Array:
        return seen(jnp.clip(images + per_image(share) * (end.images - images), 0, 1))

    def narrow(bracket: Bracket, _: None) -> tuple[Bracket, None]:
        share = bracket.middle(outwards=_OUTWARDS * bracket.fails)
        success = objective(at(share), end.key)[1]
        return bracket.narrowed(share, success), None

    one = jnp.ones(len(images), images.dtype)
    bracket = Bracket(jnp.where(end.succeeds, one, jnp.inf), jnp.where(end.succeeds, 0, one))
    bracket, _ = jax.lax.scan(narrow, bracket, None, length=_SEARCH_PASSES)
    return at(jnp.where(jnp.isfinite(bracket.holds), bracket.holds, one))


def _inner(one: jax.Array, other: jax.Array) -> jax.Array:
    """The inner product ⟨·, ·⟩ for each image: [B]."""
    return jnp.sum(one * other, axis=(1, 2, 3))
