import json
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from deid_jax.data import DataOptions, building, images, load_dataset
from deid_jax.errors import InputError
from tests.data.packing import load_folder
from tests.data.tfds_sets import noise
from tests.helpers import refused


def _noise(seed, height=16, width=16):
    return noise(seed, height, width)


def _save(path, seed=0, **size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_noise(seed, **size)).save(path)


def _make(root, persons=("ada", "bob"), count=6):
    for number, person in enumerate(persons):
        for picture in range(count):
            _save(root / person / f"{picture:03d}.png", seed=100 * number + picture)
    return root


_load = load_folder


def test_pictures_are_ordered_by_person_then_name(tmp_path):
    dataset = _load(_make(tmp_path, ("eve", "ada")))
    assert dataset.persons == ("ada", "eve")
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.labels.dtype == np.int32
    assert dataset.names == ("000", "001", "002", "003", "004", "005") * 2
    for index in range(12):
        seed = 100 * (index < 6) + index % 6
        np.testing.assert_array_equal(dataset.read(index), _noise(seed))
    assert dataset[3]["image"].dtype == np.float32
    np.testing.assert_allclose(dataset[3]["image"] * 255, _noise(103), atol=1e-4)


def test_splits_share_persons_and_divide_pictures(tmp_path):
    _make(tmp_path, ("ada", "bob", "eve"), count=12)
    whole, train, test = (_load(tmp_path, split) for split in ("all", "train", "test"))
    assert (len(whole), len(train), len(test)) == (36, 30, 6)
    assert train.persons == test.persons == whole.persons
    assert (train.split, test.split) == ("train", "test")

    def pairs(dataset):
        named = zip(dataset.labels.tolist(), dataset.names, strict=True)
        return {pair: dataset.read(index) for index, pair in enumerate(named)}

    assert not pairs(train).keys() & pairs(test).keys()
    for pair, pixels in {**pairs(train), **pairs(test)}.items():
        np.testing.assert_array_equal(pixels, pairs(whole)[pair])
    assert _load(tmp_path, "test", seed=1).image_names != test.image_names
    assert _load(tmp_path, "test").image_names == test.image_names


def test_near_duplicates_are_counted_and_stay_together(tmp_path):
    _make(tmp_path)
    Image.fromarray(_noise(1)).save(tmp_path / "ada" / "zz.bmp")
    for seed in range(10):
        dataset = _load(tmp_path, "test", seed=seed)
        assert dataset.provenance["num_near_duplicate_pairs"] == 1
        ada = {dataset.names[index] for index in np.flatnonzero(dataset.labels == 0)}
        assert len(ada & {"001", "zz"}) != 1


def test_a_person_of_near_duplicates_cannot_be_divided(tmp_path):
    _make(tmp_path)
    for name in ("a", "b"):
        _save(tmp_path / "cyd" / f"{name}.png", seed=5)
    with refused("person cyd has 2 images, all near-duplicates"):
        _load(tmp_path, "train")
    assert len(_load(tmp_path, "all")) == 14


def test_every_suffix_in_any_case(tmp_path):
    for suffix in ("jpg", "JPEG", "Png", "webp", "BMP", "pgm"):
        for person in ("ada", "bob"):
            _save(tmp_path / person / f"of_{suffix.lower()}.{suffix}", seed=len(suffix))
    assert _load(tmp_path).names[:6] == tuple(
        f"of_{suffix}" for suffix in ("bmp", "jpeg", "jpg", "pgm", "png", "webp")
    )


def test_everything_else_is_ignored(tmp_path):
    _make(tmp_path)
    expected = _load(tmp_path).image_names
    _save(tmp_path / "ada" / ".hidden.png")
    _save(tmp_path / ".cache" / "1.png")
    _save(tmp_path / "ada" / "deeper" / "1.png")
    _save(tmp_path / "ada" / ".deeper" / "1.png")
    _save(tmp_path / "loose.png")
    _save(tmp_path / "ada" / "other.gif")
    (tmp_path / "ada" / "folder.png").mkdir()
    (tmp_path / "ada" / "notes.txt").write_text("not an image")
    (tmp_path / "ada" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "empty").mkdir()
    dataset = _load(tmp_path)
    assert dataset.persons == ("ada", "bob")
    assert dataset.image_names == expected


def test_links_are_followed(tmp_path):
    _make(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "ada").symlink_to(tmp_path / "real" / "ada")
    (tmp_path / "linked" / "bob").mkdir()
    for path in (tmp_path / "real" / "bob").iterdir():
        (tmp_path / "linked" / "bob" / path.name).symlink_to(path)
    assert _load(tmp_path / "linked").image_names == _load(tmp_path / "real").image_names


