"""Killed with SIGKILL at any moment: the next run goes on, and ends as if nothing had been.

    python -m pytest -m slow -s tests/experiments/test_kills.py

prints what became of every run that was killed.
"""

import collections
import dataclasses
import functools
import json
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from deid_jax.evaluation.batch_loop import BatchLoop
from deid_jax.recognisers import checkpoints
from deid_jax.runs import FolderStore
from experiments import attack, train
from tests.experiments import scale_helpers
from tests.experiments.conftest import COMMON, finish, listing, process, write_faces
from tests.experiments.scale_helpers import HIDDEN, content, ends, group, kill, killed_at

pytestmark = pytest.mark.slow

PERSONS, PICTURES = 3, 42
TOTAL = PERSONS * PICTURES
# Thirteen, the last one smaller.
SHARD_SIZE, NUM_SHARDS = 10, 13
# Moments for each of the formats.
TRIALS = {"png": 6, "tfds": 3}
# Changes of the file system from the first table to the end of the hidden folder, about.
END_STEPS = 48


@dataclasses.dataclass(frozen=True)
class Trial:
    """How a run is killed, and by how many processes it goes on.

    Attributes:
      kind: what the moment is told by: the clock, the finished shards, or the changes of the
        file system at the end.
      moment: a share of the run's length, a number of shards, or a number of changes.
      delay: seconds after that.
      count: processes of the first run.
      victim: the one that is killed first; None: all at once.
      again: finished shards at which the second run is killed, too; None: it is not.
      reruns: processes of the runs after the first.
    """

    kind: str
    moment: float
    delay: float
    count: int
    victim: int | None
    again: int | None
    reruns: tuple[int, ...]


def trial(kind, number):
    """The number-th of an output format's `TRIALS`: each third is spread over the whole run."""
    random = np.random.default_rng([len(kind), number])
    turn = number // 3
    share = (turn + random.uniform()) / (TRIALS[kind] // 3)
    kind = ("clock", "shards", "changes")[number % 3]
    count = 1 if kind == "changes" else 1 + turn % 2
    shards = int(share * NUM_SHARDS)
    moments = {"clock": share, "shards": shards, "changes": int(share * END_STEPS)}
    return Trial(
        kind=kind,
        moment=moments[kind],
        # At once where one is left, so that it is left.
        delay=random.uniform(0, 0.3) if shards < NUM_SHARDS - 1 else 0,
        count=count,
        victim=int(random.integers(count)) if number % 2 else None,
        again=int(random.integers(NUM_SHARDS)) if number % 5 == 4 else None,
        reruns=tuple(int(n) for n in random.integers(1, 4, 1 + (number % 5 == 4))),
    )


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """What nobody disturbed.

    Attributes:
      arguments: those of the run, but for --output_dir.
      earlier: the folder of another run, which is in the way.
      content: what it writes.
      images: "person/name" of all.
      seconds: how long it takes, by the number of processes.
    """

    arguments: list[str]
    earlier: object
    content: dict
    pictures: set[str]
    seconds: dict[int, float]


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory):
    """Output format -> `Undisturbed`, run once."""
    return functools.cache(lambda kind: run_undisturbed(kind, trained, tmp_path_factory))


