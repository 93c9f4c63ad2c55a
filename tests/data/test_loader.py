"""Batches: every image once, padding marked, orders that hang on the seed."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from deid_jax.data import FaceDataset, loader
from deid_jax.errors import InputError
from tests.helpers import refused


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
    assert -(-images // size) == -(-images // batch_size)


def test_batches_never_reach_from_one_span_into_the_next(faces):
    spans = [range(0, 3), range(3, 4), range(5, 7)]
    assert loader.divided(spans, 2) == [
        range(0, 2), range(2, 3), range(3, 4), range(5, 7),
    ]  # fmt: skip
    batches = list(loader.in_order(faces, 2, spans=spans))
    assert [batch.position.tolist() for batch in batches] == [[0, 1], [2, 2], [3, 3], [5, 6]]
    assert [batch.mask.tolist() for batch in batches] == [
        [True, True], [True, False], [True, False], [True, True],
    ]  # fmt: skip
    for batch in batches:
        np.testing.assert_array_equal(batch.label, batch.position % 2)
        np.testing.assert_allclose(255 * batch.image[:, 0, 0, 0], batch.position, rtol=1e-6)
    assert list(loader.in_order(faces, 2, spans=[])) == []


def test_padding_is_not_read_again(faces):
    reads = []

    def read(index):
        reads.append(index)
        return faces.read(index)

    counted = dataclasses.replace(faces, read=read)
    list(loader.in_order(counted, 4, spans=[range(0, 5), range(6, 7)]))
    assert sorted(reads) == [0, 1, 2, 3, 4, 6]


def _damaged(faces, positions, *, skip):
    def read(index):
        if index in positions:
            raise InputError(f"{faces.image_name(index)} cannot be read")
        return faces.read(index)

    return dataclasses.replace(faces, read=read, skip_unreadable=skip)


def test_unreadable_pictures_are_masked_in_their_place(faces):
    batches = list(loader.in_order(_damaged(faces, {1, 6}, skip=True), 3))
    assert [batch.mask.tolist() for batch in batches] == [
        [True, False, True], [True] * 3, [False] * 3,
    ]  # fmt: skip
    assert [batch.position.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6] * 3]
    # What fills their places is an image of the batch that could be read.
    np.testing.assert_allclose(255 * batches[0].image[:, 0, 0, 0], [0, 2, 2], rtol=1e-6)
    # Where none could be, it is grey, and the label one of the data set's.
    np.testing.assert_array_equal(batches[2].image, np.full((3, 2, 2, 3), 0.5, np.float32))
    assert batches[2].image.dtype == np.float32
    for batch in batches:
        assert (batch.label.dtype, batch.label.shape) == (np.int32, (3,))
        assert set(batch.label.tolist()) <= {0, 1}


def test_unreadable_pictures_stop_a_run_unless_they_are_to_be_skipped(faces):
    with refused(r"^a/4 cannot be read"):
        list(loader.in_order(_damaged(faces, {4}, skip=False), 3))
    # Not those that are not asked for.
    batches = list(loader.in_order(_damaged(faces, {4}, skip=False), 3, spans=[range(4)]))
    assert sum(int(batch.mask.sum()) for batch in batches) == 4


def test_other_failures_are_not_taken_for_unreadable_pictures(faces):
    def read(index):
        raise ZeroDivisionError(index)

    broken = dataclasses.replace(faces, read=read, skip_unreadable=True)
    with pytest.raises(ZeroDivisionError):
        list(loader.in_order(broken, 3))


def test_stopwatch_sums_over_threads():
    watch = loader.Stopwatch()
    together = threading.Barrier(4)

    def work():
        together.wait()
        with watch:
            time.sleep(0.1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.4 <= watch.seconds < 4
    before = watch.seconds
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert watch.seconds > before


def test_reading_is_timed(faces):
    def read(index):
        time.sleep(0.01)
        return faces.read(index)

    watch = loader.Stopwatch()
    list(loader.in_order(dataclasses.replace(faces, read=read), 3, watch=watch))
    # Seven images; padding takes no time.
    assert 0.07 <= watch.seconds < 1


@pytest.mark.parametrize("count", [2, 3, 6])
def test_parts_of_shuffled_batches_make_the_whole_in_order(faces, count):
    many = faces.take([*range(7)] * 3)
    whole = list(loader.shuffled(many, 6, seed=4))
    assert len(whole) == 3
    parts = [list(loader.shuffled(many, 6, seed=4, part=(i, count))) for i in range(count)]
    for number, batch in enumerate(whole):
        own = [part[number] for part in parts]
        for name in batch._fields:
            joined = np.concatenate([getattr(part, name) for part in own])
            np.testing.assert_array_equal(joined, getattr(batch, name))
            assert len(getattr(own[0], name)) == 6 // count
    assert {len(part) for part in parts} == {3}


def test_batches_that_processes_do_not_divide_are_refused(faces):
    with refused("must be a multiple of 2 processes, got 3"):
        next(loader.shuffled(faces, 3, seed=0, part=(0, 2)))
    # The batch is no larger than the data set.
    with refused("must be a multiple of 2 processes, got 7"):
        next(loader.shuffled(faces, 8, seed=0, part=(1, 2)))
