"""Running a method over a data set: targets, records, figures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deid_jax.evaluation.examples import run_examples

from deid_jax import evaluation
from deid_jax.attacks import METHODS, PFGVMConfig
from deid_jax.attacks.baselines import BlurConfig
from deid_jax.data import loader
from deid_jax.devices import programs, sharding
from deid_jax.errors import InputError
from deid_jax.evaluation.batch import (
    Program,
    Protocol,
    choose_targets,
    run_batch,
    run_donated,
)
from deid_jax.evaluation.records import ImageRecord, summary
from tests.helpers import let_batches_above_run_out_of_memory, noise_faces, small_model

NUM_PERSONS, SIZE = 5, 16
CONFIG = PFGVMConfig(step_size=0.5, penalty_weight=0.1, num_steps=8)


@pytest.fixture(scope="module")
def faces():
    return noise_faces(SIZE)


@pytest.fixture(scope="module")
def recogniser():
    _, model, variables = small_model(size=SIZE, num_classes=NUM_PERSONS)
    return model, variables


def _evaluate(recogniser, faces, config=CONFIG, method="pfgvm", keep=None, **protocol):
    options = {"keep": keep} if keep else {}
    records, _ = evaluation.evaluate(
        *recogniser, faces, method, config, Protocol(**protocol), **options
    )
    return [record.to_row() for record in records]


class TestTargets:
    logits = jax.random.normal(jax.random.key(0), (400, 6))
    labels = jax.random.randint(jax.random.key(1), (400,), 0, 6)
    keys = jax.random.split(jax.random.key(2), 400)

    def test_random_is_every_label_but_the_true_one_alike(self):
        targets = choose_targets("random", self.logits, self.labels, self.keys)
        assert not np.any(targets == self.labels)
        distance = np.bincount((targets - self.labels) % 6, minlength=6)
        assert distance[0] == 0
        assert distance[1:].min() > 50

    def test_random_hangs_on_the_key_of_the_picture_alone(self):
        whole = choose_targets("random", self.logits, self.labels, self.keys)
        part = choose_targets("random", self.logits[5:9], self.labels[5:9], self.keys[5:9])
        np.testing.assert_array_equal(whole[5:9], part)

    @pytest.mark.parametrize("kind, rank", [("least_likely", 0), ("runner_up", -1)])
    def test_ranked_targets_are_extreme_among_the_others(self, kind, rank):
        targets = choose_targets(kind, self.logits, self.labels, self.keys)
        for logits, label, target in zip(
            np.asarray(self.logits), self.labels, targets, strict=True
        ):
            others = [k for k in np.argsort(logits) if k != label]
            assert target == others[rank]


def test_records_say_what_the_recogniser_says_of_the_kept_pictures(recogniser, faces):
    model, variables = recogniser
    kept = {}

    def keep(index, picture):
        kept[index] = picture
        return picture

    records = _evaluate(recogniser, faces, keep=keep)
    assert [record["name"] for record in records] == list(faces.names)
    assert sorted(kept) == list(range(11))
    for index, record in enumerate(records):
        original = faces.read(index).astype(np.float64) / 255
        image = kept[index].astype(np.float64) / 255
        logits = model.apply(variables, jnp.asarray(image[None], jnp.float32))[0]
        named = faces.persons[int(np.argmax(logits))]
        assert record["prediction_uint8"] == named
        assert record["misclassified_uint8"] == (named != record["person"])
        assert record["hit_target_uint8"] == (named == record["target"])
        np.testing.assert_allclose(
            record["l2_uint8"], np.linalg.norm(image - original), rtol=1e-5
        )
        assert abs(record["l2_uint8"] - record["l2"]) < 0.1
        assert record["l2"] > 0.1


def test_what_is_read_back_is_what_is_measured(recogniser, faces):
    """A file that holds something else than was written shows in the 8-bit figures."""
    records = _evaluate(recogniser, faces, keep=lambda index, picture: faces.read(index))
    assert all(record["l2_uint8"] == 0 for record in records)
    assert all(record["prediction_uint8"] == record["clean_prediction"] for record in records)
    assert all(record["l2"] > 0.1 for record in records)


def test_figures_do_not_depend_on_the_batch_size(recogniser, faces):
    whole = _evaluate(recogniser, faces, batch_size=64, init="noise")
    small = _evaluate(recogniser, faces, batch_size=4, init="noise")
    assert [r["target"] for r in whole] == [r["target"] for r in small]
    np.testing.assert_allclose(
        np.mean([r["l2"] for r in whole]), np.mean([r["l2"] for r in small]), rtol=1e-4
    )


def test_same_seed_same_records_other_seed_other_targets(recogniser, faces):
    first = _evaluate(recogniser, faces, seed=1)
    assert first == _evaluate(recogniser, faces, seed=1)
    other = _evaluate(recogniser, faces, seed=2)
    assert [r["target"] for r in first] != [r["target"] for r in other]


def test_targeted_and_untargeted_attacks_reach_their_goals(recogniser, faces):
    config = PFGVMConfig(step_size=0.5, penalty_weight=0.0, num_steps=40)
    for target, rate in (("random", 1.0), ("none", None)):
        rows = _evaluate(recogniser, faces, config, target=target)
        means = summary(ImageRecord.from_row(row, "test") for row in rows)
        assert (means.float_result.mr, means.float_result.target_rate) == (1.0, rate)
    record = _evaluate(recogniser, faces, target="none")[0]
    assert record["target"] == record["hit_target"] == record["hit_target_uint8"] == ""


def test_quantised_results_agree_with_their_files(recogniser, faces):
    for record in _evaluate(recogniser, faces, quantize=True):
        for name in ("l2", "linf", "mssim", "prediction"):
            assert record[name] == record[name + "_uint8"]


@pytest.mark.parametrize("target", ["random", "none"])
@pytest.mark.parametrize("method", ["fmn", "ddn"])
def test_quantised_results_keep_their_success(recogniser, faces, method, target):
    """What seeks the least change ends just beyond the boundary, where rounding undoes it."""
    config = METHODS[method].config(num_steps=20)
    own = (recogniser, faces, config, method)
    goal = "misclassified" if target == "none" else "hit_target"
    floats = _evaluate(*own, target=target)
    assert all(record[goal] for record in floats)
    assert method == "ddn" or not all(record[goal + "_uint8"] for record in floats)
    finished = _evaluate(*own, target=target, quantize=True)
    assert all(record[goal] and record[goal + "_uint8"] for record in finished)
    for before, after in zip(floats, finished, strict=True):
        assert after["num_forwards"] > before["num_forwards"]
        assert (after["num_forwards"] == before["num_forwards"] + 1) == before[goal + "_uint8"]
    distances = [np.mean([r["l2_uint8"] for r in run]) for run in (finished, floats)]
    assert distances[0] < 1.01 * distances[1]


def test_quantised_results_succeed_by_the_judge_whatever_the_attack_computed_in(
    recogniser, faces
):
    own = (recogniser, faces, METHODS["fmn"].config(num_steps=20), "fmn")
    rough = _evaluate(*own, precision="bf16")
    assert not all(record["hit_target_uint8"] for record in rough)
    finished = _evaluate(*own, precision="bf16", quantize=True)
    assert all(record["hit_target_uint8"] for record in finished)


@pytest.mark.parametrize("method", ["blur", "noise", "pgd"])
def test_methods_of_any_kind_finish_on_the_grid(recogniser, faces, method):
    records = _evaluate(
        recogniser, faces, METHODS[method].config(), method, target="none", quantize=True
    )
    plain = _evaluate(recogniser, faces, METHODS[method].config(), method, target="none")
    for before, after in zip(plain, records, strict=True):
        assert after["misclassified"] == after["misclassified_uint8"]
        assert after["misclassified_uint8"] >= before["misclassified"]
        assert after["l2"] == after["l2_uint8"]


def test_noise_start_forgets_nothing_in_zero_steps(recogniser, faces):
    config = PFGVMConfig(num_steps=0)
    assert all(record["l2"] == 0 for record in _evaluate(recogniser, faces, config))
    records = _evaluate(recogniser, faces, config, init="noise")
    # Two independent pixels: uniform (variance 1/12) and clipped N(0.5, 0.25²) (about 0.059).
    expected = np.sqrt(SIZE * SIZE * 3 * (1 / 12 + 0.059))
    np.testing.assert_allclose(np.mean([r["l2"] for r in records]), expected, rtol=0.05)


@pytest.mark.parametrize("init", ["image", "noise"])
def test_examples_are_pictures_of_the_run(recogniser, faces, init):
    kept = {}
    protocol = Protocol(init=init, batch_size=4)
    records = _evaluate(
        recogniser,
        faces,
        keep=lambda index, picture: kept.setdefault(index, picture),
        init=init,
        batch_size=4,
    )
    steps = dataclasses.replace(CONFIG, num_steps=(0, 3, CONFIG.num_steps))
    own = (*recogniser, faces, "pfgvm")
    few = [1, 7, 10]
    examples = run_examples(*own, CONFIG, protocol, few)
    moments = run_examples(*own, steps, protocol, few)
    assert moments.pictures.shape == (3, 3, SIZE, SIZE, 3)
    for place, index in enumerate(few):
        for picture in (examples.pictures[place], moments.pictures[-1, place]):
            difference = np.abs(picture.astype(int) - kept[index])
            assert difference.max() <= 1
            assert np.mean(difference > 0) < 1e-2
        record = records[index]
        assert faces.persons[examples.predictions.label[place]] == record["prediction_uint8"]
        assert examples.predictions.confidence[place] == pytest.approx(
            record["confidence_uint8"], abs=1e-2
        )
        assert faces.persons[examples.clean.label[place]] == record["clean_prediction"]
        first = moments.pictures[0, place]
        assert np.array_equal(first, faces.read(index)) == (init == "image")


def test_one_compilation_serves_every_batch_setting_and_run(recogniser, faces):
    before = programs.num_compiled()
    for weight in (0.1, 0.2, 0.4):
        config = PFGVMConfig(penalty_weight=weight, num_steps=2)
        _evaluate(recogniser, faces, config, batch_size=4)
        _evaluate(recogniser, faces.take(range(7)), config, batch_size=4, seed=3)
    assert programs.num_compiled() == before + 1


@pytest.fixture(scope="module")
def in_fours(recogniser, faces):
    return _evaluate(recogniser, faces, batch_size=4)


def _assert_as_in(records, expected, rtol=1e-4):
    assert [r["name"] for r in records] == [r["name"] for r in expected]
    assert [r["prediction"] for r in records] == [r["prediction"] for r in expected]
    np.testing.assert_allclose(
        [r["l2"] for r in records], [r["l2"] for r in expected], rtol=rtol
    )


def _needed(recogniser, faces, size):
    model, variables = recogniser
    compiled = programs.compile_once(
        run_donated,
        variables,
        evaluation.batch_shapes(size, SIZE),
        jax.tree.map(jnp.float32, CONFIG),
        jax.random.key(0),
        program=Program(model, "pfgvm"),
    )
    return programs.required_bytes(compiled)


def test_batches_that_do_not_fit_are_split_and_give_the_same(recogniser, faces, in_fours):
    memory = (_needed(recogniser, faces, 4) + _needed(recogniser, faces, 11)) // 2
    with pytest.warns(UserWarning, match=r"a batch of 11 needs .* GiB of memory, .* free"):
        records, _ = evaluation.evaluate(
            *recogniser, faces, "pfgvm", CONFIG, Protocol(), memory=memory
        )
    _assert_as_in([record.to_row() for record in records], in_fours)


def test_memory_for_not_even_one_picture_is_named(recogniser, faces):
    with (
        pytest.warns(UserWarning, match="going on with batches of 1"),
        pytest.raises(InputError, match=r"one picture needs .* GiB of memory, and .* are free"),
    ):
        evaluation.evaluate(*recogniser, faces, "pfgvm", CONFIG, Protocol(), memory=10)


def test_memory_that_runs_out_on_the_way_halves_the_batch(
    recogniser, faces, in_fours, monkeypatch
):
    let_batches_above_run_out_of_memory(monkeypatch, 6)
    with pytest.warns(UserWarning, match="a batch of 11 needs more memory than there is"):
        records = _evaluate(recogniser, faces)
    _assert_as_in(records, in_fours)
    let_batches_above_run_out_of_memory(monkeypatch, 0)
    with pytest.raises(InputError, match="one picture needs more memory than there is"):
        _evaluate(recogniser, faces, batch_size=1)


def test_much_work_is_done_with_prepared_kernels(recogniser, faces, in_fours, monkeypatch):
    monkeypatch.setattr(evaluation, "_MIN_WORK_TO_PREPARE", 0)
    mesh = sharding.local_mesh()
    assert "prepared" in evaluation.ready_variables(recogniser[1], faces, 8, mesh)
    # Rounding may put a ReLU on its other side in one of the steps.
    _assert_as_in(_evaluate(recogniser, faces, batch_size=4), in_fours, rtol=1e-2)


def test_other_failures_of_the_device_are_not_hidden(recogniser, faces, monkeypatch):
    def fail(*arguments, **static):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(programs, "compile_once", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        _evaluate(recogniser, faces)


def test_timing_adds_up(recogniser, faces):
    _, timing = evaluation.evaluate(*recogniser, faces, "pfgvm", CONFIG, Protocol(batch_size=4))
    assert 0 < timing.attack_seconds <= timing.seconds
    assert timing.compile_seconds > 0


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_attack_alike_and_are_judged_in_float32(recogniser, faces, precision):
    model, variables = recogniser
    kept = {}
    exact = _evaluate(recogniser, faces)
    records = _evaluate(
        recogniser,
        faces,
        keep=lambda index, picture: kept.setdefault(index, picture),
        precision=precision,
    )
    rough = np.array([record["l2"] for record in records])
    np.testing.assert_allclose(rough, [record["l2"] for record in exact], rtol=0.2)
    assert (precision == "bf16") != np.array_equal(rough, [r["l2"] for r in exact])
    images = np.stack([kept[i] for i in range(len(faces))]).astype(np.float32) / 255
    logits = jax.nn.softmax(model.apply(variables, images))
    np.testing.assert_allclose(
        [record["confidence_uint8"] for record in records], logits.max(axis=-1), rtol=1e-4
    )


def test_weights_are_arguments_of_the_program(recogniser, faces):
    model, variables = recogniser
    batch = next(loader.in_order(faces, 11))
    text = run_batch.lower(
        variables,
        batch,
        jax.tree.map(jnp.float32, CONFIG),
        jax.random.key(0),
        program=Program(model, "pfgvm", target="none"),
    ).as_text()
    assert len(text) < 400_000


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_over_a_data_set(recogniser, faces, method):
    cls = METHODS[method].config
    config = cls(num_steps=2) if method not in ("blur", "pixelate", "mask", "noise") else cls()
    records = _evaluate(recogniser, faces.take([0, 4]), config, method=method, target="none")
    assert len(records) == 2
    for record in records:
        # Those that seek the least change leave a picture that is misclassified already.
        if method in ("apfgvm", "ddn", "fmn", "cw") and not record["l2"]:
            assert record["mssim"] == pytest.approx(1)
            continue
        assert record["l2"] > 0
        assert 0 < record["mssim"] < 1


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


def test_blur_config_has_no_leaves():
    assert jax.tree.leaves(BlurConfig()) == []
