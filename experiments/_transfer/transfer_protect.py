"""How `experiments.transfer` protects: one run's photos, in batches, within their budget."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.attacks import METHODS, Baseline, LeastChange
from deid_jax.attacks.budgets import l2_of_psnr
from deid_jax.objectives.embeddings import Reduction
from deid_jax.transfer import Faces, Judge
from deid_jax.transfer.surrogates import SurrogateAttack, Surrogates, perturb_on_grid
from experiments._transfer.transfer_plan import Plan, Run

BATCH_SIZE = 30
# Steps go so many times as far as the budget, all together.
_REACH = 2.5
# A pixel's bound beyond the budget, so that the change can be brought to it exactly.
_ROOM = 1.1


def config_of(run: Run, plan: Plan, num_values: int) -> Any:
    """The method's settings at the run's budget, for pictures of `num_values` values."""
    method = METHODS[run.method]
    config = method.config
    if isinstance(method, Baseline):
        return config()
    if isinstance(method, LeastChange):
        return config(num_steps=plan.num_steps)
    if run.budget.epsilon is not None:
        size = run.budget.epsilon
    else:
        assert run.budget.psnr is not None
        size = float(l2_of_psnr(run.budget.psnr, num_values))
        if method.bounds_pixels:
            size *= _ROOM / num_values**0.5
    if "step_size" not in method.settings():
        return config(epsilon=size, num_steps=plan.num_steps)
    step_size = _REACH * size / plan.num_steps
    return config(epsilon=size, step_size=step_size, num_steps=plan.num_steps)


def protect(
    run: Run,
    plan: Plan,
    judges: Mapping[str, Judge],
    faces: Faces,
    done: Callable[[int], None],
) -> np.ndarray:
    """All photos of the protocol, protected: uint8[M, H, W, 3].

    Galleries, and the thresholds that least changes go by, are those of the persons' own
    photos (`Judge.own`): a protector knows no others.
    """
    photos, labels = faces.protected, faces.protected_labels
    own = [judges[name] for name in run.fit]
    seeks_least = isinstance(METHODS[run.method], LeastChange)
    reduction: Reduction = "max" if seeks_least else "smooth"
    attack = SurrogateAttack(
        method=run.method,
        reduction=reduction,
        foreseen=run.foreseen,
        num_samples=plan.num_samples if run.foreseen else 1,
        over_samples=reduction,
    )
    config = config_of(run, plan, photos[0].size)
    psnr = run.budget.psnr
    fold = functools.partial(jax.random.fold_in, jax.random.key(plan.seed))
    thresholds = [judge.own_thresholds[plan.fars[0]] for judge in own]
    surrogates = Surrogates.of(
        [judge.embedder for judge in own], [judge.own[labels] for judge in own], thresholds
    )
    finished = []
    for first in range(0, len(photos), BATCH_SIZE):
        # The last batch is filled up with its last photo: one program serves all.
        places = np.minimum(np.arange(first, first + BATCH_SIZE), len(photos) - 1)
        batch = _Batch(
            images=photos[places],
            surrogates=surrogates.take(places),
            thresholds=thresholds,
            keys=jax.vmap(fold)(jnp.asarray(faces.lists.protected[places])),
            config=config,
            attack=attack,
        )
        if seeks_least and psnr is not None:
            pictures = _within(batch, psnr)
        else:
            pictures, _ = batch.protected(np.full(len(places), plan.margin), psnr)
        finished.append(pictures[: len(photos) - first])
        done(min(first + BATCH_SIZE, len(photos)))
    return np.concatenate(finished)


class _Batch(NamedTuple):
    """What `perturb_on_grid` takes of one batch, but for margins and budget."""

    images: np.ndarray
    surrogates: Surrogates
    thresholds: Sequence[float]
    keys: jax.Array
    config: Any
    attack: SurrogateAttack

    def protected(
        self, margins: np.ndarray, psnr: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8[B, H, W, 3], and bool[B]: whether all thresholds are gone below by margins."""
        pictures, success = perturb_on_grid(
            self.surrogates.below([threshold - margins for threshold in self.thresholds]),
            self.images,
            self.config,
            None if psnr is None else jnp.float32(psnr),
            self.keys,
            attack=self.attack,
        )
        return np.asarray(pictures), np.asarray(success)


# In cosines: no photo goes farther below the threshold. Halved so many times.
_WIDEST, _ROUNDS = 0.6, 4


def _within(batch: _Batch, psnr: float) -> np.ndarray:
    """Least changes of each photo's own margin, the widest found that keeps to the PSNR.

    A least change for a given margin is nearest to its original; what the budget leaves beyond
    it buys a wider margin, which is found by bisection. A photo that no margin tried brings
    within the budget gets the change of the least one, scaled.
    """
    originals = batch.images
    count = len(originals)
    least = float(l2_of_psnr(psnr, originals[0].size))
    fits, exceeds = np.zeros(count), np.full(count, _WIDEST)
    chosen, found = np.zeros_like(originals), np.zeros(count, bool)
    for _ in range(_ROUNDS):
        middle = (fits + exceeds) / 2
        pictures, success = batch.protected(middle, None)
        change = (pictures.astype(np.float64) - originals).reshape(count, -1) / 255
        near = success & (np.linalg.norm(change, axis=1) <= least)
        chosen[near] = pictures[near]
        found |= near
        fits, exceeds = np.where(near, middle, fits), np.where(near, exceeds, middle)
    if not found.all():
        scaled, _ = batch.protected(exceeds, psnr)
        chosen[~found] = scaled[~found]
    return chosen
