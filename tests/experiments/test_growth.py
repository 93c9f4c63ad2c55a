"""The growth figures' contract: files, fits, lazily drawn images, workloads that fail."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deid_jax.reports.growth_plot import Curve, draw_growth, fit_line
from experiments import growth
from experiments._growth import workloads
from tests.experiments.conftest import listing
from tests.reports.runs_helpers import read_csv

SMALL = {
    "num_images": "2,4",
    "num_steps": "1,2",
    "image_sizes": "16,24",
    "batch_sizes": "1,2",
    "images": "4",
    "steps": "1",
    "image_size": "16",
    "batch": "2",
}
TINY = workloads.Workload("model_a", 2, 16, 1, 2)


def _run(tmp_path, **changes):
    given = SMALL | {"output_dir": str(tmp_path / "out")} | changes
    return growth.main([f"--{name}={value}" for name, value in given.items()])


def _figures(tmp_path):
    return json.loads((tmp_path / "out" / "growth.json").read_text())


def _rows(tmp_path):
    return read_csv(tmp_path / "out" / "growth.csv")


def _pretend(workload, *, repeats, seed):
    """Time in proportion to all of the work, memory to the batch."""
    work = workload.num_images * workload.num_steps * workload.image_size**2
    return workloads.Usage(
        seconds=1e-6 * work,
        compile_seconds=1.0,
        repeats=repeats,
        peak_bytes=2**20 * workload.batch_size,
        peak_bytes_before=2**19,
        devices=("cpu",),
    )


@pytest.fixture
def pretended(monkeypatch):
    """Workloads are not measured, but computed."""
    monkeypatch.setattr(workloads, "measure", _pretend)


@pytest.mark.slow
def test_measures_in_processes_of_their_own(tmp_path, capsys):
    # Memory of this process that must not count for the measured ones.
    ballast = np.ones(640 * 2**20, np.uint8)
    narrow = {"num_steps": "1", "image_sizes": "16", "batch_sizes": "2", "repeats": "1"}
    assert _run(tmp_path, **narrow) == 0
    figures = _figures(tmp_path)
    assert [point["num_images"] for point in figures["points"]] == [2, 4]
    for point in figures["points"]:
        assert point["seconds"] > 0
        assert point["compile_seconds"] > 0
        assert point["repeats"] == 1
        assert ballast.nbytes > point["peak_bytes"] >= point["peak_bytes_before"] > 2**20
    images = figures["curves"]["images"]
    assert all(math.isfinite(value) for value in images["time_fit"].values())
    assert 0.5 < images["memory_ratio"] < 2
    assert figures["curves"]["steps"]["time_fit"] is None
    out, err = capsys.readouterr()
    assert err == ""
    assert "time against images: exponent" in out


def test_writes_every_file_and_every_curve(tmp_path, capsys, pretended):
    assert _run(tmp_path, repeats="2") == 0
    first = listing(tmp_path)
    names = ["config.json", "growth.csv", "growth.json", "growth.png"]
    assert list(first) == ["out", *(f"out/{name}" for name in names)]
    figures = _figures(tmp_path)
    assert set(figures) == {"machine", "curves", "points"}
    assert set(figures["machine"]) == {"processor", "cores", "devices", "versions"}
    curves = figures["curves"]
    assert {name: curve["x"] for name, curve in curves.items()} == {
        "images": [2, 4],
        "steps": [1, 2],
        "pixels": [256, 576],
        "batch": [1, 2],
    }
    for name in ("images", "steps", "pixels"):
        line = curves[name]["time_fit"]
        assert (line["exponent"], line["r2"]) == (pytest.approx(1), pytest.approx(1))
    assert [curves[name]["memory_ratio"] for name in ("images", "batch")] == [1, 2]
    # The workload that all curves share is measured once.
    assert len(figures["points"]) == 5
    rows = _rows(tmp_path)
    assert [row["against"] for row in rows] == [name for name in curves for _ in range(2)]
    assert {row["repeats"] for row in rows} == {"2"}
    with Image.open(tmp_path / "out" / "growth.png") as picture:
        assert (picture.format, picture.width > 1000) == ("PNG", True)
    assert "time against pixels: exponent 1.00, R² 1.0000" in capsys.readouterr().out
    assert _run(tmp_path, repeats="2") == 0
    assert listing(tmp_path) == first


def test_failed_workloads_are_named_and_leave_a_gap(tmp_path, capsys, monkeypatch):
    def measure(workload, **options):
        if workload.batch_size == 1:
            raise workloads.WorkloadError("killed by SIGKILL")
        return _pretend(workload, **options)

    monkeypatch.setattr(workloads, "measure", measure)
    assert _run(tmp_path) == 0
    name = "4 images of 16 px, 1 steps, batch 1"
    assert capsys.readouterr().err == f"{name} failed: killed by SIGKILL\n"
    figures = _figures(tmp_path)
    batch = figures["curves"]["batch"]
    assert batch["seconds"][0] is None
    assert batch["peak_bytes"] == [None, 2 * 2**20]
    assert batch["memory_ratio"] == 1
    failures = [point["failure"] for point in figures["points"] if "failure" in point]
    assert failures == ["killed by SIGKILL"]
    failed = [row for row in _rows(tmp_path) if row["failure"]]
    assert [(row["against"], row["x"], row["seconds"]) for row in failed] == [
        ("batch", "1", "")
    ]


def test_nothing_is_written_where_every_workload_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workloads, "_CHILD", "raise MemoryError('no room')")
    one = {"num_images": "4", "num_steps": "1", "image_sizes": "16", "batch_sizes": "2"}
    assert _run(tmp_path, **one) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: no point could be measured: MemoryError: no room"
    assert not (tmp_path / "out").exists()


def test_workloads_say_in_one_line_why_they_fail(monkeypatch):
    def measure(workload, folder, **options):
        error = RuntimeError("RESOURCE_EXHAUSTED:\n  no room")
        error.add_note("frames were removed")
        raise error

    monkeypatch.setattr(workloads, "measure_here", measure)
    task = json.dumps({"workload": TINY.__dict__, "repeats": 1, "seed": 0})
    with pytest.raises(SystemExit, match=r"^RuntimeError: RESOURCE_EXHAUSTED: no room$"):
        workloads.answer(task, "")


def test_accelerators_tell_their_own_peak(monkeypatch):
    peaks = [{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 7}]
    devices = [SimpleNamespace(memory_stats=lambda peak=peak: peak) for peak in peaks]
    monkeypatch.setattr(workloads.jax, "local_devices", lambda: devices)
    assert workloads.peak_bytes() == 7


def test_killed_processes_are_failures(monkeypatch):
    monkeypatch.setattr(workloads, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(workloads.WorkloadError, match="killed by SIGKILL"):
        workloads.measure(TINY, repeats=1, seed=0)


def test_fit_is_the_closed_form():
    x = [1, 10, 100, 1000]
    cubes = fit_line(x, [2.0 * value**3 for value in x])
    assert cubes.exponent == pytest.approx(3, abs=1e-12)
    line = fit_line(x, [5 + 0.25 * value for value in x])
    assert (line.intercept, line.slope, line.r2) == pytest.approx((5, 0.25, 1), abs=1e-12)
    assert line.exponent < 1
    flat = fit_line([1, 2], [7, 7])
    assert (flat.slope, flat.r2, flat.exponent) == (0, 1, 0)
    rough = [3.0, 1.0, 4.0, 1.5]
    slope, intercept = np.polyfit(x, rough, 1)
    fitted = fit_line(x, rough)
    assert (fitted.intercept, fitted.slope) == pytest.approx((intercept, slope))
    assert fitted.r2 == pytest.approx(np.corrcoef(x, rough)[0, 1] ** 2)


def test_curves_skip_failures():
    curve = Curve("images", (1, 2, 4), (1.0, None, 4.0), (10, None, 20))
    assert curve.time.exponent == pytest.approx(1)
    assert curve.memory_ratio == 2
    failed = Curve("images", (1, 2), (1.0, None), (None, None))
    assert (failed.time, failed.memory_ratio) == (None, None)
    one = {name: Curve(name, (4,), (1.0,), (10,)) for name in ("steps", "pixels", "batch")}
    titles = dict.fromkeys((*one, "images"), "")
    assert draw_growth(one | {"images": failed}, titles=titles, title="")[:4] == b"\x89PNG"


def test_images_are_drawn_as_they_are_read():
    faces, again = (workloads.unread_noise(n, 16, seed=3) for n in (10_000, 4))
    first = faces.read(2)
    assert (first.shape, first.dtype) == ((16, 16, 3), np.uint8)
    assert first is not faces.read(2)
    np.testing.assert_array_equal(first, again.read(2))
    assert (first != faces.read(3)).any()
    assert (first != workloads.unread_noise(4, 16, seed=4).read(2)).any()
    assert len(set(faces.image_names)) == 10_000


def test_growing_batches_come_at_least_in_pairs():
    points = growth.plan_growth(growth.GrowthSettings())["batch"]
    assert {batch: workload.num_images for batch, workload in points.items()} == {
        **dict.fromkeys((1, 4, 16, 64, 128), 256),
        256: 512,
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_images", "2,x", "num_images must be integers by commas, got '2,x'"),
        ("num_steps", "2,2", "num_steps must increase, got 2,2"),
        ("image_sizes", "10,16", "image_sizes must be an integer >= 11, got 10"),
        ("batch_sizes", "1,,2", "batch_sizes must be integers by commas, got '1,,2'"),
        ("image_size", "8", "image_size must be an integer >= 11, got 8"),
        ("batch", "0", "batch must be an integer >= 1, got 0"),
        ("seed", "-1", "seed must be an integer >= 0, got -1"),
        ("model", "vgg16", "image_size must be at least 32 for vgg16, got 16"),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, name, value, message):
    assert _run(tmp_path, **{name: value}) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert not (tmp_path / "out").exists()
