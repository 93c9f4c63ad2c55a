"""A method over a data set: targets, records, images, memory."""

import dataclasses

import jax
import numpy as np
import pytest

from deid_jax.attacks import METHODS
from deid_jax.attacks.methods import LeastPerturbation
from deid_jax.devices import programs
from deid_jax.errors import InputError
from deid_jax.evaluation import Protocol, WeightedModel, evaluating, summary
from deid_jax.evaluation.batch import choose_targets, run_donated
from tests.helpers import let_batches_above_run_out_of_memory, num_compiled, small_model


class Kept(dict):
    """Keeps the images of an evaluation."""

    def __call__(self, index, image):
        self[index] = image
        return image


class TestTargets:
    logits = jax.random.normal(jax.random.key(0), (400, 6))
    labels = jax.random.randint(jax.random.key(1), (400,), 0, 6)
    keys = jax.random.split(jax.random.key(2), 400)

    def test_random_is_every_other_label_alike_and_depends_on_the_images_key_alone(self):
        targets = choose_targets("random", self.logits, self.labels, self.keys)
        distance = np.bincount((targets - self.labels) % 6, minlength=6)
        assert distance[0] == 0
        assert distance[1:].min() > 50
        part = choose_targets("random", self.logits[5:9], self.labels[5:9], self.keys[5:9])
        np.testing.assert_array_equal(targets[5:9], part)

    @pytest.mark.parametrize("kind, rank", [("least_likely", 0), ("runner_up", -1)])
    def test_ranked_targets_are_extreme_among_the_others(self, kind, rank):
        targets = choose_targets(kind, self.logits, self.labels, self.keys)
        ordered = np.argsort(np.asarray(self.logits), axis=1)
        for order, label, target in zip(ordered, self.labels, targets, strict=True):
            assert target == [k for k in order if k != label][rank]


def test_records_are_measured_on_the_kept_images(evaluation_of, recogniser, faces):
    kept = Kept()
    records, timing = evaluation_of(batch_size=4).records(keep=kept)
    assert [record.name for record in records] == list(faces.names)
    assert sorted(kept) == list(range(11))
    for index, record in enumerate(records):
        image = kept[index] / 255
        logits = recogniser.model.apply(recogniser.variables, image[None].astype(np.float32))
        person = faces.persons[int(np.argmax(logits))]
        result = record.uint8_result
        assert result.prediction == person
        assert result.misclassified == (person != record.person)
        assert result.hit_target == (person == record.target)
        distance = np.linalg.norm(image - faces.read(index) / 255)
        assert result.l2 == pytest.approx(distance, rel=1e-5)
        assert abs(result.l2 - record.float_result.l2) < 0.1 < record.float_result.l2
    assert 0 < timing.attack_seconds <= timing.seconds
    assert timing.compile_seconds > 0


def test_what_reads_back_is_what_is_measured(evaluation_of, faces):
    """A file that holds something else than was written shows in the 8-bit results."""
    records, _ = evaluation_of().records(keep=lambda index, image: faces.read(index))
    for record in records:
        assert record.uint8_result.l2 == 0
        assert record.uint8_result.prediction == record.clean_prediction
        assert record.float_result.l2 > 0.1


@pytest.mark.slow
def test_results_depend_on_the_seed_and_not_on_the_batch_size(evaluation_of, faces):
    before = num_compiled()
    whole, again, pieces, other = (
        evaluation_of(batch_size=size, seed=seed, init="noise").records()[0]
        for size, seed in ((64, 1), (64, 1), (4, 1), (4, 2))
    )
    assert num_compiled() == before + 2  # One for each size, whatever the seed.
    assert whole == again
    assert [r.target for r in pieces] == [r.target for r in whole]
    assert [r.target for r in other] != [r.target for r in whole]
    distances = [[r.float_result.l2 for r in run] for run in (whole, pieces)]
    np.testing.assert_allclose(*distances, rtol=1e-4)
    weaker = evaluation_of("pfgvm", {"penalty_weight": 0.4}, batch_size=4, init="noise")
    dataclasses.replace(weaker, dataset=faces.take(range(7))).records()
    assert num_compiled() == before + 2


@pytest.mark.parametrize(("target", "rate"), [("random", 1.0), ("none", None)])
def test_attacks_reach_their_goals(evaluation_of, target, rate):
    settings = {"penalty_weight": 0.0, "num_steps": 40}
    records, _ = evaluation_of("pfgvm", settings, target=target).records()
    means = summary(records)
    assert (means.float_result.mr, means.float_result.target_rate) == (1.0, rate)
    assert (records[0].target is None) == (rate is None)


@pytest.mark.slow
def test_quantised_results_keep_their_success(evaluation_of):
    """Attacks of the least change end just beyond the boundary, where rounding undoes it.

    Success counts in float32, whatever the attack computes in.
    """
    plain, finished = (
        evaluation_of("fmn", {"num_steps": 20}, precision="bf16", quantize=quantize).records()[
            0
        ]
        for quantize in (False, True)
    )
    hits = [sum(r.uint8_result.hit_target for r in run) for run in (plain, finished)]
    assert hits[0] < hits[1]
    assert hits[1] >= 10
    for before, after in zip(plain, finished, strict=True):
        assert after.float_result == after.uint8_result
        if before.uint8_result.hit_target:
            assert after.uint8_result.hit_target
            assert after.num_forwards == before.num_forwards + 1


