import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deid_jax.reports import report, report_files, tables
from deid_jax.reports.comparable import check_comparable
from deid_jax.reports.comparison import tables_of
from deid_jax.reports.finished_runs import AttributesTable
from deid_jax.reports.measured import FinishedRun
from deid_jax.reports.report import ComparisonReport
from tests.reports.runs_helpers import DESCRIPTION, point

# What is void in HTML has no end tag.
VOID = {"meta", "img", "br"}


def png(grey):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), grey, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def make(points, *, min_mr=None, description=DESCRIPTION, sheet=None, **more):
    """A report on points, each a run of its own."""
    runs = [
        FinishedRun(one.source, [one], description, {one: sheet} if sheet else {})
        for one in points
    ]
    if min_mr is None and len({(one.method, one.model) for one in points}) < len(points):
        min_mr = (0.99,)
    tables = tables_of(points, min_mr=min_mr)
    return ComparisonReport(tables, runs, check_comparable(runs), **more)


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def table_lines(text, number=0):
    """The lines of the n-th table of a Markdown text."""
    return [block for block in text.strip().split("\n\n") if block.startswith("|")][
        number
    ].split("\n")


class Page(html.parser.HTMLParser):
    """What a page has: text, images, tags that are opened and closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.rows = [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            separator = " | " if "small" in self.open else ""
            self.rows[-1][-1] += separator + data.strip()


def page_of(*arguments, frontier=b"", **options):
    return Page(report_files.html(make(*arguments, **options), frontier=frontier or png(9)))


def test_markdown_lines_up_and_says_what_it_compares():
    points = [
        point(l2=1.5, mssim=0.9, mr=0.975, seed=1,
              settings={"step_size": 0.1, "penalty_weight": 1.0, "num_steps": 50}),
        point("ifgvm", l2=3.0, mssim=0.8, mr=0.95, seed=2, settings={"epsilon": float("inf")}),
    ]  # fmt: skip
    text = report_files.report_markdown(make(points, seed=3))
    assert text.startswith(f"# {report.TITLE}\n\n")
    assert (
        "40 images of folder (faces), split test, 64 px, crop auto, seed 0; attacks: target "
        "random, init image; clean error: model_a 10.0 %." in text
    )
    assert "95 % intervals: Wilson's for MR; for L2, MSSIM" in text
    assert "(9999 resamples, seed 3;" in text
    assert "Not recorded" not in text
    assert "least L2" not in text
    assert re.findall("^## (.*)$", text, re.M) == [
        "8-bit images, as run",
        "Float results, as run",
    ]
    lines = table_lines(text, 1)
    assert len({len(line) for line in lines}) == 1
    header, _, ours, other, gain = map(cells_of, lines)
    assert header[1:] == ["model_a: L2", "model_a: MSSIM", "model_a: MR", "model_a: settings"]
    assert ours[0] == "P-FGVM"
    assert re.fullmatch(r"1\.50 \[1\.\d\d, 1\.\d\d\]", ours[1])
    assert re.fullmatch(r"0\.900 \[0\.8\d\d, 0\.9\d\d\]", ours[2])
    assert re.fullmatch(r"97\.5 % \[\d\d\.\d, \d\d\.\d\]", ours[3])
    assert ours[4] == "α 0.1, λ 1, 50 steps"
    assert other[4] == "ε inf"
    assert gain[0] == "gain over I-FGVM"
    assert re.fullmatch(r"50\.0 % \[\d\d\.\d, \d\d\.\d\]", gain[1])
    assert gain[3] == "2.6 %"


def test_figures_without_records_have_no_brackets_but_mr():
    text = report_files.report_markdown(make([point(l2=1.5)]))
    assert "none for L2 and MSSIM, as no run has a per_image.csv" in text
    cells = cells_of(table_lines(text, 1)[2])
    assert cells[1:3] == ["1.50", "0.950"]
    assert cells[3] == "100.0 % [91.2, 100.0]"
    assert cells[4] == "not recorded"
    assert "Gains" not in text


def test_unreached_rates_and_methods_that_were_not_run_are_said():
    points = [
        point(mr=1.0, settings={"num_steps": 1}),
        point(mr=0.9, l2=1.0, settings={"num_steps": 2}),
        point("blur", mr=0.973), point("ifgvm", "vgg16", source="b"),
    ]  # fmt: skip
    text = report_files.report_markdown(make(points, min_mr=(0.99, 0.995)))
    assert re.findall("^## (.*)$", text, re.M) == [
        f"{kind}, at MR ≥ {rate} %"
        for kind in ("8-bit images", "Float results")
        for rate in ("99", "99.5")
    ]
    assert "Settings tried against model_a: P-FGVM 2, blur 1; vgg16: I-FGVM 1." in text
    header, _, ours, other, blur = map(cells_of, table_lines(text))
    assert [name.partition(":")[0] for name in header[1:]] == ["model_a"] * 4 + ["vgg16"] * 4
    assert ours[4:6] == ["1 steps", "not run"]
    assert other[1:5] == ["not run", "–", "–", ""]
    assert blur[1:5] == ["– (best MR 97.3 %)", "–", "–", ""]


def test_what_was_not_recorded_is_named_with_its_runs():
    points = [point(source="runs/a"), point("ifgvm", source="runs/b")]
    text = report_files.report_markdown(make(points, description={}))
    assert (
        "Not recorded, and so not checked to be the same: images, image_size, seed, "
        "quantize, crop, data_dir, persons_seed, target, init, precision, recogniser "
        "(in runs/a, runs/b)." in text
    )


def test_clean_error_is_told_for_each_model():
    points = [
        point(),
        point("blur", "vgg16", clean_error=0.2),
        point("noise", "vgg16", clean_error=0.25),
        point("blur", "other", clean_error=None),
    ]
    text = report_files.report_markdown(make(points))
    assert "clean error: model_a 10.0 %, vgg16 20.0 % to 25.0 %, other not recorded." in text


def test_markup_in_names_stays_text_in_markdown():
    text = report_files.report_markdown(make([point("a|b<script>")]))
    assert "a\\|b&lt;script>" in text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"step_size": 0.1, "penalty_weight": 1.0, "num_steps": 50}, "α 0.1, λ 1, 50 steps"),
        ({"epsilon": float("inf"), "step_size": 2e-5}, "α 2e-05, ε inf"),
        ({"num_steps": 5, "penalty_weight": 0.3, "step_size": 1}, "α 1, λ 0.3, 5 steps"),
        ({"blur_sigma": 0.0123456789}, "blur_sigma 0.0123456789"),
        ({"norm": "l2"}, "norm l2"),
    ],
)
def test_settings_are_told_exactly(settings, text):
    assert report.settings_of(point(settings=settings)) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.363, "36.3 %"), (-0.0001, "0.0 %"), (-0.0123, "-1.2 %"), (1, "100.0 %")],
)
def test_rates_are_per_cent_with_one_decimal(fraction, text):
    assert tables.percent(fraction) == text


def test_records_are_tidy():
    points = [
        point(l2=1.0, mr=1.0, seed=1, settings={"penalty_weight": 1.0, "num_steps": 50}),
        point(l2=0.5, mr=0.5, seed=2, settings={"penalty_weight": 2.0, "num_steps": 50}),
        point("ifgvm", l2=2.0, seed=3, settings={"epsilon": 0.1, "num_steps": 20}),
        point("blur", mr=0.7, settings={"blur_sigma": 0.1}),
    ]
    records = report_files.csv_rows(make(points, min_mr=(0.4, 0.9)))
    assert len({tuple(record) for record in records}) == 1
    keys = [(r["kind"], r["min_mr"], r["model"], r["method"]) for r in records]
    assert keys == [
        (kind, rate, "model_a", method)
        for kind in ("uint8", "float")
        for rate in (0.4, 0.9)
        for method in ("pfgvm", "ifgvm", "blur")
    ]
    by_key = dict(zip(keys, records, strict=True))
    ours = by_key["float", 0.9, "model_a", "pfgvm"]
    assert (ours["penalty_weight"], ours["epsilon"], ours["num_steps"]) == (1.0, None, 50)
    assert (ours["l2"], ours["mr"], ours["num_images"]) == (1.0, 1.0, 40)
    assert ours["l2_low"] < 1.0 < ours["l2_high"]
    assert (ours["clean_error"], ours["source"], ours["target_rate"]) == (0.1, "pfgvm", None)
    assert ours["gain_l2"] is None
    other = by_key["float", 0.9, "model_a", "ifgvm"]
    assert other["gain_l2"] == pytest.approx(0.5)
    assert other["gain_l2_low"] < 0.5 < other["gain_l2_high"]
    assert other["gain_mr"] == 0.0
    assert "gain_mr_low" not in other
    assert by_key["float", 0.4, "model_a", "ifgvm"]["gain_l2"] == pytest.approx(0.75)
    blur = by_key["uint8", 0.9, "model_a", "blur"]
    told = {name for name, value in blur.items() if value is not None}
    assert told == {"kind", "min_mr", "model", "method", "best_mr"}
    assert blur["best_mr"] == 0.7


def test_page_stands_alone_and_is_well_formed():
    text = report_files.html(make([point(seed=1)], sheet=png(1)), frontier=png(2))
    page = Page(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"href", "srcset", "style", "onload"} & attributes.keys(), tag
    assert "url(" not in text
    assert "@import" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert [image["alt"] != "" for image in page.images] == [True, True]
    chart, sheet = (image["src"].partition(";base64,") for image in page.images)
    assert chart[0] == "data:image/png"
    assert base64.b64decode(chart[2]) == png(2)
    assert sheet[0] == "data:image/webp"
    with Image.open(io.BytesIO(base64.b64decode(sheet[2]))) as image:
        assert image.size == (6, 4)
        assert np.abs(np.asarray(image).astype(int) - 1).max() <= 3
    csp = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert csp == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_page_has_the_figures_of_the_tables():
    points = [
        point(l2=1.5, mr=0.975, seed=1, settings={"num_steps": 5}),
        point("ifgvm", l2=3.0),
    ]
    page = page_of(points)
    ours = report.rows_of(tables_of(points)[0])[0].cells[0]
    assert [
        "P-FGVM",
        *(f"{cell.text} | {cell.interval}" for cell in ours),
        "5 steps",
    ] in page.rows
    assert "8-bit images, as run" in page.text
    assert any(row and row[0] == "gain over I-FGVM" for row in page.rows)
    every = [row for row in page.rows if row and row[-1] == "ifgvm"]
    assert every == [
        ["model_a", "I-FGVM", "not recorded", "3.01", "0.940", "100.0 %", "3.00", "0.950",
         "100.0 %", "ifgvm"]
    ]  # fmt: skip


def test_page_escapes_whatever_it_is_given():
    bad = "<script>alert('1')</script>&"
    one = point(bad, bad, source=bad, settings={bad: 1.0})
    one = dataclasses.replace(one, dataset=bad, split=bad)
    text = report_files.html(
        make([one], description={"versions": {bad: bad}}, sheet=png(1),
             attributes=[AttributesTable(bad, [bad], [[bad]])]),
        frontier=png(2),
    )  # fmt: skip
    assert "<script" not in text
    page = Page(text)
    assert page.open == []
    assert page.text.count(bad) > 10


def test_sheets_have_captions_in_the_tables_order():
    points = [
        point("blur", settings={"blur_sigma": 0.1}, source="x/b"),
        point(settings={"step_size": 0.1}, source="x/a"),
    ]
    page = page_of(points, sheet=png(3))
    assert len(page.images) == 3
    ours = page.text.index("P-FGVM against model_a: α 0.1")
    assert ours < page.text.index("blur against model_a: blur_sigma 0.1")
    assert "Pictures" not in page_of(points).text


def test_versions_are_told_once_for_runs_that_share_them():
    description = {**DESCRIPTION, "versions": {"jax": "0.10.2", "flax": "0.12"}}
    points = [point(source="x/a"), point("blur", source="x/b")]
    text = page_of(points, description=description).text
    assert "x/a, x/b: jax 0.10.2, flax 0.12" in text
    assert re.search(r"report: deid_jax \S+, jax", text)
    assert "x/a, x/b: not recorded" in page_of(points).text


def test_attributes_are_shown_with_three_decimals():
    table = AttributesTable("runs/x", ["attribute", "n"], [["smiling", "0.9366666667"]])
    page = page_of([point()], attributes=[table])
    assert ["smiling", "0.937"] in page.rows
    assert "Attributes: runs/x" in page.text


def test_terminal_table_fits_80_columns_with_any_number_of_models():
    points = [
        point(method, model, l2=12.3, mr=0.975, seed=1, source=method + model,
              settings={"step_size": 0.002, "epsilon": 0.035, "num_steps": 50})
        for method in ("pfgvm", "ifgvm") for model in ("model_a", "vgg16", "[bold]x")
    ]  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report_files.for_terminal(make(points).tables[0]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("P-FGVM", "vgg16", "[bold]x", "97.5 %", "12.31", "α 0.002", "8-bit images"):
        assert words in text
    assert len(re.findall("gain over", text)) == 3
