import itertools
import json

import numpy as np
import pytest

from deid_jax.transfer import fitting
from experiments import transfer
from tests.experiments.transfer_helpers import (
    FARS,
    ONE,
    TWO,
    arguments,
    chosen,
    embed,
    gallery_of,
    originals_of,
    person,
    photos_of,
    quick,
    rows_of,
    threshold_of,
    unit,
)

# Whole commands.
pytestmark = pytest.mark.slow

CONTRACT = [
    "fit",
    "test",
    "method",
    "psnr",
    "transformation",
    "far",
    "protected",
    "low",
    "high",
]
RUN = ("fit", "method", "foreseen", "psnr", "epsilon")


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """The output of one run of everything; not to be changed."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    given = arguments(
        pictures,
        f"--test={ONE},{TWO}",
        "--methods=mifgvm,pgd,apfgvm,blur",
        "--psnr=30,36",
        "--epsilon=4/255,3.6/255",
        "--transformations=none,flip+brightness",
        "--num_samples=2",
        "--average=2",
        "--margin=0.05",
        "--keep_images",
        f"--output_dir={folder}",
    )
    assert transfer.main(given) == 0
    return folder


def test_folder_holds_table_report_protocol_and_photos(folder, rows, protocol):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "per_image.csv",
        "photos",
        "protocol.json",
        "transfer.csv",
        "transfer.md",
    ]
    assert list(rows[0])[: len(CONTRACT)] == CONTRACT
    assert "num_images" in rows[0]
    described = json.loads((folder / "config.json").read_text())
    assert described["protocol"] == protocol["sha256"]
    assert protocol["sha256"] in (folder / "transfer.md").read_text()


def test_every_budget_transformation_and_judge_has_its_rows(rows):
    foreseen = ("", "flip+brightness")
    pixel = [repr(4 / 255), repr(3.6 / 255)]
    budgets = {
        "mifgvm": [("30.0", ""), ("36.0", "")],
        "pgd": [("30.0", ""), ("36.0", ""), *(("", e) for e in pixel)],
        "apfgvm": [("", ""), ("30.0", ""), ("36.0", "")],
    }
    expected = {("", "none", "", "", "")} | {("", "blur", "", p, "") for p in ("30.0", "36.0")}
    for method, sizes in budgets.items():
        for foresees, size in itertools.product(foreseen, sizes):
            expected.add((ONE, method, foresees, *size))
    assert {tuple(row[name] for name in RUN) for row in rows} == expected
    # As they are whether asked for or not, and processed; each comparison, judge and rate.
    for run in expected:
        named = dict(zip(RUN, run, strict=True))
        found = [
            (row["test"], row["transformation"], row["far"], row["compared"])
            for row in chosen(rows, opponent="", **named)
        ]
        kinds = ("none", "jpeg75")
        fars = ("0.1", "0.05")
        compared = ("gallery", "protected")
        whole = itertools.product((ONE, TWO), kinds, fars, compared)
        assert sorted(found) == sorted(whole)


def wilson(k, n, z=1.959963984540054):
    centre, half = k / n + z * z / (2 * n), z * np.sqrt(k * (n - k) / n**3 + (z / n / 2) ** 2)
    return [(centre + sign * half) / (1 + z * z / n) for sign in (-1, 1)]


def test_table_agrees_with_kept_photos(folder, rows, protocol, originals):
    names = sorted(protocol["protected"])
    assert len(names) == 9
    checked = 0
    for (test, seed), far in itertools.product(((ONE, 1), (TWO, 2)), FARS):
        gallery = gallery_of(protocol, originals, seed)
        threshold = threshold_of(protocol, originals, seed, gallery, far)
        for row in chosen(rows, test=test, far=str(far), transformation="none", opponent=""):
            assert float(row["threshold"]) == pytest.approx(threshold, abs=1e-5)
            kept = originals if row["method"] == "none" else photos_of(folder, row)
            if row["method"] != "none":
                assert sorted(kept) == names
            found = embed(np.stack([kept[name] for name in names]), seed)
            scores = []
            for place, name in enumerate(names):
                others = [
                    vector
                    for other, vector in zip(names, found, strict=True)
                    if person(other) == person(name) and other != name
                ]
                centre = unit(np.mean(others, axis=0))
                if row["compared"] == "gallery":
                    centre = gallery[person(name)]
                scores.append(float(found[place] @ centre))
            assert float(row["score"]) == pytest.approx(np.mean(scores), abs=1e-5)
            # A score within rounding of the threshold could fall either way: none does.
            assert min(abs(s - threshold) for s in scores) > 1e-5
            hidden = sum(s < threshold for s in scores)
            assert float(row["protected"]) == pytest.approx(hidden / len(names))
            bounds = [float(row["low"]), float(row["high"])]
            np.testing.assert_allclose(bounds, wilson(hidden, len(names)), atol=1e-9)
            assert row["num_images"] == "9"
            checked += 1
    assert checked == 4 * 2 * 21
    assert len({row["protected"] for row in rows}) > 4


def test_ranks_agree_with_kept_photos(folder, rows, protocol, originals):
    seen = set()
    for row in chosen(rows, test=TWO, far="0.1", transformation="none", opponent=""):
        if row["compared"] == "protected":
            assert row["rank1"] == row["rank5"] == ""
            continue
        kept = originals if row["method"] == "none" else photos_of(folder, row)
        gallery = gallery_of(protocol, originals, 2)
        best = [
            max(gallery, key=lambda who: float(embed(kept[name][None], 2)[0] @ gallery[who]))
            == person(name)
            for name in protocol["protected"]
        ]
        assert float(row["rank1"]) == pytest.approx(np.mean(best))
        assert float(row["rank5"]) == 1  # There are three persons.
        seen.add(row["rank1"])
    assert len(seen) > 1


def test_budgets_hold_for_every_photo_and_distortion_is_measured(folder, rows, originals):
    lengths = {}
    for run in {tuple(row[name] for name in RUN): row for row in rows}.values():
        if run["method"] == "none":
            assert (float(run["l2"]), float(run["ssim"]), run["psnr_mean"]) == (0, 1, "")
            continue
        kept = photos_of(folder, run)
        changes = np.stack([kept[n].astype(float) - originals[n] for n in kept]) / 255
        l2 = np.sqrt(np.square(changes).sum((1, 2, 3)))
        with np.errstate(divide="ignore"):
            psnr = -10 * np.log10(np.square(changes).mean((1, 2, 3)))
        assert float(run["l2"]) == pytest.approx(l2.mean(), abs=1e-4)
        assert float(run["psnr_min"]) == pytest.approx(psnr.min(), abs=1e-3)
        if np.isfinite(psnr).all():
            assert float(run["psnr_mean"]) == pytest.approx(psnr.mean(), abs=1e-3)
        if run["psnr"]:
            assert psnr.min() >= float(run["psnr"]) - 1e-3
            # And is used: nothing ends far below it.
            assert psnr.max() < float(run["psnr"]) + 3
        if run["epsilon"]:
            # Whole levels: 3.6 levels are 3.
            most = int(255 * float(run["epsilon"]) + 1e-6)
            assert np.abs(255 * changes).max() == pytest.approx(most)
        lengths[run["method"], run["foreseen"]] = l2
    with_and_without = [lengths["apfgvm", foreseen] for foreseen in ("", "flip+brightness")]
    assert not np.array_equal(*with_and_without)


def test_least_change_goes_below_its_own_threshold(folder, rows, protocol, originals):
    """By the margin, judged by what a protector has: probes, not the gallery."""
    row = chosen(rows, method="apfgvm", fit=ONE, foreseen="", test=ONE, far="0.1")[0]
    kept = photos_of(folder, row)
    own = gallery_of(protocol, originals, 1, "probes")
    changed = [name for name in kept if not np.array_equal(kept[name], originals[name])]
    assert changed
    scores = {n: float(embed(kept[n][None], 1)[0] @ own[person(n)]) for n in kept}
    before = {n: float(embed(originals[n][None], 1)[0] @ own[person(n)]) for n in kept}
    goal = threshold_of(protocol, originals, 1, own, 0.1) - 0.05
    assert all(scores[name] < before[name] for name in changed)
    assert any(scores[name] < goal < before[name] for name in changed)


def test_goals_know_the_probes_alone(pictures, workplace, monkeypatch):
    """The threshold that is gone by is not the stranger's, who has the galleries."""
    goals, protect = [], fitting.perturb_on_grid

    def watched(surrogates, *rest, **static):
        goals.append([float(value[0]) for value in surrogates.thresholds])
        return protect(surrogates, *rest, **static)

    monkeypatch.setattr(fitting, "perturb_on_grid", watched)
    given = quick(pictures, f"--fit={ONE}+{TWO}", "--methods=apfgvm", "--margin=0.05")
    assert transfer.main(given) == 0
    folder, photos = workplace / "runs/transfer", originals_of(pictures)
    protocol = json.loads((folder / "protocol.json").read_text())
    for goal, (test, seed) in zip(goals[0], ((ONE, 1), (TWO, 2)), strict=True):
        own = gallery_of(protocol, photos, seed, "probes")
        expected = threshold_of(protocol, photos, seed, own, 0.1) - 0.05
        assert goal == pytest.approx(expected, abs=1e-5)
        row = chosen(rows_of(folder), test=test, far="0.1", compared="gallery")[0]
        assert abs(goal - (float(row["threshold"]) - 0.05)) > 1e-3


