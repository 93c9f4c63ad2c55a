"""A sweep is the runs of its points, in one compilation, and goes on where it stopped."""

import jax
import numpy as np
import pytest

from deid_jax import evaluation, metrics
from deid_jax.attacks import METHODS
from deid_jax.attacks.baselines import PixelateConfig
from deid_jax.devices import programs, sharding
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.evaluation import sweeping
from deid_jax.evaluation.batch import Protocol
from deid_jax.evaluation.records import ImageRecord, summary
from deid_jax.runs.resuming import Store
from tests import helpers
from tests.helpers import noise_faces, pictures, small_model

SIZE = 16
LAMBDAS = [0.0, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5]


@pytest.fixture(scope="module")
def faces():
    return noise_faces(SIZE)


@pytest.fixture(scope="module")
def recogniser():
    _, model, variables = small_model(size=SIZE, num_classes=5)
    return model, variables


def _grid(**sweeps):
    return sweeping.grid("pfgvm", sweeps, {} if "num_steps" in sweeps else {"num_steps": 6})


def _sweep(recogniser, faces, points, method="pfgvm", protocol=None, **options):
    protocol = protocol or Protocol(batch_size=4)
    swept = sweeping.sweep(*recogniser, faces, method, points, protocol, **options)
    return [[record.to_row() for record in records] for records in swept]


def _alone(recogniser, faces, point, method="pfgvm", protocol=None):
    config = METHODS[method].config(**point)
    protocol = protocol or Protocol(batch_size=4)
    records, _ = evaluation.evaluate(*recogniser, faces, method, config, protocol)
    return [record.to_row() for record in records]


def _means(rows):
    return summary(ImageRecord.from_row(row, "test") for row in rows).to_row()


def _assert_same(swept, alone):
    """Same pictures, targets and verdicts; distances as near as two compilations round."""
    for ours, theirs in zip(swept, alone, strict=True):
        assert list(ours) == list(theirs)
        for name in ("person", "name", "target", "clean_prediction", "num_gradients"):
            assert ours[name] == theirs[name]
    ours, theirs = (_means(rows) for rows in (swept, alone))
    for name in ("l2", "l2_uint8", "mssim", "mssim_uint8"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)
    for name in ("mr", "mr_uint8", "target_rate", "clean_error"):
        assert ours[name] == theirs[name]


def test_eight_weights_equal_eight_runs_in_one_compilation(recogniser, faces):
    points = _grid(penalty_weight=LAMBDAS)
    before = programs.num_compiled()
    swept = _sweep(recogniser, faces, points, settings_per_call=3)
    assert programs.num_compiled() == before + 1
    assert [point["penalty_weight"] for point in points] == LAMBDAS
    for place in (0, 4, 7):
        _assert_same(swept[place], _alone(recogniser, faces, points[place]))
    distances = [np.mean([r["l2"] for r in records]) for records in swept]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1.2 * distances[-1]


@pytest.mark.parametrize("per_call", [4, 100])
def test_how_many_settings_share_a_call_changes_nothing(recogniser, faces, per_call):
    points = _grid(penalty_weight=LAMBDAS[:3], step_size=[0.05, 0.5])
    swept = _sweep(recogniser, faces, points, settings_per_call=per_call)
    one_by_one = [_sweep(recogniser, faces, [point])[0] for point in points]
    for ours, theirs in zip(swept, one_by_one, strict=True):
        _assert_same(ours, theirs)


