"""Files in tar and zip archives: listed from the headers, read at random access.

Archives are not kept open or in memory: a file is known by its place in the archive, and every
read opens the archive again, so that any number of threads can read independently.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from deid_jax.data.file_names import visible
from deid_jax.errors import InputError, one_line

Key = TypeVar("Key")

SUFFIXES = (".tar", ".zip")
# Suffixes of tar archives that are compressed as a whole, and so can only be read in order.
COMPRESSED = (
    *(f".tar.{kind}" for kind in ("br", "bz2", "gz", "lz", "lz4", "lzma", "xz", "z", "zst")),
    *(".tbz", ".tbz2", ".tgz", ".tlz", ".txz", ".tzst"),
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_BLOCK = tarfile.BLOCKSIZE


class Archive(NamedTuple):
    """An archive, in its state when it was listed."""

    path: Path
    size: int
    modified: int  # nanoseconds


class Place(NamedTuple):
    """The place of a file in an archive.

    Attributes:
      offset: of its content in a tar archive, of its header in a zip archive.
      stored: the number of bytes that it takes in the archive.
      checksum: CRC-32 of its content, where `is_checked`: with a header, as in zip archives.
    """

    offset: int
    stored: int
    size: int
    checksum: int
    is_deflated: bool
    is_checked: bool


def find(data_dir: str) -> list[Archive]:
    """The archive called `data_dir`, or those directly in that folder, sorted by name.

    Raises:
      InputError: there is none, or one is compressed as a whole.
    """
    root = Path(data_dir)
    if not root.exists():
        raise InputError(f"data_dir {root} does not exist")
    paths = visible(root) if root.is_dir() else [root]
    for path in paths:
        if path.name.lower().endswith(COMPRESSED):
            raise InputError(
                f"{path} is compressed as a whole, which leaves no random access: unpack it to "
                "a plain .tar, or pack the images as .zip"
            )
    archives = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not archives:
        raise InputError(f"data_dir {root} is no .tar or .zip archive, nor a folder with any")
    return [
        Archive(path, status.st_size, status.st_mtime_ns)
        for path in archives
        for status in [path.stat()]
    ]


def members(
    archive: Archive, key_of: Callable[[str], Key | None]
) -> Iterator[tuple[Key, Place]]:
    """The files of an archive whose path has a key, in its order; contents are not read.

    Raises:
      InputError: the archive is damaged, truncated or not an archive, or a wanted file is
        encrypted, a link, or compressed other than by deflate.
    """
    is_zip = archive.path.suffix.lower() == ".zip"
    listed = _zip_members if is_zip else _tar_members
    try:
        yield from listed(archive, key_of)
    except InputError:
        raise
    except Exception as error:  # both modules raise all kinds of exceptions on damaged files
        kind = "zip" if is_zip else "plain tar"
        raise InputError(
            f"{archive.path} is damaged, or no {kind} archive: {one_line(error)}"
        ) from error


def _tar_members(
    archive: Archive, key_of: Callable[[str], Key | None]
) -> Iterator[tuple[Key, Place]]:
    with tarfile.open(archive.path, "r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # would keep every header
            if info.isdir() or (key := key_of(info.name)) is None:
                continue
            if not info.isreg() or info.issparse():
                raise InputError(
                    f"{archive.path}: {info.name} is a link, a device or sparse: pack the "
                    "files themselves (tar --dereference --hard-dereference)"
                )
            yield key, Place(info.offset_data, info.size, info.size, 0, False, False)
        end = tar.offset
    # `tarfile` mistakes a damaged header, or the file's end, for the archive's end.
    with archive.path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            what = "is truncated" if end >= archive.size else f"is damaged at byte {end}"
            raise InputError(f"{archive.path} {what}")


def _zip_members(
    archive: Archive, key_of: Callable[[str], Key | None]
) -> Iterator[tuple[Key, Place]]:
    with zipfile.ZipFile(archive.path) as file:
        for info in file.infolist():
            if info.is_dir() or (key := key_of(info.filename)) is None:
                continue
            title = f"{archive.path}: {info.filename}"
            if info.flag_bits & 1:
                raise InputError(f"{title} is encrypted")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise InputError(f"{title} is a link: pack the files themselves")
            is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
            if not is_deflated and info.compress_type != zipfile.ZIP_STORED:
                raise InputError(
                    f"{title} is neither stored nor deflated, but packed otherwise"
                )
            sizes = (info.compress_size, info.file_size)
            yield key, Place(info.header_offset, *sizes, info.CRC, is_deflated, True)


def read_member(archive: Archive, place: Place) -> bytes:
    """A file's content; thread safe.

    Raises:
      InputError: the archive has changed since it was listed, or the file is damaged. The
        message says what is wrong, but not which archive or file.
    """
    try:
        with archive.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (archive.size, archive.modified):
                raise InputError("its archive has changed meanwhile")
            file.seek(place.offset)
            if place.is_checked:
                header = file.read(_LOCAL_HEADER.size)
                signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
                if signature != b"PK\3\4":
                    raise InputError("its header is damaged")
                file.seek(name_length + extra_length, os.SEEK_CUR)
            content = file.read(place.stored)
        if place.is_deflated:
            # At most one byte more than declared, so that a decompression bomb cannot expand.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, place.size + 1)
    except (OSError, struct.error, zlib.error) as error:
        raise InputError(one_line(error)) from error
    if len(content) != place.size:
        raise InputError("its length is wrong")
    if place.is_checked and zlib.crc32(content) != place.checksum:
        raise InputError("its checksum is wrong")
    return content
