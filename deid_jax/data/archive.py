"""User-supplied images in tar and zip archives: `<person>/<image>` in any of them."""

import hashlib
from collections.abc import Sequence

import numpy as np

from deid_jax.data import archive_files
from deid_jax.data.archive_files import Archive, Place
from deid_jax.data.building import UndecodedImages, build_dataset
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.data.file_names import SUFFIXES, image_names, is_image
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

# The fields of `Place`, and the archive's number: 34 bytes per image.
_PLACE = np.dtype(
    [
        ("offset", "<i8"),
        ("stored", "<i8"),
        ("size", "<i8"),
        ("checksum", "<u4"),
        ("is_deflated", "?"),
        ("is_checked", "?"),
        ("archive", "<i4"),
    ]
)


def load(options: DataOptions) -> FaceDataset:
    """Loads the images in `options.data_dir`, an archive (.tar, .zip) or a folder of archives.

    An image's person is its innermost folder; the rules for files and names are those of
    `deid_jax.data.folder.load`. Members are ignored if they are in no folder, or below a folder
    called __MACOSX or starting with a dot. A person's images may be spread over the archives.

    Archives are listed once and read by random access, so that memory does not grow with the
    size of the images: see `build_dataset`.

    Raises:
      InputError: `data_dir` has no archive, or one that is damaged, encrypted or compressed as
        a whole; a person has the same image twice; or as for `build_dataset`.
    """
    if options.data_dir is None:
        raise InputError("data_dir must name a .tar or .zip archive, or a folder of some")
    archives = archive_files.find(options.data_dir)
    persons, labels, names, places = _list(archives)
    if not names:
        raise InputError(
            f"data_dir {options.data_dir} has no images: <person>/*{{{','.join(SUFFIXES)}}} "
            "in its archives is read"
        )

    def title(index: int) -> str:
        path = archives[places["archive"][index]].path
        return f"{path}: {persons[labels[index]]}/{names[index]}"

    def content(index: int) -> bytes:
        *place, archive = places[index].item()
        try:
            return archive_files.read_member(archives[archive], Place(*place))
        except InputError as error:
            raise InputError(f"{title(index)} cannot be read: {error}") from error

    fingerprint = _fingerprint(archives, persons, labels, names, places)
    undecoded = UndecodedImages(persons, labels, names, content, title, fingerprint)
    facts = {"archives": [archive.path.name for archive in archives]}
    return build_dataset("archive", undecoded, options, facts)


def _list(
    archives: Sequence[Archive],
) -> tuple[tuple[str, ...], NumpyArray, list[str], NumpyArray]:
    """Persons, labels [N], names and places [N] of all images, sorted by person and name."""
    files: dict[str, list[str]] = {}
    numbers: dict[str, list[int]] = {}  # the place of each file
    packed = bytearray()  # the places, as an array that grows
    for number, archive in enumerate(archives):
        for (person, file), place in archive_files.members(archive, _person_and_file):
            files.setdefault(person, []).append(file)
            numbers.setdefault(person, []).append(len(packed) // _PLACE.itemsize)
            packed += np.array((*place, number), dtype=_PLACE).tobytes()
    places = np.frombuffer(bytes(packed), dtype=_PLACE)
    persons = tuple(sorted(files))
    names: list[str] = []
    order: list[int] = []
    for person in persons:
        _refuse_repeated(person, files[person], places[numbers[person]], archives)
        named = sorted(zip(image_names(files.pop(person)), numbers[person], strict=True))
        names.extend(name for name, _ in named)
        order.extend(number for _, number in named)
    counts = [len(numbers[person]) for person in persons]
    labels = np.repeat(np.arange(len(persons), dtype=np.int32), counts)
    return persons, labels, names, places[order]


def _person_and_file(path: str) -> tuple[str, str] | None:
    """The person and file name of a member; None if it is ignored."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) < 2 or not is_image(parts[-1]):
        return None
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return parts[-2], parts[-1]


def _refuse_repeated(
    person: str, files: Sequence[str], places: NumpyArray, archives: Sequence[Archive]
) -> None:
    seen: dict[str, int] = {}
    for file, number in zip(files, places["archive"].tolist(), strict=True):
        if file in seen:
            first, second = archives[seen[file]].path, archives[number].path
            where = f"twice in {first}" if first == second else f"in {first} and in {second}"
            raise InputError(f"image {person}/{file} is {where}")
        seen[file] = number


def _fingerprint(
    archives: Sequence[Archive],
    persons: Sequence[str],
    labels: NumpyArray,
    names: Sequence[str],
    places: NumpyArray,
) -> str:
    """SHA-256 of what the headers record about names and contents.

    For zip archives these are sizes and checksums. Tar archives have no checksums, so places
    are used, with the archive's own size and modification time.
    """
    digest = hashlib.sha256()
    for label, name in zip(labels, names, strict=True):
        digest.update(f"{persons[label]}/{name}\0".encode(errors="surrogatepass"))
    is_checked = places["is_checked"]
    number = places["archive"]
    unchecked = [
        places["offset"],
        np.array([archive.size for archive in archives])[number],
        np.array([archive.modified for archive in archives])[number],
    ]
    columns = [places["size"], places["checksum"]]
    columns += [np.where(is_checked, 0, column) for column in unchecked]
    for column in columns:
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()
