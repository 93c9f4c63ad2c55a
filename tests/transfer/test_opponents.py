"""The opponent who trains on: what he learns, and what he leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.metrics import verification
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from deid_jax.transfer.opponents import fine_tune
from tests.embedding_helpers import faces_of, tiny_embedder, tiny_in_numpy, unit_rows

EMBEDDER = tiny_embedder()
PERSONS = 4
RATE = 1e-3


@pytest.fixture(scope="module")
def task():
    """Photos that the recogniser hardly knows, their labels, and galleries of clean ones."""
    clean, labels = faces_of(PERSONS, 6, noise=10)
    protected = 255 - np.roll(clean, 5, axis=1)  # Nothing like the clean ones.
    directions = verification.centroids(
        EMBEDDER.embed(clean), [np.flatnonzero(labels == p) for p in range(PERSONS)]
    )
    return protected, labels, directions


def _named(embedder, images, labels, others):
    """The share of photos whose person's other photos are the likeliest."""
    members = [np.flatnonzero(labels == p) for p in range(PERSONS)]
    galleries = verification.centroids(embedder.embed(others), members)
    scores = verification.similarities(embedder.embed(images), galleries)
    return np.mean(scores.argmax(axis=1) == labels)


def _leaves(embedder):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(embedder.variables)]


def test_learns_to_name_the_photos_that_it_trains_on(task):
    images, labels, directions = task
    noisy, _ = faces_of(PERSONS, 6, noise=75)
    clean, _ = faces_of(PERSONS, 6, noise=10)
    both = np.concatenate([noisy, clean])
    options = {"epochs": 30, "batch_size": 12, "learning_rate": 3e-3}
    tuned = fine_tune(EMBEDDER, both, np.tile(labels, 2), directions, **options)
    before, after = (_named(e, noisy, labels, clean) for e in (EMBEDDER, tuned))
    assert before < 0.95 and after == 1.0
    # Even photos that are nothing like those of the gallery.
    both = np.concatenate([images, clean])
    tuned = fine_tune(
        EMBEDDER, both, np.tile(labels, 2), directions, epochs=40, learning_rate=3e-3
    )
    before, after = (_named(e, images, labels, clean) for e in (EMBEDDER, tuned))
    assert before < 0.6 and after > 0.9


def test_one_step_is_adams_first_of_the_cross_entropy(task):
    """−η sign(∂L/∂θ) of each weight, L by float64 NumPy, its slope by differences."""
    images, labels, directions = task
    # As they are in the mirror, so that no coin matters.
    images = np.concatenate([images[:, :, :8], images[:, :, 7::-1]], axis=2)
    directions = 3 * directions  # Only where they point to matters.
    tuned = fine_tune(
        EMBEDDER, images, labels, directions, epochs=1, batch_size=99, learning_rate=RATE
    )
    weights = {name: np.float64(EMBEDDER.variables[name]) for name in ("w", "v")}

    def loss(name, place, amount):
        changed = {n: array.copy() for n, array in weights.items()}
        changed[name][place] += amount
        embeddings = tiny_in_numpy(EMBEDDER._replace(variables=changed), images)
        logits = 30 * unit_rows(embeddings) @ unit_rows(directions).T
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -np.mean(logs[np.arange(len(labels)), labels])

    random, seen = np.random.default_rng(0), 0
    for name, array in weights.items():
        moved = np.asarray(tuned.variables[name], np.float64) - array
        assert np.abs(moved).max() <= 1.01 * RATE
        for _ in range(12):
            place = tuple(random.integers(array.shape))
            slope = (loss(name, place, 1e-5) - loss(name, place, -1e-5)) / 2e-5
            if abs(slope) > 1e-4:
                seen += 1
                np.testing.assert_allclose(moved[place], -RATE * np.sign(slope), rtol=0.01)
    assert seen > 15


