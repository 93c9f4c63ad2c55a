"""One record per picture, and what they come to: the figures of a run."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from deid_jax import metrics
from deid_jax.data.dataset import FaceDataset
from deid_jax.evaluation.judging import Figures
from deid_jax.types import Batch


def records_of(
    figures: Figures, dataset: FaceDataset, batch: Batch, *, targeted: bool
) -> list[dict[str, Any]]:
    """One record per real picture of a batch, from figures of [B] on the host."""
    return [
        _record(
            jax.tree.map(operator.itemgetter(i), figures),
            dataset,
            int(batch.position[i]),
            targeted=targeted,
        )
        for i in np.flatnonzero(batch.mask)
    ]


def _record(
    figures: Figures, dataset: FaceDataset, index: int, *, targeted: bool
) -> dict[str, Any]:
    """One picture's line of `per_image.csv`."""
    target, clean, verdict, spent, kept = figures
    label = int(dataset.labels[index])
    record: dict[str, Any] = {
        "person": dataset.persons[label],
        "name": dataset.names[index],
        "target": dataset.persons[int(target)] if targeted else "",
        "clean_prediction": dataset.persons[int(clean.prediction)],
        "clean_confidence": float(clean.confidence),
        "clean_misclassified": bool(clean.misclassified),
    }
    for suffix, judged in (("", verdict), ("_uint8", kept)):
        prediction = int(judged.naming.prediction)
        record |= {
            "prediction" + suffix: dataset.persons[prediction],
            "confidence" + suffix: float(judged.naming.confidence),
            "misclassified" + suffix: bool(judged.naming.misclassified),
            "hit_target" + suffix: prediction == int(target) if targeted else "",
            "l2" + suffix: float(judged.l2),
            "linf" + suffix: float(judged.linf),
            "mssim" + suffix: float(judged.mssim),
        }
    loss, _, num_gradients, num_forwards = spent
    return record | {
        "loss": float(loss),
        "num_gradients": int(num_gradients),
        "num_forwards": int(num_forwards),
    }


def summary(records: Iterable[Mapping[str, Any]], *, targeted: bool) -> dict[str, Any]:
    """The figures of a run: means over its pictures, rates as fractions.

    `clean_error` is the share that the recogniser misnames before anything is done: MR
    includes these. `target_rate` is None where the attack is untargeted.
    """
    means = metrics.summarise(
        records,
        ["clean_misclassified", "num_gradients", "num_forwards"]
        + [
            name + suffix
            for name in ("l2", "linf", "mssim", "misclassified", "hit_target")
            for suffix in ("", "_uint8")
            if targeted or name != "hit_target"
        ],
    )
    figures: dict[str, Any] = {
        "num_images": int(means["count"]),
        "clean_error": means["clean_misclassified"],
    }
    for suffix in ("", "_uint8"):
        for name in ("l2", "linf", "mssim"):
            figures[name + suffix] = means[name + suffix]
        figures["mr" + suffix] = means["misclassified" + suffix]
        figures["target_rate" + suffix] = means["hit_target" + suffix] if targeted else None
    figures["num_gradients"] = means["num_gradients"]
    figures["num_forwards"] = means["num_forwards"]
    return figures
