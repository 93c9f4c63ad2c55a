import re

import numpy as np
import pytest

from experiments import transfer
from tests.experiments.transfer_helpers import (
    FARS,
    ONE,
    TWO,
    arguments,
    chosen,
    quick,
    rows_of,
    tables_of,
)

# Whole commands.
pytestmark = pytest.mark.slow

# Of least perturbations the mean PSNR is above the first, most photos' are below.
PSNRS = (18, 24)


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """The output of one run of everything; not to be changed."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    given = arguments(
        pictures,
        f"--test={ONE},{TWO}",
        "--methods=mifgvm,pgd,apfgvm,blur",
        f"--psnr={PSNRS[0]},{PSNRS[1]}",
        "--epsilon=3.6/255",
        "--transformations=flip+brightness",
        "--num_samples=2",
        "--average=2",
        "--margin=0.05",
        f"--output_dir={folder}",
    )
    assert transfer.main(given) == 0
    return folder


def key_of(row):
    """The report's cells that name a run."""
    if row["method"] == "none":
        return ["unprotected", "–", "–", "–"]
    budget = "least perturbation"
    if row["psnr"]:
        budget = f"{float(row['psnr']):g} dB"
    if row["epsilon"]:
        budget = f"ε = {255 * float(row['epsilon']):g}/255"
    return [row["method"], row["foreseen"] or "–", row["fit"] or "–", budget]


def percent(text):
    return f"{100 * float(text):.1f} %"


def test_every_number_of_the_report_is_in_the_table(folder, rows, lines):
    tables = tables_of((folder / "transfer.md").read_text())
    assert {heading: len(body) for heading, (_, body) in tables.items()} == {
        "The recognisers on clean photos": 2,
        "Protected, at FAR 10 %": 11,
        "Protected, at FAR 5 %": 11,
        "Compared with other protected photos, at FAR 10 %": 11,
        "Ranked among all persons": 11,
        f"Judged by {ONE}": 11,
        f"Judged by {TWO}": 11,
        "Opponents who adapt, at FAR 10 %": 20,
        "How visible": 10,
        "Least perturbations: protected and within a budget, at FAR 10 %": 2,
    }
    for heading, (head, body) in tables.items():
        for cells in body:
            _check_cells(heading, dict(zip(head, cells, strict=True)), rows, lines)


def _check_cells(heading, values, rows, lines):
    """Compares one line of a table of the report."""
    if heading == "The recognisers on clean photos":
        for far in FARS:
            (row,) = chosen(
                rows,
                method="none",
                test=values["recogniser"],
                transformation="none",
                compared="gallery",
                far=str(far),
            )
            assert (
                values[f"threshold at FAR {100 * far:g} %"] == f"{float(row['threshold']):.3f}"
            )
            missed = values[f"unchanged photos missed at FAR {100 * far:g} %"]
            assert missed == percent(row["protected"])
        assert values["AUC"] == f"{float(row['auc']):.4f}"
        assert values["same/different accuracy"] == f"{float(row['accuracy']):.3f}"
        assert values["ranked first"] == percent(row["rank1"])
        return
    named = [values[name] for name in ("method", "foresees", "fitted on", "budget")]
    own = [row for row in rows if key_of(row) == named]
    assert own, named
    if heading.startswith("Least perturbations"):
        _check_least(named, values, lines)
        return
    if heading == "How visible":
        row = own[0]
        assert values["mean L2"] == f"{float(row['l2']):.3f}"
        assert values["lowest PSNR"] == f"{float(row['psnr_min']):.2f}".replace("inf", "∞")
        assert values["mean SSIM"] == f"{float(row['ssim']):.4f}"
        if row["psnr_mean"]:
            assert values["mean PSNR"] == f"{float(row['psnr_mean']):.2f}"
        return
    if heading.startswith("Opponents"):
        own = chosen(own, test=values["recogniser"], far="0.1", compared="gallery")
        (row,) = chosen(own, opponent=values["opponent"])
        assert values["protected"] == with_interval(row)
        assert values["photos"] == row["num_images"]
        assert values["unprotected"] == percent(row["unprotected"])
        (before,) = chosen(own, opponent="", transformation="none")
        assert values["protected before"] == with_interval(before)
        return
    own = chosen(own, opponent="")
    if heading.startswith("Judged by "):
        own = chosen(
            own, test=heading.removeprefix("Judged by "), far="0.1", compared="gallery"
        )
        (before,), (after,) = (chosen(own, transformation=kind) for kind in ("none", "jpeg75"))
        assert values["unprocessed"] == percent(before["protected"]) + star(before)
        kept = f" ({100 * float(after['kept']):.0f} %)" if after["kept"] else " (–)"
        is_attack = before["method"] not in ("none", "blur")
        assert values["jpeg75"] == percent(after["protected"]) + kept * is_attack
        return
    own = chosen(own, transformation="none")
    for test in (ONE, TWO):
        of_test = chosen(own, test=test)
        if heading == "Ranked among all persons":
            (row,) = chosen(of_test, far="0.1", compared="gallery")
            expected = f"{percent(row['rank1'])}{star(row)} ({percent(row['rank5'])})"
        else:
            compared = "protected" if heading.startswith("Compared") else "gallery"
            far = "0.05" if heading.endswith("FAR 5 %") else "0.1"
            (row,) = chosen(of_test, far=far, compared=compared)
            expected = with_interval(row)
        assert values[test] == expected


