"""The fixed protocol of an evaluation: which photos are protected, gallery, probes and pairs.

Photos are identified by name, "person/name", so that the lists do not depend on where the data
is; `Lists.positions` finds them in a data set. A hash of their pixels, as the data set gives
them, detects other photos of the same names, and another size or crop. Of near-duplicates only
one photo is in the lists, so that no photo is recognised by a copy of itself.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deid_jax import checks
from deid_jax.data.dataset import FaceDataset
from deid_jax.errors import InputError
from deid_jax.runs import write_whole
from deid_jax.types import Json, NumpyArray

# A person needs at least one photo to protect, one for the gallery and one probe.
LEAST_PHOTOS = 3

# Makes this draw differ from others with the same seed and person, e.g. the train-test split.
_DRAW = 2

_ROLES = ("protected", "gallery", "probes")
_PAIRS = ("genuine", "impostor")
_HASH = "sha256"


class Positions(NamedTuple):
    """Lists as positions in a data set of P persons.

    These are int64[N], for each person int64[G], int64[M], and pairs int64[K, 2].
    """

    protected: NumpyArray
    gallery: tuple[NumpyArray, ...]
    probes: NumpyArray
    genuine: NumpyArray
    impostor: NumpyArray


@dataclasses.dataclass(frozen=True)
class Lists:
    """Photos by role, and pairs of them; JSON-able.

    No photo has two roles. Pairs are of clean photos of any role.

    Attributes:
      protected: the photos to protect.
      gallery: the clean photos that represent their persons.
      probes: the other photos, clean: their similarities to other persons' galleries determine
        the thresholds.
      genuine: pairs of one person, for verification accuracy.
      impostor: pairs of two persons.
      pixels: `pixels_of` all these photos.
    """

    dataset: str
    seed: int
    protected: tuple[str, ...]
    gallery: tuple[str, ...]
    probes: tuple[str, ...]
    genuine: tuple[tuple[str, str], ...]
    impostor: tuple[tuple[str, str], ...]
    pixels: str

    @property
    def photos(self) -> set[str]:
        """All photos of the lists."""
        roles = (self.protected, self.gallery, self.probes)
        return set().union(*roles, *self.genuine, *self.impostor)

    def to_json(self) -> str:
        """The file's text: one entry per line, keys sorted, ASCII; the last is `sha256`."""
        entries = {**dataclasses.asdict(self), _HASH: self.sha256()}
        lines = [f"{json.dumps(name)}:{_canonical(entries[name])}" for name in sorted(entries)]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of the canonical JSON of all attributes.

        Canonical means keys sorted, no spaces, and non-ASCII characters escaped.
        """
        return hashlib.sha256(_canonical(dataclasses.asdict(self)).encode()).hexdigest()

    def write(self, path: str | Path) -> None:
        """Writes `to_json` to a file, atomically; folders are created.

        Raises:
          InputError: the file cannot be written.
        """
        try:
            write_whole(Path(path), self.to_json().encode())
        except OSError as error:
            raise InputError(f"protocol {path} cannot be written: {error.strerror}") from error

    def positions(self, dataset: FaceDataset, groups: NumpyArray | None = None) -> Positions:
        """Finds the photos in a data set.

        Groups are int[N], equal for near-duplicates of a person; None: there are none.

        Raises:
          InputError: a photo is not in the data set, has two roles, is listed twice, or shares
            a group with a photo of another role; a person has no gallery or no probe; or a
            pair is listed twice, or is not genuine or impostor as its list says.
        """
        where = _places(dataset)
        roles = {role: _find(role, getattr(self, role), where) for role in _ROLES}
        _check_roles(roles, dataset, groups)
        pairs = {}
        for kind in _PAIRS:
            names = [name for pair in getattr(self, kind) for name in pair]
            pairs[kind] = _find(kind, names, where).reshape(-1, 2)
            _check_pairs(kind, pairs[kind], dataset)
        labels = dataset.labels[roles["gallery"]]
        gallery = tuple(roles["gallery"][labels == p] for p in range(len(dataset.persons)))
        return Positions(roles["protected"], gallery, roles["probes"], **pairs)


def make_lists(
    dataset: FaceDataset,
    *,
    seed: int = 0,
    per_person: int = 10,
    gallery_size: int = 10,
    num_pairs: int = 3000,
    groups: NumpyArray | None = None,
) -> Lists:
    """Draws the lists.

    Of near-duplicates only the first photo is used. Let n be the number of a person's remaining
    photos and m = n − ⌊n/3⌋: then p = min(per_person, ⌊m/2⌋) are protected,
    min(gallery_size, m − p) are the gallery, and all others, at least a third, are probes; with
    30 photos these are 10, 10 and 10. A person's draw depends on the seed, the person's name
    and the number and groups of the person's photos, and on no other person. Pairs are drawn
    uniformly, without replacement, from all photos of all roles; if there are no more than
    `num_pairs`, all are used.

    Photos are listed in the order of the data set. Groups are int[N], equal for near-duplicates
    of a person; None: `near_duplicate_groups`.

    Raises:
      InputError: an option is out of range, there are fewer than two persons, or a person has
        fewer than three different photos.
    """
    checks.count("seed", seed)
    checks.count("per_person", per_person, least=1)
    checks.count("gallery_size", gallery_size, least=1)
    checks.count("num_pairs", num_pairs, least=1)
    if len(dataset.persons) < 2:
        raise InputError(f"lists need two persons or more, {dataset.name} has one")
    groups = near_duplicate_groups(dataset) if groups is None else np.asarray(groups)
    if groups.shape != dataset.labels.shape:
        raise InputError(f"groups must be int[{len(dataset)}], got shape {groups.shape}")
    protected, gallery, probes = _draw_roles(dataset, groups, seed, per_person, gallery_size)
    listed = np.sort(np.concatenate([protected, gallery, probes]))
    generator = np.random.default_rng([seed, _DRAW])
    genuine, impostor = (
        _draw_pairs(listed, dataset.labels, num_pairs, kind, generator) for kind in _PAIRS
    )
    names = dataset.image_names
    return Lists(
        dataset=dataset.name,
        seed=int(seed),
        protected=tuple(names[i] for i in protected),
        gallery=tuple(names[i] for i in gallery),
        probes=tuple(names[i] for i in probes),
        genuine=tuple((names[i], names[j]) for i, j in genuine),
        impostor=tuple((names[i], names[j]) for i, j in impostor),
        pixels=pixels_of({names[i] for i in listed}, dataset),
    )


def pixels_of(photos: Collection[str], dataset: FaceDataset) -> str:
    """SHA-256, in hexadecimal, of the photos' uint8[H, W, 3], in order of their names."""
    digest, where = hashlib.sha256(), _places(dataset)
    for photo in sorted(photos):
        digest.update(np.asarray(dataset.read(where[photo]), np.uint8).tobytes())
    return digest.hexdigest()


