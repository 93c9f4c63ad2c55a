import numpy as np
import pytest

from deid_jax.reports import drawing, sheet
from deid_jax.reports.drawing import TILE
from deid_jax.reports.sheet import SheetRow, draw_sheet
from tests.reports.runs_helpers import point


def make_row(change=0, true_name="Ada", before="Ada", after="Bob", value=100):
    original = np.full((8, 8, 3), value, np.uint8)
    modified = (original.astype(int) + change).astype(np.uint8)
    return SheetRow(original, modified, true_name, (before, 0.871), (after, 0.5))


@pytest.mark.parametrize(
    ("change", "factor"),
    [(0, 100), (1, 100), (12, 10), (64, 1), (150, 1)],
)
def test_amplification_fills_half_the_range_at_most(change, factor):
    assert sheet.amplification([make_row(change)]) == factor


def test_amplification_is_that_of_the_strongest_row():
    assert sheet.amplification([make_row(1), make_row(25)]) == 5


def test_amplified_is_grey_plus_the_change_times_k():
    row = make_row(-3)
    assert np.all(sheet.amplified(row, 10) == 98)  # round(127.5 − 30), to even
    assert np.all(sheet.amplified(row, 100) == 0)
    assert np.all(sheet.amplified(make_row(0), 100) == 128)


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_every_row_is_on_the_sheet(count):
    rows = [make_row(value=40 + 20 * number) for number in range(count)]
    drawn = draw_sheet(rows, caption="C")
    assert drawn.dtype == np.uint8
    for number in range(count):
        found = np.all(drawn == 40 + 20 * number, axis=-1).sum()
        assert found >= 2 * TILE * TILE  # Original and de-identified.
    assert np.all(drawn[:, -1] == 255)
    assert np.all(drawn[-1] == 255)


def _red(drawn):
    """Where the ink of wrong names is: (rows, columns)."""
    return np.nonzero(np.all(drawn == drawing.WRONG, axis=-1))


def test_wrong_names_are_red_and_right_ones_are_dark():
    drawn = draw_sheet([make_row(before="Ada", after="Ada")], caption="C")
    assert _red(drawn)[0].size == 0
    only_after = _red(draw_sheet([make_row(before="Ada", after="Bob")], caption="C"))[1]
    only_before = _red(draw_sheet([make_row(before="Bob", after="Ada")], caption="C"))[1]
    assert only_before.size
    assert only_after.size
    assert only_before.max() < only_after.min()


@pytest.mark.parametrize("name", ["W" * 300, "Anneliese von " * 9, "two\nlines\tof"])
def test_long_names_stay_below_their_tile(name):
    drawn = draw_sheet([make_row(true_name="Ada", before=name, after="Ada")], caption="C")
    columns = _red(drawn)[1]
    left = 2 * drawing.GAP
    assert columns.min() >= left
    assert columns.max() < left + TILE
    rows = _red(drawn)[0]
    assert rows.max() - rows.min() < drawing.LINE


def test_probability_is_kept_where_a_name_is_cut(monkeypatch):
    written = []
    monkeypatch.setattr(
        sheet.ImageDraw.ImageDraw, "text", lambda pen, at, text, **kw: written.append(text)
    )
    draw_sheet([make_row(before="W" * 300)], caption="C")
    assert written[:5] == ["C", "original", "de-identified", "perturbation ×100", "Ada"]
    assert written[5].startswith("predicted WWW")
    assert written[5].endswith("W... 87 %")
    assert written[6] == "predicted Bob 50 %"


def test_caption_says_how_the_images_were_made():
    made = point("pfgvm", l2=2.685, mr=0.9, settings={"penalty_weight": 0.3, "num_steps": 50})
    assert sheet.sheet_caption(made) == (
        "P-FGVM against model_a, split test: MR 90.0 % (red: misclassified), L2 2.69; λ 0.3, "
        "50 steps"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("José Müller", "José Müller"),
        ("e\u0301lodie", "élodie"),
        ("a\nb\x00", "a?b?"),
        ("", ""),
        ("~!@#$%^&*()_+ AZaz09", "~!@#$%^&*()_+ AZaz09"),
    ],
)
def test_text_stays_on_one_line(name, shown):
    assert drawing._drawable(name) == shown