@pytest.mark.parametrize("method", ["apfgvm", "cw", "pgd_l2", "pixelate"])
def test_every_kind_of_method_runs_over_a_data_set(evaluation_of, faces, method):
    settings = {"num_steps": 2} if "num_steps" in METHODS[method].settings() else {}
    few = faces.take([0, 4])
    records, _ = evaluation_of(method, settings, dataset=few, target="none").records()
    assert len(records) == 2
    for record in records:
        result = record.float_result
        # Attacks of the least change leave an image that is misclassified already.
        if isinstance(METHODS[method], LeastPerturbation) and not result.l2:
            assert result.mssim == pytest.approx(1)
            continue
        assert result.l2 > 0
        assert 0 < result.mssim < 1


def test_an_attack_from_noise_begins_at_noise(evaluation_of):
    records, _ = evaluation_of("pfgvm", {"num_steps": 0}, init="noise").records()
    # Two independent pixels: uniform (variance 1/12) and clipped N(0.5, 0.25²) (about 0.059).
    expected = np.sqrt(16 * 16 * 3 * (1 / 12 + 0.059))
    distances = [record.float_result.l2 for record in records]
    np.testing.assert_allclose(np.mean(distances), expected, rtol=0.05)


@pytest.mark.slow
def test_examples_are_images_of_the_run(evaluation_of, faces):
    kept, few = Kept(), [1, 7, 10]
    evaluation = evaluation_of(init="noise")
    records, _ = evaluation.records(keep=kept)
    steps = dataclasses.asdict(evaluation.config) | {"num_steps": (0, 3, 8)}
    examples, moments = evaluation.examples(few), evaluation.at(steps).examples(few)
    assert moments.images.shape == (3, 3, 16, 16, 3)
    for place, index in enumerate(few):
        for image in (examples.images[place], moments.images[-1, place]):
            difference = np.abs(image.astype(int) - kept[index])
            assert difference.max() <= 1
            assert np.mean(difference > 0) < 1e-2
        result = records[index].uint8_result
        assert faces.persons[examples.predictions.label[place]] == result.prediction
        assert examples.predictions.confidence[place] == pytest.approx(
            result.confidence, abs=1e-2
        )
        assert faces.persons[examples.clean.label[place]] == records[index].clean_prediction


@pytest.fixture(scope="module")
def whole(evaluation_of):
    return evaluation_of().records()[0]


def assert_same(records, expected, rtol=1e-4):
    results = [[r.float_result for r in run] for run in (records, expected)]
    ours, theirs = ([(one.prediction, one.hit_target) for one in run] for run in results)
    assert ours == theirs
    ours, theirs = ([one.l2 for one in run] for run in results)
    np.testing.assert_allclose(ours, theirs, rtol=rtol)


@pytest.mark.slow
def test_batches_that_do_not_fit_are_split_and_give_the_same(evaluation_of, whole):
    placed = evaluation_of().placed(run_donated)
    small, large = (programs.required_bytes(placed.compiled(size)) for size in (4, 11))
    with pytest.warns(UserWarning, match=r"a batch of 11 needs .* GiB of memory, .* free"):
        assert_same(evaluation_of(memory=(small + large) // 2).records()[0], whole)
    with (
        pytest.warns(UserWarning, match="going on with batches of 1"),
        pytest.raises(InputError, match=r"one image needs .* of memory, and .* are free"),
    ):
        evaluation_of(memory=10).records()


def test_memory_that_runs_out_halves_the_batch(evaluation_of, whole, monkeypatch):
    let_batches_above_run_out_of_memory(monkeypatch, 6)
    with pytest.warns(UserWarning, match="a batch of 11 needs more memory than there is"):
        assert_same(evaluation_of().records()[0], whole)
    let_batches_above_run_out_of_memory(monkeypatch, 0)
    with pytest.raises(InputError, match="one image needs more memory than there is"):
        evaluation_of(batch_size=1).records()


def test_other_failures_of_the_device_are_not_hidden(evaluation_of, monkeypatch):
    def fail(*arguments, **static):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(programs, "compile_once", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        evaluation_of().records()


@pytest.mark.slow
def test_much_work_is_done_with_prepared_kernels(evaluation_of, faces, monkeypatch):
    _, *network = small_model(size=16, num_classes=5)
    evaluation = dataclasses.replace(
        evaluation_of(), recogniser=WeightedModel(*network), dataset=faces.take([0, 1])
    )
    plain, _ = evaluation.records()
    monkeypatch.setattr(evaluating, "_MIN_WORK_TO_PREPARE", 0)
    assert "prepared" in evaluation.placed(run_donated).variables
    # Rounding may put a ReLU on its other side in one of the steps.
    assert_same(evaluation.records()[0], plain, rtol=1e-2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"target": "nobody"}, "target must be one of random, .*, got nobody"),
        ({"init": "zeros"}, "init must be one of image, noise, got zeros"),
        ({"precision": "half"}, "precision must be one of float32, .*, got half"),
        ({"batch_size": 0}, "batch_size must be .*, got 0"),
    ],
)
def test_bad_protocols_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Protocol(**settings)
