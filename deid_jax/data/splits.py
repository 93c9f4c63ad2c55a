"""Splits into train and test images of every person, with near-duplicates kept together.

Labels are int[N]; thumbnails are from `deid_jax.data.images.thumbnail`, grey
uint8[N, THUMBNAIL_SIZE, THUMBNAIL_SIZE] of whole images.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from deid_jax import checks
from deid_jax.data.dataset import SPLITS
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

TEST_SHARE = 6  # one image in six is for testing: 5 of 30
NEAR_DUPLICATE = 0.92  # least correlation of gradients; for margins see `near_duplicate_pairs`
_BLOCK = 1024  # rows compared at once: bounds the memory for a person with many images


def split_indices(
    labels: NumpyArray,
    split: str,
    seed: int,
    groups: NumpyArray | None = None,
    persons: Sequence[str] | None = None,
) -> NumpyArray:
    """The positions of the images of a split.

    Every person is in both splits: of n images, max(1, round(n / 6)) are for testing. If the
    groups do not allow that number, the nearest possible number is used (the smaller of two),
    always leaving at least one for training. A person's split depends on the seed, the
    person's name and the number and groups of the person's images, and on no other person.

    Args:
      labels: int[N].
      split: "train", "test" (disjoint) or "all", their union.
      seed: an integer >= 0.
      groups: int[N], equal for images of one person to be kept together; None: no groups.
      persons: names by label, for the messages and the seeding; None: the labels.

    Raises:
      InputError: the split is unknown, the seed is negative, or a person cannot be split.
    """
    labels = np.asarray(labels)
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split}")
    checks.count("seed", seed)
    if split == "all":
        return np.arange(len(labels), dtype=np.int64)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        person = str(label) if persons is None else persons[label]
        positions = np.flatnonzero(labels == label)
        key = np.random.default_rng([seed, zlib.crc32(person.encode())])
        is_test[positions] = _choose_test(groups[positions], key, person)
    return np.flatnonzero(is_test == (split == "test")).astype(np.int64)


def _choose_test(groups: NumpyArray, generator: np.random.Generator, person: str) -> NumpyArray:
    """Which of one person's images are for testing, bool[n]; only whole groups."""
    total = len(groups)
    _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        what = "one image" if total == 1 else f"{total} images, all near-duplicates"
        raise InputError(
            f"person {person} has {what}: a train and a test split need two different images"
        )
    order = generator.permutation(len(sizes))
    # reachable[i]: bit k is set if some of the groups order[i:] have k images in total.
    reachable = [1] * (len(sizes) + 1)
    for place in reversed(range(len(sizes))):
        later = reachable[place + 1]
        reachable[place] = later | later << int(sizes[order[place]])
    wanted = max(1, round(total / TEST_SHARE))
    sums = [count for count in range(1, total) if reachable[0] >> count & 1]
    missing = min(sums, key=lambda count: (abs(count - wanted), count))
    chosen = np.zeros(len(sizes), dtype=bool)
    for place, group in enumerate(order):
        size = int(sizes[group])
        if size <= missing and reachable[place + 1] >> (missing - size) & 1:
            chosen[group] = True
            missing -= size
    return chosen[inverse]


def near_duplicate_pairs(thumbnails: NumpyArray, labels: NumpyArray) -> NumpyArray:
    """Pairs of images of one person that show the same photograph.

    Two images are near-duplicates if the correlation of their thumbnails' gradients,
    ⟨g₁, g₂⟩ / (‖g₁‖ ‖g₂‖) with g all differences of neighbouring pixels along x and y, is at
    least `NEAR_DUPLICATE` = 0.92. It is invariant to brightness and contrast and, unlike the
    correlation of the pixels themselves, barely affected by the shading that portraits share.

    Measured on 30 CelebA persons with 30 aligned images each, the 6 pairs known to be the same
    photograph reach at least 0.993, and the other 13,044 pairs of one person at most 0.871
    (0.968 if pixels are correlated). An image still matches itself (minimum over the 900) after
    JPEG at quality 10 (0.98), halving and JPEG at quality 30 (0.976), reduction to 32x39
    (0.94), a shift by one pixel (0.97) or gamma 0.7 (0.975), but not after cropping 4 of 178
    pixels on every side or mirroring.

    Returns int64[M, 2], each row ascending, rows sorted.
    """
    labels = np.asarray(labels)
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        values = np.asarray(thumbnails)[positions].astype(np.float32)
        gradients = _gradients(values)
        # Without gradients (a uniform image), only the grey level can be compared.
        flat = ~gradients.any(axis=1)
        levels = np.where(flat, values.mean(axis=(1, 2)), np.nan)
        for start in range(0, len(positions), _BLOCK):
            rows = slice(start, start + _BLOCK)
            same = gradients[rows] @ gradients.T >= NEAR_DUPLICATE
            same |= np.abs(levels[rows, None] - levels) < 1
            first, second = np.nonzero(np.triu(same, k=start + 1))
            pairs.append(np.stack([positions[start + first], positions[second]], axis=1))
    found = np.concatenate(pairs)
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _gradients(thumbnails: NumpyArray) -> NumpyArray:
    """Gradients float32[n, D] of unit norm, or zero where a thumbnail is uniform."""
    count = len(thumbnails)
    along_x = np.diff(thumbnails, axis=2).reshape(count, -1)
    along_y = np.diff(thumbnails, axis=1).reshape(count, -1)
    gradients = np.concatenate([along_x, along_y], axis=1)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients / np.where(norms > 0, norms, 1)


def group_pairs(count: int, pairs: NumpyArray) -> NumpyArray:
    """Groups int64[count]: for each image the smallest position linked to it."""
    parents = list(range(count))

    def root(position: int) -> int:
        while parents[position] != position:
            parents[position] = parents[parents[position]]
            position = parents[position]
        return position

    for first, second in pairs:
        low, high = sorted((root(int(first)), root(int(second))))
        parents[high] = low
    return np.array([root(position) for position in range(count)], dtype=np.int64)