def near_duplicate_groups(dataset: FaceDataset) -> NumpyArray:
    """Groups int64[N], equal for near-duplicates: see `splits.near_duplicate_pairs`."""
    from deid_jax.data import images, splits

    if not len(dataset):
        return np.zeros(0, dtype=np.int64)
    small = np.stack([images.thumbnail(dataset.read(i)) for i in range(len(dataset))])
    return splits.group_pairs(len(dataset), splits.near_duplicate_pairs(small, dataset.labels))


def read_lists(
    path: Path | str, dataset: FaceDataset, groups: NumpyArray | None = None
) -> Lists:
    """Reads what `Lists.write` wrote, and checks that it fits: see `Lists.positions`.

    Raises:
      InputError: the file does not exist, is not a file of lists, has been modified since it
        was written, or does not fit the data set (see `Lists.positions`) or its pixels.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"protocol {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"protocol {path} cannot be read: it is no JSON file") from error
    lists = _parse(content)
    if lists is None:
        raise InputError(f"protocol {path} cannot be read: its entries are not those of lists")
    if content[_HASH] != lists.sha256():
        raise InputError(f"protocol {path} is not as it was written: its {_HASH} is another")
    try:
        lists.positions(dataset, groups)
    except InputError as error:
        raise InputError(f"protocol {path} does not fit the data set: {error}") from error
    if lists.pixels != pixels_of(lists.photos, dataset):
        raise InputError(
            f"protocol {path} does not fit the data set: its photos had other pixels; files, "
            f"image_size ({dataset.image_size} here) and crop must be those it was made with"
        )
    return lists


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _parse(content: Json) -> Lists | None:
    """Lists from JSON; None for anything else."""
    names = {field.name for field in dataclasses.fields(Lists)}
    if not isinstance(content, dict) or content.keys() != names | {_HASH}:
        return None
    dataset, seed, pixels = (content[name] for name in ("dataset", "seed", "pixels"))
    if not isinstance(dataset, str) or type(seed) is not int or not isinstance(pixels, str):
        return None
    try:
        protected, gallery, probes = (_texts(content[role]) for role in _ROLES)
        genuine, impostor = (_pairs(content[kind]) for kind in _PAIRS)
    except (TypeError, ValueError):
        return None
    return Lists(dataset, seed, protected, gallery, probes, genuine, impostor, pixels)


def _texts(value: Json) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [None]
    texts = tuple(entry for entry in entries if isinstance(entry, str))
    if len(texts) < len(entries):
        raise TypeError
    return texts


def _pairs(value: Json) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple((first, second) for first, second in map(_texts, value))


def _places(dataset: FaceDataset) -> dict[str, int]:
    """A photo's name -> its position."""
    return {photo: position for position, photo in enumerate(dataset.image_names)}


