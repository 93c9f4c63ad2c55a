"""Attacks on archives and TFDS sets: those on a folder, in the memory of a batch."""

import dataclasses
import io
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import attack
from tests.data import packing, tfds_sets
from tests.experiments import scale_helpers
from tests.experiments.conftest import COMMON, peak_bytes
from tests.experiments.scale_helpers import content

SHARDED = ("--shard_size=5", "--num_steps=3")
PERSONS = ("person_0", "person_1", "person_2")


def checkpoint_for(trained, dataset):
    """The checkpoint as one that was trained on the same images in another data set."""
    path = Path(f"recogniser-{dataset}").absolute()
    info = dataclasses.replace(trained[2].info, dataset=dataset)
    trained[2]._replace(info=info).save(path)
    return path


def as_tar(faces, target):
    packing.pack_tar(target / "faces.tar", faces)
    return target / "faces.tar"


def as_zips(faces, target):
    """Two archives, each with images of every person."""
    files = packing.files(faces)
    packing.pack_zip(target / "in" / "one.zip", faces, files[::2], prefix="deep/")
    packing.pack_zip(target / "in" / "two.zip", faces, files[1::2])
    return target / "in"


def as_tfds(faces, target):
    """In the folder's order."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(PERSONS)),
        "name": tfds.features.Text(),
        "age": np.int32,
    }
    examples = [
        {"image": path.read_bytes(), "label": path.parent.name, "name": path.stem, "age": age}
        for age, path in enumerate(sorted(faces.rglob("*.png")))
    ]
    # The label is encoded by its name, the image taken over as a file.
    for example in examples:
        example["image"] = io.BytesIO(example["image"])
    tfds_sets.prepare(
        target / "tfds/faces/3.2.1", features, {"train": examples}, shard_length=7
    )
    return target / "tfds"


SETS = {"tar": ("archive", as_tar), "zip": ("archive", as_zips), "tfds": ("tfds", as_tfds)}


def attacked(trained, dataset, data_dir, output, *flags):
    """Attacks a data set and returns what the run wrote, less what names the data set."""
    given = [*COMMON[1:], *SHARDED, f"--dataset={dataset}", f"--data_dir={data_dir}"]
    given += [f"--checkpoint={checkpoint_for(trained, dataset)}", f"--output_dir={output}"]
    assert attack.main([*given, *flags]) == 0
    files = content(Path(output))
    assert files["metrics.json"].pop("dataset") == dataset
    files["config.json"] = sorted(files["config.json"])
    return files


@pytest.mark.parametrize(
    ("kind", "split"),
    [("zip", "all"), pytest.param("tfds", "test", marks=pytest.mark.slow)],
)
def test_streams_are_attacked_like_a_folder(trained, faces, workplace, capsys, kind, split):
    dataset, pack = SETS[kind]
    flag = f"--split={split}"
    ours = attacked(trained, dataset, pack(faces, workplace), "out", flag)
    theirs = attacked(trained, "folder", faces, "whole", flag)
    assert capsys.readouterr().err == ""
    assert ours["metrics.json"]["num_images"] == {"all": 18, "test": 3}[split]
    assert ours == theirs


def pngs(folder):
    """(person, image) -> pixels, of the PNGs of a run."""
    return {
        (path.parent.name, path.stem): np.asarray(Image.open(path))
        for path in folder.rglob("images/*/*.png")
    }


def examples_of(folder):
    """(person, image) -> pixels, and split -> examples, as TFDS reads a copy."""
    import tensorflow_datasets as tfds

    names = tfds.builder_from_directory(folder).info.features["label"].names
    splits = tfds_sets.read(folder)
    examples = [example for split in splits.values() for example in split]
    pixels = {(names[e["label"]], e["name"].decode()): e["image"] for e in examples}
    assert len(pixels) == len(examples)
    return pixels, splits


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "tfds"])
def test_copy_holds_the_pictures_of_the_files(trained, faces, workplace, capsys, kind):
    dataset, pack = SETS.get(kind, ("folder", lambda faces, target: faces))
    data_dir = pack(faces, workplace)
    png = attacked(trained, dataset, data_dir, "png", "--split=all")
    copy = attacked(trained, dataset, data_dir, "copy", "--split=all", "--output_format=tfds")
    for name in ("metrics.json", "per_image.csv", "sheet.png"):
        assert png[name] == copy[name]
    name = {"tfds": "faces/3.2.1", "tar": "archive/1.0.0"}.get(kind, "folder/1.0.0")
    pixels, splits = examples_of(workplace / "copy/dataset" / name)
    expected = pngs(workplace / "png")
    assert pixels.keys() == expected.keys()
    assert len(pixels) == 18
    for key, picture in expected.items():
        np.testing.assert_array_equal(pixels[key], picture)
    if kind == "tfds":  # In the original's split and order, with all its features.
        assert [example["age"] for example in splits["train"]] == list(range(18))

    # It is attacked like any other set.
    again = attacked(trained, "tfds", workplace / "copy/dataset", "again", "--split=all")
    shutil.copytree(workplace / "png/images", workplace / "images")
    theirs = attacked(trained, "folder", workplace / "images", "from_png", "--split=all")
    assert capsys.readouterr().err == ""
    assert again == theirs


def write_tar(path, count):
    """An archive of small images of the three persons, made one at a time."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w") as file:
        for number in range(count):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            picture = tfds_sets.png(pixels)
            info = tarfile.TarInfo(f"{PERSONS[number % 3]}/{number:06}.png")
            info.size = len(picture)
            file.addfile(info, io.BytesIO(picture))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "flags"),
    [
        ("attack", ["--output_format=png"]),
        ("attack", ["--output_format=tfds"]),
        ("sweep", ["--sweep=blur_sigma=0.05,0.1"]),
    ],
    ids=["png", "tfds", "sweep"],
)
def test_memory_does_not_grow_with_the_data_set(trained, workplace, binary, flags):
    checkpoint = checkpoint_for(trained, "archive")
    peaks = {}
    for count in (2_000, 20_000):
        path = write_tar(workplace / f"{count}.tar", count)
        given = [*COMMON[1:], "--dataset=archive", f"--data_dir={path}", "--split=all"]
        given += ["--method=blur", f"--checkpoint={checkpoint}", f"--output_dir={count}"]
        # What is read and written at a time is the same, whatever there is of it.
        peaks[count] = peak_bytes(binary, *given, *flags, "--shard_size=250", cwd=workplace)
        output = workplace / str(count)
        if binary == "attack":
            assert scale_helpers.metrics(output)["num_images"] == count
        with (output / "per_image.csv").open() as file:
            assert sum(1 for _ in file) == 1 + count * {"attack": 1, "sweep": 2}[binary]
    text = ", ".join(f"{n} images {peak / 2**20:.0f} MiB" for n, peak in peaks.items())
    print(f"\n{binary} {' '.join(flags)}: {text}", file=sys.stderr)
    assert peaks[20_000] < 1.1 * peaks[2_000]
