"""Computes the perturbations of one run on its surrogates, in batches and within the budget."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from deid_jax.arrays import Bracket
from deid_jax.attacks import METHODS, Baseline, LeastPerturbation
from deid_jax.attacks.budgets import l2_of_psnr
from deid_jax.objectives.embeddings import Reduction
from deid_jax.transfer.judges import Faces, GalleryJudge
from deid_jax.transfer.plan import TransferPlan, TransferRun
from deid_jax.transfer.surrogates import SurrogateAttack, Surrogates, perturb_on_grid
from deid_jax.types import Config

BATCH_SIZE = 30
# The total length of all steps, in multiples of the budget.
_REACH = 2.5
# Extra room in a pixel's bound, so that the perturbation can be scaled to the budget exactly.
_ROOM = 1.1
# The largest margin below the threshold, as a cosine, and the number of bisection steps.
_WIDEST, _ROUNDS = 0.6, 4


def config_of(run: TransferRun, plan: TransferPlan, num_values: int) -> Config:
    """The method's settings at the run's budget, for images of `num_values` values."""
    method = METHODS[run.method]
    if isinstance(method, Baseline):
        return method.config()
    if isinstance(method, LeastPerturbation):
        return method.config(num_steps=plan.num_steps)
    if run.budget.epsilon is not None:
        size = run.budget.epsilon
    else:
        assert run.budget.psnr is not None
        size = float(l2_of_psnr(run.budget.psnr, num_values))
        if method.bounds_pixels:
            size *= _ROOM / num_values**0.5
    if "step_size" not in method.settings():
        return method.config(epsilon=size, num_steps=plan.num_steps)
    step_size = _REACH * size / plan.num_steps
    return method.config(epsilon=size, step_size=step_size, num_steps=plan.num_steps)


def protect_images(
    run: TransferRun,
    plan: TransferPlan,
    recognisers: Mapping[str, GalleryJudge],
    faces: Faces,
    done: Callable[[int], None],
) -> NDArray[np.uint8]:
    """Protects all images that the protocol marks for it: uint8[M, H, W, 3].

    Galleries and the thresholds of least-perturbation attacks come from the protector's own
    images (`GalleryJudge.own`), since a protector has no others. `done` is called with the
    number of finished images.
    """
    images, labels = faces.protected, faces.protected_labels
    fit = [recognisers[name] for name in run.fit]
    seeks_least = isinstance(METHODS[run.method], LeastPerturbation)
    reduction: Reduction = "max" if seeks_least else "smooth"
    thresholds = [one.own_thresholds[plan.fars[0]] for one in fit]
    surrogates = Surrogates.of(
        [one.embedder for one in fit], [one.own[labels] for one in fit], thresholds
    )
    whole = ImageBatch(
        images=images,
        keys=_keys(plan.seed, faces.lists.protected),
        surrogates=surrogates,
        thresholds=thresholds,
        config=config_of(run, plan, images[0].size),
        attack=SurrogateAttack(
            method=run.method,
            reduction=reduction,
            foreseen=run.foreseen,
            num_samples=plan.num_samples if run.foreseen else 1,
            over_samples=reduction,
        ),
    )
    psnr, finished = run.budget.psnr, []
    for first in range(0, len(images), BATCH_SIZE):
        # The last batch is padded with its last image, so that one program serves all batches.
        places = np.minimum(np.arange(first, first + BATCH_SIZE), len(images) - 1)
        batch = whole.take(places)
        if seeks_least and psnr is not None:
            perturbed = widest_within(batch, psnr)
        else:
            perturbed, _ = batch.perturbed(np.full(len(places), plan.margin), psnr)
        finished.append(perturbed[: len(images) - first])
        done(min(first + BATCH_SIZE, len(images)))
    return np.concatenate(finished)


def _keys(seed: int, positions: NDArray[np.int64]) -> jax.Array:
    """One key per image, which depends only on the seed and its position in the data set."""
    fold = functools.partial(jax.random.fold_in, jax.random.key(seed))
    return jax.vmap(fold)(jnp.asarray(positions))


@dataclasses.dataclass(frozen=True)
class ImageBatch:
    """Images and the other arguments of `perturb_on_grid`, except margins and budget.

    The thresholds are the surrogates', before any margin.
    """

    images: NDArray[np.uint8]
    keys: jax.Array
    surrogates: Surrogates
    thresholds: Sequence[float]
    config: Config
    attack: SurrogateAttack

    def take(self, places: NDArray[np.int64]) -> "ImageBatch":
        """The part of the batch at the given positions."""
        return dataclasses.replace(
            self,
            images=self.images[places],
            keys=self.keys[places],
            surrogates=self.surrogates.take(places),
        )

    def perturbed(
        self, margins: NDArray[np.float64], psnr: float | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Perturbed images, uint8[B, H, W, 3], and whether each reaches its margin, bool[B]."""
        goals = tuple(np.asarray(one - margins, np.float32) for one in self.thresholds)
        perturbed, success = perturb_on_grid(
            dataclasses.replace(self.surrogates, thresholds=goals),
            self.images,
            self.config,
            None if psnr is None else jnp.float32(psnr),
            self.keys,
            attack=self.attack,
        )
        return np.asarray(perturbed), np.asarray(success)


def widest_within(batch: ImageBatch, psnr: float) -> NDArray[np.uint8]:
    """Least perturbations at the widest margin per image that stays within the PSNR budget.

    A wider margin below the threshold needs a larger perturbation. Bisection finds, for each
    image, the widest margin that the budget allows. An image for which no margin stays within
    the budget gets the perturbation for the smallest margin, scaled to the budget.
    """
    originals = batch.images
    count = len(originals)
    longest = float(l2_of_psnr(psnr, originals[0].size))
    margins = Bracket(np.zeros(count), np.full(count, _WIDEST))
    chosen, found = np.zeros_like(originals), np.zeros(count, bool)
    for _ in range(_ROUNDS):
        middle = margins.middle()
        perturbed, success = batch.perturbed(middle, None)
        difference = (perturbed.astype(np.float64) - originals).reshape(count, -1) / 255
        fits = success & (np.linalg.norm(difference, axis=1) <= longest)
        chosen[fits] = perturbed[fits]
        found |= fits
        margins = margins.narrowed(middle, fits)
    if not found.all():
        scaled, _ = batch.perturbed(margins.fails, psnr)
        chosen[~found] = scaled[~found]
    return chosen
