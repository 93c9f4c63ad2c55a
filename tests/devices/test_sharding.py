"""Work on several devices comes to what it comes to on one.

The tests that need devices run in one child process, in which the CPU poses as eight; here each
of them tells what became of it there.
"""

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from deid_jax.attacks import ATTACKS, METHODS
from deid_jax.devices import programs, sharding
from deid_jax.devices.sharding import BATCH, MODEL
from deid_jax.errors import InputError
from deid_jax.evaluation import Evaluation, Protocol, WeightedModel, grid, sweep
from deid_jax.evaluation.batch import run_donated
from deid_jax.recognisers import predicting, training
from deid_jax.recognisers.embedders import Embedder
from tests.helpers import (
    let_batches_above_run_out_of_memory,
    noise_faces,
    num_compiled,
    randomised,
)

COUNT = 8
SIZE = 16


@functools.cache
def _outcomes(path, slow):
    """Test -> what the child process says if it failed there, else None."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={COUNT}",
        "JAX_PLATFORMS": "cpu",
    }
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    report = Path(os.environ["DEID_JAX_TEST_CACHE"], f"{path.stem}-{slow}-{os.getpid()}.xml")
    marks = "slow" if slow else "not slow"
    child = subprocess.run(
        [sys.executable, "-m", "pytest", str(path), "-n", "0", "-q", "-p", "no:cacheprovider",
         "-m", marks, f"--junitxml={report}"],
        env=environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip
    assert report.exists(), child.stdout
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[case.get("name")] = wrong[0].text or wrong[0].get("message") if wrong else None
    report.unlink()
    return outcomes


def on_eight_devices(test):
    """A test that runs in the child process; takes no fixtures but parameters."""

    @functools.wraps(test)
    def told(*args, **kwargs):
        if jax.local_device_count() == COUNT:
            test(*args, **kwargs)
            return
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].removesuffix(" (call)")
        slow = any(mark.name == "slow" for mark in getattr(told, "pytestmark", []))
        wrong = _outcomes(Path(sys.modules[test.__module__].__file__), slow)[name]
        if wrong is not None:
            pytest.fail(f"in the child process:\n{wrong}", pytrace=False)

    return told


def mesh_of(count, model_parallel=1):
    """The first devices, as `sharding.local_mesh` arranges them."""
    grid = np.array(jax.local_devices()[:count], dtype=object).reshape(-1, model_parallel)
    return jax.sharding.Mesh(grid, (BATCH, MODEL))


def shapes_held(arrays):
    """Shapes of what single devices hold."""
    return {part.data.shape for array in arrays for part in array.addressable_shards}


def assert_near(ours, theirs):
    """uint8[N, H, W, 3]: fewer than a pixel in a thousand differ, and by one at most."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 1e-3


def assert_same_records(ours, theirs):
    """The same images, targets and names; the mean L2 to 1e-4."""
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert list(own) == list(other)
        for name in ("person", "name", "target", "clean_prediction", "num_gradients"):
            assert own[name] == other[name]
    for name in ("l2", "l2_uint8"):
        means = [np.mean([record[name] for record in records]) for records in (ours, theirs)]
        np.testing.assert_allclose(*means, rtol=1e-4)


class Small(nn.Module):
    """Compiles fast; no bias before BatchNorm, whose gradient would be rounding alone."""

    num_classes: int = 5
    regularised: ClassVar[tuple[str, ...]] = ("fc1",)

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(12, use_bias=False, name="fc1")(images.reshape(len(images), -1) - 0.5)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1")(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.softplus(4 * x))
        return nn.Dense(self.num_classes, name="fc2")(x)


@functools.cache
def _recogniser():
    return Small(), randomised(Small(), SIZE)


def _config(method):
    settings = METHODS[method].settings()
    return METHODS[method].config(**({"num_steps": 4} if "num_steps" in settings else {}))


def _protocol(method="pfgvm", **options):
    return Protocol(target="random" if method in ATTACKS else "none", **options)


