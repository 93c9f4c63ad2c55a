"""CelebA: 30 persons with 30 images each, drawn by seed.

Ziwei Liu, Ping Luo, Xiaogang Wang, Xiaoou Tang, "Deep Learning Face Attributes in the Wild",
ICCV 2015. Images are aligned, 178x218.
"""

from collections.abc import Iterable
from pathlib import Path

from deid_jax.data import prepared, selection
from deid_jax.data.building import Source, build_dataset, from_sources
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.errors import InputError

_IMAGE_FOLDERS = ("img_align_celeba", "Img/img_align_celeba")
_ANNOTATION_FOLDERS = (".", "Anno")
_IDENTITIES = "identity_CelebA.txt"
_ATTRIBUTES = "list_attr_celeba.txt"
_ADVICE = (
    f"; or name a --data_dir that holds img_align_celeba and {_IDENTITIES}"
    " (as downloaded from mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
)


def load(options: DataOptions) -> FaceDataset:
    """Loads the subset that `deid_jax.data.selection.choose_subset` draws by `options.seed`.

    Two sources are tried. (a) The original files: `img_align_celeba/` and `identity_CelebA.txt`
    in `data_dir`, or in its `Img/` and `Anno/`; attributes come from `list_attr_celeba.txt` if
    present. (b) TFDS's `celeb_a` in `data_dir` (default ~/tensorflow_datasets), prepared on
    first use if TensorFlow is installed. Both give the same persons, but different images of
    persons with more than 30, since TFDS keeps no file names.

    `provenance["selection"]` is {person: [image, ...]} of all splits; `attributes` are
    bool[N] by CelebA's names.

    Raises:
      InputError: neither source has the data, an annotation file is damaged, too few persons
        have 30 images, or as for `build_dataset`.
    """
    if options.data_dir is not None:
        root = Path(options.data_dir)
        if not root.is_dir():
            raise InputError(f"data_dir {root} is not a folder")
        for folder in _IMAGE_FOLDERS:
            if (root / folder).is_dir():
                return _load_download(root, root / folder, options)
    return _load_tfds(options)


def _load_download(root: Path, folder: Path, options: DataOptions) -> FaceDataset:
    identities = _annotation(root, _IDENTITIES)
    if identities is None:
        raise InputError(
            f"{folder} has images, but {_IDENTITIES}, which says whose, is not in {root}"
        )
    chosen = selection.choose_subset("celeba", _read_identities(identities), options.seed)
    table = _annotation(root, _ATTRIBUTES)
    wanted = {name for names in chosen.values() for name in names}
    attributes = {} if table is None else _read_attributes(table, wanted)
    sources = [
        Source(
            person, Path(name).stem, folder / name, str(folder / name), attributes.get(name, {})
        )
        for person, names in chosen.items()
        for name in names
    ]
    facts = {"origin": "img_align_celeba", "selection": chosen}
    return build_dataset("celeba", from_sources(sources), options, facts)


def _annotation(root: Path, name: str) -> Path | None:
    """The annotation file called `name`, if there is one."""
    paths = [root / folder / name for folder in _ANNOTATION_FOLDERS]
    return next((path for path in paths if path.is_file()), None)


def _lines(path: Path) -> Iterable[tuple[int, list[str]]]:
    """Yields (line number, words) for each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    numbered = enumerate(text.splitlines(), start=1)
    return [(number, line.split()) for number, line in numbered if line.strip()]


def _read_identities(path: Path) -> dict[str, list[str]]:
    """Reads person -> file names; lines are "000001.jpg 2880"."""
    images: dict[str, list[str]] = {}
    seen = set()
    for number, words in _lines(path):
        if len(words) != 2 or not words[1].isdecimal() or "/" in words[0]:
            raise InputError(f"{path} line {number} must be a file name and a person's number")
        if words[0] in seen:
            raise InputError(f"{path} line {number} names {words[0]} again")
        seen.add(words[0])
        images.setdefault(words[1], []).append(words[0])
    return images


def _read_attributes(path: Path, wanted: set[str]) -> dict[str, dict[str, bool]]:
    """Reads file name -> attribute -> whether the image has it, for the wanted files.

    The first line is a count, the second lists the attributes, and the others are a file name
    followed by 1 or -1 for each attribute.
    """
    lines = list(_lines(path))
    if len(lines) < 2:
        raise InputError(
            f"{path} must have a count, names of attributes, then lines of 1 and -1"
        )
    names = lines[1][1]
    attributes = {}
    for number, words in lines[2:]:
        if words[0] not in wanted:
            continue
        if len(words) != len(names) + 1 or not {"1", "-1"} >= set(words[1:]):
            raise InputError(
                f"{path} line {number} must be a file name and {len(names)} times 1 or -1"
            )
        holds = (word == "1" for word in words[1:])
        attributes[words[0]] = dict(zip(names, holds, strict=True))
    missing = sorted(wanted - attributes.keys())
    if missing:
        raise InputError(f"{path} has no line for {missing[0]}")
    return attributes


def _load_tfds(options: DataOptions) -> FaceDataset:
    data = prepared.open_named("celeb_a", options.data_dir, _ADVICE)
    return prepared.load_subset("celeba", data, options)
