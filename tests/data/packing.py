"""Small sets of images, in folders and packed into archives, and how they load."""

import functools
import random
import tarfile
import zipfile

import numpy as np

from tests.data import tfds_sets
from tests.data.tfds_sets import noise, png

load = functools.partial(tfds_sets.load, "archive")
load_folder = functools.partial(tfds_sets.load, "folder")


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


def pack_tar(path, root, some=None, prefix="", format=tarfile.PAX_FORMAT):
    """Packs all files below `root`, or some of them."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=format) as file:
        for source in files(root) if some is None else some:
            file.add(source, prefix + source.relative_to(root).as_posix())
    return path


def pack_zip(path, root, some=None, prefix="", compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        for source in files(root) if some is None else some:
            file.write(source, prefix + source.relative_to(root).as_posix())
    return path


# Kind -> suffix, packer and its options.
KINDS = {
    "tar": (".tar", pack_tar, {}),
    "gnu": (".tar", pack_tar, {"format": tarfile.GNU_FORMAT}),
    "ustar": (".tar", pack_tar, {"format": tarfile.USTAR_FORMAT}),
    "stored": (".zip", pack_zip, {"compression": zipfile.ZIP_STORED}),
    "deflated": (".zip", pack_zip, {}),
}


def pack(kind, path, root, some=None, **options):
    suffix, packer, own = KINDS[kind]
    return packer(path.with_suffix(suffix), root, some, **own, **options)


def assert_same(found, expected):
    assert found.image_names == expected.image_names
    assert found.persons == expected.persons
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.labels.dtype == expected.labels.dtype
    for index in range(len(expected)):
        np.testing.assert_array_equal(found.read(index), expected.read(index))