def test_same_seed_same_weights_and_the_original_is_untouched(task):
    images, labels, directions = task
    before = [leaf.copy() for leaf in _leaves(EMBEDDER)]
    photos, starts = images.copy(), directions.copy()
    options = {"epochs": 2, "batch_size": 8}
    one, again, other = (
        fine_tune(EMBEDDER, images, labels, directions, seed=seed, **options)
        for seed in (3, 3, 4)
    )
    for old, now, first, second, third in zip(
        before, *map(_leaves, (EMBEDDER, one, again, other)), strict=True
    ):
        np.testing.assert_array_equal(old, now)
        np.testing.assert_array_equal(first, second)
        assert np.abs(first - old).max() > 1e-5
        assert np.abs(first - third).max() > 1e-6
    np.testing.assert_array_equal(images, photos)
    np.testing.assert_array_equal(directions, starts)
    assert one.name == "tiny0 (fine-tuned)" and one.module == EMBEDDER.module


def test_a_remainder_is_left_out_and_epochs_go_on(task):
    """A step moves a weight by the learning rate at most: their number shows."""
    moved = []
    for epochs, batch_size in ((1, 13), (1, 24), (3, 24), (1, 99)):
        options = {"epochs": epochs, "batch_size": batch_size, "learning_rate": RATE}
        tuned = fine_tune(EMBEDDER, *task, **options)
        pairs = zip(_leaves(EMBEDDER), _leaves(tuned), strict=True)
        moved.append(max(np.abs(a - b).max() for a, b in pairs) / RATE)
    np.testing.assert_allclose([moved[0], moved[1], moved[3]], 1, atol=0.01)
    assert 2.5 < moved[2] < 3.1


def test_photos_are_mirrored_half_the_time():
    """A recogniser that says what it is shown: mirrored ones, and not mirrored ones."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watching:
        def apply(self, variables, images):
            jax.debug.callback(lambda x: seen.append(np.array(x)), images)
            return images[:, 0, :2, 0] * variables["w"] + 1e-3

    images = np.zeros((40, 2, 2, 3), np.uint8)
    images[:, :, 0] = 200
    images[:, :, 1] = np.arange(40)[:, None, None]
    embedder = Embedder("watching", Watching(), {"w": jnp.ones((1, 2))})
    fine_tune(embedder, images, np.arange(40) % 2, np.eye(2), epochs=3, batch_size=10)
    jax.effects_barrier()
    shown = np.round(255 * np.concatenate(seen)[:, 0, :, 0]).astype(int)
    assert len(shown) == 120
    mirrored = shown[:, 1] == 200
    assert 0.3 < mirrored.mean() < 0.7
    # Every photo once an epoch, in another order each time.
    numbers = np.where(mirrored, shown[:, 0], shown[:, 1]).reshape(3, 40)
    np.testing.assert_array_equal(np.sort(numbers, axis=1), np.tile(np.arange(40), (3, 1)))
    assert np.any(numbers[0] != numbers[1])


def test_what_cannot_be_trained_is_refused(task):
    images, labels, directions = task
    brought = Embedder("mine:embed", FunctionModule(lambda x: x), {})
    with pytest.raises(InputError, match="recogniser mine:embed is a function: it has no w"):
        fine_tune(brought, images, labels, directions)
    with pytest.raises(InputError, match="images must be one or more, got none"):
        fine_tune(EMBEDDER, images[:0], labels[:0], directions)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("epochs", 0, "epochs must be an integer >= 1, got 0"),
        ("batch_size", 0, "batch_size must be an integer >= 1, got 0"),
        ("batch_size", 2.5, "batch_size must be an integer >= 1, got 2.5"),
        ("learning_rate", -1.0, "learning_rate must be a number >= 0, got -1.0"),
        ("learning_rate", float("nan"), "learning_rate must be a number >= 0, got nan"),
        ("learning_rate", float("inf"), "learning_rate must be finite, got inf"),
    ],
)
def test_bad_numbers_are_refused(task, setting, value, message):
    with pytest.raises(InputError, match=message):
        fine_tune(EMBEDDER, *task, **{setting: value})
