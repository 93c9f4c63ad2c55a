"""Runs by several processes write what one writes."""

import contextlib
import csv
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deid_jax.evaluation import Evaluation
from deid_jax.recognisers import checkpoints
from experiments import attack, sweep, train
from tests.devices.test_processes import free_port
from tests.experiments.conftest import COMMON, REPOSITORY, finish, listing, process
from tests.experiments.test_attack import TIMING

pytestmark = pytest.mark.slow

# Eighteen images in shards of five: four shards, the last one smaller.
ATTACK = ("--split=all", "--num_steps=3", "--shard_size=5")
SWEEP = (*ATTACK, "--sweep=penalty_weight=0.2,0.5,1", "--settings_per_call=2")
TRAIN = ("--epochs=2", "--batch_size=8")
# What tells how the work was divided, and when.
WHO = TIMING | {"num_devices", "num_processes"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all runs of this module write."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def known(trained, faces):
    """What every run but a training is given."""
    return [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}"]


@pytest.fixture(scope="module")
def alone(known, faces, place):
    """The same commands by this process alone."""
    with contextlib.chdir(place):
        common = [*known, *ATTACK]
        assert attack.main([*common, "--output_dir=attack"]) == 0
        assert attack.main([*common, "--output_format=tfds", "--output_dir=tfds"]) == 0
        assert sweep.main([*known, *SWEEP, "--output_dir=sweep"]) == 0
        fitting = [*COMMON, f"--data_dir={faces}", *TRAIN, "--checkpoint=trained"]
        assert train.main([*fitting, "--output_dir=train"]) == 0
    return place


def begin(name, count, *arguments, cwd, **environment):
    """Starts a group of processes of a binary."""
    address = f"127.0.0.1:{free_port()}"
    flags = (f"--coordinator_address={address}", f"--num_processes={count}")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        return [
            process(name, *arguments, *flags, f"--process_id={index}", cwd=cwd)
            for index in range(count)
        ]


def end(started):
    """[(status, output, errors)]; none outlives a failure."""
    try:
        return [finish(process, timeout=240) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def said(output):
    """Standard output, without what the CPU's collectives print as they connect."""
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]


def assert_first_alone_speaks(ended, words):
    assert [status for status, _, _ in ended] == [0] * len(ended), ended
    assert words in ended[0][1]
    for _, out, err in ended[1:]:
        assert said(out) == []
        assert err == ""
    assert ended[0][2] == ""


def facts(folder, *, num_processes, devices_each=1):
    """The files of a run as far as they do not tell who wrote them, which is checked."""
    files = listing(folder)
    description = json.loads(files["config.json"])
    for name in ("output_dir", "checkpoint"):
        del description["settings"][name]
    files["config.json"] = description
    num_devices = num_processes * devices_each
    if "metrics.json" in files:
        metrics = json.loads(files["metrics.json"])
        assert metrics["num_processes"] == num_processes
        assert metrics["num_devices"] == num_devices
        # Every image once.
        assert metrics["num_images"] == metrics["num_attacked"] == 18
        files["metrics.json"] = {n: v for n, v in metrics.items() if n not in WHO}
    if "sweep.csv" in files:
        rows = list(csv.DictReader(files["sweep.csv"].decode().splitlines()))
        assert {row.pop("num_devices") for row in rows} == {str(num_devices)}
        files["sweep.csv"] = rows
    assert not [name for name in files if "unfinished" in name or "shared" in name]
    return files


@pytest.mark.slow
def test_attack_by_two_processes_of_two_devices_each(alone, known, place):
    started = begin(
        "attack",
        2,
        *known,
        *ATTACK,
        "--output_dir=attack-2",
        cwd=place,
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    ended = end(started)
    assert_first_alone_speaks(ended, "on 4 devices of 2 processes")
    ours = facts(place / "attack-2", num_processes=2, devices_each=2)
    theirs = facts(alone / "attack", num_processes=1)
    pictures = [name for name in theirs if name.startswith("images/") and name.endswith(".png")]
    assert len(pictures) == 18
    assert list(ours) == list(theirs)
    for name in pictures:
        assert ours[name] == theirs[name]
    # Two devices round figures in another way.
    for name in ("l2", "mssim_uint8", "mr", "target_rate_uint8"):
        own, other = ours["metrics.json"][name], theirs["metrics.json"][name]
        assert own == pytest.approx(other, rel=1e-5)


# Initialises JAX once, then runs one command after the other, as a program of its own may.
SCRIPT = """
import contextlib, io, json, os, sys
import jax
from experiments import attack, sweep, train

address, count, index, plan = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, int(count), int(index))
for name, arguments in json.loads(plan):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = {"attack": attack, "sweep": sweep, "train": train}[name].main(arguments)
    print(json.dumps([status, printed.getvalue()]), flush=True)
"""


def _begin_an_attack(flags, place):
    """Two shards, then the disk is full."""
    real = Evaluation.over

    def half(evaluation, spans, finish, **options):
        real(evaluation, spans[:2], finish, **options)
        raise OSError(28, "No space left on device")

    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "over", half)
        assert attack.main(flags) == 2


def run_plan(plan, place):
    """[(status, errors, [(status, output) of each command])] of four processes."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, address, "4", str(index), json.dumps(plan)],
            cwd=place,
            env=dict(os.environ, PYTHONPATH=str(REPOSITORY), JAX_PLATFORMS="cpu"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(4)
    ]
    return [
        (status, err, [json.loads(line) for line in said(out)])
        for status, out, err in end(started)
    ]


@pytest.fixture(scope="module")
def by_four(known, faces, place):
    """What `run_plan` gives of many commands.

    They are those of `alone`, an attack of fewer shards than processes, one that one process
    has begun, and a training whose batches four devices do not divide.
    """
    _begin_an_attack([*known, *ATTACK, "--output_dir=begun"], place)
    fitting = [*COMMON, f"--data_dir={faces}", *TRAIN]
    plan = [
        ("attack", [*known, *ATTACK, "--output_dir=attack-4"]),
        ("attack", [*known, *ATTACK, "--output_format=tfds", "--output_dir=tfds-4"]),
        ("sweep", [*known, *SWEEP, "--output_dir=sweep-4"]),
        ("attack", [*known, *ATTACK, "--max_images=10", "--output_dir=few"]),
        ("attack", [*known, *ATTACK, "--output_dir=begun"]),
        ("train", [*fitting, "--batch_size=6", "--checkpoint=no", "--output_dir=none"]),
    ]
    return run_plan(plan, place)


def test_four_processes_end_well_and_the_first_one_speaks(by_four):
    for index, (_, _, commands) in enumerate(by_four):
        assert [status for status, _ in commands] == [0] * 5 + [2], by_four
        for _, printed in commands[:5]:
            assert bool(printed) == (index == 0)
    printed = [text for _, text in by_four[0][2]]
    assert "on 4 devices of 4 processes" in printed[0]
    assert "Table, frontier and metrics: sweep-4" in printed[2]


@pytest.mark.parametrize("name", ["attack", "tfds", "sweep"])
def test_four_processes_write_what_one_writes(alone, by_four, place, name):
    ours = facts(place / f"{name}-4", num_processes=4)
    theirs = facts(alone / name, num_processes=1)
    assert list(ours) == list(theirs)
    for file, content in theirs.items():
        assert ours[file] == content, file


def test_fewer_shards_than_processes(alone, by_four, place):
    """Two shards, four processes."""
    metrics = json.loads((place / "few/metrics.json").read_text())
    assert (metrics["num_processes"], metrics["num_images"], metrics["num_attacked"]) == (
        4,
        10,
        10,
    )
    ours, theirs = listing(place / "few"), listing(alone / "attack")
    pictures = [name for name in ours if name.startswith("images/") and name.endswith(".png")]
    assert len(pictures) == 10
    for name in pictures:
        assert ours[name] == theirs[name]
    lines = (ours["per_image.csv"], theirs["per_image.csv"][: len(ours["per_image.csv"])])
    assert lines[0] == lines[1]


def assert_trained_alike(place, ours):
    """Checkpoint and history of two trainings are equal to rounding."""
    tables = []
    for name in (ours, ""):
        with (place / f"train{name}/history.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    assert [len(table) for table in tables] == [2, 2]
    for own, other in zip(*tables, strict=True):
        for name, value in other.items():
            assert float(own[name]) == pytest.approx(float(value), rel=1e-4), name
    infos = [checkpoints.load_info(place / f"trained{name}") for name in (ours, "")]
    assert dataclasses.asdict(infos[0]) == dataclasses.asdict(infos[1])
    weights = [
        checkpoints.load_variables(place / f"trained{name}", info)["params"]
        for name, info in zip((ours, ""), infos, strict=True)
    ]
    # A bias before BatchNorm has a gradient of rounding alone, which Adam makes a step of.
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        difference = np.abs(weights[0][layer]["kernel"] - weights[1][layer]["kernel"])
        assert np.quantile(difference, 0.99) < 1e-5
    assert not list(place.glob("trained*unfinished*"))


@pytest.mark.slow
def test_four_processes_train_as_one_does(alone, faces, place):
    flags = [*COMMON, f"--data_dir={faces}", *TRAIN, "--checkpoint=trained-4"]
    plan = [("train", [*flags, "--output_dir=train-4"])]
    for index, (status, _, commands) in enumerate(run_plan(plan, place)):
        assert (status, commands[0][0]) == (0, 0)
        assert bool(commands[0][1]) == (index == 0)
    assert_trained_alike(place, "-4")


def test_batches_that_devices_do_not_divide_are_refused(by_four, place):
    for _, err, commands in by_four:
        assert commands[-1][0] == 2
        err = err.removeprefix("going on: 2 of 4 shards are finished\n")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "batch_size must be a multiple of the 4 processes that train, got 6" in err
    assert not (place / "no").exists()
    assert not (place / "none").exists()


@pytest.mark.slow
def test_slurm_tells_who_takes_part(alone, faces, place):
    started = []
    for index in range(2):
        with pytest.MonkeyPatch.context() as patch:
            # The port of the coordinator hangs on the number of the job.
            job = {"JOB_ID": str(os.getpid()), "STEP_NODELIST": "127.0.0.1", "NTASKS": "2"}
            job |= {"PROCID": str(index), "LOCALID": str(index)}
            for name, value in job.items():
                patch.setenv(f"SLURM_{name}", value)
            flags = [*COMMON, f"--data_dir={faces}", *TRAIN, "--output_dir=train-2"]
            started.append(process("train", *flags, "--checkpoint=trained-2", cwd=place))
    assert_first_alone_speaks(end(started), "Checkpoint: trained-2")
    assert_trained_alike(place, "-2")


@pytest.fixture(scope="module")
def unshared(known, tmp_path_factory):
    """What two processes end with that run in folders of their own, and these."""
    place = tmp_path_factory.mktemp("unshared")
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(2):
        (place / str(index)).mkdir()
        flags = [f"--coordinator_address={address}", "--num_processes=2"]
        flags += [f"--process_id={index}", "--output_dir=out"]
        own = place / str(index)
        started.append(process("attack", *known, *ATTACK, *flags, cwd=own))
    return end(started), place


def test_folders_that_processes_do_not_share_are_refused(unshared):
    for status, out, err in unshared[0]:
        assert (status, said(out)) == (2, [])
        assert err.count("\n") == 1
        assert "output_dir out must be on a file system that all processes share" in err
        assert "process 1 does not see what the first one writes there" in err


def test_folders_that_are_refused_stay_empty(unshared):
    assert listing(unshared[1]) == {"0": None, "1": None}


def test_other_numbers_of_processes_go_on(alone, by_four, place):
    assert "going on: 2 of 4 shards are finished\n" in by_four[0][1]
    metrics = json.loads((place / "begun/metrics.json").read_text())
    assert (metrics["num_images"], metrics["num_attacked"]) == (18, 8)
    ours, theirs = listing(place / "begun"), listing(alone / "attack")
    assert list(ours) == list(theirs)
    for name in ours:
        if name not in ("config.json", "metrics.json"):
            assert ours[name] == theirs[name]


@pytest.mark.parametrize("name", ["attack", "train"])
def test_processes_with_other_settings_are_refused(name, known, faces, tmp_path):
    common = known if name == "attack" else [*COMMON, f"--data_dir={faces}", "--checkpoint=c"]
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    other = "--num_steps={}" if name == "attack" else "--epochs={}"
    more = ["--batch_size=8"]
    started = [
        process(
            name,
            *common,
            *more,
            address,
            "--num_processes=2",
            f"--process_id={index}",
            other.format(1 + index),
            "--output_dir=out",
            cwd=tmp_path,
        )
        for index in range(2)
    ]
    for status, err in [(status, err) for status, _, err in map(finish, started)]:
        assert status == 2
        assert err.count("\n") == 1
        assert "settings" in err
        assert "than the first process" in err
    assert not any((tmp_path / "out").glob("*"))