def _check_least(named, values, lines):
    """Photo by photo: protected, and at no less than the budget."""
    name, _, mark = values["recogniser"].partition(" ")
    own = [line for line in lines if key_of(line) == named and line["test"] == name]
    assert len(own) == 9
    if mark:
        assert np.mean([float(line["psnr_image"]) for line in own]) > PSNRS[0]
    assert mark == {"True": "*", "False": ""}[own[0]["fitted"]]
    hidden = [line for line in own if line["protected_at_0.1"] == "True"]
    assert values["protected"] == percent(len(hidden) / 9)
    for budget in PSNRS:
        both = sum(float(line["psnr_image"]) >= budget for line in hidden)
        assert values[f"and at ≥ {budget} dB"] == percent(both / 9)
        assert not mark or 0 < both < len(hidden)


def star(row):
    return " *" if row["test"] in row["fit"].split("+") else ""


def with_interval(row):
    """The wider of the two intervals."""
    both = [[float(row[name + end]) for end in ("low", "high")] for name in ("", "person_")]
    widest = max(both, key=lambda ends: ends[1] - ends[0])
    bounds = [f"{100 * end:.0f}" for end in widest]
    return f"{percent(row['protected'])}{star(row)} [{bounds[0]}–{bounds[1]}]"


def test_report_says_what_it_means_and_promises_nothing(folder):
    text = (folder / "transfer.md").read_text()
    assert "safe" not in text.lower()
    for words in (
        "false\naccept rate (FAR) of 1 %",
        "never looked at",
        "still knows who it is",
        # Who has which photos, and what the intervals cover.
        "they set the thresholds that\nthe stranger goes by",
        "guesses it from the probes alone",
        "Wilson's tells how far chance in the choice of photos reaches",
        "a bootstrap over persons",
        "of the photos that were protected unprocessed, how many still are",
    ):
        assert words in text
    # Percentages have a space everywhere.
    assert not re.search(r"\d%", text)


def test_terminal_names_recognisers_in_full_and_marks_those_fitted_on(
    pictures, workplace, capsys
):
    given = quick(pictures, f"--test={TWO},{ONE}", f"--fit={ONE},{ONE}+{TWO}")
    assert transfer.main(given) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Protected at FAR 10 %" in out and "…" not in out
    lines = out.splitlines()
    assert f"  recogniser 1: {TWO}" in lines and f"  recogniser 2: {ONE}" in lines
    assert max(map(len, lines)) <= 80
    rows = chosen(
        rows_of(workplace / "runs/transfer"),
        far="0.1",
        compared="gallery",
        transformation="none",
    )
    for fit, fitted, marks in (
        ("", "–", ("", "")),
        (ONE, "2", ("", " *")),
        (f"{ONE}+{TWO}", "2+1", (" *", " *")),
    ):
        expected = ["unprotected", "–", "–", "–"]
        if fit:
            expected = ["mifgvm", "–", fitted, "30 dB"]
        for test, mark in zip((TWO, ONE), marks, strict=True):
            (row,) = chosen(rows, fit=fit, test=test)
            expected.append(f"{100 * float(row['protected']):.1f}{mark}")
        assert expected in [re.split(r"  +", line.strip()) for line in lines]