@pytest.mark.parametrize(
    "protocol", [{"target": "none"}, {"init": "noise"}, {"quantize": True}]
)
def test_steps_come_from_one_trajectory(recogniser, faces, protocol):
    protocol = Protocol(batch_size=6, **protocol)
    points = _grid(num_steps=[10, 2, 5], penalty_weight=[0.1, 0.5])
    calls = []
    swept = _sweep(
        recogniser, faces, points, protocol=protocol, progress=lambda *at: calls.append(at)
    )
    # Two settings, not six: the pictures are attacked once per weight.
    assert calls[-1] == (2 * len(faces), 2 * len(faces))
    for point, records in zip(points, swept, strict=True):
        assert records[0]["num_gradients"] == point["num_steps"]
    for place in (1, 2):
        alone = _alone(recogniser, faces, points[place], protocol=protocol)
        _assert_same(swept[place], alone)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_grid_from_less_to_more(method):
    def darkness(images, key):
        loss = images.sum(axis=(1, 2, 3))
        return loss, loss < 0

    has_steps = "num_steps" in METHODS[method].settings()
    fixed = {"num_steps": 40} if has_steps and "num_steps" not in METHODS[method].grid else {}
    points = sweeping.grid(method, METHODS[method].grid, fixed)
    assert len(points) >= 5
    images, key = pictures(2), jax.random.key(0)
    distances = []
    for point in points:
        config = METHODS[method].config(**point)
        result = METHODS[method].function(darkness, images, config, key)
        distances.append(float(metrics.l2(result.images, images).mean()))
    assert distances == sorted(distances)
    assert distances[-1] > distances[0]


def test_settings_that_change_the_program_equal_single_runs(recogniser, faces):
    points = sweeping.grid("pixelate", {"num_blocks": [8, 3]})
    protocol = Protocol(target="none")
    swept = _sweep(recogniser, faces, points, "pixelate", protocol)
    for point, records in zip(points, swept, strict=True):
        assert METHODS["pixelate"].config(**point) == PixelateConfig(point["num_blocks"])
        _assert_same(records, _alone(recogniser, faces, point, "pixelate", protocol))


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_stopped_sweep_goes_on_and_ends_alike(
    recogniser, faces, tmp_path, monkeypatch, stop_after
):
    points = _grid(penalty_weight=LAMBDAS[:4])
    undisturbed = _sweep(recogniser, faces, points, settings_per_call=2)
    computed = []
    real = sweeping._Call._compute
    monkeypatch.setattr(sweeping._Call, "_compute", lambda *a: computed.append(1) or real(*a))

    def stop(done, total):
        if len(computed) == stop_after:
            raise KeyboardInterrupt

    store = Store(tmp_path / "pieces")
    with pytest.raises(KeyboardInterrupt):
        _sweep(recogniser, faces, points, settings_per_call=2, store=store, progress=stop)
    assert len(store) == 2 * stop_after
    # More points are asked for than before: what is done is not done again.
    points += _grid(penalty_weight=[2.5, 3.0])
    resumed = _sweep(recogniser, faces, points, settings_per_call=2, store=store)
    assert len(computed) == 3 * 3  # Three batches, three pairs of settings.
    assert resumed[:4] == undisturbed


def test_records_of_a_store_are_read_a_piece_at_a_time(
    recogniser, faces, tmp_path, monkeypatch
):
    points = _grid(penalty_weight=LAMBDAS[:2])
    alone = _sweep(recogniser, faces, points)
    store = Store(tmp_path / "pieces")
    parts = [range(4), range(4, len(faces))]
    swept = sweeping.sweep(
        *recogniser, faces, "pfgvm", points, Protocol(), store=store, spans=parts
    )
    read, real = [], Store.read
    monkeypatch.setattr(Store, "read", lambda *given: read.append(given[1]) or real(*given))
    for ours, theirs in zip(swept, alone, strict=True):
        _assert_same([record.to_row() for record in ours], theirs)
        assert list(ours) == list(ours)
        read.clear()
        records = iter(ours)
        for _ in range(4):
            next(records)
        assert len(read) == 1
    for path in (tmp_path / "pieces").iterdir():
        path.unlink()
    with pytest.raises(OSError, match=r"\.json is missing or damaged: run the command again"):
        list(swept[0])


