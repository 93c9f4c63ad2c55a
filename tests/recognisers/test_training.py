"""Training: learns, resumes to the same weights, penalises what the paper penalises."""

import dataclasses
import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax import recognisers
from deid_jax.data import DataOptions, FaceDataset, loader
from deid_jax.models import create_model
from deid_jax.recognisers import TrainConfig, TrainingData, predicting, recipes, training
from deid_jax.recognisers.vggface_files import Pretrained
from tests.helpers import refused

CONFIG = TrainConfig(epochs=4, learning_rate=1e-3, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def faces():
    """Three persons, each a colour with noise: learnable in a few steps."""
    random = np.random.default_rng(0)
    labels = np.arange(30, dtype=np.int32) % 3
    colours = np.eye(3)[labels][:, None, None, :]
    pixels = 255 * np.clip(
        0.3 + 0.4 * colours + 0.1 * random.normal(size=(30, 12, 12, 3)), 0, 1
    )
    return FaceDataset(
        name="colours",
        persons=("red", "green", "blue"),
        labels=labels,
        names=tuple(f"{i:03}" for i in range(30)),
        read=lambda index: pixels[index].astype(np.uint8),
        image_size=12,
        split="train",
    )


@pytest.fixture(scope="module")
def model():
    return create_model("model_a", num_classes=3, image_size=12)


@pytest.fixture(scope="module")
def data(faces):
    return TrainingData(faces, dataclasses.replace(faces.take([0, 1, 2]), split="test"))


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    """(checkpoint, recogniser, history)."""
    path = tmp_path_factory.mktemp("fitted") / "it"
    return path, *recognisers.fit("model_a", data, CONFIG, path)


@pytest.fixture(scope="module")
def whole(fitted):
    return fitted[1].variables, fitted[2]


class StopError(Exception):
    pass


def _assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_learns_and_keeps_what_it_returns(model, faces, fitted):
    path, recogniser, history = fitted
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    assert history[-1].loss < history[0].loss
    read = recognisers.load(path, faces, model="model_a")
    assert read.info == recogniser.info and read.info.pictures == faces.image_names
    _assert_same(read.variables, recogniser.variables)
    accuracy = predicting.accuracy(model, read.variables, faces)
    assert read.info.accuracy == {"train": accuracy, "test": history[-1].test_accuracy}
    assert min(read.info.accuracy.values()) > 0.9
    assert [entry.name for entry in path.parent.iterdir()] == ["it"]


def test_same_seed_same_weights_other_seed_other_weights(model, faces, whole):
    again, history = training.train(model, TrainingData(faces), CONFIG)
    _assert_same(again, whole[0])
    assert np.isnan(history[-1].test_accuracy)
    config = dataclasses.replace(CONFIG, seed=4)
    drawn = [training.initial_state(model, 12, c, {}).params["fc2"] for c in (config, CONFIG)]
    assert not np.allclose(drawn[0]["kernel"], drawn[1]["kernel"])


# Stopped within the first epoch, and within a later one.
@pytest.mark.parametrize(("stop_at", "first"), [(2, 1), (8, 7)])
def test_stopped_and_restarted_training_ends_in_the_same_weights(
    data, whole, tmp_path, monkeypatch, stop_at, first
):
    monkeypatch.setattr(training._StateKeeper, "PAUSE", 0.0)

    def stop(done, total, history):
        assert total == 4 * 3
        if done == stop_at:
            raise StopError

    fit = functools.partial(recognisers.fit, "model_a", data, path=tmp_path / "it")
    with pytest.raises(StopError):
        fit(CONFIG, progress=stop)
    if first > 1:
        other = dataclasses.replace(CONFIG, learning_rate=0.5)
        with refused(r"\(learning_rate 0\.001, not 0\.5\)"):
            fit(other)
    steps = []
    again, history = fit(CONFIG, progress=lambda done, total, history: steps.append(done))
    _assert_same((again.variables, history), whole)
    assert steps[0] == first
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_divergence_leaves_no_checkpoint_and_no_state(data, tmp_path):
    config = TrainConfig(epochs=1, learning_rate=1e30, batch_size=8)
    with refused(r"training diverged.* less than 1e\+30"):
        recognisers.fit("model_a", data, config, tmp_path / "it")
    assert not list(tmp_path.iterdir())


class Linear(nn.Module):
    """One dense layer: quick to compile, and sensitive to where a pixel is."""

    heads: tuple[int, ...] = ()
    num_classes: int = 2
    regularised: ClassVar[tuple[str, ...]] = ("fc",)

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1) - 0.5)
        x = nn.Dense(math.prod(self.heads) * self.num_classes, name="fc")(x)
        return x.reshape(len(x), *self.heads, self.num_classes)


