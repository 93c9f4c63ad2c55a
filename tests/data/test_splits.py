import numpy as np
import pytest
from PIL import Image

from deid_jax.data import images, splits
from tests.helpers import refused

KNOWN_PAIRS = {
    ("7226", "016", "021"),
    ("7238", "011", "024"),
    ("7315", "013", "025"),
    ("7361", "004", "005"),
    ("7367", "004", "010"),
    ("7378", "013", "025"),
}


def _test_counts(labels, seed=0, **more):
    chosen = splits.split_indices(labels, "test", seed, **more)
    return np.bincount(labels[chosen], minlength=labels.max() + 1)


def test_thirty_pictures_are_divided_25_to_5():
    labels = np.repeat(np.arange(30), 30)
    np.testing.assert_array_equal(_test_counts(labels), np.full(30, 5))


@pytest.mark.parametrize(
    ("count", "num_test"), [(2, 1), (3, 1), (6, 1), (8, 1), (12, 2), (17, 3), (60, 10)]
)
def test_other_counts_keep_the_ratio(count, num_test):
    labels = np.repeat([0, 1], [count, 30])
    assert _test_counts(labels).tolist() == [num_test, 5]


def test_train_and_test_make_up_all_and_are_sorted():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 9))
    train = splits.split_indices(labels, "train", 3)
    test = splits.split_indices(labels, "test", 3)
    assert train.dtype == test.dtype == np.int64
    assert np.all(np.diff(train) > 0) and np.all(np.diff(test) > 0)
    both = np.sort(np.concatenate([train, test]))
    np.testing.assert_array_equal(both, splits.split_indices(labels, "all", 3))
    np.testing.assert_array_equal(both, np.arange(36))


def test_seed_decides_the_split():
    labels = np.repeat([0, 1], 30)
    splits_of = [tuple(splits.split_indices(labels, "test", seed)) for seed in range(8)]
    assert len(set(splits_of)) == 8
    assert splits_of[0] == tuple(splits.split_indices(labels, "test", 0))


def test_every_picture_is_tested_under_some_seed():
    labels = np.repeat([0, 1], 12)
    tested = {
        int(position)
        for seed in range(60)
        for position in splits.split_indices(labels, "test", seed)
    }
    assert tested == set(range(24))


def test_persons_are_divided_independently():
    names = ["ada", "bob", "eve"]
    labels = np.repeat([0, 1, 2], [30, 20, 30])
    test = splits.split_indices(labels, "test", 5, persons=names)
    alone = splits.split_indices(np.zeros(30, int), "test", 5, persons=["eve"])
    np.testing.assert_array_equal(test[labels[test] == 2] - 50, alone)
    other = splits.split_indices(np.zeros(30, int), "test", 5, persons=["ada"])
    assert not np.array_equal(alone, other)


@pytest.mark.parametrize("sizes", [[2] * 3 + [1] * 24, [4, 4, 1] + [3] * 7, [25, 5], [5] * 6])
def test_groups_stay_on_one_side_and_the_count_is_hit(sizes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    assert len(groups) == 30
    order = np.random.default_rng(1).permutation(30)
    groups = groups[order]
    labels = np.zeros(30, int)
    for seed in range(20):
        test = splits.split_indices(labels, "test", seed, groups)
        assert len(test) == 5
        train = np.setdiff1d(np.arange(30), test)
        assert not set(groups[test]) & set(groups[train])


@pytest.mark.parametrize(
    ("sizes", "num_test"),
    [([10, 10, 10], 10), ([26, 4], 4), ([4, 6, 20], 4), ([29, 1], 1), ([2, 2], 2)],
)
def test_nearest_count_where_groups_forbid_the_exact_one(sizes, num_test):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    test = splits.split_indices(np.zeros(len(groups), int), "test", 0, groups)
    assert len(test) == num_test
    assert len(set(groups[test])) == 1


def test_equal_group_numbers_of_two_persons_do_not_bind_them():
    labels = np.repeat([0, 1], 6)
    groups = np.tile(np.arange(6), 2)
    assert _test_counts(labels, groups=groups).tolist() == [1, 1]


def test_persons_that_cannot_be_divided_are_named():
    labels = np.array([0, 0, 1])
    with refused("person bob has one image"):
        splits.split_indices(labels, "train", 0, persons=["ada", "bob"])
    groups = np.array([7, 7, 8])
    with refused("person 0 has 2 images, all near-duplicates"):
        splits.split_indices(labels, "test", 0, groups)
    assert splits.split_indices(labels, "all", 0, groups).tolist() == [0, 1, 2]


def test_bad_arguments():
    with refused("split must be one of all, train, test, got dev"):
        splits.split_indices(np.array([0, 0]), "dev", 0)
    with refused("seed must be an integer >= 0, got -1"):
        splits.split_indices(np.array([0, 0]), "test", -1)


def _thumbnails(count, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 24, 24), dtype=np.uint8)