def _evaluation(mesh, method="pfgvm", faces=None, **options):
    recogniser = WeightedModel(*_recogniser())
    protocol = _protocol(method, **options)
    faces = faces or noise_faces(SIZE)
    return Evaluation(recogniser, faces, method, _config(method), protocol, mesh)


def _evaluate(mesh, method="pfgvm", faces=None, **options):
    """(records, uint8[N, H, W, 3]) of a data set."""
    faces = faces or noise_faces(SIZE)
    kept = {}

    def keep(index, picture):
        # Padding is never kept, nothing twice.
        assert index not in kept
        kept[index] = picture
        return picture

    records, _ = _evaluation(mesh, method, faces, **options).records(keep=keep)
    assert sorted(kept) == list(range(len(faces)))
    rows = [record.to_row() for record in records]
    return rows, np.stack([kept[index] for index in range(len(faces))])


@functools.cache
def _on_one(method="pfgvm"):
    return _evaluate(mesh_of(1), method)


def _compiled(mesh, method="pfgvm", size=COUNT):
    """The program of `_evaluate`."""
    return _evaluation(mesh, method).placed(run_donated).compiled(size)


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


def _collectives(compiled):
    text = compiled.as_text()
    return [name for name in COLLECTIVES if name in text]


def _check_method(method):
    """Eight devices, eleven images: two batches of eight, the second padded."""
    before = num_compiled()
    records, pixels = _evaluate(mesh_of(8), method, batch_size=8)
    assert_same_records(records, _on_one(method)[0])
    assert_near(pixels, _on_one(method)[1])
    assert not _collectives(_compiled(mesh_of(8), method))
    # What was looked at is what ran.
    assert num_compiled() <= before + 2


# One of each kind: plain steps, signs, least norms. The others are in the slow tests.
FAMILIES = ("pfgvm", "ifgsm", "ddn")


@pytest.mark.parametrize("method", FAMILIES)
@on_eight_devices
@pytest.mark.slow
def test_methods_come_to_the_same_without_talk_between_devices(method):
    _check_method(method)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in FAMILIES])
@on_eight_devices
def test_the_other_methods_do_too(method):
    _check_method(method)


@on_eight_devices
@pytest.mark.slow
def test_batches_that_devices_do_not_divide_are_made_larger():
    assert sharding.whole_parts(mesh_of(4), 5) == 8
    sizes = []
    real = programs.compile_once

    def compile_once(function, variables, batch, *rest, **static):
        sizes.append(len(batch.label))
        return real(function, variables, batch, *rest, **static)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "compile_once", compile_once)
        records, pixels = _evaluate(mesh_of(4), batch_size=5)
    assert set(sizes) == {8}
    assert_same_records(records, _on_one()[0])
    assert_near(pixels, _on_one()[1])


@on_eight_devices
@pytest.mark.slow
def test_fewer_pictures_than_devices():
    faces = noise_faces(SIZE).take(range(3))
    records, pixels = _evaluate(mesh_of(8), faces=faces)
    assert_same_records(records, _on_one()[0][:3])
    assert_near(pixels, _on_one()[1][:3])


@on_eight_devices
@pytest.mark.slow
def test_a_device_without_memory_has_its_share_halved():
    with pytest.MonkeyPatch.context() as patch:
        let_batches_above_run_out_of_memory(patch, largest=8)
        with pytest.warns(UserWarning, match="going on with batches of 8"):
            records, pixels = _evaluate(mesh_of(8), batch_size=16)
    assert_same_records(records, _on_one()[0])
    assert_near(pixels, _on_one()[1])
    # One image a device is the least.
    with pytest.MonkeyPatch.context() as patch:
        let_batches_above_run_out_of_memory(patch, largest=7)
        with pytest.raises(InputError, match="one image needs more memory than there is"):
            _evaluate(mesh_of(8), batch_size=8)