def test_a_stack_that_does_not_fit_is_split_and_gives_the_same(recogniser, faces):
    points = _grid(penalty_weight=LAMBDAS[:4])
    whole = _sweep(recogniser, faces, points, settings_per_call=4)
    one = programs.required_bytes(_compiled_for(recogniser, faces, width=1, size=4))
    four = programs.required_bytes(_compiled_for(recogniser, faces, width=4, size=4))
    assert one < four
    with pytest.warns(UserWarning, match=r"a batch of 16 needs .* going on with batches of"):
        split = _sweep(recogniser, faces, points, settings_per_call=4, memory=(one + four) // 2)
    for ours, theirs in zip(split, whole, strict=True):
        _assert_same(ours, theirs)
    with (
        pytest.warns(UserWarning, match=r"going on with batches"),
        pytest.raises(InputError, match=r"one picture needs .* of memory"),
    ):
        _sweep(recogniser, faces, points, memory=1000)


def _compiled_for(recogniser, faces, width, size):
    model, variables = recogniser
    job = sweeping._Job({}, (6,), [{"step_size": 0.1, "penalty_weight": 0.1}] * width)
    own = (model, variables, faces, "pfgvm", Protocol(), sharding.local_mesh())
    call = sweeping._Call(*own, job, width, size, None)
    return call._program(size)


def test_memory_that_runs_out_halves_the_batch(recogniser, faces, monkeypatch):
    points = _grid(penalty_weight=LAMBDAS[:2])
    whole = _sweep(recogniser, faces, points)
    helpers.let_batches_above_run_out_of_memory(monkeypatch, 2)
    with pytest.warns(UserWarning, match="a batch of 4 needs more memory than there is"):
        split = _sweep(recogniser, faces, points)
    for ours, theirs in zip(split, whole, strict=True):
        _assert_same(ours, theirs)


def test_pieces_of_another_method_are_not_taken(recogniser, faces, tmp_path):
    store = Store(tmp_path / "pieces")
    fixed = {"num_steps": 3, "step_size": 0.1}
    both = []
    for method in ("ifgvm", "ifgsm"):
        points = sweeping.grid(method, {"epsilon": [0.1]}, fixed)
        both += _sweep(recogniser, faces, points, method, store=store)
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("sweeps", "fixed", "message"),
    [
        ({"epsilon": [0.1]}, {}, "pfgvm has no setting epsilon to sweep: it takes step_size"),
        ({"step_size": [0.1]}, {"step_size": 0.2}, "step_size is swept and set to 0.2"),
        ({"step_size": []}, {}, "values of step_size must be different ones, got"),
        ({"step_size": [1, 1.0]}, {}, "values of step_size must be different ones, got"),
        ({"step_size": [0.1, -1]}, {}, "step_size must be a number >= 0, got -1"),
        ({"num_steps": [2.5]}, {}, "num_steps must be an integer >= 0, got 2.5"),
    ],
)
def test_bad_grids_are_refused(sweeps, fixed, message):
    with pytest.raises(InputError, match=message):
        sweeping.grid("pfgvm", sweeps, fixed)


def test_grid_lists_every_combination_with_all_settings():
    points = sweeping.grid("pfgvm", {"penalty_weight": [1.0, 2.0], "step_size": [0.1, 0.2]})
    pairs = [(point["penalty_weight"], point["step_size"]) for point in points]
    assert pairs == [(1.0, 0.1), (1.0, 0.2), (2.0, 0.1), (2.0, 0.2)]
    assert all(point["num_steps"] == 50 for point in points)


class _Two(Group):
    """One of two processes, the other of which has memory for one setting at a time."""

    def gather(self, value):
        return [value, [(1, size) for _, size in value]]

    def wait(self):
        pass


def test_processes_of_unequal_memory_leave_nothing_undone(recogniser, faces, tmp_path):
    points = _grid(penalty_weight=LAMBDAS[:4])
    alone = _sweep(recogniser, faces, points)
    store = Store(tmp_path / "pieces")
    ends = [
        _sweep(recogniser, faces, points, store=store, group=_Two(i, 2), settings_per_call=n)
        for i, n in ((1, 1), (0, 4))
    ]
    assert ends[0] == []
    for ours, theirs in zip(ends[1], alone, strict=True):
        _assert_same(ours, theirs)