def test_copies_of_one_person_are_pairs_and_of_two_persons_are_not():
    thumbnails = _thumbnails(6)
    thumbnails[4] = thumbnails[1]
    thumbnails[5] = thumbnails[0]
    labels = np.array([0, 1, 0, 1, 1, 1])
    assert splits.near_duplicate_pairs(thumbnails, labels).tolist() == [[1, 4]]
    groups = splits.group_pairs(6, splits.near_duplicate_pairs(thumbnails, labels))
    assert groups.tolist() == [0, 1, 2, 3, 1, 5]


def test_brightness_and_contrast_do_not_hide_a_copy():
    thumbnails = _thumbnails(2)
    thumbnails[1] = thumbnails[0] // 3 + 90
    assert len(splits.near_duplicate_pairs(thumbnails, np.zeros(2))) == 1


@pytest.mark.parametrize(("correlation", "found"), [(0.95, True), (0.89, False)])
def test_the_threshold(correlation, found):
    generator = np.random.default_rng(0)
    first, other = generator.normal(0, 25, (2, 24, 24))
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    thumbnails = np.clip(np.stack([first, second]) + 128, 0, 255).astype(np.uint8)
    assert len(splits.near_duplicate_pairs(thumbnails, np.zeros(2))) == found


def test_flat_pictures_are_compared_by_level():
    thumbnails = np.zeros((4, 24, 24), np.uint8)
    thumbnails[1:3] += 200
    thumbnails[3] = _thumbnails(1)[0]
    assert splits.near_duplicate_pairs(thumbnails, np.zeros(4)).tolist() == [[1, 2]]


def test_pairs_across_blocks(monkeypatch):
    monkeypatch.setattr(splits, "_BLOCK", 3)
    thumbnails = _thumbnails(10)
    thumbnails[9], thumbnails[4], thumbnails[8] = thumbnails[0], thumbnails[3], thumbnails[3]
    pairs = splits.near_duplicate_pairs(thumbnails, np.zeros(10))
    assert pairs.tolist() == [[0, 9], [3, 4], [3, 8], [4, 8]]


def test_chains_of_pairs_are_one_group():
    groups = splits.group_pairs(7, np.array([[5, 6], [1, 2], [2, 5]]))
    assert groups.tolist() == [0, 1, 1, 3, 4, 1, 1]
    assert splits.group_pairs(2, np.zeros((0, 2))).tolist() == [0, 1]


def test_exactly_the_known_near_duplicates_of_real_faces_are_found(real_faces):
    files = sorted(real_faces.glob("*/*.jpg"))
    assert len(files) == 900
    people = sorted({path.parent.name for path in files})
    labels = np.array([people.index(path.parent.name) for path in files])
    faces = [Image.open(path).convert("RGB") for path in files]
    full = np.stack([images.thumbnail(np.asarray(face)) for face in faces])
    # Also found when one of each pair (the later) is half as large.
    reduced = full.copy()
    for position, (path, face) in enumerate(zip(files, faces, strict=True)):
        if any(path.parent.name == who and path.stem == late for who, _, late in KNOWN_PAIRS):
            reduced[position] = images.thumbnail(np.asarray(face.resize((89, 109))))
    for thumbnails in (full, reduced):
        pairs = splits.near_duplicate_pairs(thumbnails, labels)
        found = {(files[i].parent.name, files[i].stem, files[j].stem) for i, j in pairs}
        assert found == KNOWN_PAIRS