def test_clashing_names_keep_their_suffix(tmp_path):
    _make(tmp_path, ("bob",))
    for name in ("a.png", "a.bmp", "b.png"):
        _save(tmp_path / "ada" / name)
    assert _load(tmp_path).names[:3] == ("a.bmp", "a.png", "b")
    _save(tmp_path / "ada" / "a.png.bmp")
    assert _load(tmp_path).names[:4] == ("a.bmp", "a.png", "a.png.bmp", "b.png")


def test_bad_folders(tmp_path):
    with refused("data_dir must name the folder of images"):
        load_dataset("folder", DataOptions(image_size=16))
    with refused("nowhere does not exist"):
        _load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with refused("file is not a folder"):
        _load(tmp_path / "file")
    (tmp_path / "empty" / "ada").mkdir(parents=True)
    with refused(r"empty has no images: DIR/<person>/\*\{.bmp,"):
        _load(tmp_path / "empty")


def test_one_person_is_too_few(tmp_path):
    with refused("folder needs readable images of two persons or m"):
        _load(_make(tmp_path, ("ada",)))


def test_one_picture_cannot_be_divided_but_can_be_listed(tmp_path):
    _make(tmp_path)
    _save(tmp_path / "cyd" / "only.png")
    with refused("person cyd has one image"):
        _load(tmp_path, "train")
    assert _load(tmp_path).persons == ("ada", "bob", "cyd")


def test_unreadable_pictures_are_named(tmp_path):
    _make(tmp_path)
    content = (tmp_path / "bob" / "002.png").read_bytes()
    (tmp_path / "bob" / "002.png").write_bytes(content[:300])
    with refused(r"bob.002\.png cannot be read: .*--skip_unreadable"):
        _load(tmp_path)


def test_unreadable_pictures_are_skipped_and_counted(tmp_path):
    _make(tmp_path)
    (tmp_path / "ada" / "001.png").write_bytes(b"")
    (tmp_path / "bob" / "005.png").write_text("text")
    _save(tmp_path / "bob" / "tiny.png", height=7)
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "x.jpg").write_bytes(b"\xff\xd8")
    dataset = _load(tmp_path, skip_unreadable=True)
    assert dataset.persons == ("ada", "bob")
    assert dataset.names == ("000", "002", "003", "004", "005", *(f"00{n}" for n in range(5)))
    assert dataset.provenance["num_unreadable"] == 4
    assert dataset.provenance["unreadable"] == ["ada/001", "bob/005", "bob/tiny", "lost/x"]
    assert dataset.provenance["num_pictures"] == len(dataset) == 10
    np.testing.assert_array_equal(dataset.read(1), _noise(2))


def test_nothing_readable(tmp_path):
    for person in ("ada", "bob"):
        (tmp_path / person).mkdir()
        (tmp_path / person / "x.png").write_bytes(b"")
    with refused("two persons or more, found 0"):
        _load(tmp_path, skip_unreadable=True)


@pytest.mark.parametrize("image_size", [1, 8, 16, 33, 64])
def test_any_image_size_and_any_picture_size(tmp_path, image_size):
    for number, size in enumerate([(8, 8), (40, 9), (178, 218), (218, 178)]):
        for person in ("ada", "bob"):
            height, width = size
            _save(tmp_path / person / f"{number}.png", number, height=height, width=width)
    dataset = _load(tmp_path, image_size=image_size)
    assert dataset.image_size == image_size
    for index in range(len(dataset)):
        assert dataset.read(index).shape == (image_size, image_size, 3)
        assert dataset.read(index).dtype == np.uint8


def test_bad_options(tmp_path):
    _make(tmp_path)
    with refused("image_size must be an integer >= 1, got 0"):
        _load(tmp_path, image_size=0)
    with refused("seed must be an integer >= 0, got -3"):
        _load(tmp_path, seed=-3)
    with refused(r"crop must be one of .*, got face"):
        _load(tmp_path, crop="face")


def test_crop_is_applied_and_recorded(tmp_path):
    for person in ("ada", "bob"):
        for number in range(2):
            _save(tmp_path / person / f"{number}.png", number, height=218, width=178)
    face = images.resize(_noise(0, 218, 178)[62:190, 25:153], 32)
    for crop, expected in (("auto", face), ("celeba", face)):
        dataset = _load(tmp_path, crop=crop, image_size=32)
        np.testing.assert_array_equal(dataset.read(0), expected)
        assert dataset.provenance["crop"] == crop
    square = _load(tmp_path, crop="square", image_size=178)
    np.testing.assert_array_equal(square.read(0), _noise(0, 218, 178)[20:198])


