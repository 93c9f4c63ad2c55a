"""The command's contract: whose figures it takes, what it says, writes and refuses."""

import csv
import json
import math

import pytest
from PIL import Image

from deid_jax import pods
from deid_jax.pods import Job, Rates
from experiments import pods as command
from tests.experiments.conftest import assert_refused, finish, listing, process

METRICS = {
    "method": "pfgvm",
    "num_attacked": 20000,
    "num_devices": 2,
    "num_processes": 1,
    "attack_seconds": 20.0,
    "compile_seconds": 9.0,
    "startup_seconds": 41.5,
    "read_seconds": 40.0,
    "write_seconds": 160.0,
    "read_threads": 4,
    "write_threads": 32,
    "host_cores": 16,
    "shard_size": 1000,
}
GIVEN = {
    "device_rate": 500.0,
    "read_rate": 2000.0,
    "write_rate": 2000.0,
    "startup_seconds": 41.5,
    "shard_size": 1000,
}


def _flags(**values):
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture
def measured(workplace):
    """A function that writes a run with some figures changed, None for left out."""

    def write(**changes):
        folder = workplace / "measured"
        folder.mkdir()
        figures = {k: v for k, v in (METRICS | changes).items() if v is not None}
        (folder / "metrics.json").write_text(json.dumps(figures))
        return "measured"

    return write


def _run(**values):
    return command.run(command.PodsSettings(**values))


def _values(**values):
    used = command.figures_used(command.PodsSettings(**values))
    return {name: figure.value for name, figure in used.items()}


def test_figures_of_a_run(measured):
    run = measured()
    rates = {
        "device_rate": 20000 / (2 * 20.0),
        "read_rate": 4 * 20000 / 40.0,
        # Threads beyond the cores do nothing.
        "write_rate": 16 * 20000 / 160.0,
        "core_rate": 16 * 20000 / 200.0,
    }
    assert _values(run=run) == rates | {"startup_seconds": 41.5, "shard_size": 1000}
    # Four times the cores, four times the files.
    more = {name: rates[name] * (1 if name == "device_rate" else 4) for name in rates}
    scaled = _values(run=run, host_cores=64)
    assert scaled == more | {"startup_seconds": 41.5, "shard_size": 1000}


@pytest.mark.parametrize("name", [*GIVEN, "core_rate"])
def test_flags_override_the_run(measured, name):
    run = measured()
    before, after = _values(run=run), _values(run=run, **{name: 7})
    expected = before | {name: 7}
    if name in ("read_rate", "write_rate"):
        del expected["core_rate"]
    assert after == expected
    source = command.figures_used(command.PodsSettings(run=run, **{name: 7}))[name].source
    assert source == f"--{name}"


def test_flags_alone_are_enough():
    assert _values(**GIVEN) == GIVEN


def test_the_forecast_is_the_functions(measured, capsys):
    found = _run(
        run=measured(),
        price=2.5,
        num_images=300_000,
        devices_per_host=4,
        mtbf_hours=1000.0,
        storage_rate=9000.0,
        restart_seconds=60.0,
        devices="1,4,8,64",
    )
    rates = Rates(
        device_rate=500.0,
        read_rate=2000.0,
        write_rate=2000.0,
        core_rate=1600.0,
        storage_rate=9000.0,
        startup_seconds=41.5,
        restart_seconds=60.0,
    )
    job = Job(
        num_images=300_000, shard_size=1000, devices_per_host=4, mtbf_hours=1000.0, price=2.5
    )
    assert found == [pods.forecast(rates, job, n) for n in (1, 4, 8, 64)]
    assert [one.bottleneck for one in found] == ["computing", "cores", "cores", "storage"]
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for one in found:
        head = f"{one.num_devices} {one.num_hosts} {one.images_per_second:,.0f} "
        head = head if one.images_per_second >= 1000 else head.replace(",", "")
        assert any(
            line.startswith(head + f"{one.efficiency:.1%}") and line.endswith(one.bottleneck)
            for line in lines
        )
        shares = (one.useful_share, one.waiting_share, one.uneven_share)
        start = f"{one.num_devices} " + " ".join(f"{share:.1%}" for share in shares)
        assert any(line.startswith(start) for line in lines)
    plain = " ".join(out.split())
    for line in pods.assumptions(rates, job):
        assert " ".join(line.split()) in plain


def test_devices_by_default(measured):
    run = measured()
    powers = [2**k for k in range(11)]
    for per_host in (4, 8):
        found = _run(run=run, devices_per_host=per_host)
        assert [one.num_devices for one in found] == powers
    found = _run(run=run, devices_per_host=6)
    assert [one.num_devices for one in found] == [1, 2, 4, 6, 12, 24, 48, 96, 192, 384, 768]
    found = _run(run=run, devices_per_host=2000)
    assert [one.num_devices for one in found] == powers


