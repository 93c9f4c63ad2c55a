"""Points and finished runs with made-up metrics, in memory and on disk."""

import csv
import dataclasses
import json

import numpy as np

from deid_jax.evaluation.records import (
    ImageMetrics,
    ImageRecord,
    MeanMetrics,
    RunMetrics,
)
from deid_jax.reports.measured import FinishedRun, MeasuredPoint

DESCRIPTION = {
    "settings": {
        "dataset": "folder", "data_dir": "/secret/place/faces", "image_size": 64, "crop": None,
        "skip_unreadable": False, "seed": 0, "split": "test", "target": None, "init": None,
        "quantize": False, "output_dir": "/secret/out", "checkpoint": "/secret/checkpoint",
    },
    "dataset": {"folder": "faces", "crop": "auto"},
    "recogniser": {
        "model": "model_a", "seed": 0, "split": "train", "training": {"epochs": 24},
        "accuracy": {"test": 0.82}, "weights": "5d41",
    },
    "contents": ["config.json", "metrics.json", "per_image.csv", "sheet.png"],
}  # fmt: skip


def described(section="settings", **changes):
    """The description of a run, changed in one section."""
    return {**DESCRIPTION, section: {**DESCRIPTION[section], **changes}}


def means(*, l2=2.0, mssim=0.95, mr=1.0, uint8_mr=None, n=40, clean_error=0.1, worse=0.01):
    """The metrics of a run; the 8-bit images are a little worse."""

    def kind(more, rate):
        return MeanMetrics(l2 + more, 0.03, mssim - more, rate, None)

    return RunMetrics(
        num_images=n,
        clean_error=clean_error,
        float_result=kind(0, mr),
        uint8_result=kind(worse, mr if uint8_mr is None else uint8_mr),
        num_gradients=50.0,
        num_forwards=1.0,
    )


def images(metrics, seed=0):
    """Records whose means are the metrics; shares must be whole numbers of images."""
    n = metrics.num_images
    noise = np.random.default_rng(seed).gamma(2, size=n)
    noise /= noise.mean()

    def of(mean, i):
        factor, fooled = float(noise[i]), i < round(mean.mr * n)
        similarity = mean.mssim * (0.5 + 0.5 * factor)
        return ImageMetrics("x", 0.5, fooled, None, mean.l2 * factor, mean.linf, similarity)

    return [
        ImageRecord(
            person=f"p{i % 4}",
            name=f"{i:03d}",
            target=None,
            clean_prediction="x",
            clean_confidence=0.5,
            clean_misclassified=i < round((metrics.clean_error or 0) * n),
            float_result=of(metrics.float_result, i),
            uint8_result=of(metrics.uint8_result, i),
            loss=0.0,
            num_gradients=50,
            num_forwards=1,
        )
        for i in range(n)
    ]


def point(method="pfgvm", model="model_a", *, seed=None, source="", settings=None, **metrics):
    """A point; with records around its metrics where a seed is given."""
    measured = means(**metrics)
    records = () if seed is None else images(measured, seed)
    return MeasuredPoint(
        method, model, "folder", "test", settings or {}, measured, records, source or method
    )


def finished(one=None, section="settings", /, **changes):
    """A run of one point, its description changed in one section."""
    one = one or point()
    return FinishedRun(one.source, [one], described(section, **changes))


def read_csv(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_attack(folder, method="pfgvm", model="model_a", *, seed=0, split="test",
                 dataset="folder", config=None, description=None, **metrics):  # fmt: skip
    """What `experiments.attack` writes, without images; both kinds are equally good."""
    folder.mkdir(parents=True)
    measured = means(**{"n": 20, "worse": 0} | metrics)
    entries = {"method": method, "model": model, "dataset": dataset, "split": split}
    entries |= measured.to_row() | {"config": config or {}}
    (folder / "metrics.json").write_text(json.dumps(entries), "utf-8")
    description = description or described("recogniser", model=model)
    (folder / "config.json").write_text(json.dumps(description), "utf-8")
    write_csv(folder / "per_image.csv", [r.to_row() for r in images(measured, seed)])
    return folder


def write_sweep(folder, points):
    """What `experiments.sweep` writes of (method, settings, metrics); returns the folder."""
    folder.mkdir(parents=True)
    names = dict.fromkeys(name for _, settings, _ in points for name in settings)
    rows, lines = [], []
    for seed, (method, settings, metrics) in enumerate(points):
        measured = means(**metrics, n=50, worse=0)
        key = {name: settings.get(name, "") for name in names}
        lines += [{"method": method, **key, **r.to_row()} for r in images(measured, seed)]
        what = {"method": method, "model": "model_a", "dataset": "folder", "split": "test"}
        row = {n: "" if v is None else v for n, v in measured.to_row().items()}
        rows.append(what | key | row)
    write_csv(folder / "sweep.csv", rows)
    write_csv(folder / "per_image.csv", lines)
    (folder / "config.json").write_text(json.dumps(DESCRIPTION), "utf-8")
    return folder


def changed(one, **metrics):
    """A point with some entries of its metrics changed."""
    return dataclasses.replace(one, metrics=dataclasses.replace(one.metrics, **metrics))
