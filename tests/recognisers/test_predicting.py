"""How often a model is right: every label once, padding and unreadable images not at all."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.recognisers import predicting
from deid_jax.types import Batch
from tests.helpers import noise_faces, refused

SIZE = 16


class Brightness(nn.Module):
    """Names the person whose number the first pixel has, in 255ths."""

    num_classes: int = 5

    @nn.compact
    def __call__(self, images):
        level = jnp.round(255 * images[:, 0, 0, 0]).astype(jnp.int32)
        return jax.nn.one_hot(level, self.num_classes)


class Heads(nn.Module):
    """Two answers of three: the level, and the next one."""

    @nn.compact
    def __call__(self, images):
        level = jnp.round(255 * images[:, 0, 0, 0]).astype(jnp.int32)
        named = jnp.stack([level, level + 1], axis=1) % 3
        return jax.nn.one_hot(named, 3)


def faces_that_say(levels, **changes):
    """A data set whose first pixels are `levels`."""
    faces = noise_faces(SIZE)

    def read(index):
        pixels = np.array(faces.read(index))
        pixels[0, 0] = levels[index]
        return pixels

    return dataclasses.replace(faces, read=read, **changes)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 64])
def test_every_picture_counts_once_whatever_the_padding(batch_size):
    # The last image, which pads batches, is named rightly; six others are not.
    labels = np.arange(11) % 5
    levels = np.where(np.arange(11) < 6, (labels + 1) % 5, labels)
    faces = faces_that_say(levels)
    assert predicting.accuracy(Brightness(), {}, faces, batch_size=batch_size) == 5 / 11


def test_none_and_all():
    labels = np.arange(11) % 5
    assert predicting.accuracy(Brightness(), {}, faces_that_say(labels)) == 1
    assert predicting.accuracy(Brightness(), {}, faces_that_say((labels + 1) % 5)) == 0


@pytest.mark.parametrize("batch_size", [4, 64])
def test_several_heads_count_each(batch_size):
    labels = np.stack([np.arange(11) % 3, np.arange(11) % 3], axis=1).astype(np.int32)
    labels[:4, 1] = (labels[:4, 1] + 1) % 3
    faces = faces_that_say(np.arange(11) % 3, labels=labels)
    # All first heads are right, and four of the second.
    found = predicting.accuracy(Heads(), {}, faces, batch_size=batch_size)
    assert found == pytest.approx(15 / 22)


def test_no_picture_is_nan():
    assert math.isnan(predicting.accuracy(Brightness(), {}, noise_faces(SIZE).take([])))


def test_unreadable_pictures_do_not_count():
    labels = np.arange(11) % 5
    said = faces_that_say(labels)

    def read(index):
        if index in (2, 9, 10):
            raise InputError(f"image {index} cannot be read")
        return said.read(index)

    broken = dataclasses.replace(said, read=read, skip_unreadable=True)
    assert predicting.accuracy(Brightness(), {}, broken, batch_size=2) == 1
    wrong = np.where(np.arange(11) == 0, 4, labels)
    broken = dataclasses.replace(broken, labels=wrong.astype(np.int32))
    assert predicting.accuracy(Brightness(), {}, broken, batch_size=2) == pytest.approx(7 / 8)
    with refused("image 2 cannot be read"):
        predicting.accuracy(
            Brightness(), {}, dataclasses.replace(broken, skip_unreadable=False)
        )


def test_num_right_leaves_padding_out():
    images = np.zeros((4, 2, 2, 3), np.float32)
    images[:, 0, 0, 0] = np.array([0, 1, 2, 3], np.float32) / np.float32(255)
    batch = Batch(
        image=images,
        label=np.array([0, 1, 0, 3], np.int32),
        position=np.arange(4, dtype=np.int32),
        mask=np.array([True, True, True, False]),
    )
    right, labels = predicting.num_right({}, batch, model=Brightness())
    assert (int(right), int(labels)) == (2, 3)


def test_predict_gives_logits():
    images = np.full((2, SIZE, SIZE, 3), 3 / 255, np.float32)
    logits = predicting.predict({}, images, model=Brightness())
    np.testing.assert_array_equal(logits, [[0, 0, 0, 1, 0]] * 2)