def test_costs_are_told_where_a_price_is_given(measured, capsys):
    run = measured()
    assert {one.cost for one in _run(run=run)} == {None}
    assert "  cost  " not in capsys.readouterr().out
    found = _run(run=run, price=3.0)
    assert [one.cost for one in found] == [3.0 * one.device_hours for one in found]
    assert "  cost  " in capsys.readouterr().out


def test_says_where_figures_are_from(measured, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _run(run=measured(), host_cores=64, startup_seconds=100.0)
    plain = " ".join(capsys.readouterr().out.split())
    assert "Measured figures (run: measured)" in plain
    assert "500 pictures/s a device num_attacked / (num_devices × attack_seconds)" in plain
    assert "4 threads × num_attacked / read_seconds × 64 / 16 cores" in plain
    assert "16 threads × num_attacked / write_seconds × 64 / 16 cores" in plain
    assert "startup_seconds 100 seconds --startup_seconds" in plain
    assert "Reading and writing grow in proportion to the cores of a host." in plain
    assert "a forecast, not a measurement" in plain


@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_terminal(measured, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    _run(run=measured(), price=2.5, num_images=10**11, mtbf_hours=50.0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    # No word is broken, no number cut off.
    row = next(line for line in lines if line.startswith("  1,024") and "cores" in line)
    assert len(row.split()) == 8
    assert "…" not in "".join(lines)
    assert any(line.split()[3:4] == ["efficiency"] for line in lines)


def test_what_never_ends_is_said(capsys):
    found = _run(**GIVEN, mtbf_hours=1e-4, devices="1,1024")
    assert found[-1].seconds == math.inf
    out, err = capsys.readouterr()
    assert err == ""
    assert "∞" in out
    assert "nan" not in out


def test_files(measured, workplace, capsys):
    found = _run(run=measured(), price=2.0, output_dir="out")
    out = workplace / "out"
    assert sorted(listing(out)) == ["config.json", "pods.csv", "pods.md", "pods.png"]
    with (out / "pods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(pods.Forecast._fields)
    for row, one in zip(rows, found, strict=True):
        assert row == {name: str(value) for name, value in one._asdict().items()}
    page = (out / "pods.md").read_text()
    assert page.startswith("# 200,000 pictures in shards of 1,000, 8 devices a host\n")
    tables = [line for line in page.splitlines() if line.startswith("|")]
    # Figures, forecast and shares, each with a heading and a rule.
    assert len(tables) == 2 + 6 + 2 * (2 + len(found))
    assert len({line.count("|") for line in tables}) == 3
    assert "- One failure stops all hosts." in page
    with Image.open(out / "pods.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
    description = json.loads((out / "config.json").read_text())
    assert description["settings"]["price"] == 2.0
    assert "Table and figure: out/pods.md, out/pods.png" in capsys.readouterr().out


def test_nothing_is_written_without_an_output_folder(measured, workplace):
    run = measured()
    before = listing(workplace)
    _run(run=run)
    assert listing(workplace) == before


def test_the_same_command_gives_the_same_bytes(measured, workplace, capsys):
    arguments = _flags(run=measured(), price=2.0, output_dir="out")
    assert command.main(arguments) == 0
    first, said = listing(workplace), capsys.readouterr()
    assert command.main(arguments) == 0
    assert listing(workplace) == first
    assert capsys.readouterr() == said


NEEDED = ["num_attacked", "num_devices", "attack_seconds", "startup_seconds", "shard_size"]
NEEDED += [f"{part}_{what}" for part in ("read", "write") for what in ("seconds", "threads")]


@pytest.mark.parametrize("name", [*NEEDED, "host_cores"])
def test_fields_that_a_run_lacks_are_named(measured, workplace, capsys, name):
    run = measured(**{name: None})
    message = f"measured/metrics.json has no {name}: run experiments.attack again, which writes"
    assert_refused(command.main, _flags(run=run), message, workplace, capsys)
    # With the flags that it names all is well.
    assert command.main(_flags(run=run, **GIVEN)) == 0


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("attack_seconds", "device_rate"),
        ("read_threads", "read_rate"),
        ("write_seconds", "write_rate"),
        ("startup_seconds", "startup_seconds"),
        ("shard_size", "shard_size"),
    ],
)
def test_the_flag_it_names_helps(measured, workplace, capsys, name, flag):
    run = measured(**{name: None})
    assert_refused(command.main, _flags(run=run), f"or give --{flag}", workplace, capsys)
    assert command.main(_flags(run=run, **{flag: 100})) == 0


def test_missing_cores_name_both_flags(measured, workplace, capsys):
    run = measured(host_cores=None)
    message = "or give --read_rate and --write_rate"
    assert_refused(command.main, _flags(run=run), message, workplace, capsys)
    assert command.main(_flags(run=run, read_rate=100, write_rate=100)) == 0


@pytest.mark.parametrize("value", [0, -1.0, "fast", True, math.nan, [1]])
def test_fields_that_make_no_sense_are_refused(measured, workplace, capsys, value):
    run = measured(attack_seconds=value)
    message = "metrics.json: attack_seconds must be a number > 0, got "
    assert_refused(command.main, _flags(run=run), message, workplace, capsys)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_runs_are_refused(workplace, capsys, text):
    (workplace / "run").mkdir()
    (workplace / "run" / "metrics.json").write_bytes(text.encode("latin-1"))
    message = "run/metrics.json is broken: "
    assert_refused(command.main, ["--run=run"], message, workplace, capsys)


@pytest.mark.parametrize("name", GIVEN)
def test_figures_without_a_run_are_asked_for(workplace, capsys, name):
    given = {other: value for other, value in GIVEN.items() if other != name}
    message = f"without --run the figures are to be given: --{name}\n"
    assert_refused(command.main, _flags(**given), message, workplace, capsys)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": "none"}, "run: none does not exist"),
        ({"run": "file"}, "run: file is no folder"),
        ({"run": "."}, "run: . has no metrics.json: experiments.attack writes it"),
        (GIVEN | {"device_rate": 0}, "device_rate must be a number > 0, got 0.0"),
        (GIVEN | {"read_rate": "nan"}, "read_rate must be a number > 0, got nan"),
        (GIVEN | {"startup_seconds": -1}, "startup_seconds must be a number >= 0, got -1.0"),
        (GIVEN | {"shard_size": 0}, "shard_size must be an integer >= 1, got 0"),
        (GIVEN | {"num_images": 0}, "num_images must be an integer >= 1, got 0"),
        (GIVEN | {"devices_per_host": 0}, "devices_per_host must be an integer >= 1, got 0"),
        (GIVEN | {"mtbf_hours": 0}, "mtbf_hours must be a number > 0, got 0.0"),
        (GIVEN | {"price": -1}, "price must be a number >= 0, got -1.0"),
        (GIVEN | {"storage_rate": 0}, "storage_rate must be a number > 0, got 0.0"),
        (GIVEN | {"restart_seconds": -1}, "restart_seconds must be a number >= 0, got -1.0"),
        (GIVEN | {"devices": "1,x"}, "devices must be integers by commas, got '1,x'"),
        (GIVEN | {"devices": "4,2"}, "devices must increase, got 4,2"),
        (GIVEN | {"devices": "0,1"}, "devices must be an integer >= 1, got 0"),
        (GIVEN | {"devices": "8,12"}, "must be a multiple of devices_per_host 8, got 12"),
        (GIVEN | {"host_cores": 4}, "--host_cores means nothing without --run"),
        (GIVEN | {"output_dir": "file"}, "output_dir file is a file, not a folder"),
        ({}, "--device_rate, --read_rate, --write_rate, --startup_seconds, --shard_size"),
    ],
)
def test_bad_input_is_refused(workplace, capsys, values, message):
    (workplace / "file").touch()
    values = {"output_dir": "out"} | values
    assert_refused(command.main, _flags(**values), message, workplace, capsys)


def test_cores_need_a_rate_to_scale(measured, workplace, capsys):
    run = measured()
    values = {"run": run, "host_cores": 4, "read_rate": 10, "write_rate": 10}
    message = "--host_cores means nothing where --read_rate and --write_rate are given"
    assert_refused(command.main, _flags(**values), message, workplace, capsys)
    bad = _flags(run=run, host_cores=0)
    message = "host_cores must be an integer >= 1, got 0"
    assert_refused(command.main, bad, message, workplace, capsys)


def test_the_run_itself_is_not_written_into(measured, workplace, capsys):
    run = measured()
    (workplace / run / "config.json").write_text('{"contents": ["metrics.json"]}')
    message = "holds the run of another command"
    arguments = _flags(run=run, output_dir=run)
    assert_refused(command.main, arguments, message, workplace, capsys)


def test_help_is_readable(capsys):
    assert command.main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "python -m experiments.pods --run=runs/attack/RUN" in out
    for name in command.cli.flags_of(command.PodsSettings):
        assert f"  --{name}=" in out
    assert "419 interruptions. Default: 50677." in out


def test_as_a_process(measured, workplace):
    status, out, err = finish(process("pods", *_flags(run=measured()), cwd=workplace))
    assert (status, err) == (0, "")
    assert "1,024" in out
