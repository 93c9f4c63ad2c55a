"""Archives that cannot be read, wholly or in part: one line says why."""

import os
import struct
import tarfile
import zipfile
import zlib

import pytest

from deid_jax.data import DataOptions, load_dataset
from tests.data import packing
from tests.helpers import refused


@pytest.mark.parametrize("second", ["two.tar", "one.zip"])
def test_the_same_picture_twice(tmp_path, second):
    root = packing.faces(tmp_path / "faces")
    packing.pack_zip(tmp_path / "in" / "one.zip", root, prefix="x/")
    if second == "two.tar":
        packing.pack_tar(tmp_path / "in" / "two.tar", root, [root / "eve" / "002.bmp"])
        where = r"in .*one\.zip and in .*two\.tar"
    else:
        with zipfile.ZipFile(tmp_path / "in" / "one.zip", "a") as file:
            file.write(root / "eve" / "002.bmp", "y/eve/002.bmp")
        where = r"twice in .*one\.zip"
    with refused(f"image eve/002.bmp is {where}$"):
        packing.load(tmp_path / "in")


def test_missing_data_dir(tmp_path):
    with refused(r"data_dir must name a \.tar or \.zip archive"):
        load_dataset("archive", DataOptions(image_size=16))
    with refused("nowhere does not exist"):
        packing.load(tmp_path / "nowhere")
    with refused(r"is no \.tar or \.zip archive, nor a folder with any"):
        packing.load(tmp_path)
    (tmp_path / "file.txt").write_text("")
    with refused(r"file.txt is no \.tar or \.zip archive"):
        packing.load(tmp_path / "file.txt")
    with tarfile.open(tmp_path / "none.tar", "w") as file:
        file.addfile(tarfile.TarInfo("loose.png"))
    with refused(r"has no images: <person>/\*\{\.bmp,.* is read"):
        packing.load(tmp_path)


def test_one_person_is_too_few(tmp_path):
    root = packing.faces(tmp_path / "faces", ("ada",))
    with refused("archive needs readable images of two persons or m"):
        packing.load(packing.pack_tar(tmp_path / "all.tar", root))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.xz", "a.tbz2", "a.tar.zst"])
def test_compressed_tars_are_refused_with_advice(tmp_path, name):
    root = packing.faces(tmp_path / "faces")
    packing.pack_tar(tmp_path / "in" / "plain.tar", root)
    (tmp_path / "in" / name).write_bytes(b"")
    for data_dir in (tmp_path / "in", tmp_path / "in" / name):
        with refused(r"compressed as a whole.*: unpack it to a plain"):
            packing.load(data_dir)


def test_a_compressed_tar_called_tar(tmp_path):
    root = packing.faces(tmp_path / "faces")
    with tarfile.open(tmp_path / "all.tar", "w:gz") as file:
        file.add(root, "faces")
    with refused(r"all.tar is damaged, or no plain tar archive: "):
        packing.load(tmp_path / "all.tar")


def test_truncated_archives(tmp_path):
    root = packing.faces(tmp_path / "faces")
    for kind in packing.KINDS:
        path = packing.pack(kind, tmp_path / "all", root)
        content = path.read_bytes()
        for share in (0, 0.001, 0.3, 0.7):
            path.write_bytes(content[: int(share * len(content))])
            with refused(rf"{path.name} is "):
                packing.load(path)


def test_a_tar_cut_between_two_members_and_one_with_a_damaged_header(tmp_path):
    root = packing.faces(tmp_path / "faces")
    path = packing.pack_tar(tmp_path / "all.tar", root, format=tarfile.USTAR_FORMAT)
    with tarfile.open(path) as file:
        offset = file.getmembers()[9].offset
    content = path.read_bytes()
    path.write_bytes(content[:offset])
    with refused(r"all.tar is truncated$"):
        packing.load(path)
    path.write_bytes(content[: offset + 150] + b"?" + content[offset + 151 :])
    with refused(rf"all.tar is damaged at byte {offset}$"):
        packing.load(path)