class Sides(FaceDataset):
    """Images bright on the left (class 0) or the right (1); a label may be an array."""

    def __getitem__(self, index):
        side = self.labels[index]
        label = np.array([side, 1 - side], np.int32) if self.split == "all" else side
        return super().__getitem__(index) | {"label": label}


def sides(split):
    labels = np.arange(16, dtype=np.int32) % 2
    pixels = np.random.default_rng(0).integers(0, 150, (16, 4, 4, 3)).astype(np.uint8)
    for picture, side in zip(pixels, labels, strict=True):
        picture[:, 2 * side : 2 * side + 2] += 100
    names = tuple(map(str, range(16)))
    return Sides("sides", ("left", "right"), labels, names, pixels.__getitem__, 4, split)


SIDES = TrainConfig(epochs=20, learning_rate=1e-2, batch_size=8, flips=False)


@pytest.mark.slow
def test_left_and_right_are_learnt_without_flips_only():
    faces = sides("train")
    for flips, least, most in ((False, 0.99, 1), (True, 0, 0.8)):
        config = dataclasses.replace(SIDES, flips=flips)
        _, history = training.train(Linear(), TrainingData(faces), config)
        # Of 16 mirrored images half are named wrongly by whoever names the originals rightly.
        assert least <= history[-1].train_accuracy <= most, flips
    assert TrainConfig(epochs=1, learning_rate=1e-3).flips


@pytest.mark.slow
def test_a_label_may_be_one_per_head():
    faces = sides("all")
    variables, history = training.train(Linear(heads=(2,)), TrainingData(faces, faces), SIDES)
    assert history[-1].train_accuracy > 0.95
    assert history[-1].test_accuracy == 1
    # The first head alone is right: half of all labels, whatever the padding (16 = 3 × 6 - 2).
    variables["params"]["fc"] = jax.tree.map(
        lambda leaf: jnp.asarray(leaf).at[..., 2:].set(leaf[..., :2]), variables["params"]["fc"]
    )
    assert predicting.accuracy(Linear(heads=(2,)), variables, faces, batch_size=6) == 0.5


class Frozen(nn.Module):
    """Two dense layers, the first of which is to be frozen."""

    num_classes: int = 2
    regularised: ClassVar[tuple[str, ...]] = ("head",)

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.relu(nn.Dense(12, name="body")(images.reshape(len(images), -1) - 0.5))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(self.num_classes, name="head")(x)


def _pretrained(sha256="abc"):
    random = np.random.default_rng(8)
    body = {
        "kernel": random.normal(size=(48, 12)).astype(np.float32),
        "bias": random.normal(size=12).astype(np.float32),
    }
    return Pretrained("weights.npz", sha256, {"body": body})


