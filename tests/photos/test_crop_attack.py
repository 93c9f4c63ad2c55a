import jax
import numpy as np
import pytest

from deid_jax.attacks.budgets import psnr_of_l2
from deid_jax.photos import crop_attack
from deid_jax.photos.alignment import SIZE, crop_matrix, support
from deid_jax.photos.faces import Face
from deid_jax.photos.verifiers import comparable_of, crops_of
from tests.experiments.protect_helpers import FIRST, picture, verifier

FACES = [Face((20.0 + 3 * n, 15.0, 60.0, 60.0)) for n in range(5)]
PSNR = 40.0


PIXELS = picture(0)


def changes(number, *, pixels=PIXELS, grey=False, psnr=PSNR, num_steps=2, seed=0):
    faces = FACES[:number]
    return crop_attack.perturbations(
        [verifier()],
        crop_attack.Crops.of([verifier()], pixels, faces, grey=grey),
        [[own[None]] for own in comparable_of(FIRST, crops_of(pixels, faces))],
        None,
        psnr=psnr,
        keys=jax.random.split(jax.random.key(seed), 5)[:number],
        num_steps=num_steps,
    )


@pytest.mark.slow
def test_changes_keep_to_their_size_and_turn_the_embedding_away():
    found, crops = changes(3, num_steps=8), crops_of(PIXELS, FACES)
    assert found.shape == (3, SIZE, SIZE, 3)
    sizes = np.linalg.norm(found.astype(np.float64).reshape(3, -1), axis=1)
    for size in sizes:
        assert psnr_of_l2(size, found[0].size) >= PSNR - 1e-3
    changed = crops[:3] + found
    assert changed.min() >= 0
    assert changed.max() <= 1
    before = comparable_of(FIRST, crops[:3])
    after = comparable_of(FIRST, np.clip(changed, 0, 1))
    assert np.all(np.sum(before * after, axis=1) < 0.9)


@pytest.mark.slow
def test_padding_and_other_faces_change_nothing():
    """Batches of 1, 4 and 16 are other programs, and round differently."""
    three, five, one = changes(3), changes(5), changes(1)
    np.testing.assert_array_equal(three, changes(3))
    for found in (five[:1], three[:1]):
        cosine = np.sum(one * found) / np.linalg.norm(one) / np.linalg.norm(found)
        assert cosine > 0.999


def test_seed_decides():
    assert np.any(changes(3) != changes(3, seed=1))


def test_grey_faces_change_alike_in_all_channels():
    pixels = np.repeat(PIXELS[..., :1], 3, axis=2)
    found = changes(3, pixels=pixels, grey=True)
    assert np.any(found)
    for channel in (1, 2):
        np.testing.assert_array_equal(found[..., channel], found[..., 0])


def changed_by(pixels, face, psnr, grey=False, seed=3):
    matrix = crop_matrix(face)
    change = np.random.default_rng(seed).normal(0, 0.02, (SIZE, SIZE, 3)).astype(np.float32)
    return matrix, crop_attack.add(pixels, [change], [matrix], [psnr], grey=grey)


@pytest.mark.parametrize(("psnr", "width"), [(46.0, 40.0), (38.0, 90.0)])
def test_added_change_has_its_psnr_and_stays_in_its_place(psnr, width):
    pixels = picture(1, size=(160, 150), contrast=20)
    matrix, changed = changed_by(pixels, Face((30.0, 25.0, width, width)), psnr)
    ys, xs, inside = support(matrix, pixels.shape[:2])
    touched = np.zeros(pixels.shape[:2], bool)
    touched[ys, xs] = inside
    assert not np.all(touched)
    np.testing.assert_array_equal(changed[~touched], pixels[~touched])
    difference = (changed.astype(np.float64) - pixels)[touched] / 255
    found = -10 * np.log10(np.mean(difference**2))
    assert psnr - 0.01 <= found < psnr + 0.3


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_are_the_ends(value):
    """Half of the change lies beyond them; it neither wraps round nor goes over the PSNR."""
    pixels = np.full((100, 110, 3), value, np.uint8)
    _, changed = changed_by(pixels, FACES[0], 42.0)
    difference = np.abs(changed.astype(int) - value)
    assert 0 < difference.max() < 60


def test_faces_beside_the_photo_and_empty_changes_change_nothing():
    pixels = picture(2)
    for left, top in ((-500.0, 10.0), (10.0, 4000.0)):
        _, changed = changed_by(pixels, Face((left, top, 30.0, 30.0)), 38.0)
        np.testing.assert_array_equal(changed, pixels)
    matrix = crop_matrix(FACES[0])
    nothing = np.zeros((SIZE, SIZE, 3), np.float32)
    changed = crop_attack.add(pixels, [nothing], [matrix], [38.0], grey=False)
    np.testing.assert_array_equal(changed, pixels)


def test_weights_are_arguments_of_one_program():
    """Another size, key or face compiles nothing anew."""
    changes(3)
    compiled = crop_attack.find_perturbation._cache_size()
    changes(4, psnr=36.0, seed=5)
    changes(2, grey=True)
    assert crop_attack.find_perturbation._cache_size() == compiled