def run_undisturbed(kind, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    faces = write_faces(folder / "faces", PERSONS, PICTURES)
    common = [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}"]
    earlier = [*common, "--split=all", "--method=blur", "--max_images=3"]
    arguments = [*common, "--split=all", f"--shard_size={SHARD_SIZE}", "--num_steps=100"]
    arguments.append(f"--output_format={kind}")
    earlier.append("--output_dir=earlier")
    assert finish(process("attack", *earlier, cwd=folder))[0] == 0
    seconds, contents = {}, []
    # The first run compiles, for all.
    for count in (1, 1, 2):
        shutil.rmtree(folder / "out", ignore_errors=True)
        start = time.monotonic()
        started = group("attack", [*arguments, "--output_dir=out"], cwd=folder, count=count)
        assert {status for status, _, _ in ends(started)} == {0}
        seconds[count] = time.monotonic() - start
        contents.append(content(folder / "out"))
    assert contents[0] == contents[1] == contents[2]
    pictures = {f"{r['person']}/{r['name']}" for r in scale_helpers.records(folder / "out")}
    assert len(pictures) == TOTAL
    return Undisturbed(arguments, folder / "earlier", contents[0], pictures, seconds)


@pytest.fixture(scope="module")
def tally():
    """Counts of what became of the runs, by phase; printed at the end."""
    counts = collections.defaultdict(collections.Counter)
    yield counts
    lines = [f"{'killed':30}{'times':>6}{'lost':>6}{'twice':>6}{'other bytes':>12}"]
    for phase, row in sorted(counts.items()):
        figures = [row[name] for name in ("times", "lost", "twice", "other bytes")]
        lines.append("{:30}{:6}{:6}{:6}{:12}".format(phase, *figures))
    # Workers of xdist have no standard output.
    print("\n" + "\n".join(lines), file=sys.stderr)


def phase(output):
    """How far a run was when it was killed."""
    if (output / HIDDEN / "replaced").exists():
        return "5 cleaning up"
    if (output / HIDDEN / "earlier").exists():
        return "4 moving files"
    finished = len(list(output.glob(f"{HIDDEN}/*/pieces/*.json")))
    works = [path for path in output.glob(f"{HIDDEN}/*") if path.is_dir()]
    if not (output / HIDDEN).exists():
        moved = "settings" in json.loads((output / "config.json").read_text())
        method = json.loads((output / "metrics.json").read_text())["method"]
        return "6 when all was done" if moved and method != "blur" else "1 starting"
    if not any((work / "config.json").exists() for work in works):
        if (output / "config.json").exists() and "blur" not in (
            (output / "config.json").read_text()
        ):
            return "5 cleaning up"
        if any((work / "metrics.json").exists() for work in works):
            return "3 writing tables"
        return "2 between the shards" if finished else "1 starting"
    return "4 moving files"


def disturb(output, started, moment, condition, victim, seed):
    """Waits, kills one or all, and then the others, too."""
    random = np.random.default_rng(seed)
    if condition is None:
        scale_helpers.wait_until(lambda: time.monotonic() > moment, started)
    else:
        scale_helpers.wait_until(condition, started)
        time.sleep(moment)
    if victim is not None:
        kill([started[victim]])
        time.sleep(random.uniform(0, 0.5))
    kill(started)
    return ends(started)


def num_pieces(output):
    return len(list(output.glob(f"{HIDDEN}/*/pieces/*.json")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [(name, number) for name, times in TRIALS.items() for number in range(times)],
)
def test_killed_attack_goes_on_and_ends_alike(undisturbed, tally, tmp_path, kind, number):
    undisturbed = undisturbed(kind)
    chosen = trial(kind, number)
    output = tmp_path / "out"
    shutil.copytree(undisturbed.earlier, output)
    earlier = scale_helpers.visible(output)
    arguments = [*undisturbed.arguments, "--output_dir=out"]
    if chosen.kind == "changes":
        number_of = int(chosen.moment)
        one = killed_at("attack", arguments, "/metrics.json", number_of, cwd=tmp_path)
        results = ends([one])
        assert results[0][0] in (0, -signal.SIGKILL)
    else:
        begun = time.monotonic()
        started = group("attack", arguments, cwd=tmp_path, count=chosen.count)
        by_clock = chosen.kind == "clock"
        disturb(
            output,
            started,
            begun + chosen.moment * undisturbed.seconds[chosen.count]
            if by_clock
            else chosen.delay,
            None if by_clock else lambda: num_pieces(output) >= chosen.moment,
            chosen.victim,
            number,
        )
    reached = phase(output)
    row = tally[reached]
    row["times"] += 1
    if reached < "4":
        assert scale_helpers.visible(output) == earlier
    if chosen.again is not None:
        started = group("attack", arguments, cwd=tmp_path, count=chosen.reruns[0])
        before = num_pieces(output)
        wanted = min(NUM_SHARDS, max(before, chosen.again))
        disturb(output, started, 0.1, lambda: num_pieces(output) >= wanted, None, number)
        row["times"] += 1
    folder = "dataset" if kind == "tfds" else "images"
    work = list(output.glob(f"{HIDDEN}/*/{folder}"))
    if reached >= "5":  # The images have left the hidden folder.
        work = []
    kept = sum(len(piece["records"]) for piece in scale_helpers.pieces(output)) if work else 0
    started = group("attack", arguments, cwd=tmp_path, count=chosen.reruns[-1])
    results = ends(started)
    assert {status for status, _, _ in results} == {0}, results
    ours = content(output)
    found = [f"{r['person']}/{r['name']}" for r in scale_helpers.records(output)]
    row["lost"] += len(undisturbed.pictures - set(found))
    row["twice"] += len(found) - len(set(found))
    row["other bytes"] += ours != undisturbed.content
    assert sorted(found) == sorted(undisturbed.pictures)
    assert ours.keys() == undisturbed.content.keys()
    assert [name for name in ours if ours[name] != undisturbed.content[name]] == []
    # What was finished is not done again.
    if reached < "5" or chosen.again is None:
        assert scale_helpers.metrics(output)["num_attacked"] == TOTAL - kept


@pytest.mark.slow
def test_processes_whose_first_one_is_killed_end_by_themselves(undisturbed, tally, tmp_path):
    undisturbed = undisturbed("png")
    arguments = [*undisturbed.arguments, "--output_dir=out"]
    output = tmp_path / "out"
    started = group("attack", arguments, cwd=tmp_path, count=2)
    scale_helpers.wait_until(lambda: num_pieces(output) >= 3, started)
    kill(started[:1])
    begun = time.monotonic()
    results = ends(started, timeout=60)
    assert time.monotonic() - begun < 60
    assert results[0][0] == -signal.SIGKILL
    assert results[1][0] not in (0, -signal.SIGKILL)
    tally["7 the first of two"]["times"] += 1
    assert {status for status, _, _ in ends(group("attack", arguments, cwd=tmp_path))} == {0}
    assert content(output) == undisturbed.content


@pytest.mark.slow
def test_attack_killed_three_times_ends_alike(trained, faces, workplace):
    common = [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}", "--split=all"]
    flags = [*common, "--shard_size=4", "--num_steps=20"]
    assert attack.main([*flags, "--output_dir=whole"]) == 0
    assert attack.main([*common, "--output_dir=out", "--method=blur", "--max_images=2"]) == 0
    earlier = scale_helpers.visible(workplace / "out")
    arguments = [*flags, "--output_dir=out"]

    def killed(text, number):
        one = killed_at("attack", arguments, text, number, cwd=workplace)
        status, out, err = finish(one)
        assert (status, out) == (-signal.SIGKILL, "")
        return err

    # The third shard is computed and not yet kept.
    assert killed("pieces/000002.json", 0) == ""
    assert scale_helpers.visible(workplace / "out") == earlier
    assert num_pieces(workplace / "out") == 2
    # Images and figures are in place, the other tables are not.
    assert (
        killed("per_image.csv', 'out/per_image.csv'", 0)
        == "going on: 2 of 5 shards are finished\n"
    )
    assert len(list((workplace / "out").glob("images/*/*.png"))) == 18
    # All is in place, and the hidden folder half gone: images elsewhere, so all anew.
    err = killed("config.json', 'out/config.json'", 6)
    assert err == "going on: 5 of 5 shards are finished\n"
    assert (workplace / "out" / HIDDEN).exists()
    assert attack.main(arguments) == 0
    assert content(workplace / "out") == content(workplace / "whole")


@pytest.mark.slow
def test_copy_killed_as_it_writes_a_file_holds_no_half_of_it(trained, faces, workplace):
    arguments = [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}", "--split=all"]
    arguments += ["--shard_size=4", "--num_steps=3", "--output_format=tfds"]
    assert attack.main([*arguments, "--output_dir=whole"]) == 0
    given = [*arguments, "--output_dir=out"]
    # Before a file of examples gets its name, and as the description is written.
    for text, number in (("array_record-00002-of", 0), ("/.unfinished-", 1)):
        status, _, err = finish(killed_at("attack", given, text, number, cwd=workplace))
        assert status == -signal.SIGKILL, err
    assert attack.main(given) == 0
    assert content(workplace / "out") == content(workplace / "whole")


def test_the_last_and_smaller_shard_is_computed_alike_alone(
    trained, faces, workplace, monkeypatch
):
    """In batches of the same size, since programs for two sizes may round differently."""
    arguments = [*COMMON, f"--data_dir={faces}", f"--checkpoint={trained[0]}", "--split=all"]
    arguments += ["--shard_size=4", "--num_steps=3", "--output_dir=out"]
    sizes = []
    real_prepare, real_write = BatchLoop.prepare_batches, FolderStore.write

    def prepare_batches(loop, size, memory):
        sizes.append(size)
        return real_prepare(loop, size, memory)

    def write(store, number, piece, files=()):
        if number == 4:
            raise KeyboardInterrupt
        real_write(store, number, piece, files)

    monkeypatch.setattr(BatchLoop, "prepare_batches", prepare_batches)
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", write)
        assert attack.main(arguments) == 130
    assert num_pieces(workplace / "out") == 4
    assert attack.main(arguments) == 0
    assert sizes == [4, 4]


@pytest.fixture(scope="module")
def whole_training(faces, tmp_path_factory):
    """(arguments, folder with a checkpoint "new" and history) of what nobody disturbed."""
    folder = tmp_path_factory.mktemp("training")
    arguments = [*COMMON, f"--data_dir={faces}", "--batch_size=8", "--epochs=12"]
    paths = [f"--checkpoint={folder / 'new'}", f"--output_dir={folder / 'out'}"]
    assert train.main([*arguments, *paths]) == 0
    return [*arguments, "--checkpoint=new", "--output_dir=out"], folder


def assert_same_training(ours, whole):
    infos = [checkpoints.load_info(folder / "new") for folder in (ours, whole)]
    assert infos[0] == infos[1]
    once, twice = (
        checkpoints.load_variables(folder / "new", info)
        for folder, info in zip((ours, whole), infos, strict=True)
    )
    assert json.dumps(_shapes(once)) == json.dumps(_shapes(twice))
    for one, other in zip(_leaves(once), _leaves(twice), strict=True):
        np.testing.assert_array_equal(one, other)
    history = [(folder / "out/history.csv").read_bytes() for folder in (ours, whole)]
    assert history[0] == history[1]
    # Nothing is left of the state, nor of what was half written.
    assert sorted(path.name for path in ours.iterdir()) == ["new", "out"]
    assert sorted(listing(ours / "out")) == ["config.json", "history.csv"]


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def _shapes(tree):
    return [leaf.shape for leaf in _leaves(tree)]


def train_killed_at(arguments, text, number, cwd):
    status, _, err = finish(killed_at("train", arguments, text, number, cwd=cwd))
    assert status == -signal.SIGKILL, err
    return err


def test_training_killed_between_epochs_ends_alike(whole_training, workplace, capsys):
    arguments, whole = whole_training
    # While the second state takes the place of the first.
    train_killed_at(arguments, "'new.unfinished.new', 'new.unfinished'", 1, workplace)
    assert not (workplace / "new").exists()
    # Goes on from that one for some epochs, and is killed as it writes the next state.
    err = train_killed_at(arguments, "new.unfinished.new.orbax-checkpoint-tmp'", 3, workplace)
    assert err.startswith("going on after epoch ")
    assert not (workplace / "out/history.csv").exists()
    capsys.readouterr()
    assert train.main(arguments) == 0
    assert capsys.readouterr().err.startswith("going on after epoch ")
    assert_same_training(workplace, whole)


# Where a training keeps its state, puts the checkpoint in place and clears away.
STATE_MOMENTS = [
    ("new.unfinished.new.orbax-checkpoint-tmp'", 0),
    ("new.unfinished.new.orbax-checkpoint-tmp'", 8),
    ("'new.unfinished.new/sha256'", 0),
    ("'new.unfinished.new', 'new.unfinished'", 2),
    ("'new.unfinished.old'", 3),
    ("new.new.orbax-checkpoint-tmp'", 12),
    ("'new.new', 'new'", 0),
    ("at_once/history.csv'", 0),
    ("'out/history.csv'", 0),
    ("'out/config.json'", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "number"), STATE_MOMENTS)
def test_training_killed_at_any_change_of_files(whole_training, workplace, text, number):
    arguments, whole = whole_training
    train_killed_at(arguments, text, number, workplace)
    status, _, err = finish(process("train", *arguments, cwd=workplace))
    assert status == 0, err
    assert_same_training(workplace, whole)