def _find(name: str, photos: Sequence[str], where: Mapping[str, int]) -> NumpyArray:
    """The positions of the photos, int64[len(photos)]."""
    for photo in photos:
        if photo not in where:
            raise InputError(f"{name} has {photo}, which is not in the data set")
    return np.array([where[photo] for photo in photos], dtype=np.int64)


def _check_roles(
    roles: Mapping[str, NumpyArray], dataset: FaceDataset, groups: NumpyArray | None
) -> None:
    """Refuses photos with two roles, even by a near-duplicate, and persons without a role."""
    groups = np.arange(len(dataset)) if groups is None else np.asarray(groups)
    role_of: dict[int, str] = {}
    group_role: dict[tuple[int, int], str] = {}
    for role, positions in roles.items():
        if not len(positions):
            raise InputError(f"{role} must be one photo or more, got none")
        for position in positions.tolist():
            photo = dataset.image_name(position)
            if position in role_of:
                raise InputError(f"{photo} is in {role_of[position]} and again in {role}")
            group = int(dataset.labels[position]), int(groups[position])
            if group_role.setdefault(group, role) != role:
                raise InputError(
                    f"{photo} is in {role} and a near-duplicate in {group_role[group]}"
                )
            role_of[position] = role
    for role in ("gallery", "probes"):
        known = set(dataset.labels[roles[role]].tolist())
        for label, person in enumerate(dataset.persons):
            if label not in known:
                raise InputError(f"{role} has no photo of person {person}")


def _check_pairs(kind: str, pairs: NumpyArray, dataset: FaceDataset) -> None:
    """Refuses pairs that are listed twice, of a photo with itself, or of the wrong kind."""
    if not len(pairs):
        raise InputError(f"{kind} must be one pair or more, got none")
    same = dataset.labels[pairs[:, 0]] == dataset.labels[pairs[:, 1]]
    wrong = (pairs[:, 0] == pairs[:, 1]) | (same != (kind == "genuine"))
    if np.any(wrong):
        first, second = (dataset.image_names[i] for i in pairs[np.argmax(wrong)])
        raise InputError(f"{first} and {second} are no {kind} pair")
    if len(np.unique(np.sort(pairs, axis=1), axis=0)) < len(pairs):
        raise InputError(f"{kind} must not have a pair twice")


def _different(labels: NumpyArray, groups: NumpyArray, label: int) -> NumpyArray:
    """The positions of a person's photos, with only the first of near-duplicates."""
    positions = np.flatnonzero(labels == label)
    _, first = np.unique(groups[positions], return_index=True)
    return positions[np.sort(first)]


def _draw_roles(
    dataset: FaceDataset, groups: NumpyArray, seed: int, per_person: int, gallery_size: int
) -> list[NumpyArray]:
    """The positions of each role, ascending."""
    drawn: list[list[NumpyArray]] = [[] for _ in _ROLES]
    for label, person in enumerate(dataset.persons):
        positions = _different(dataset.labels, groups, label)
        n = len(positions)
        if n < LEAST_PHOTOS:
            raise InputError(
                f"person {person} has {n} different photos, the lists need {LEAST_PHOTOS} "
                "or more"
            )
        shared = n - n // 3
        protected = min(per_person, shared // 2)
        known = protected + min(gallery_size, shared - protected)
        generator = np.random.default_rng([seed, _DRAW, zlib.crc32(person.encode())])
        order = positions[generator.permutation(n)]
        for of_role, part in zip(drawn, np.split(order, [protected, known]), strict=True):
            of_role.append(part)
    return [np.sort(np.concatenate(of_role)) for of_role in drawn]


def _draw_pairs(
    listed: NumpyArray,
    labels: NumpyArray,
    num_pairs: int,
    kind: str,
    generator: np.random.Generator,
) -> NumpyArray:
    """Draws pairs of one kind without replacement: int64[M, 2], rows sorted, each ascending."""
    ordered = listed[np.argsort(labels[listed], kind="stable")]
    count = len(ordered)
    places = np.arange(count)
    # Sorted by person, the partners that come after each photo are contiguous.
    ends = np.searchsorted(labels[ordered], labels[ordered], side="right")
    starts, stops = (places + 1, ends) if kind == "genuine" else (ends, np.full(count, count))
    upto = np.cumsum(stops - starts)
    total = int(upto[-1])
    drawn = generator.choice(total, min(num_pairs, total), replace=False)
    first = np.searchsorted(upto, drawn, side="right")
    second = stops[first] - (upto[first] - drawn)
    pairs = np.sort(np.stack([ordered[first], ordered[second]], axis=1), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
