"""What `per_image.csv` holds, and that the rates of `transfer.csv` follow from it."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from experiments import transfer
from tests.experiments.transfer_helpers import (
    FARS,
    ONE,
    TWO,
    arguments,
    chosen,
    embed,
    gallery_of,
    person,
    photos_of,
    threshold_of,
    unit,
)

# Whole commands.
pytestmark = pytest.mark.slow

RUN = ("fit", "method", "foreseen", "psnr", "epsilon")
COLUMNS = [
    *RUN,
    "test",
    "fitted",
    "image",
    "l2",
    "psnr_image",
    "ssim",
    "score",
    *(f"protected_at_{far}" for far in FARS),
    "rank",
    "score_protected",
]
SEEDS = {ONE: 1, TWO: 2}


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """The output of one run; not to be changed."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    given = arguments(
        pictures,
        f"--test={ONE},{TWO}",
        "--methods=mifgvm,apfgvm,mifgsm,blur",
        "--psnr=20,30",
        "--epsilon=8/255",
        "--transformations=none",
        "--average=0",
        "--classifiers=model_a",
        "--keep_images",
        f"--output_dir={folder}",
    )
    assert transfer.main(given) == 0
    return folder


def _run(row):
    return tuple(row[name] for name in RUN)


def _mean(values):
    return pytest.approx(np.mean(list(values)))


def test_every_run_judge_and_protected_photo_has_one_line(rows, lines, protocol):
    assert list(lines[0]) == COLUMNS
    runs = {_run(row) for row in rows}
    assert len(runs) == 1 + 2 + 1 + 3 + 4
    expected = itertools.product(runs, (ONE, TWO, "model_a"), protocol["protected"])
    found = [(_run(line), line["test"], line["image"]) for line in lines]
    assert sorted(found) == sorted(expected)
    for line in lines:
        assert line["fitted"] == str(line["fit"] == ONE == line["test"])


def test_rates_and_distortions_of_the_table_follow(rows, lines):
    shares = set()
    for row in chosen(rows, transformation="none", opponent=""):
        own = chosen(lines, test=row["test"], **{name: row[name] for name in RUN})
        assert row["num_images"] == str(len(own)) == "9"
        if row["compared"] == "gallery":
            flags = [line[f"protected_at_{row['far']}"] for line in own]
            assert set(flags) <= {"True", "False"}
            assert float(row["protected"]) == _mean(flag == "True" for flag in flags)
            below = [float(line["score"]) < float(row["threshold"]) for line in own]
            assert [str(flag) for flag in below] == flags
            assert float(row["score"]) == _mean(float(line["score"]) for line in own)
        elif row["compared"] == "protected":
            scores = [float(line["score_protected"]) for line in own]
            assert float(row["protected"]) == _mean(s < float(row["threshold"]) for s in scores)
            assert float(row["score"]) == _mean(scores)
        else:
            assert row["test"] == "model_a"
            assert float(row["protected"]) == _mean(line["rank"] != "1" for line in own)
            assert {line["score"] for line in own} == {""}
        if row["rank1"]:
            for most in (1, 5):
                share = _mean(int(line["rank"]) <= most for line in own)
                assert float(row[f"rank{most}"]) == share
        ratios = [float(line["psnr_image"]) for line in own]
        assert float(row["psnr_min"]) == pytest.approx(min(ratios))
        changed = [ratio for ratio in ratios if np.isfinite(ratio)]
        if changed:
            assert float(row["psnr_mean"]) == pytest.approx(np.mean(changed))
        else:
            assert row["psnr_mean"] == ""
        for name in ("l2", "ssim"):
            assert float(row[name]) == _mean(float(line[name]) for line in own)
        shares.add(row["protected"])
    assert len(shares) > 4


def test_lines_agree_with_kept_photos(folder, lines, protocol, originals):
    for test, seed in SEEDS.items():
        gallery = gallery_of(protocol, originals, seed)
        for run in dict.fromkeys(map(_run, lines)):
            own = chosen(lines, test=test, **dict(zip(RUN, run, strict=True)))
            kept = originals if run[1] == "none" else photos_of(folder, own[0])
            kept = {name: kept[name] for name in protocol["protected"]}
            for line in own:
                name = line["image"]
                change = (kept[name].astype(float) - originals[name]) / 255
                assert float(line["l2"]) == pytest.approx(np.linalg.norm(change), abs=1e-4)
                with np.errstate(divide="ignore"):
                    ratio = -10 * np.log10(np.mean(np.square(change)))
                assert float(line["psnr_image"]) == pytest.approx(ratio, abs=1e-3)
                scores = {
                    w: float(embed(kept[name][None], seed)[0] @ c) for w, c in gallery.items()
                }
                own_score = scores[person(name)]
                assert float(line["score"]) == pytest.approx(own_score, abs=1e-5)
                assert int(line["rank"]) == sum(s >= own_score for s in scores.values())
                others = [n for n in kept if person(n) == person(name) and n != name]
                centre = unit(embed(np.stack([kept[n] for n in others]), seed).mean(0))
                expected = float(embed(kept[name][None], seed)[0] @ centre)
                assert float(line["score_protected"]) == pytest.approx(expected, abs=1e-5)


def _jpeg75(photo):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=75, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def test_kept_is_of_what_was_protected_before(folder, rows, lines, protocol, originals):
    """Photo by photo; beside it, what the recogniser misses of the same photos unchanged."""
    seen, below_one = 0, 0
    for (test, seed), far in itertools.product(SEEDS.items(), FARS):
        gallery = gallery_of(protocol, originals, seed)
        threshold = threshold_of(protocol, originals, seed, gallery, far)

        def hidden(photo, name, gallery=gallery, seed=seed, threshold=threshold):
            return float(embed(photo[None], seed)[0] @ gallery[person(name)]) < threshold

        wanted = {"test": test, "far": str(far), "compared": "gallery"}
        for row in chosen(rows, transformation="jpeg75", **wanted):
            own = chosen(lines, test=test, **{name: row[name] for name in RUN})
            kept = originals if row["method"] == "none" else photos_of(folder, row)
            after = {n: hidden(_jpeg75(kept[n]), n) for n in protocol["protected"]}
            still = [after[x["image"]] for x in own if x[f"protected_at_{far}"] == "True"]
            assert float(row["protected"]) == pytest.approx(sum(after.values()) / 9)
            if still:
                assert float(row["kept"]) == pytest.approx(np.mean(still))
                below_one += np.mean(still) < 1
            else:
                assert row["kept"] == ""
            missed = [hidden(_jpeg75(originals[n]), n) for n in protocol["protected"]]
            assert float(row["unprotected"]) == pytest.approx(np.mean(missed))
            seen += 1
    assert seen == 2 * 2 * 11 and below_one
    for row in chosen(rows, method="none", opponent=""):
        assert row["protected"] == row["unprotected"]
    for row in chosen(rows, transformation="none", opponent=""):
        assert row["kept"] == ("1.0" if float(row["protected"]) else "")
