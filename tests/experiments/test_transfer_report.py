import re

import pytest

from experiments import transfer
from tests.experiments.conftest import write_faces
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


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Output folder and rows of one run of everything; not to be changed."""
    pictures = write_faces(tmp_path_factory.mktemp("data") / "faces", pictures=12)
    folder = tmp_path_factory.mktemp("transfer") / "run"
    given = arguments(
        pictures,
        f"--test={ONE},{TWO}",
        "--methods=mifgvm,pgd,apfgvm,blur",
        "--psnr=30",
        "--epsilon=3.6/255",
        "--transformations=flip+brightness",
        "--num_samples=2",
        "--average=2",
        "--margin=0.05",
        f"--output_dir={folder}",
    )
    assert transfer.main(given) == 0
    return folder, rows_of(folder)


def key_of(row):
    """The report's cells that name a run."""
    if row["method"] == "none":
        return ["unprotected", "–", "–", "–"]
    budget = "least change"
    if row["psnr"]:
        budget = f"{float(row['psnr']):g} dB"
    if row["epsilon"]:
        budget = f"ε = {255 * float(row['epsilon']):g}/255"
    return [row["method"], row["foreseen"] or "–", row["fit"] or "–", budget]


def percent(text):
    return f"{100 * float(text):.1f} %"


def test_every_number_of_the_report_is_in_the_table(done):
    folder, rows = done
    tables = tables_of((folder / "transfer.md").read_text())
    assert {heading: len(body) for heading, (_, body) in tables.items()} == {
        "The recognisers on clean photos": 2,
        "Protected, at FAR 10 %": 6,
        "Protected, at FAR 5 %": 6,
        "Compared with other protected photos, at FAR 10 %": 6,
        "Named among all": 6,
        f"Judged by {ONE}": 6,
        f"Judged by {TWO}": 6,
        "Opponents who adapt, at FAR 10 %": 10,
        "How visible": 5,
    }
    for heading, (head, body) in tables.items():
        for cells in body:
            _check_cells(heading, dict(zip(head, cells, strict=True)), rows)


def _check_cells(heading, values, rows):
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
        assert values["named first"] == percent(row["rank1"])
        return
    named = [values[name] for name in ("method", "foresees", "fitted on", "budget")]
    own = [row for row in rows if key_of(row) == named]
    assert own, named
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
        shares = [float(row["protected"]) for row in (before, after)]
        kept = f" ({100 * shares[1] / shares[0]:.0f} %)" if shares[0] else " (–)"
        is_attack = before["method"] not in ("none", "blur")
        assert values["jpeg75"] == percent(after["protected"]) + kept * is_attack
        return
    own = chosen(own, transformation="none")
    for test in (ONE, TWO):
        of_test = chosen(own, test=test)
        if heading == "Named among all":
            (row,) = chosen(of_test, far="0.1", compared="gallery")
            expected = f"{percent(row['rank1'])}{star(row)} ({percent(row['rank5'])})"
        else:
            compared = "protected" if heading.startswith("Compared") else "gallery"
            far = "0.05" if heading.endswith("FAR 5 %") else "0.1"
            (row,) = chosen(of_test, far=far, compared=compared)
            expected = with_interval(row)
        assert values[test] == expected


def star(row):
    return " *" if row["test"] in row["fit"].split("+") else ""


def with_interval(row):
    bounds = [f"{100 * float(row[end]):.0f}" for end in ("low", "high")]
    return f"{percent(row['protected'])}{star(row)} [{bounds[0]}–{bounds[1]}]"


def test_report_says_what_it_means_and_promises_nothing(done):
    text = (done[0] / "transfer.md").read_text()
    assert "safe" not in text.lower()
    for words in (
        "false\naccept rate (FAR) of 1 %",
        "never looked at",
        "still\nknows who it is",
    ):
        assert words in text
    # Percentages have a space everywhere.
    assert not re.search(r"\d%", text)


def test_terminal_names_recognisers_in_full_and_marks_those_fitted_on(workplace, capsys):
    pictures = write_faces(workplace / "faces", pictures=12)
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