@pytest.mark.slow
def test_pretrained_layers_stay_bit_for_bit_and_the_others_learn():
    faces, pretrained = sides("train"), _pretrained()
    variables, history = training.train(
        Frozen(), TrainingData(faces), SIDES, pretrained=pretrained
    )
    _assert_same(variables["params"]["body"], pretrained.layers["body"])
    assert history[-1].loss < 0.5 * history[0].loss
    assert predicting.accuracy(Frozen(), variables, faces) == 1
    # The others start as they do where all are trained.
    alone = training.initial_state(Frozen(), 4, SIDES, pretrained.layers)
    whole = training.initial_state(Frozen(), 4, SIDES, {})
    assert sorted(whole.params) == ["body", "head", "norm"]
    del whole.params["body"]
    _assert_same(alone.params, whole.params)
    assert not np.array_equal(
        variables["params"]["head"]["kernel"], alone.params["head"]["kernel"]
    )
    # Adam keeps two moments of what is trained, and nothing of what is not.
    moments = [leaf for leaf in jax.tree.leaves(alone.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == 2 * [(2,)] + 4 * [(12,)] + 2 * [(12, 2)]


def test_no_gradient_is_computed_for_pretrained_layers():
    """The step holds the products of the forward pass and of the head's gradients alone."""
    faces, pretrained = sides("train"), _pretrained()
    batch = next(iter(loader.shuffled(faces, 8, seed=0)))

    def products(frozen):
        state = training.initial_state(Frozen(), 4, SIDES, frozen)
        step = functools.partial(
            training.train_step, model=Frozen(), learning_rate=0.1, num_steps=4
        )
        text = str(jax.make_jaxpr(step)(state, batch, jax.random.key(0), frozen))
        return text.count("dot_general")

    # All: two products forward, two kernels' gradients, one to the first layer's outputs.
    assert products({}) == 5
    # Without the last two, BatchNorm's scale alone needs the gradient to the head's inputs.
    assert products(pretrained.layers) == 4


@pytest.mark.slow
def test_stopped_training_of_a_head_ends_in_the_same_weights(tmp_path):
    def stop(done, total, history):
        if done == 30:
            raise StopError

    state = tmp_path / "state"
    run = functools.partial(training.train, Frozen(), TrainingData(sides("train")), SIDES)
    whole, _ = run(pretrained=_pretrained())
    with pytest.raises(StopError):
        run(pretrained=_pretrained(), state_dir=state, progress=stop)
    for other, words in ((_pretrained("abd"), "abc, not abd"), (None, "abc, not None")):
        with refused(f"SHA-256 of pretrained weights {words}"):
            run(pretrained=other, state_dir=state)
    again, _ = run(pretrained=_pretrained(), state_dir=state)
    _assert_same(again, whole)


@pytest.mark.parametrize(
    "name, size, layers", [("model_a", 12, ["conv1", "conv2", "fc1"]), ("vgg16", 32, ["fc8"])]
)
def test_kernel_penalty_is_a_thousandth_of_the_summed_squares(name, size, layers):
    model = create_model(name, num_classes=3, image_size=size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    random = np.random.default_rng(0)
    params = {
        name: {"kernel": random.standard_normal(layer["kernel"].shape, np.float32)}
        for name, layer in shapes["params"].items()
        if "kernel" in layer and layer["kernel"].size < 2**21
    }
    expected = 1e-3 * sum(
        np.sum(np.square(np.asarray(params[layer]["kernel"], np.float64))) for layer in layers
    )
    np.testing.assert_allclose(training.kernel_penalty(model, params), expected, rtol=1e-5)


def test_recipe_gives_way_to_what_is_given():
    recipe = recipes.RECIPES["vgg16", "any"]
    assert recognisers.train_config("vgg16", "folder") == recipe
    given = {"epochs": 2, "learning_rate": 0.5, "batch_size": 8, "seed": 4}
    config = recognisers.train_config("vgg16", "folder", **given)
    assert config == dataclasses.replace(recipe, **given)
    with refused("epochs must be an integer >= 1, got 0"):
        recognisers.train_config("vgg16", "folder", epochs=0)
    for name in ("batch_size", "learning_rate"):
        with refused(f"{name} must be .*, got -1"):
            recognisers.train_config("vgg16", "folder", **{name: -1})


def test_training_on_the_test_split_is_refused():
    with refused("split must be train or all for training, got test"):
        recognisers.load_training_data("folder", DataOptions(image_size=64, split="test"))