@on_eight_devices
@pytest.mark.slow
def test_dense_layers_are_divided_over_devices():
    mesh = mesh_of(8, 2)
    assert (sharding.num_parts(mesh), mesh.size) == (4, 8)
    records, pixels = _evaluate(mesh, batch_size=8)
    assert_same_records(records, _on_one()[0])
    assert_near(pixels, _on_one()[1])
    compiled = _compiled(mesh)
    kernels = compiled.input_shardings[0][0]["params"]
    assert kernels["fc1"]["kernel"].spec == PartitionSpec(None, MODEL)
    # Five classes are no multiple of two.
    assert kernels["fc2"]["kernel"].is_fully_replicated
    # What the halves of the layer say must be brought together.
    assert _collectives(compiled)
    # No device ever puts the kernel together: that is what it has no room for.
    depth, width = _recogniser()[1]["params"]["fc1"]["kernel"].shape
    assert f"f32[{depth},{width // 2}]" in compiled.as_text()
    assert f"f32[{depth},{width}]" not in compiled.as_text()


@on_eight_devices
@pytest.mark.slow
def test_weights_lie_where_the_mesh_says():
    shapes = {"conv1": (3, 3, 8, 8), "fc1": (6, 8), "fc2": (8, 5)}
    params = {
        name: {
            "kernel": np.arange(np.prod(shape), dtype="f").reshape(shape),
            "bias": np.ones(8, "f"),
        }
        for name, shape in shapes.items()
    }
    variables = {"params": params}
    mesh = mesh_of(8, 4)
    placed = sharding.place_variables(variables, mesh)
    for whole in (("conv1", "kernel"), ("fc1", "bias"), ("fc2", "kernel")):
        assert placed["params"][whole[0]][whole[1]].is_fully_replicated
    kernel = placed["params"]["fc1"]["kernel"]
    depth, width = kernel.shape
    assert {part.data.shape for part in kernel.addressable_shards} == {(depth, width // 4)}
    assert len(kernel.addressable_shards) == 8
    # Placed once, it is not copied again.
    again = sharding.place_variables(placed, mesh)
    assert again["params"]["fc1"]["kernel"] is kernel
    for ours, theirs in zip(
        jax.tree.leaves(sharding.to_host(placed)), jax.tree.leaves(variables), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # Adam's moments lie beside what they are of.
    moments = sharding.place_variables(optax.adam(1e-3).init(params), mesh)[0].mu
    assert moments["fc1"]["kernel"].sharding == kernel.sharding
    everywhere = sharding.place_everywhere(params["fc1"]["kernel"], mesh)
    assert everywhere.is_fully_replicated
    key = sharding.place_everywhere(jax.random.key(3), mesh)
    assert key.sharding == NamedSharding(mesh, PartitionSpec())
    assert jax.random.uniform(key) == jax.random.uniform(jax.random.key(3))


class Embedding(nn.Module):
    """float32[B, 6]."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(6, name="fc1")(images.reshape(len(images), -1) - 0.5)


@on_eight_devices
@pytest.mark.slow
def test_faces_are_compared_on_devices_of_ones_own():
    photos = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    variables = jax.device_get(randomised(Embedding(), SIZE))
    embedder = Embedder("small", Embedding(), variables)
    expected = embedder.embed(photos)
    usual = sharding.placed_on_devices(variables)["params"]["fc1"]["kernel"]
    assert usual.devices() == {jax.devices()[0]}
    depth = SIZE * SIZE * 3
    for count, devices in ((1, mesh_of(8).devices[5]), (2, mesh_of(8, 2).devices[3])):
        with sharding.working_on(devices):
            placed = sharding.placed_on_devices(variables)
            assert sharding.placed_on_devices(variables) is placed
            kernel = placed["params"]["fc1"]["kernel"]
            assert set(kernel.devices()) == set(devices)
            assert shapes_held([kernel]) == {(depth, 6 // count)}
            np.testing.assert_allclose(embedder.embed(photos), expected, rtol=1e-5, atol=1e-5)
            assert jnp.zeros(1).devices() == {devices[0]}
    # Four threads, two devices each, at once.
    together, found = threading.Barrier(4, timeout=60), []

    def compare(devices):
        with sharding.working_on(devices):
            together.wait()
            for _ in range(5):
                found.append(embedder.embed(photos))

    threads = [threading.Thread(target=compare, args=[row]) for row in mesh_of(8, 2).devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for one in found:
        np.testing.assert_array_equal(one, found[0])


@on_eight_devices
@pytest.mark.slow
def test_every_device_has_its_part_of_a_batch():
    pictures = np.arange(16, dtype=np.float32).reshape(16, 1)
    mesh = mesh_of(8, 2)
    placed = sharding.place_batch({"image": pictures}, mesh)["image"]
    for part in placed.addressable_shards:
        row = np.argwhere(mesh.devices == part.device)[0][0]
        np.testing.assert_array_equal(part.data, pictures[4 * row : 4 * row + 4])
    layout = sharding.batch_layout({"image": pictures}, mesh)["image"]
    assert (layout.shape, layout.sharding) == (placed.shape, placed.sharding)


@on_eight_devices
@pytest.mark.slow
def test_meshes_and_parts_of_them():
    for model_parallel in (1, 2, 4, 8):
        mesh = sharding.local_mesh(model_parallel)
        assert mesh.devices.shape == (8 // model_parallel, model_parallel)
        assert mesh == sharding.global_mesh(model_parallel)
    for wrong in (-1, 0, 3, 16):
        for make in (sharding.local_mesh, sharding.global_mesh):
            with pytest.raises(
                InputError, match=f"must divide the 8 devices of a process, got {wrong}"
            ):
                make(wrong)
    mesh = sharding.local_mesh(2)
    assert sharding.narrowed(mesh, 8) is mesh
    assert [sharding.narrowed(mesh, size).size for size in (1, 2, 6, 7, 12)] == [2, 4, 4, 2, 8]
    assert [sharding.whole_parts(mesh, size) for size in (1, 4, 5)] == [4, 4, 8]


def test_one_device_needs_no_division():
    def function(images):
        return images

    mesh = sharding.narrowed(sharding.local_mesh(), 1)
    assert sharding.over_batch(function, mesh, (True,), PartitionSpec()) is function


@on_eight_devices
@pytest.mark.slow
def test_functions_of_batches_see_their_own_part():
    def sizes(images, weight):
        return jnp.full(len(images), len(images) * weight)

    mesh = mesh_of(4)
    divided = sharding.over_batch(sizes, mesh, (True, False), PartitionSpec(BATCH))
    result = jax.jit(divided)(*sharding.place_batch((np.zeros(8),), mesh), 10.0)
    np.testing.assert_array_equal(result, np.full(8, 20.0))


@on_eight_devices
@pytest.mark.slow
def test_examples_are_those_of_one_device():
    alone, together = (
        _evaluation(mesh).at({"num_steps": (2, 4)}).examples([7, 2, 5])
        for mesh in (mesh_of(1), mesh_of(4))
    )
    assert together.images.shape == (2, 3, SIZE, SIZE, 3)
    assert_near(together.images, alone.images)
    assert_near(together.images[1], _on_one()[1][[7, 2, 5]])
    for ours, theirs in zip(
        jax.tree.leaves(together[1:]), jax.tree.leaves(alone[1:]), strict=True
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def _sweep(mesh, **options):
    points = grid("pfgvm", {"penalty_weight": [0.2, 0.5, 1.0]}, {"num_steps": 4})
    swept = sweep(_evaluation(mesh, **options), points)
    return [[record.to_row() for record in records] for records in swept]


@on_eight_devices
@pytest.mark.slow
def test_sweeps_come_to_the_same():
    alone = _sweep(mesh_of(1))
    for ours, theirs in zip(_sweep(mesh_of(8), batch_size=5), alone, strict=True):
        assert_same_records(ours, theirs)
    with pytest.MonkeyPatch.context() as patch:
        let_batches_above_run_out_of_memory(patch, largest=8)
        with pytest.warns(UserWarning, match="going on with batches of 8"):
            halved = _sweep(mesh_of(8), batch_size=16)
    for ours, theirs in zip(halved, alone, strict=True):
        assert_same_records(ours, theirs)


def _train(devices, **options):
    """Two epochs on the first devices."""
    faces = noise_faces(SIZE)
    config = training.TrainConfig(epochs=2, learning_rate=1e-3, batch_size=8)
    config = dataclasses.replace(config, **options.pop("config", {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        data = training.TrainingData(faces, faces)
        return training.train(_recogniser()[0], data, config, **options)


def _assert_same_training(ours, theirs):
    """Weights and history to rounding."""
    histories = [[dataclasses.astuple(one) for one in trained[1]] for trained in (ours, theirs)]
    np.testing.assert_allclose(*histories, rtol=1e-5)
    assert jax.tree.structure(ours[0]) == jax.tree.structure(theirs[0])
    leaves = [jax.tree.leaves(trained[0]) for trained in (ours, theirs)]
    for own, other in zip(*leaves, strict=True):
        assert isinstance(own, np.ndarray)
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@on_eight_devices
@pytest.mark.slow
def test_trainings_come_to_the_same():
    alone = _train(1)
    _assert_same_training(_train(8), alone)
    # So do divided layers, and their optimiser's state, also from a state that was kept.
    _assert_same_training(_train(4, model_parallel=2), alone)
    with tempfile.TemporaryDirectory() as folder:
        stopped = {"model_parallel": 2, "state_dir": Path(folder, "state")}

        def stop(done, total, history):
            if history:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _train(4, progress=stop, **stopped)
        first = []

        def note(done, total, history):
            first.append(len(history))

        _assert_same_training(_train(4, progress=note, **stopped), alone)
        assert first[0] == 1


@on_eight_devices
@pytest.mark.slow
def test_weights_are_drawn_where_they_are_to_lie():
    model, config = Small(), training.TrainConfig(epochs=1, learning_rate=1e-3, seed=3)
    alone = training.initial_state(model, SIZE, config, {})
    mesh = mesh_of(8, 2)
    with pytest.MonkeyPatch.context() as patch:
        compiled, jit = [], jax.jit

        def noted(function, **options):
            def run(*args):
                compiled.append(jit(function, **options).lower(*args).compile().as_text())
                return jit(function, **options)(*args)

            return run

        patch.setattr(jax, "jit", noted)
        drawn = training.initial_state(model, SIZE, config, {}, mesh)
    for own, other in zip(jax.tree.leaves(drawn), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(sharding.to_host(own), other)
    depth, width = alone.params["fc1"]["kernel"].shape
    shapes = shapes_held(jax.tree.leaves(drawn))
    assert (depth, width // 2) in shapes
    assert (depth, width) not in shapes
    # Nor does any device on the way.
    assert f"f32[{depth},{width // 2}]" in compiled[-1]
    assert f"[{depth},{width}]" not in compiled[-1]
    # They lie where they belong, and are not moved again.
    placed = sharding.place_variables(drawn, mesh)
    for own, other in zip(jax.tree.leaves(placed), jax.tree.leaves(drawn), strict=True):
        assert own is other


@on_eight_devices
@pytest.mark.slow
def test_trainings_take_as_many_devices_as_divide_the_batch():
    used = {size: training._mesh(size, training.ALONE, 1).size for size in (8, 6, 4, 7, 1)}
    assert used == {8: 8, 6: 2, 4: 4, 7: 1, 1: 1}
    assert training._mesh(6, training.ALONE, 2).devices.shape == (2, 2)
    _assert_same_training(
        _train(4, config={"batch_size": 6}), _train(1, config={"batch_size": 6})
    )


@on_eight_devices
@pytest.mark.slow
def test_accuracy_counts_every_picture_once_on_any_mesh():
    model, variables = _recogniser()
    faces = noise_faces(SIZE)
    images = np.stack([faces[index]["image"] for index in range(len(faces))])
    logits = np.asarray(predicting.predict(variables, images, model=model))
    expected = np.mean(np.argmax(logits, axis=-1) == faces.labels)
    for mesh in (mesh_of(1), mesh_of(8), mesh_of(8, 2)):
        for size in (3, 64):
            found = predicting.accuracy(model, variables, faces, batch_size=size, mesh=mesh)
            assert found == pytest.approx(expected, rel=1e-6)
