"""The verdict on pictures: the metrics beside the original, and whom the recogniser names.

Pictures are float32[B, H, W, C] in [0, 1]; every figure is [B].
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax import metrics
from deid_jax.objectives import LogitsFn
from deid_jax.types import Batch


class Naming(NamedTuple):
    """Whom a recogniser names; every entry is [B].

    Attributes:
      prediction: int32, argmax f(x̂).
      confidence: float32, the softmax probability of `prediction`.
      misclassified: bool, whether `prediction` is not the true label.
    """

    prediction: jax.Array
    confidence: jax.Array
    misclassified: jax.Array


class Verdict(NamedTuple):
    """A picture beside its original and before the recogniser; every entry is [B].

    Attributes:
      l2: float32, ‖x̂ − x‖₂.
      linf: float32, ‖x̂ − x‖∞.
      mssim: float32, structural similarity.
      naming: whom the recogniser names.
    """

    l2: jax.Array
    linf: jax.Array
    mssim: jax.Array
    naming: Naming


class Figures(NamedTuple):
    """What is measured of a batch: entries of [B], or as `batch.run_batch_many` says.

    Attributes:
      targets: int32[B], the labels aimed at; the true ones where an attack is untargeted.
      clean: whom the recogniser names on the originals.
      verdict: on the float result.
      spent: the attack's result without its images.
      kept: the verdict on the 8-bit picture.
    """

    targets: jax.Array
    clean: Naming
    verdict: Verdict
    spent: tuple[jax.Array, ...]
    kept: Verdict

    def per_setting(self) -> list[list["Figures"]]:
        """Entries of [C, B] or [C, S, B], on the host, as [setting][number of steps] -> [B]."""
        split = []
        for place in range(len(self.targets)):
            of_setting = jax.tree.map(operator.itemgetter(place), self)
            steps = [of_setting]
            if of_setting.verdict.l2.ndim == 2:
                steps = [of_setting.step(i) for i in range(len(of_setting.verdict.l2))]
            split.append(steps)
        return split

    def step(self, place: int) -> "Figures":
        """Of entries [S, B] those at one place of S."""
        at = operator.itemgetter(place)
        return self._replace(
            verdict=jax.tree.map(at, self.verdict),
            spent=jax.tree.map(at, self.spent),
            kept=jax.tree.map(at, self.kept),
        )


def name_faces(logits: jax.Array, labels: jax.Array) -> Naming:
    """The likeliest identity of logits float32[B, K], beside the true one, int32[B]."""
    return Naming(
        prediction=jnp.argmax(logits, axis=-1).astype(jnp.int32),
        confidence=jnp.max(jax.nn.softmax(logits), axis=-1),
        misclassified=metrics.misclassified(logits, labels),
    )


def judge(logits_fn: LogitsFn, images: jax.Array, batch: Batch) -> Verdict:
    """Measures pictures beside their originals: one forward pass and the metrics."""
    return _verdict(images, logits_fn(images), batch)


def judge_both(
    logits_fn: LogitsFn, images: jax.Array, others: jax.Array, batch: Batch
) -> tuple[Verdict, Verdict]:
    """`judge` of two versions of the same pictures, in one forward pass for both."""
    logits = jnp.split(logits_fn(jnp.concatenate([images, others])), 2)
    return _verdict(images, logits[0], batch), _verdict(others, logits[1], batch)


def _verdict(images: jax.Array, logits: jax.Array, batch: Batch) -> Verdict:
    originals = batch.image
    return Verdict(
        l2=metrics.l2(images, originals),
        linf=metrics.linf(images, originals),
        mssim=metrics.mssim(images, originals),
        naming=name_faces(logits, batch.label),
    )
