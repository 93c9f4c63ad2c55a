"""A sweep is the runs of its points, in one compilation, and goes on where it stopped."""

import jax
import numpy as np
import pytest

from deid_jax import metrics
from deid_jax.attacks import METHODS
from deid_jax.devices import programs
from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.evaluation import grid, summary, sweep, sweeping
from deid_jax.evaluation.batch import run_batch_many
from deid_jax.evaluation.grids import by_program
from deid_jax.runs import FolderStore, Store
from tests.helpers import let_batches_above_run_out_of_memory, num_compiled, random_images

LAMBDAS = [0.0, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5]


def points_of(weights=LAMBDAS, **sweeps):
    fixed = {} if "num_steps" in sweeps else {"num_steps": 6}
    return grid("pfgvm", {"penalty_weight": weights, **sweeps}, fixed)


def swept(evaluation, points, **options):
    return [list(records) for records in sweep(evaluation, points, **options)]


@pytest.fixture(scope="module")
def evaluation(evaluation_of):
    return evaluation_of(batch_size=4)


@pytest.fixture(scope="module")
def whole(evaluation):
    """The first four weights, two at a time."""
    return swept(evaluation, points_of(LAMBDAS[:4]), settings_per_call=2)


def assert_same(ours, theirs):
    """Same images, targets and predictions; distances as near as two compilations round."""
    for own, other in zip(ours, theirs, strict=True):
        assert own.image == other.image
        assert own.target == other.target
        assert own.clean_prediction == other.clean_prediction
        assert own.num_gradients == other.num_gradients
    means, expected = summary(ours), summary(theirs)
    assert means.clean_error == expected.clean_error
    for name in ("float_result", "uint8_result"):
        result, other = getattr(means, name), getattr(expected, name)
        assert (result.mr, result.target_rate) == (other.mr, other.target_rate)
        np.testing.assert_allclose(result.l2, other.l2, rtol=1e-4)
        np.testing.assert_allclose(result.mssim, other.mssim, rtol=1e-4)


@pytest.mark.slow
def test_eight_weights_equal_eight_runs_in_one_compilation(evaluation, whole):
    points = points_of()
    before = num_compiled()
    found = swept(evaluation, points, settings_per_call=3)
    assert num_compiled() == before + 1
    for place in (0, 7):
        assert_same(found[place], evaluation.at(points[place]).records()[0])
    for ours, theirs in zip(found[:4], whole, strict=True):
        assert_same(ours, theirs)
    distances = [summary(records).float_result.l2 for records in found]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1.2 * distances[-1]


@pytest.mark.slow
def test_steps_come_from_one_trajectory(evaluation_of, faces):
    evaluation = evaluation_of(batch_size=6, target="none", init="noise", quantize=True)
    points = points_of([0.1, 0.5], num_steps=[5, 2])
    calls = []
    found = swept(evaluation, points, progress=lambda *at: calls.append(at))
    # Two settings, not four: the images are attacked once per weight.
    assert calls[-1] == (2 * len(faces), 2 * len(faces))
    for point, records in zip(points, found, strict=True):
        assert records[0].num_gradients == point["num_steps"]
    assert_same(found[1], evaluation.at(points[1]).records()[0])


QUICK_METHODS = ("pfgvm", "ifgsm", "noise")


