"""A-PFGVM, adaptive P-FGVM: x̂ ← clip₀₁( x̂ − αₙ ( ∇l(x̂) + λₙ (x̂ − x) ) ).

The paper's step with a penalty weight per image and step; this project's own.

`pfgvm` holds one λ for all images: easy ones are perturbed too much, hard ones too
little. Here every image's λ follows its own attack, and the nearest success is kept.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deid_jax import checks
from deid_jax.arrays import Bracket, norms, per_image
from deid_jax.attacks.loop import Ending, Iterate, Rule, finish, iterate
from deid_jax.attacks.nearest import best_so_far
from deid_jax.attacks.penalties import PENALTIES, Penalty
from deid_jax.errors import InputError
from deid_jax.pixels import on_grid
from deid_jax.types import AttackResult, Objective

# Forward passes of the final search: one outwards, the others halve the interval.
_SEARCH_PASSES = 6
# Where no iterate succeeded the search goes outwards by this factor at a time.
_OUTWARDS = 1.5
# The linearised loss is to end this far beyond zero at first, in |⟨∇l, x̂ − x⟩|; in long runs it
# comes nearer by and by: at step N, 0.04/N of it.
_BEYOND, _BEYOND_TIMES_STEPS = 0.01, 0.04
# β falls as this power of the share of steps that are left.
_FALL = 1.5
# Where nothing succeeded in this share of the steps, the penalty waits until something does.
_PATIENCE = 0.75
# Bounds a step where the loss is all but flat; far above any that is not cut to `max_step`.
_LARGEST = 1e6
# Newton steps overshoot by 5 %, and while nothing succeeded by up to 55 % at the end.
_OVERSHOOT, _OVERSHOOT_UNTIL_FOOLED = 1.05, 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class APFGVMConfig:
    """Settings of `apfgvm`.

    Attributes:
      shrink: β₀ in [0, 1], the share of the change that the first penalty step takes back;
        falls to 0 as (1 − n/N)^1.5.
      max_step: the longest step, ‖x̂ₙ₊₁ − x̂ₙ‖₂, ≥ 0, before the image is cut to [0, 1].
      num_steps: number of gradient steps; several, increasing: one run each, since β depends
        on where it ends.
      penalty: what is held small, a name of `penalties.PENALTIES`.
      quantize: whether iterates are judged on the grid of 8-bit images, and the result is
        one.

    Raises:
      InputError: a setting is out of its range.
    """

    shrink: float | jax.Array = 1.0
    max_step: float | jax.Array = 1.0
    num_steps: int | tuple[int, ...] = dataclasses.field(default=50, metadata={"static": True})
    penalty: str = dataclasses.field(
        default="l2", metadata={"static": True, "choices": tuple(PENALTIES)}
    )
    quantize: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self) -> None:
        for name in ("shrink", "max_step"):
            checks.finite_non_negative(name, getattr(self, name))
        if isinstance(self.shrink, int | float) and self.shrink > 1:
            raise InputError(f"shrink must be <= 1, got {self.shrink}")
        checks.step_counts("num_steps", self.num_steps)
        if self.penalty not in PENALTIES:
            raise InputError(
                f"penalty must be one of {', '.join(PENALTIES)}, got {self.penalty}"
            )


def apfgvm(
    objective: Objective,
    images: jax.Array,
    config: APFGVMConfig,
    key: jax.Array,
    *,
    initial: jax.Array | None = None,
) -> AttackResult:
    """x̂ ← clip₀₁( x̂ − αₙ ( g + λₙ (x̂ − x) ) ), with αₙ and λₙ = βₙ/αₙ of each image.

    g is ∇l(x̂ₙ). P-FGVM's step, read for a loss l that is zero at the recogniser's boundary
    (`objectives.margin`): of its two parts the penalty takes back the share αλ = βₙ of the
    change δ = x̂ − x, which falls from β₀ to 0, so that no λ diverges; and αₙ is what brings
    the linearised loss l + ⟨g, x̂ₙ₊₁ − x̂ₙ⟩ to −κ, overshot by s:

      αₙ = (s(l + κ) − βₙ⟨g, δ⟩) / ‖g‖²,    λₙ = βₙ / αₙ.

    At β = 1 that is the least change which the linearised loss asks for, anew at every step;
    with β falling, more and more of the changes found before stays in it, and their bends
    average out. So λ rises while an image is fooled (l < 0), without end where α comes to zero
    and the step is but the pull (α < 0 goes back uphill), and falls while it is not fooled.
    Where the iteration rests, δ = −g/λ lies on the boundary: the penalised problem l +
    (λ/2)‖δ‖² solved at the image's own λ. Where nothing succeeded in three quarters
    of the steps β is 0 until something does. κ is 1 % of |⟨g, δ⟩| at first and less in long
    runs, s is 1.05, and more where nothing succeeded yet. For another penalty g and δ in the
    step are replaced by its metric's `direction` and `pull` (see `penalties`). Where g is zero
    only the pull acts.

    Each step spends one gradient. The success of the least penalty is kept, the last iterate
    is judged, too, and six forward passes then pull the success towards x by bisection; where
    there was none they look for one farther out first, at 1.5 δ, 1.5² δ and so on. Beside these
    one pass judges the last iterate and one the result. With `quantize` what is judged is
    always the 8-bit image round(255 x̂), so rounding loses nothing: for a change −μg, as it
    is where the iteration rests, nearest rounding is the cheapest choice of levels for what it
    gains.

    Returns the success, or the last iterate where there was none. From x̂₀ = x, images that
    succeed as they are stay as they are (on the grid, with `quantize`). Zero steps return x̂₀.

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

    return iterate(
        rule,
        objective,
        images,
        key,
        num_steps=config.num_steps,
        initial=initial,
        knows_end=True,
    )


def _move(
    here: Iterate,
    penalty: Penalty,
    images: jax.Array,
    *,
    beta: jax.Array,
    beyond: float | jax.Array,
    overshoot: jax.Array,
) -> jax.Array:
    """−αₙ(M⁻¹g + λₙ M⁻¹∇R), which is −αₙ(g + λₙδ) for the paper's penalty."""
    # Scaled, with the loss, to 1 at most: squares of very flat losses' slopes underflow.
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
    """The least t found for which x + t(x̂ − x) succeeds, with x̂ the end; x̂ if there is none.

    Args:
      objective: says what succeeds.
      images: float32[B, H, W, C], x.
      end: of the run; goes inwards where it succeeds, else outwards.
      seen: what the objective is shown of an image.
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
    """⟨·, ·⟩ of each image: [B]."""
    return jnp.sum(one * other, axis=(1, 2, 3))
