import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deid_jax.reports.comparison import Estimate
from experiments import aggregate
from tests.experiments.conftest import COMMON, finish, listing, process
from tests.reports.runs_helpers import read_csv, write_attack, write_sweep

OUTPUTS = ["config.json", "report.html", "table.csv", "table.md"]
PICTURE_PNG = b"\x89PNG\r\n\x1a\nthe frontier"

# PAPER.md's table: (method, model) -> L2, SI, MR in per cent.
PAPER = {
    ("pfgvm", "model_a"): (3.38, 0.986, 99.6), ("pfgvm", "vgg16"): (2.11, 0.995, 96.0),
    ("ifgvm", "model_a"): (5.31, 0.963, 99.4), ("ifgvm", "vgg16"): (2.67, 0.993, 93.2),
    ("ifgsm", "model_a"): (5.68, 0.962, 98.9), ("ifgsm", "vgg16"): (5.74, 0.968, 94.4),
}  # fmt: skip
PAPER_GAINS = {
    "gain over I-FGVM": (36.3, 2.3, 0.2, 20.9, 0.2, 3.0),
    "gain over I-FGSM": (40.4, 2.4, 0.7, 63.2, 2.7, 1.7),
}


# (method, settings, figures) of the points of a sweep.
SWEPT = [
    ("pfgvm", {"penalty_weight": 1.0, "num_steps": 50}, {"l2": 1.5, "mr": 0.98}),
    ("pfgvm", {"penalty_weight": 0.3, "num_steps": 50}, {"l2": 2.5, "mr": 1.0}),
    ("ifgvm", {"epsilon": 0.1, "num_steps": 50}, {"l2": 3.0, "mr": 1.0}),
    ("ifgvm", {"epsilon": float("inf"), "num_steps": 50}, {"l2": 4.0, "mr": 1.0}),
]


@pytest.fixture
def drawn(monkeypatch):
    """Stands in for the frontier's picture: the points that it was asked to draw."""
    asked = []

    def draw(points):
        asked.append(list(points))
        return PICTURE_PNG

    monkeypatch.setattr(aggregate, "draw_frontier", draw)
    return asked


@pytest.fixture
def runs(workplace, drawn):
    """Two attack runs that can be compared."""
    ours = write_attack(workplace / "runs/ours", config={"penalty_weight": 1.0})
    Image.fromarray(np.full((8, 9, 3), 200, np.uint8)).save(ours / "sheet.png")
    settings = {"epsilon": "inf"}
    write_attack(workplace / "runs/other", "ifgvm", l2=4.0, config=settings, seed=1)
    return workplace / "runs"


def rows_of(path="out/table.csv"):
    return read_csv(Path(path))


def tables_of(text):
    """[{first cell: the other cells}] of the tables of a Markdown text."""
    tables = [block for block in text.strip().split("\n\n") if block.startswith("|")]
    return [
        {
            cells[0]: cells[1:]
            for cells in (
                [cell.strip() for cell in line[1:-1].split(" | ")] for line in table.split("\n")
            )
        }
        for table in tables
    ]


def aggregate_main(*flags, runs="runs"):
    return aggregate.main([f"--runs={runs}", "--output_dir=out", *flags])


def figures_in(cells):
    """The figures of a row without their intervals, and without the settings."""
    return [cell.partition(" [")[0] for cell in cells if "recorded" not in cell and cell]


@pytest.mark.parametrize("is_bare", [True, False])
@pytest.mark.slow
def test_the_papers_figures_give_the_papers_gains(workplace, drawn, capsys, is_bare):
    for (method, model), (l2, mssim, mr) in PAPER.items():
        folder = workplace / "runs" / f"{model}-{method}"
        figures = {"l2": l2, "mssim": mssim, "mr": mr / 100, "n": 1000, "split": "all"}
        write_attack(folder, method, model, **figures)
        path = folder / "metrics.json"
        entries = json.loads(path.read_text())
        del entries["linf_uint8"], entries["num_forwards"]  # Not every program writes these.
        path.write_text(json.dumps(entries))
        if is_bare:
            (folder / "config.json").unlink()
            (folder / "per_image.csv").unlink()
    assert aggregate_main() == 0
    tables = tables_of((workplace / "out/table.md").read_text("utf-8"))
    assert len(tables) == 2
    for table in tables:
        assert list(table) == ["", ":" + 15 * "-", "P-FGVM", "I-FGVM", "I-FGSM", *PAPER_GAINS]
        for method, name in (("pfgvm", "P-FGVM"), ("ifgvm", "I-FGVM"), ("ifgsm", "I-FGSM")):
            assert figures_in(table[name]) == [
                text
                for model in ("model_a", "vgg16")
                for l2, mssim, mr in [PAPER[method, model]]
                for text in (f"{l2:.2f}", f"{mssim:.3f}", f"{mr:.1f} %")
            ]
        for name, gains in PAPER_GAINS.items():
            printed = [float(text.removesuffix(" %")) for text in figures_in(table[name])]
            # The paper cuts more often than it rounds.
            assert np.abs(np.subtract(printed, gains)).max() <= 0.1 + 1e-9
    out, err = capsys.readouterr()
    assert err == ""
    assert "36.3 %" in out
    assert max(map(len, out.splitlines())) <= 80
    wilson = 0.98977, 0.99845  # 996 of 1000, by the closed form.
    row = rows_of()[0]
    assert (row["method"], row["mr"]) == ("pfgvm", "0.996")
    assert float(row["mr_low"]) == pytest.approx(wilson[0], abs=1e-4)
    assert float(row["mr_high"]) == pytest.approx(wilson[1], abs=1e-4)
    assert (row["l2_low"] == "") == is_bare


