"""Metrics of the images of one batch, as arrays: distortion and the recogniser's predictions.

Images are float32[B, H, W, C] in [0, 1]; every metric is [B].
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deid_jax import metrics
from deid_jax.objectives import LogitsFn
from deid_jax.types import Batch


class Predictions(NamedTuple):
    """Predictions of a recogniser; every entry is [B].

    `label` is argmax f(x̂) as int32, `confidence` its softmax probability, and `misclassified`
    whether it is not the true label.
    """

    label: jax.Array
    confidence: jax.Array
    misclassified: jax.Array


class Measurements(NamedTuple):
    """Distortion and predictions of images; every entry is [B].

    The distortions, float32, are ‖x̂ − x‖₂, ‖x̂ − x‖∞ and structural similarity.
    """

    l2: jax.Array
    linf: jax.Array
    mssim: jax.Array
    predictions: Predictions


class Effort(NamedTuple):
    """An attack's result without its images, see `AttackResult`; every entry is [B]."""

    loss: jax.Array
    success: jax.Array
    num_gradients: jax.Array
    num_forwards: jax.Array


class BatchMetrics(NamedTuple):
    """All metrics of a batch: entries [B], or shaped as `batch.run_batch_many` says.

    `targets` are the true labels where an attack is untargeted.
    """

    targets: jax.Array
    clean: Predictions
    float_result: Measurements
    effort: Effort
    uint8_result: Measurements

    def per_setting(self) -> list[list["BatchMetrics"]]:
        """Entries of [C, B] or [C, S, B], on the host, as [setting][number of steps] -> [B]."""
        split = []
        for place in range(len(self.targets)):
            one = jax.tree.map(operator.itemgetter(place), self)
            distances = one.float_result.l2
            several = distances.ndim == 2
            split.append([one._at_step(i) for i in range(len(distances))] if several else [one])
        return split

    def _at_step(self, place: int) -> "BatchMetrics":
        """Entries [S, B] at one position of S."""
        at = operator.itemgetter(place)
        return self._replace(
            float_result=jax.tree.map(at, self.float_result),
            effort=jax.tree.map(at, self.effort),
            uint8_result=jax.tree.map(at, self.uint8_result),
        )


def predictions_of(logits: jax.Array, labels: jax.Array) -> Predictions:
    """The predictions from logits float32[B, K], compared with the true labels int32[B]."""
    return Predictions(
        label=jnp.argmax(logits, axis=-1).astype(jnp.int32),
        confidence=jnp.max(jax.nn.softmax(logits), axis=-1),
        misclassified=metrics.misclassified(logits, labels),
    )


def measure_both(
    logits_fn: LogitsFn, images: jax.Array, others: jax.Array, batch: Batch
) -> tuple[Measurements, Measurements]:
    """Measures two versions of the same images, in one forward pass."""
    logits = jnp.split(logits_fn(jnp.concatenate([images, others])), 2)
    return measured(images, logits[0], batch), measured(others, logits[1], batch)


def measured(images: jax.Array, logits: jax.Array, batch: Batch) -> Measurements:
    """Measures images, for which the recogniser gives the logits, against their originals."""
    originals = batch.image
    return Measurements(
        l2=metrics.l2(images, originals),
        linf=metrics.linf(images, originals),
        mssim=metrics.mssim(images, originals),
        predictions=predictions_of(logits, batch.label),
    )
