"""Records and means: by hand, and to files and back."""

import csv
import dataclasses
import io
import json
import math

import pytest

from deid_jax.errors import InputError
from deid_jax.evaluation.records import ImageMetrics, ImageRecord, RunMetrics, summary


def _result(prediction, person, target, l2):
    hit = None if target is None else prediction == target
    return ImageMetrics(prediction, 0.75, prediction != person, hit, l2, l2 / 9, 1 / (1 + l2))


def record(person, clean, predicted, predicted_uint8, target, l2):
    return ImageRecord(
        person=person,
        name="007",
        target=target,
        clean_prediction=clean,
        clean_confidence=0.1 + 0.2,
        clean_misclassified=clean != person,
        float_result=_result(predicted, person, target, l2),
        uint8_result=_result(predicted_uint8, person, target, l2 + 0.1),
        loss=math.inf,
        num_gradients=5,
        num_forwards=1,
    )


RECORDS = [
    record("a", "a", "b", "a", "b", 1.0),
    record("a", "b", "c", "c", "b", 2.0),
    record("b", "b", "b", "b", "a", 6.0),
    record("b", "b", "a", "a", "a", 3.0),
]


def test_summary_by_hand():
    means = summary(iter(RECORDS))
    assert (means.num_images, means.clean_error, means.num_gradients) == (4, 0.25, 5)
    assert (means.float_result.mr, means.uint8_result.mr) == (0.75, 0.5)
    assert (means.float_result.target_rate, means.uint8_result.target_rate) == (0.5, 0.25)
    assert means.float_result.l2 == 3.0
    assert means.uint8_result.l2 == pytest.approx(3.1)
    untargeted = summary([record("a", "a", "b", "b", None, 1.0)])
    assert untargeted.float_result.target_rate is untargeted.uint8_result.target_rate is None
    with pytest.raises(InputError, match="no image"):
        summary([])


@pytest.mark.parametrize("target", ["b", None])
def test_records_survive_csv_and_json(target):
    one = dataclasses.replace(record("a", "c", "b", "a", target, 1 / 3), loss=1 / 7)
    row = one.to_row()
    assert list(row)[:3] == ["person", "name", "target"]
    assert (row["l2"], row["prediction_uint8"]) == (one.float_result.l2, "a")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    text.seek(0)
    for read in (next(csv.DictReader(text)), json.loads(json.dumps(row))):
        assert ImageRecord.from_row(read, "test") == one


def test_means_survive_csv_and_json():
    means = summary(RECORDS)
    row = means.to_row()
    assert RunMetrics.from_row(json.loads(json.dumps(row)), "test") == means
    texts = {name: "" if value is None else str(value) for name, value in row.items()}
    assert RunMetrics.from_row(texts, "test") == means


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("l2_uint8", "inf", "file: l2_uint8 must be a finite number, got 'inf'"),
        ("mssim", True, "mssim must be a finite number, got True"),
        ("mr_uint8", -0.1, "mr_uint8 must be from 0 to 1, got -0.1"),
        ("l2", -1, "l2 must be >= 0, got -1"),
        ("num_images", 1.5, "num_images must be an integer >= 1, got 1.5"),
        ("num_images", "x", "num_images must be a number, got 'x'"),
    ],
)
def test_bad_means_are_named(name, value, message):
    with pytest.raises(InputError, match=message):
        RunMetrics.from_row(summary(RECORDS).to_row() | {name: value}, "file")


def test_bad_records_are_named():
    row = RECORDS[0].to_row()
    with pytest.raises(InputError, match="line 3: misclassified must be True or False, got 1"):
        ImageRecord.from_row(row | {"misclassified": 1}, "line 3")
    del row["mssim_uint8"]
    with pytest.raises(InputError, match="line 3 lacks mssim_uint8"):
        ImageRecord.from_row(row, "line 3")