def test_too_large_sets_are_decoded_on_demand(tmp_path, monkeypatch):
    _make(tmp_path)
    cached = _load(tmp_path, "test")
    monkeypatch.setattr(building, "MAX_CACHED_BYTES", 12 * 16 * 16 * 3 - 1)
    decoded = []
    decode = images.decode_image
    monkeypatch.setattr(
        images, "decode_image", lambda *args: decoded.append(args[1]) or decode(*args)
    )
    streamed = _load(tmp_path, "test")
    assert len(decoded) == 12
    assert streamed.names == cached.names
    for index in range(len(cached)):
        np.testing.assert_array_equal(streamed.read(index), cached.read(index))
    assert len(decoded) == 12 + len(cached)
    name = streamed.names[0]
    (tmp_path / "ada" / f"{name}.png").write_bytes(b"")
    with refused(f"{name}.png is an empty file"):
        streamed.read(0)
    np.testing.assert_array_equal(cached.read(0), _noise(int(name)))


def test_cached_pictures_cannot_be_overwritten(tmp_path):
    dataset = _load(_make(tmp_path))
    with pytest.raises(ValueError, match="read-only"):
        dataset.read(0)[:] = 0


def test_a_failure_leaves_no_thread_behind(tmp_path):
    _make(tmp_path, count=30)
    (tmp_path / "ada" / "000.png").write_bytes(b"")
    before = threading.active_count()
    with pytest.raises(InputError):
        _load(tmp_path)
    assert threading.active_count() == before


def test_a_failure_stops_the_others(tmp_path, monkeypatch):
    _make(tmp_path, count=30)
    decoded = []

    def decode(path, title):
        if path.name == "000.png":
            raise InputError(f"{title} is bad")
        time.sleep(0.01)
        decoded.append(title)
        return _noise(0)

    monkeypatch.setattr(images, "decode_image", decode)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with refused(r"ada.000\.png is bad; --skip_unreadable"):
        _load(tmp_path)
    assert len(decoded) < 40


def test_oversized_pictures_are_refused_without_a_warning(tmp_path):
    _make(tmp_path)
    (tmp_path / "ada" / "big.pgm").write_bytes(b"P5 10000 9000 255 " + bytes(100))
    with refused(r"big\.pgm has more than 89478485 pixels: 10000x9000"):
        _load(tmp_path)
    assert _load(tmp_path, skip_unreadable=True).provenance["unreadable"] == ["ada/big"]


def test_sources_may_come_in_any_order(tmp_path):
    _make(tmp_path)
    sources = [
        building.Source(path.parent.name, path.stem, path, path.name, {"odd": odd})
        for path in tmp_path.glob("*/*.png")
        for odd in [int(path.stem) % 2 == 1]
    ]
    expected = _load(tmp_path)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(sources))
        shuffled = [sources[position] for position in order]
        undecoded = building.from_sources(shuffled)
        dataset = building.build_dataset("any", undecoded, DataOptions(16), {"of": "me"})
        assert dataset.image_names == expected.image_names
        assert dataset.attributes["odd"].tolist() == [False, True] * 6
        assert dataset.provenance["of"] == "me"
        for index in range(12):
            np.testing.assert_array_equal(dataset.read(index), expected.read(index))


def test_provenance_is_json_without_absolute_paths(tmp_path):
    dataset = _load(_make(tmp_path / "faces"), "train", seed=4)
    provenance = json.loads(json.dumps(dataset.provenance))
    assert provenance == {
        "folder": "faces",
        "crop": "auto",
        "resize": "lanczos",
        "seed": 4,
        "num_pictures": 12,
        "num_persons": 2,
        "num_near_duplicate_pairs": 0,
        "num_unreadable": 0,
        "unreadable": [],
    }
    assert dataset.attributes == {}


@pytest.mark.slow
def test_real_faces(real_faces):
    root = real_faces
    train, test = _load(root, "train", image_size=64), _load(root, "test", image_size=64)
    assert np.bincount(train.labels).tolist() == [25] * 30
    assert np.bincount(test.labels).tolist() == [5] * 30
    assert test.provenance["num_near_duplicate_pairs"] == 6
    assert test.persons == tuple(sorted(path.name for path in root.iterdir()))
    with Image.open(root / test.persons[-1] / f"{test.names[-1]}.jpg") as image:
        face = image.crop((25, 62, 153, 190)).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(test.read(len(test) - 1), np.asarray(face))
