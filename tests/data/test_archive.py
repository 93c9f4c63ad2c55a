"""Archives give what the folders that they were packed from give."""

import functools
import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deid_jax.data import archive, building
from tests.data import packing
from tests.data.tfds_sets import assert_memory_is_bounded, noise, png
from tests.helpers import refused


@pytest.mark.parametrize("kind", packing.KINDS)
@pytest.mark.parametrize("prefix", ["", "./", "deep/er/"])
def test_pictures_are_those_of_the_folder(tmp_path, kind, prefix):
    root = packing.faces(tmp_path / "faces")
    path = packing.pack(kind, tmp_path / "all", root, prefix=prefix)
    dataset = packing.load(path)
    packing.assert_same(dataset, packing.load_folder(root))
    assert dataset.name == "archive"
    assert dataset.provenance["archives"] == [path.name]


def test_a_person_may_be_spread_over_archives_of_both_kinds(tmp_path):
    root = packing.faces(tmp_path / "faces")
    files = packing.files(root)
    packing.pack_tar(tmp_path / "packed" / "b.tar", root, files[::3])
    packing.pack_zip(tmp_path / "packed" / "a.ZIP", root, files[1::3], prefix="x/")
    packing.pack_zip(tmp_path / "packed" / "c.zip", root, files[2::3])
    (tmp_path / "packed" / "notes.txt").write_text("no archive")
    (tmp_path / "packed" / ".hidden.tar").write_text("no archive")
    dataset = packing.load(tmp_path / "packed")
    packing.assert_same(dataset, packing.load_folder(root))
    assert dataset.provenance["archives"] == ["a.ZIP", "b.tar", "c.zip"]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("at_once", [1, 8, 1024])
def test_splits_are_those_of_the_folder(tmp_path, monkeypatch, split, at_once):
    monkeypatch.setattr(building, "_DECODED_AT_ONCE", at_once)
    root = packing.faces(tmp_path / "faces", count=9)
    packing.pack_tar(tmp_path / "all.tar", root)
    for seed in range(4):
        found = packing.load(tmp_path / "all.tar", split, seed=seed)
        expected = packing.load_folder(root, split, seed=seed)
        packing.assert_same(found, expected)
        facts = dict(found.provenance)
        assert facts.pop("archives") == ["all.tar"]
        assert facts.pop("fingerprint")
        assert facts == {k: v for k, v in expected.provenance.items() if k != "folder"}
        assert facts["num_near_duplicate_pairs"] == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_unreadable_pictures_are_left_out_as_from_the_folder(tmp_path, split):
    root = packing.faces(tmp_path / "faces")
    (root / "aaa").mkdir()
    for path in (root / "aaa" / "x.png", root / "bob" / "001.PNG", root / "eve" / "zz.jpg"):
        path.write_bytes(b"no picture")
    packing.pack_zip(tmp_path / "all.zip", root)
    found = packing.load(tmp_path / "all.zip", split, skip_unreadable=True)
    expected = packing.load_folder(root, split, skip_unreadable=True)
    packing.assert_same(found, expected)
    assert found.persons == ("ada", "bob", "eve")
    assert found.skip_unreadable and expected.skip_unreadable
    for fact in ("num_pictures", "num_persons", "num_unreadable", "unreadable"):
        assert found.provenance[fact] == expected.provenance[fact]
    with refused(r"all.zip: aaa/x is not an .*--skip_unreadable"):
        packing.load(tmp_path / "all.zip", split)


def test_the_whole_set_is_not_decoded_and_names_what_cannot_be_read(tmp_path):
    root = packing.faces(tmp_path / "faces")
    (root / "bob" / "001.PNG").write_bytes(b"no picture")
    packing.pack_tar(tmp_path / "all.tar", root)
    dataset = packing.load(tmp_path / "all.tar")
    assert len(dataset) == 21 and not dataset.skip_unreadable
    assert "num_unreadable" not in dataset.provenance
    with refused(r"all.tar: bob/001 is not an image in a known form"):
        dataset.read(dataset.image_names.index("bob/001"))
    assert packing.load(tmp_path / "all.tar", skip_unreadable=True).skip_unreadable


def test_a_picture_that_the_crop_refuses_is_named(tmp_path):
    root = packing.faces(tmp_path / "faces")
    packing.pack_tar(tmp_path / "all.tar", root)
    with refused(r"all.tar: ada/000: crop=arcface needs images of"):
        packing.load(tmp_path / "all.tar", crop="arcface").read(0)


