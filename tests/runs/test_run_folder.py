import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deid_jax.errors import InputError
from deid_jax.reports.tables import metrics_table, spread_over_persons
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from tests.experiments.conftest import listing
from tests.reports.runs_helpers import means

CONTENTS = ["images", "metrics.json"]
PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def write_run(path, number, names=("a/1", "b/1")):
    with RunFolder(path, CONTENTS) as folder:
        for name in names:
            folder.write_png(f"images/{name}.png", PICTURE + np.uint8(number))
        folder.write_json("metrics.json", {"number": number})
        folder.write_json(DESCRIPTION, {"versions": {"deid_jax": "1"}})


def test_files_appear_only_when_the_run_is_whole(tmp_path):
    path = tmp_path / "deep" / "run"
    with RunFolder(path, CONTENTS) as folder:
        folder.write_json("metrics.json", {})
        folder.work_path("images").mkdir()
        assert [entry.name for entry in path.iterdir()] == [f".{CONTENTS[0]}.unfinished"]
    assert sorted(listing(path)) == [DESCRIPTION, "images", "metrics.json"]


def test_description_is_written_where_the_run_wrote_none(tmp_path):
    for _ in range(2):
        with RunFolder(tmp_path, ["metrics.json"]) as folder:
            folder.write_json("metrics.json", {})
    assert set(json.loads((tmp_path / DESCRIPTION).read_text())) == {"versions", "contents"}


def test_new_run_replaces_the_old_one_and_leaves_strangers(tmp_path):
    write_run(tmp_path, 1, names=("a/1", "old/2"))
    (tmp_path / "notes.txt").write_text("mine")
    write_run(tmp_path, 2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"number": 2}
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a", "b"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_failed_run_leaves_the_old_one(tmp_path):
    write_run(tmp_path, 1)
    before = listing(tmp_path)
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, CONTENTS) as folder:
        folder.write_json("metrics.json", {"number": 2})
        raise KeyboardInterrupt
    assert listing(tmp_path) == before


def test_failed_first_run_leaves_nothing(tmp_path):
    with pytest.raises(OSError), RunFolder(tmp_path / "deep" / "run", CONTENTS) as folder:
        folder.write_json("metrics.json", {"number": 2})
        raise OSError
    assert listing(tmp_path) == {}


# Two files and a folder are moved out, and as many in; then the earlier ones are let go.
@pytest.mark.parametrize("number", range(7))
def test_run_that_was_killed_while_moving_its_files_is_undone(tmp_path, monkeypatch, number):
    write_run(tmp_path, 1)
    before = listing(tmp_path)
    real, moved = Path.replace, []

    def replace(path, target):
        # PNG files, too, are written under another name first.
        if path.name in (*CONTENTS, DESCRIPTION):
            moved.append(path.name)
        if len(moved) > number:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if number < 6:
            with pytest.raises(KeyboardInterrupt):
                write_run(tmp_path, 2)
        else:
            write_run(tmp_path, 2)
            before = listing(tmp_path)
    with pytest.raises(RuntimeError), RunFolder(tmp_path, CONTENTS):
        raise RuntimeError
    assert listing(tmp_path) == before
    write_run(tmp_path, 3)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"number": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == [DESCRIPTION, *CONTENTS]


def test_files_of_no_run_are_strangers_also_beside_an_unfinished_one(tmp_path):
    with (
        pytest.raises(RuntimeError),
        RunFolder(tmp_path, CONTENTS).going_on({"a": 1}) as folder,
    ):
        folder.store.write(0, 1)
        raise RuntimeError
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="holds images, and no run of ours wrote it"):
        RunFolder(tmp_path, CONTENTS).check()


def test_run_of_another_command_is_kept(tmp_path):
    write_run(tmp_path, 1)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"another command \(images, metrics.json\)"):
        RunFolder(tmp_path, ["history.csv"]).check()
    assert listing(tmp_path) == before


def test_two_runs_at_once_are_refused_and_the_first_goes_on(tmp_path):
    with RunFolder(tmp_path, CONTENTS) as folder:
        folder.write_json("metrics.json", {"number": 1})
        with pytest.raises(InputError, match="is being written by another run"):
            write_run(tmp_path, 2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"number": 1}
    write_run(tmp_path, 2)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"number": 2}


def test_what_a_run_no_longer_writes_goes(tmp_path):
    write_run(tmp_path, 1)
    with RunFolder(tmp_path, CONTENTS) as folder:
        folder.write_json("metrics.json", {"number": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == [DESCRIPTION, "metrics.json"]


@pytest.mark.parametrize("description", [None, "[]", "{}", "not even json \xff"])
def test_strangers_of_the_same_names_are_never_replaced(tmp_path, description):
    (tmp_path / "metrics.json").write_text("mine")
    if description is not None:
        (tmp_path / DESCRIPTION).write_bytes(description.encode("latin-1"))
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"output_dir .* no run of ours wrote it"):
        write_run(tmp_path, 1)
    assert listing(tmp_path) == before


def test_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir .*file is a file"):
        RunFolder(tmp_path / "file", CONTENTS).check()


def test_png_reads_back_as_it_was_written(tmp_path):
    with RunFolder(tmp_path, ["images"]) as folder:
        np.testing.assert_array_equal(folder.write_png("images/a/b.png", PICTURE), PICTURE)
    with Image.open(tmp_path / "images/a/b.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), PICTURE)


def test_csv_has_a_column_per_entry(tmp_path):
    with RunFolder(tmp_path, ["x.csv"]) as folder:
        folder.write_csv("x.csv", [{"a": 1, "b": "x,y"}, {"a": 0.5, "b": "é"}])
    assert (tmp_path / "x.csv").read_bytes() == 'a,b\n1,"x,y"\n0.5,é\n'.encode()


def test_json_is_strict(tmp_path):
    value = {"a": float("inf"), "b": [float("nan"), (1.5, None)], "c": {"d": -float("inf")}}
    with RunFolder(tmp_path, ["x.json"]) as folder:
        folder.write_json("x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": "inf", "b": ["nan", [1.5, None]], "c": {"d": "-inf"}}


def test_description_has_the_settings_and_the_versions():
    @dataclasses.dataclass
    class Settings:
        seed: int = 3

    described = describe(Settings(), dataset={"crop": "auto"})
    assert described["settings"] == {"seed": 3}
    assert described["dataset"] == {"crop": "auto"}
    assert {"deid_jax", "jax", "numpy"} <= described["versions"].keys()


@pytest.mark.parametrize(
    ("labels", "count", "chosen"),
    [
        ([0, 0, 0, 1, 1, 2], 3, [0, 3, 5]),
        ([0, 0, 0, 1, 1, 2], 4, [0, 1, 3, 5]),
        ([0, 0, 0, 1, 1, 2], 9, [0, 1, 2, 3, 4, 5]),
        ([2, 2, 2], 2, [0, 1]),
        ([], 3, []),
    ],
)
def test_spread_shows_as_many_persons_as_it_can(labels, count, chosen):
    assert spread_over_persons(labels, count) == chosen


def test_table_shows_every_figure_in_80_columns():
    metrics = means(l2=3.38, mssim=0.986, mr=0.996, clean_error=0.125)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(metrics_table(metrics))
    text = console.export_text()
    for words in ("3.380", "3.390", "0.0300", "0.9860", "99.6 %", "12.5 %", "–", "8-bit file"):
        assert words in text