def test_links_are_refused(tmp_path):
    root = packing.faces(tmp_path / "faces")
    packing.pack_tar(tmp_path / "all.tar", root)
    with tarfile.open(tmp_path / "all.tar", "a") as file:
        link = tarfile.TarInfo("ada/readme.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "../readme.txt"
        file.addfile(link)
    assert len(packing.load(tmp_path / "all.tar")) == 21
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        packing.pack_tar(tmp_path / "all.tar", root)
        with tarfile.open(tmp_path / "all.tar", "a") as file:
            link.name, link.type, link.linkname = "ada/link.png", kind, "ada/000.png"
            file.addfile(link)
        with refused(r"all.tar: ada/link.png is a link, .*--deref"):
            packing.load(tmp_path / "all.tar")
    info = zipfile.ZipInfo("ada/link.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as zipped:
        zipped.writestr(info, "000.png")
    with refused(r"all.zip: ada/link.png is a link: pack the files"):
        packing.load(tmp_path / "all.zip")


def test_zip_members_that_cannot_be_read(tmp_path):
    root = packing.faces(tmp_path / "faces")
    path = packing.pack_zip(tmp_path / "all.zip", root, compression=zipfile.ZIP_LZMA)
    with refused(r"all.zip: .* is neither stored nor deflated, but pac"):
        packing.load(path)
    content = bytearray(packing.pack_zip(path, root).read_bytes())
    with zipfile.ZipFile(path) as file:
        entry = content.index(b"PK\1\2")
        name = file.infolist()[0].filename
    content[entry + 8] |= 1
    path.write_bytes(content)
    with refused(f"all.zip: {name} is encrypted$"):
        packing.load(path)


def _damage(path, person_and_file, edit):
    """Edits the member's content and header where they lie in a zip archive."""
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(person_and_file)
    content = bytearray(path.read_bytes())
    start = info.header_offset
    edit(content, start, start + 30 + len(person_and_file))
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _flip(content, header, start):
    content[start + 60] ^= 1


def _no_signature(content, header, start):
    content[header] ^= 1


@pytest.mark.parametrize(
    ("compression", "edit", "reason"),
    [
        (zipfile.ZIP_STORED, _flip, "its checksum is wrong"),
        (zipfile.ZIP_DEFLATED, _flip, ""),
        (zipfile.ZIP_STORED, _no_signature, "its header is damaged"),
    ],
)
def test_a_damaged_zip_member_is_an_unreadable_picture(tmp_path, compression, edit, reason):
    root = packing.faces(tmp_path / "faces")
    path = packing.pack_zip(tmp_path / "all.zip", root, compression=compression)
    _damage(path, "bob/001.PNG", edit)
    dataset = packing.load(path)
    index = dataset.image_names.index("bob/001")
    with refused(f"all.zip: bob/001 cannot be read: {reason}"):
        dataset.read(index)
    dataset.read(index + 1)
    assert packing.load(path, "train", skip_unreadable=True).provenance["unreadable"] == [
        "bob/001"
    ]


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path):
    packed = zlib.compress(bytes(10**6), wbits=-15)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.writestr("ada/1.png", packed)
        file.writestr("bob/1.png", packed)
    content = bytearray((tmp_path / "all.zip").read_bytes())
    entry = content.index(b"PK\1\2")
    struct.pack_into("<H", content, entry + 10, zipfile.ZIP_DEFLATED)
    (tmp_path / "all.zip").write_bytes(content)
    with refused("ada/1 cannot be read: its length is wrong"):
        packing.load(tmp_path / "all.zip").read(0)


def test_an_archive_that_changes_or_vanishes_meanwhile(tmp_path):
    root = packing.faces(tmp_path / "faces")
    path = packing.pack_tar(tmp_path / "all.tar", root)
    dataset = packing.load(path)
    os.utime(path, ns=(0, 0))
    with refused("ada/000 cannot be read: its archive has changed mean"):
        dataset.read(0)
    path.unlink()
    with refused("ada/000 cannot be read: No such file or directory"):
        dataset.read(0)