def test_attack_runs_as_they_were_run(runs, workplace, drawn, capsys):
    assert aggregate_main() == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "8-bit images, as run" in out
    assert out.endswith("Runs: 2, points: 2. Tables and report: out\n")
    assert sorted(path.name for path in (workplace / "out").iterdir()) == OUTPUTS
    text = (workplace / "out/table.md").read_text("utf-8")
    assert "20 images of folder (faces), split test, 64 px, crop auto, seed 0" in text
    assert "Not recorded" not in text
    table = tables_of(text)[0]
    assert re.fullmatch(r"2\.00 \[\d\.\d\d, \d\.\d\d\]", table["P-FGVM"][0])
    assert table["P-FGVM"][3] == "λ 1"
    assert table["I-FGVM"][3] == "ε inf"
    assert table["gain over I-FGVM"][0].startswith("50.0 % [")
    page = (workplace / "out/report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert page.count("data:image/webp;base64,") == 1
    assert sorted(point.method for point in drawn[0]) == ["ifgvm", "pfgvm"]
    description = json.loads((workplace / "out/config.json").read_text())
    assert description["settings"]["runs"] == "runs"
    assert description["runs"] == ["runs/other", "runs/ours"]


def test_sweeps_stand_at_matched_rates(workplace, drawn, capsys):
    write_sweep(workplace / "sweep", SWEPT)
    write_attack(workplace / "blur", "blur", n=50, mr=0.7, config={"blur_sigma": 0.1})
    assert aggregate_main(runs="sweep,blur") == 0
    assert "8-bit images, at MR ≥ 99 %" in capsys.readouterr().out
    text = (workplace / "out/table.md").read_text("utf-8")
    headings = re.findall("^## (.*)$", text, re.M)
    assert headings == [
        f"{kind}, at MR ≥ {rate} %"
        for kind in ("8-bit images", "Float results")
        for rate in ("99", "99.5")
    ]
    table = tables_of(text)[0]
    assert table["P-FGVM"][0].startswith("2.50 [")
    assert table["P-FGVM"][3] == "λ 0.3, 50 steps"
    assert table["I-FGVM"][3] == "ε 0.1, 50 steps"
    assert table["blur"] == ["– (best MR 70.0 %)", "–", "–", ""]
    assert table["gain over I-FGVM"][0].startswith("16.7 % [")
    assert len(drawn[0]) == 5
    rows = rows_of()
    assert [(row["kind"], row["min_mr"], row["method"]) for row in rows] == [
        (kind, rate, method)
        for kind in ("uint8", "float")
        for rate in ("0.99", "0.995")
        for method in ("pfgvm", "ifgvm", "blur")
    ]
    assert (rows[0]["penalty_weight"], rows[0]["epsilon"], rows[0]["source"]) == (
        "0.3", "", "sweep",
    )  # fmt: skip
    assert rows[1]["gain_l2"] == repr(0.5 / 3)
    assert (rows[2]["l2"], rows[2]["source"], rows[2]["best_mr"]) == ("", "", "0.7")


def test_rates_may_be_chosen(workplace, drawn):
    write_sweep(workplace / "sweep", SWEPT)
    assert aggregate_main("--min_mr=0.5, 1,0.50", runs="sweep") == 0
    rows = rows_of()
    assert [row["min_mr"] for row in rows] == ["0.5", "0.5", "1", "1"] * 2
    assert [row["l2"] for row in rows[:4]] == ["1.5", "3.0", "2.5", "3.0"]


def test_the_tables_kind_decides_which_setting_is_chosen(workplace, drawn):
    points = [
        ("pfgvm", {"penalty_weight": 1.0}, {"l2": 1.0, "mr": 1.0, "uint8_mr": 0.5}),
        ("pfgvm", {"penalty_weight": 0.5}, {"l2": 2.0, "mr": 1.0}),
    ]
    write_sweep(workplace / "sweep", points)
    assert aggregate_main("--min_mr=0.9", runs="sweep") == 0
    assert [(row["kind"], row["penalty_weight"]) for row in rows_of()] == [
        ("uint8", "0.5"),
        ("float", "1.0"),
    ]


def test_runs_are_found_below_a_folder_and_hidden_ones_are_not(runs, workplace, drawn):
    shutil.move(runs / "other", runs / "deep/er/other")
    (runs / "train").mkdir()
    (runs / "train/history.csv").write_text("epoch\n1\n")
    write_attack(runs / ".unfinished/x", split="all")
    write_attack(runs / "ours/images/x", split="all")  # Not below a run.
    (runs / "deep/loop").symlink_to(runs, target_is_directory=True)
    assert aggregate_main() == 0
    assert {row["source"] for row in rows_of()} == {"runs/ours", "runs/deep/er/other"}


def test_the_same_command_writes_the_same_bytes(runs, workplace, drawn):
    written = []
    for _ in range(2):
        assert aggregate_main() == 0
        written.append(listing(workplace / "out"))
    assert written[0] == written[1]
    assert aggregate_main("--seed=1") == 0
    assert listing(workplace / "out") != written[0]


def test_confidence_widens_the_intervals(runs, workplace, drawn):
    widths = []
    for confidence in ("0.8", "0.99"):
        assert aggregate_main(f"--confidence={confidence}") == 0
        row = rows_of()[0]
        widths.append([float(row[f"{name}_high"]) - float(row[f"{name}_low"])
                       for name in ("l2", "mssim", "mr")])  # fmt: skip
    assert np.all(np.array(widths[1]) > np.array(widths[0]))
    assert "99 % intervals" in (workplace / "out/table.md").read_text("utf-8")


def test_no_place_of_the_machine_is_told(runs, workplace, drawn):
    assert aggregate_main() == 0
    for path in (workplace / "out").iterdir():
        text = path.read_text("utf-8")
        assert "/secret" not in text
        assert str(workplace) not in text


def test_run_returns_the_tables_and_needs_only_metrics(runs, workplace, drawn):
    for name in ("config.json", "per_image.csv", "sheet.png"):
        (runs / "ours" / name).unlink()
    settings = aggregate.AggregateSettings(runs="runs", output_dir="out")
    eight, real = aggregate.run(settings)
    assert (eight.kind, real.kind) == ("uint8", "float")
    assert real.entries["pfgvm", "model_a"].estimates.l2 == Estimate(2.0)
    assert real.gains["ifgvm", "model_a"].l2 == Estimate(0.5)
    text = (workplace / "out/table.md").read_text("utf-8")
    assert "images, image_size, seed, quantize, crop, data_dir" in text
    assert "(in runs/ours)." in text


def test_attributes_are_shown_wherever_they_lie(runs, workplace, drawn, capsys):
    (runs / "attributes").mkdir()
    (runs / "attributes/attributes.csv").write_text("attribute,agreement\nsmiling,0.93\n")
    description = runs / "attributes/config.json"
    description.write_text('{"data": {"dataset": "celeba", "split": "test"}}')
    assert aggregate_main() == 2
    assert "cannot be compared: dataset is celeba and" in capsys.readouterr().err
    description.unlink()
    assert aggregate_main() == 0
    page = (workplace / "out/report.html").read_text("utf-8")
    assert "Attributes: runs/attributes" in page
    assert "<td>smiling</td>" in page


def test_earlier_tables_are_replaced_and_strangers_are_left_alone(runs, workplace, drawn):
    assert aggregate_main() == 0
    (workplace / "out/notes.txt").write_text("mine")
    shutil.rmtree(runs / "other")
    assert aggregate_main() == 0
    assert len(rows_of()) == 2
    assert (workplace / "out/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_what_the_other_commands_write_is_read(trained, faces, workplace, capsys):
    """The whole way as a user goes it: attack, sweep, aggregate."""
    from experiments import attack, sweep

    common = [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}", "--split=all"]
    assert attack.main([*common, "--method=blur", "--output_dir=runs/blur"]) == 0
    flags = ["--method=pfgvm,ifgvm,ifgsm", "--sweep=num_steps=1,3", "--output_dir=runs/sweep"]
    assert sweep.main([*common, *flags]) == 0
    capsys.readouterr()
    status, out, err = finish(
        process("aggregate", "--runs=runs", "--min_mr=0.1", cwd=workplace)
    )
    assert (status, err) == (0, "")
    assert "8-bit images, at MR ≥ 10 %" in out
    folder = workplace / "runs/aggregate"
    assert sorted(path.name for path in folder.iterdir()) == OUTPUTS
    text = (folder / "table.md").read_text("utf-8")
    assert "18 images of folder (faces), split all, 16 px, crop auto, seed 0" in text
    assert "Not recorded" not in text
    swept = rows_of("runs/sweep/sweep.csv")
    figures = json.loads((workplace / "runs/blur/metrics.json").read_text())
    for row in rows_of(folder / "table.csv"):
        suffix = "_uint8" if row["kind"] == "uint8" else ""
        l2 = [
            float(point["l2" + suffix])
            for point in [figures, *swept]
            if point["method"] == row["method"] and float(point["mr" + suffix]) >= 0.1
        ]
        assert row["l2"] == (repr(min(l2)) if l2 else "")
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert page.count("data:image/webp;base64,") == 4
    assert str(faces.parent) not in page + text