def test_averaging_opponent_agrees_with_kept_photos(folder, rows, protocol, originals):
    found = [row for row in rows if row["opponent"]]
    assert {row["opponent"] for row in found} == {"averages 2 photos"}
    assert {row["method"] for row in found} == {"mifgvm", "pgd", "apfgvm", "blur"}
    differ = 0
    galleries = {test: gallery_of(protocol, originals, n) for test, n in ((ONE, 1), (TWO, 2))}
    for row in chosen(found, far="0.1"):
        gallery, seed = galleries[row["test"]], 1 if row["test"] == ONE else 2
        kept = photos_of(folder, row)
        hidden = {"protected": 0, "unprotected": 0}
        for who, centre in gallery.items():
            # Three photos of each person: one pair, and one left over.
            first = sorted(name for name in kept if person(name) == who)[:2]
            for column, photos in (("protected", kept), ("unprotected", originals)):
                mean = unit(embed(np.stack([photos[name] for name in first]), seed).mean(0))
                hidden[column] += float(mean @ centre) < float(row["threshold"])
        assert (row["num_images"], row["kept"]) == ("3", "")
        for column, number in hidden.items():
            assert float(row[column]) == pytest.approx(number / 3)
        differ += hidden["protected"] != hidden["unprotected"]
    assert differ
