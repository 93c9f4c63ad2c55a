import dataclasses
import hashlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from deid_jax.data import DataOptions, FaceDataset, load_dataset, pair_lists
from deid_jax.data.pair_lists import make_lists, near_duplicate_groups, read_lists
from deid_jax.errors import InputError
from tests.helpers import refused


def make_dataset(counts, persons=None, pixels=None):
    """`counts[p]` images of each person, one colour each unless there are `pixels`."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    if pixels is None:
        pixels = np.arange(len(labels))[:, None, None, None] * np.ones((8, 8, 3), np.uint8)
        pixels = pixels.astype(np.uint8)
    return FaceDataset(
        name="folder",
        persons=persons or tuple(f"p{label:02}" for label in range(len(counts))),
        labels=labels,
        names=tuple(f"{i:03}" for count in counts for i in range(count)),
        read=pixels.__getitem__,
        image_size=8,
        split="all",
    )


def make(counts, **options):
    dataset = make_dataset(counts)
    return dataset, make_lists(dataset, groups=np.arange(len(dataset)), **options)


def per_person(pictures):
    return Counter(picture.partition("/")[0] for picture in pictures)


def test_thirty_pictures_are_ten_protected_ten_known_and_ten_probes():
    dataset, lists = make([30] * 4)
    roles = [lists.protected, lists.gallery, lists.probes]
    for role in roles:
        assert per_person(role) == dict.fromkeys(dataset.persons, 10)
        assert list(role) == sorted(role)
    assert set().union(*roles) == set(dataset.image_names)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, (1, 1, 1)),
        (4, (1, 2, 1)),
        (5, (2, 2, 1)),
        (6, (2, 2, 2)),
        (28, (9, 10, 9)),
        (29, (10, 10, 9)),
        (31, (10, 10, 11)),
        (530, (10, 10, 510)),
    ],
)
def test_other_numbers_of_pictures(count, expected):
    _, lists = make([count, 30])
    roles = (lists.protected, lists.gallery, lists.probes)
    assert tuple(per_person(role)["p00"] for role in roles) == expected


@pytest.mark.parametrize(("protected", "gallery"), [(1, 1), (10, 2), (3, 15), (50, 50)])
def test_sizes_asked_for_are_the_most(protected, gallery):
    _, lists = make([30, 12], per_person=protected, gallery_size=gallery)
    for person, n in (("p00", 30), ("p01", 12)):
        first, second = per_person(lists.protected)[person], per_person(lists.gallery)[person]
        assert first == min(protected, (n - n // 3) // 2)
        assert second == min(gallery, n - n // 3 - first)
        assert per_person(lists.probes)[person] == n - first - second


def test_seed_decides_and_nothing_else():
    first, again = make([9] * 3, seed=5)[1], make([9] * 3, seed=5)[1]
    assert first == again and first.sha256() == again.sha256()
    others = [make([9] * 3, seed=seed, num_pairs=20)[1] for seed in range(6)]
    assert len({lists.protected for lists in others}) == 6
    assert len({lists.genuine for lists in others}) == 6
    assert len({lists.impostor for lists in others}) == 6
    assert make([9] * 3, seed=np.int64(5))[1].to_json() == first.to_json()
    assert len({lists.sha256() for lists in others}) == 6


def test_every_picture_plays_every_role_under_some_seed():
    seen = {role: set() for role in ("protected", "gallery", "probes")}
    for seed in range(40):
        _, lists = make([6, 6], seed=seed)
        for role, pictures in seen.items():
            pictures.update(getattr(lists, role))
    assert all(len(pictures) == 12 for pictures in seen.values())


def test_persons_are_drawn_independently():
    both = make_dataset([9, 12], persons=("ada", "eve"))
    other = make_dataset([20, 5, 12], persons=("bob", "cyd", "eve"))
    of_eve = []
    for dataset in (both, other):
        lists = make_lists(dataset, groups=np.arange(len(dataset)), seed=3)
        of_eve.append([p for p in lists.protected if p.startswith("eve")])
    assert of_eve[0] == of_eve[1]
    # And by their names: "ada" and "eve", of as many photos, do not draw the same ones.
    equal = make_dataset([12, 12], persons=("ada", "eve"))
    lists = make_lists(equal, groups=np.arange(24), seed=3)
    of_ada = [p.replace("ada", "eve") for p in lists.protected if p.startswith("ada")]
    assert of_ada != of_eve[0]


@pytest.mark.parametrize("num_pairs", [1, 40, 10_000])
def test_pairs_are_of_their_kind_and_none_comes_twice(num_pairs):
    counts = [3, 8, 5, 4]
    dataset, lists = make(counts, num_pairs=num_pairs)
    total = sum(counts)
    num_genuine = sum(n * (n - 1) // 2 for n in counts)
    num_impostor = total * (total - 1) // 2 - num_genuine
    assert len(lists.genuine) == min(num_pairs, num_genuine)
    assert len(lists.impostor) == min(num_pairs, num_impostor)
    for pairs, same in ((lists.genuine, True), (lists.impostor, False)):
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        for first, second in pairs:
            assert first < second
            assert (first.partition("/")[0] == second.partition("/")[0]) is same
    if num_pairs == 10_000:
        all_pairs = set(itertools.combinations(dataset.image_names, 2))
        assert set(lists.genuine) | set(lists.impostor) == all_pairs


def test_pairs_are_found_when_persons_lie_mixed():
    labels = np.array([2, 0, 1, 1, 0, 2, 0, 2, 1], np.int32)
    dataset = dataclasses.replace(
        make_dataset([3] * 3), labels=labels, names=tuple(map(str, range(9)))
    )
    lists = make_lists(dataset, groups=np.arange(9))
    assert len(lists.genuine) == 9 and len(lists.impostor) == 27
    found = lists.positions(dataset)
    assert np.all(labels[found.genuine[:, 0]] == labels[found.genuine[:, 1]])
    assert np.all(labels[found.impostor[:, 0]] != labels[found.impostor[:, 1]])


def test_every_pair_is_as_likely():
    """Of 9 genuine pairs one is drawn: each in a ninth of 900 seeds, within five sigma."""
    counts = Counter(make([3] * 3, num_pairs=1, seed=seed)[1].genuine for seed in range(900))
    assert len(counts) == 9
    assert all(abs(count - 100) < 5 * np.sqrt(900 * 8 / 81) for count in counts.values())


def test_of_near_duplicates_only_the_first_is_listed():
    dataset = make_dataset([6, 6])
    groups = np.array([0, 1, 0, 3, 1, 1, 0, 7, 8, 9, 10, 11])
    for seed in range(10):
        lists = make_lists(dataset, groups=groups, seed=seed)
        listed = {*lists.protected, *lists.gallery, *lists.probes}
        # Equal numbers of two persons do not bind them.
        assert listed == set(dataset.image_names) - {"p00/002", "p00/004", "p00/005"}
        in_pairs = {name for pair in lists.genuine + lists.impostor for name in pair}
        assert in_pairs == listed


def test_near_duplicates_are_looked_for_in_the_pictures():
    pixels = np.random.default_rng(0).integers(256, size=(12, 24, 24, 3), dtype=np.uint8)
    pixels[4] = pixels[1]
    dataset = make_dataset([6, 6], pixels=pixels)
    assert near_duplicate_groups(dataset).tolist() == [0, 1, 2, 3, 1, *range(5, 12)]
    lists = make_lists(dataset)
    listed = {*lists.protected, *lists.gallery, *lists.probes}
    assert listed == set(dataset.image_names) - {"p00/004"}


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([30, 2], {}, "person p01 has 2 different photos, the lists need 3 or more"),
        ([3, 0, 3], {}, "person p01 has 0 different photos"),
        ([30], {}, "lists need two persons or more, folder has one"),
        ([5, 5], {"seed": -1}, "seed must be an integer >= 0, got -1"),
        ([5, 5], {"per_person": 0}, "per_person must be an integer >= 1, got 0"),
        ([5, 5], {"gallery_size": 0}, "gallery_size must be an integer >= 1, got 0"),
        ([5, 5], {"num_pairs": 0}, "num_pairs must be an integer >= 1, got 0"),
    ],
)
def test_lists_that_cannot_be_drawn(counts, options, message):
    with refused(message):
        make(counts, **options)


def test_groups_are_of_every_picture_and_count_as_one():
    dataset = make_dataset([4, 4])
    with refused(r"groups must be int\[8\], got shape \(7,\)"):
        make_lists(dataset, groups=np.arange(7))
    groups = np.array([0, 1, 0, 1, 4, 5, 6, 7])
    with refused("person p00 has 2 different photos"):
        make_lists(dataset, groups=groups)


def test_positions_are_those_of_the_names():
    dataset, lists = make([5, 7, 9])
    order = np.random.default_rng(0).permutation(21)
    for data in (dataset, dataset.take(order)):
        found = lists.positions(data)
        names = data.image_names
        assert [names[i] for i in found.protected] == list(lists.protected)
        assert [names[i] for i in found.probes] == list(lists.probes)
        assert [names[i] for part in found.gallery for i in part] == list(lists.gallery)
        for label, part in enumerate(found.gallery):
            assert np.all(data.labels[part] == label)
        for kind in ("genuine", "impostor"):
            pairs = getattr(found, kind)
            assert pairs.dtype == np.int64
            assert [(names[i], names[j]) for i, j in pairs] == list(getattr(lists, kind))


def test_a_file_reads_back_and_is_the_same_bytes_again(tmp_path):
    dataset, lists = make([6, 6, 6])
    path = tmp_path / "new" / "protocol.json"
    lists.write(path)
    assert read_lists(path, dataset) == lists
    written = path.read_bytes()
    read_lists(path, dataset).write(path)
    assert path.read_bytes() == written == lists.to_json().encode("ascii")
    assert [entry.name for entry in path.parent.iterdir()] == ["protocol.json"]


def test_names_beyond_ascii_read_back(tmp_path):
    dataset = make_dataset([3, 3], persons=("Zoë", "李"))
    lists = make_lists(dataset, groups=np.arange(6))
    lists.write(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes().isascii()
    assert read_lists(tmp_path / "a.json", dataset) == lists


def test_the_hash_is_that_of_the_canonical_entries():
    _, lists = make([6, 6])
    content = json.loads(lists.to_json())
    stated = content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert stated == lists.sha256() == hashlib.sha256(text.encode()).hexdigest()
    assert list(content) == sorted(content)


def _rewritten(lists, path, **changes):
    """The file of changed lists, its hash in order."""
    dataclasses.replace(lists, **changes).write(path)
    return path


def test_a_changed_file_is_refused(tmp_path):
    dataset, lists = make([6, 6])
    path = tmp_path / "a.json"
    path.write_text(lists.to_json().replace('"seed":0', '"seed":1'))
    with refused(r"a\.json is not as it was written: its sha256"):
        read_lists(path, dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "it is no JSON file"),
        (b"\xff", "it is no JSON file"),
        (b"[]", "its entries are not those of lists"),
        (b'{"seed":0}', "its entries are not those of lists"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text)
    with refused(message):
        read_lists(path, make_dataset([6, 6]))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("dataset", 3),
        ("seed", "0"),
        ("seed", True),
        ("pixels", None),
        ("probes", "p00/001"),
        ("protected", [1]),
        ("genuine", [["p00/001"]]),
        ("impostor", ["ab"]),
        ("impostor", None),
    ],
)
def test_entries_of_another_kind_are_refused(tmp_path, entry, value):
    dataset, lists = make([6, 6])
    content = json.loads(lists.to_json()) | {entry: value}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with refused("its entries are not those of lists"):
        read_lists(tmp_path / "a.json", dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"probes": (*s.probes, "p09/001")}, "probes has p09/001, which is not in"),
        (lambda s: {"genuine": (("a", "b"),)}, "genuine has a, which is not in the data set"),
        (lambda s: {"protected": s.gallery[:1]}, "is in protected and again in gallery"),
        (lambda s: {"probes": s.protected[:1]}, "is in protected and again in probes"),
        (lambda s: {"gallery": s.gallery * 2}, "is in gallery and again in gallery"),
        (lambda s: {"probes": ()}, "probes must be one photo or more, got none"),
        (lambda s: {"gallery": s.gallery[:2]}, "gallery has no photo of person p01"),
        (lambda s: {"probes": s.probes[2:]}, "probes has no photo of person p00"),
        (lambda s: {"pixels": 64 * "0"}, r"had other pixels; files, image_size \(8 here\) and"),
        (lambda s: {"genuine": s.impostor}, "are no genuine pair"),
        (lambda s: {"impostor": s.genuine}, "are no impostor pair"),
        (lambda s: {"genuine": ((s.probes[0],) * 2,)}, "are no genuine pair"),
        (lambda s: {"impostor": ()}, "impostor must be one pair or more, got none"),
        (
            lambda s: {"impostor": (s.impostor[0], s.impostor[0][::-1])},
            "impostor must not have a pair twice",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message):
    dataset, lists = make([6, 6])
    path = _rewritten(lists, tmp_path / "a.json", **change(lists))
    with pytest.raises(InputError, match=message) as caught:
        read_lists(path, dataset)
    assert "a.json does not fit the data set" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixels_are_those_of_the_listed_photos_by_name(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)
    dataset, groups = make_dataset([6, 6], pixels=pixels), np.array([0, 0, *range(2, 12)])
    lists = make_lists(dataset, groups=groups)
    listed = np.delete(pixels, 1, axis=0)  # The second is the first's near-duplicate.
    assert lists.pixels == hashlib.sha256(listed.tobytes()).hexdigest()
    lists.write(tmp_path / "a.json")
    pixels[1] = 0
    assert read_lists(tmp_path / "a.json", dataset.take(range(12)[::-1])) == lists
    pixels[7, 3, 3, 1] ^= 1
    with refused(r"a\.json does not fit the data set: its photos had"):
        read_lists(tmp_path / "a.json", dataset)


def test_near_duplicates_with_two_roles_are_refused():
    dataset, lists = make([6, 6])
    found = lists.positions(dataset)
    groups = np.arange(12)
    groups[found.gallery[0][0]] = groups[found.protected[0]]
    with refused("is in gallery and a near-duplicate in protected"):
        lists.positions(dataset, groups)
    # Within one role copies do no harm, nor do equal numbers of two persons.
    groups = np.arange(12)
    groups[found.gallery[0]] = 100
    groups[found.protected[-1]] = groups[found.probes[0]]
    lists.positions(dataset, groups)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    _, lists = make([6, 6])
    (tmp_path / "file").write_text("old")
    with refused(r"a\.json cannot be written: "):
        lists.write(tmp_path / "file" / "a.json")
    (tmp_path / "folder").mkdir()
    with refused("folder cannot be written: "):
        lists.write(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


def test_real_faces(real_faces, tmp_path):
    options = DataOptions(image_size=112, data_dir=str(real_faces))
    dataset = load_dataset("folder", options)
    lists = make_lists(dataset)
    assert (len(lists.protected), len(lists.gallery), len(lists.probes)) == (300, 300, 294)
    assert (len(lists.genuine), len(lists.impostor)) == (3000, 3000)
    listed = {*lists.protected, *lists.gallery, *lists.probes}
    copies = {"7226/021", "7238/024", "7315/025", "7361/005", "7367/010", "7378/025"}
    assert set(dataset.image_names) - listed == copies
    lists.write(tmp_path / "protocol.json")
    groups = near_duplicate_groups(dataset)
    assert read_lists(tmp_path / "protocol.json", dataset, groups) == lists


def test_pair_lists_are_json_of_their_names_only():
    """Positions depend on where the data lie: none goes into the file."""
    _, lists = make([6, 6])
    content = json.loads(lists.to_json())
    names = {field.name for field in dataclasses.fields(pair_lists.Lists)}
    assert content.keys() == names | {"sha256"}
    assert all(isinstance(name, str) for name in content["protected"])