@pytest.mark.parametrize(
    "method",
    [m if m in QUICK_METHODS else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_every_method_has_a_grid_from_less_to_more(method):
    def darkness(images, key):
        loss = images.sum(axis=(1, 2, 3))
        return loss, loss < 0

    has_steps = "num_steps" in METHODS[method].settings()
    fixed = {"num_steps": 40} if has_steps and "num_steps" not in METHODS[method].grid else {}
    points = grid(method, METHODS[method].grid, fixed)
    assert len(points) >= 5
    images, key = random_images(2), jax.random.key(0)
    distances = []
    for point in points:
        config = METHODS[method].config(**point)
        result = METHODS[method].function(darkness, images, config, key)
        distances.append(float(metrics.l2(result.images, images).mean()))
    assert distances == sorted(distances)
    assert distances[-1] > distances[0]


@pytest.mark.slow
def test_settings_that_change_the_program_equal_single_runs(evaluation_of):
    evaluation = evaluation_of("pixelate", target="none", batch_size=4)
    points = grid("pixelate", {"num_blocks": [8, 3]})
    for point, records in zip(points, swept(evaluation, points), strict=True):
        assert_same(records, evaluation.at(point).records()[0])


def test_stopped_sweep_goes_on_and_ends_alike(evaluation, whole, tmp_path, monkeypatch):
    computed = []
    real = sweeping._Call._compute
    monkeypatch.setattr(sweeping._Call, "_compute", lambda *a: computed.append(1) or real(*a))

    def stop(done, total):
        if len(computed) == 4:
            raise KeyboardInterrupt

    points, store = points_of(LAMBDAS[:4]), FolderStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        swept(evaluation, points, settings_per_call=2, store=store, progress=stop)
    assert len(store) == 8
    # More points are asked for than before: what is done is not done again.
    points += points_of([2.5, 3.0])
    resumed = swept(evaluation, points, settings_per_call=2, store=store)
    assert len(computed) == 3 * 3  # Three batches, three pairs of settings.
    assert resumed[:4] == whole


def test_records_of_a_store_are_read_a_piece_at_a_time(
    evaluation, faces, whole, tmp_path, monkeypatch
):
    store = FolderStore(tmp_path)
    options = {"spans": [range(4), range(4, len(faces))], "settings_per_call": 2}
    found = sweep(evaluation, points_of(LAMBDAS[:2]), store=store, **options)
    read, real = [], FolderStore._read
    noted = lambda *given: read.append(given[1]) or real(*given)  # noqa: E731
    monkeypatch.setattr(FolderStore, "_read", noted)
    for ours, theirs in zip(found, whole, strict=False):
        assert_same(list(ours), theirs)
        assert list(ours) == list(ours)
        read.clear()
        next(iter(ours))
        assert len(read) == 1
    for path in (tmp_path / "pieces").iterdir():
        path.unlink()
    with pytest.raises(OSError, match=r"\.json is missing or damaged: run the command again"):
        list(found[0])


@pytest.mark.slow
def test_a_stack_that_does_not_fit_is_split_and_gives_the_same(evaluation_of, whole):
    points = points_of(LAMBDAS[:4])
    (group,) = sweeping.by_program("pfgvm", points)
    placed = evaluation_of(batch_size=4).placed(run_batch_many)
    one, four = (
        programs.required_bytes(placed.at(group.config(group.leaves[:width])).compiled(4))
        for width in (1, 4)
    )
    assert one < four
    tight = evaluation_of(batch_size=4, memory=(one + four) // 2)
    with pytest.warns(UserWarning, match=r"a batch of 16 needs .* going on with batches of"):
        found = swept(tight, points, settings_per_call=4)
    for ours, theirs in zip(found, whole, strict=True):
        assert_same(ours, theirs)
    with (
        pytest.warns(UserWarning, match="going on with batches"),
        pytest.raises(InputError, match=r"one image needs .* of memory"),
    ):
        swept(evaluation_of(batch_size=4, memory=1000), points)


def test_memory_that_runs_out_halves_the_batch(evaluation, whole, monkeypatch):
    let_batches_above_run_out_of_memory(monkeypatch, 2)
    with pytest.warns(UserWarning, match="a batch of 4 needs more memory than there is"):
        found = swept(evaluation, points_of(LAMBDAS[:2]), settings_per_call=2)
    for ours, theirs in zip(found, whole, strict=False):
        assert_same(ours, theirs)


@pytest.mark.slow
def test_pieces_of_another_method_are_not_taken(evaluation_of, tmp_path):
    store = FolderStore(tmp_path)
    found = []
    for method in ("ifgvm", "ifgsm"):
        points = grid(method, {"epsilon": [0.1]}, {"num_steps": 3, "step_size": 0.1})
        found += swept(evaluation_of(method, batch_size=4), points, store=store)
    assert found[0] != found[1]


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
        grid("pfgvm", sweeps, fixed)


def test_grid_lists_every_combination_with_all_settings():
    points = grid("pfgvm", {"penalty_weight": [1.0, 2.0], "step_size": [0.1, 0.2]})
    pairs = [(point["penalty_weight"], point["step_size"]) for point in points]
    assert pairs == [(1.0, 0.1), (1.0, 0.2), (2.0, 0.1), (2.0, 0.2)]
    assert all(point["num_steps"] == 50 for point in points)


class _Two(Group):
    """One of two processes, the other of which has memory for one setting at a time."""

    def gather(self, value):
        return [value, [(1, size) for _, size in value]]

    def wait(self):
        pass


def test_processes_of_unequal_memory_leave_nothing_undone(evaluation, whole, tmp_path):
    store = FolderStore(tmp_path)
    ends = [
        swept(
            evaluation,
            points_of(LAMBDAS[:4]),
            store=store,
            group=_Two(index, 2),
            settings_per_call=count,
        )
        for index, count in ((1, 1), (0, 4))
    ]
    assert ends[0] == []
    for ours, theirs in zip(ends[1], whole, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("method", ["noise", "apfgvm"])
def test_pieces_of_another_rounding_are_others(evaluation_of, method):
    """None is the method's own, whether it is a setting of its config or not."""
    points = grid(method, METHODS[method].grid, {})
    (group,) = by_program(method, points)

    def keys(quantize):
        evaluation = evaluation_of(method, quantize=quantize)
        call = sweeping._Call(evaluation, None, group, 1, 4, Store())
        return call._keys(range(4), points)

    own = METHODS[method].quantizes
    assert keys(None) == keys(own) != keys(not own)
