"""Batches: every picture once, padding marked, orders that hang on the seed."""

import numpy as np
import pytest

from deid_jax.data import FaceDataset, loader


@pytest.fixture
def faces():
    pixels = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return FaceDataset(
        name="numbers",
        persons=("a", "b"),
        labels=np.arange(7, dtype=np.int32) % 2,
        names=tuple("0123456"),
        read=lambda index: pixels[index],
        image_size=2,
        split="all",
    )


def test_in_order_gives_every_picture_once_and_marks_padding(faces):
    batches = list(loader.in_order(faces, 3))
    assert [batch.mask.tolist() for batch in batches] == [
        [True] * 3,
        [True] * 3,
        [True, False, False],
    ]
    positions = np.concatenate([batch.position for batch in batches])
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    for batch in batches:
        assert batch.image.dtype == np.float32
        np.testing.assert_array_equal(batch.label, batch.position % 2)
        expected = (batch.position / np.float32(255)).astype(np.float32)
        np.testing.assert_array_equal(batch.image[:, 0, 0, 0], expected)


def test_shuffled_gives_whole_batches_in_an_order_of_the_seed(faces):
    def order(seed):
        batches = list(loader.shuffled(faces, 3, seed=seed))
        assert len(batches) == loader.num_full_batches(7, 3) == 2
        assert all(batch.mask.all() for batch in batches)
        return np.concatenate([batch.position for batch in batches]).tolist()

    assert order(1) == order(1)
    assert len(set(order(1))) == 6
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_fewer_pictures_than_a_batch_make_one_batch(faces):
    (batch,) = loader.shuffled(faces.take([2, 5]), 8, seed=0)
    assert sorted(batch.image[:, 0, 0, 0] * 255) == pytest.approx([2, 5])


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [(150, 64, 50), (64, 64, 64), (65, 64, 33), (3, 64, 3), (900, 64, 60), (1, 1, 1)],
)
def test_even_batches_save_padding_and_no_batch_more(images, batch_size, expected):
    size = loader.even_batch_size(images, batch_size)
    assert size == expected
    assert loader.num_batches(images, size) == loader.num_batches(images, batch_size)
