"""Small sets of images, in folders and packed into archives, and how they load."""

import random
import tarfile
import zipfile

import numpy as np

from deid_jax.data import DataOptions, load_dataset
from tests.data.tfds_sets import noise, png


def load(root, split="all", **options):
    options = {"image_size": 16, **options}
    return load_dataset("archive", DataOptions(data_dir=str(root), split=split, **options))


def load_folder(root, split="all", **options):
    options = {"image_size": 16, **options}
    return load_dataset("folder", DataOptions(data_dir=str(root), split=split, **options))


def faces(root, persons=("ada", "bob", "eve"), count=7):
    """DIR/<person>/<image>; two of ada's show the same."""
    for number, person in enumerate(persons):
        (root / person).mkdir(parents=True)
        for picture in range(count):
            seed = 0 if (number, picture) == (0, 3) else 100 * number + picture
            content = png(noise(seed))
            suffix = ("png", "PNG", "bmp")[picture % 3]  # the decoder goes by the content
            (root / person / f"{picture:03d}.{suffix}").write_bytes(content)
    return root


def files(root):
    """In an order that is not that of the names."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    random.Random(0).shuffle(found)
    return found


def pack_tar(path, files, root, prefix="", format=tarfile.PAX_FORMAT):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=format) as file:
        for source in files:
            file.add(source, prefix + source.relative_to(root).as_posix())
    return path


def pack_zip(path, files, root, prefix="", compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        for source in files:
            file.write(source, prefix + source.relative_to(root).as_posix())
    return path


PACKERS = {
    "tar": pack_tar,
    "gnu": lambda *args, **named: pack_tar(*args, format=tarfile.GNU_FORMAT, **named),
    "ustar": lambda *args, **named: pack_tar(*args, format=tarfile.USTAR_FORMAT, **named),
    "stored": lambda *args, **named: pack_zip(*args, compression=zipfile.ZIP_STORED, **named),
    "deflated": pack_zip,
}


def suffix(kind):
    return "zip" if kind in ("stored", "deflated") else "tar"


def assert_same(found, expected):
    assert found.image_names == expected.image_names
    assert found.persons == expected.persons
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.labels.dtype == expected.labels.dtype
    for index in range(len(expected)):
        np.testing.assert_array_equal(found.read(index), expected.read(index))