def test_what_is_ignored(tmp_path):
    root = packing.faces(tmp_path / "faces")
    expected = packing.load_folder(root).image_names
    others = (
        "loose.png",
        "ada/.hidden.png",
        ".cache/ada/1.png",
        "__MACOSX/ada/001.png",
        "ada/notes.txt",
        "../ada/up.png",
        "ada/only.gif",
    )
    for kind in ("tar", "stored"):
        path = packing.pack(kind, tmp_path / "all", root)
        with tarfile.open(path, "a") if kind == "tar" else zipfile.ZipFile(path, "a") as file:
            for other in others:
                if kind == "tar":
                    file.addfile(tarfile.TarInfo(other))
                else:
                    file.writestr(other, b"")
        assert packing.load(path).image_names == expected


def test_names_that_clash_keep_their_suffix(tmp_path):
    root = packing.faces(tmp_path / "faces", count=1)
    for name in ("000.bmp", "b.png"):
        (root / "ada" / name).write_bytes(png(noise(5)))
    packing.pack_tar(tmp_path / "a" / "all.tar", root, packing.files(root)[::2])
    packing.pack_zip(tmp_path / "a" / "all.zip", root, packing.files(root)[1::2])
    dataset = packing.load(tmp_path / "a")
    assert dataset.names[:3] == ("000.bmp", "000.png", "b")
    packing.assert_same(dataset, packing.load_folder(root))


def test_eight_threads_read_the_same(tmp_path):
    root = packing.faces(tmp_path / "faces", count=12)
    files = packing.files(root)
    for number, kind in enumerate(packing.KINDS):
        packing.pack(kind, tmp_path / "in" / kind, root, files[number :: len(packing.KINDS)])
    dataset, expected = packing.load(tmp_path / "in"), packing.load_folder(root)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist() * 3
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    with ThreadPoolExecutor(8) as pool:
        for index, pixels in zip(order, pool.map(dataset.read, order), strict=True):
            np.testing.assert_array_equal(pixels, expected.read(index))
    if before:
        assert len(list(descriptors.iterdir())) == before


def test_take(tmp_path):
    root = packing.faces(tmp_path / "faces")
    dataset = packing.load(packing.pack_tar(tmp_path / "all.tar", root))
    few = dataset.take([20, 3, 9]).take([2, 0])
    assert few.image_names == (dataset.image_names[9], dataset.image_names[20])
    np.testing.assert_array_equal(few.read(1), dataset.read(20))


def test_fingerprints(tmp_path):
    """Other for other images or names; the same for the same archive under another name."""
    root = packing.faces(tmp_path / "faces")
    for kind in ("tar", "stored"):
        path = packing.pack(kind, tmp_path / "a", root)
        first = packing.load(path)
        assert packing.load(path).fingerprint() == first.fingerprint()
        renamed = path.rename(path.with_stem("b"))
        assert packing.load(renamed).fingerprint() == first.fingerprint()
        others = {
            packing.load(renamed, image_size=17).fingerprint(),
            packing.load(renamed, crop="none").fingerprint(),
            packing.load(renamed, "train").fingerprint(),
            packing.load(renamed, "test").fingerprint(),
            first.take([0, 1]).fingerprint(),
            first.take([1, 0]).fingerprint(),
        }
        picture = root / "eve" / "002.bmp"
        kept = picture.read_bytes()
        picture.write_bytes(png(noise(999)))
        assert len(kept) == len(picture.read_bytes())
        packing.pack(kind, renamed, root)
        os.utime(renamed, ns=(7, 7))
        others.add(packing.load(renamed).fingerprint())
        picture.write_bytes(kept)
        picture.rename(root / "eve" / "name.bmp")
        packing.pack(kind, renamed, root)
        os.utime(renamed, ns=(8, 8))
        others.add(packing.load(renamed).fingerprint())
        (root / "eve" / "name.bmp").rename(picture)
        assert len(others) == 8 and first.fingerprint() not in others


def test_zip_fingerprints_do_not_depend_on_the_packing(tmp_path):
    root = packing.faces(tmp_path / "faces")
    found, files = set(), packing.files(root)
    for number, kind in enumerate(("stored", "deflated")):
        path = packing.pack(kind, tmp_path / f"{number}" / "a", root, files[number:])
        if number:
            packing.pack_zip(path.with_name("b.zip"), root, files[:number], prefix="x/")
        found.add(packing.load(path.parent).fingerprint())
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_memory_is_bounded_and_does_not_grow_while_reading(tmp_path, kind):
    total, content = 20_000, png(noise(0, 8, 8))
    path = tmp_path / f"all.{kind}"
    names = (f"person_{number // 20:05d}/{number:06d}.png" for number in range(total))
    if kind == "tar":
        with tarfile.open(path, "w") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
                file.members.clear()
    else:
        with zipfile.ZipFile(path, "w") as zipped:
            for name in names:
                zipped.writestr(name, content)
    peak = 400 if kind == "tar" else 1200  # zipfile's own index
    load = functools.partial(packing.load, path, image_size=8)
    assert_memory_is_bounded(load, total, 200, peak, step=20)


def test_places_are_packed():
    assert archive._PLACE.itemsize == 34
