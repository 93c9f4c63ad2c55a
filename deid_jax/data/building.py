"""Builds a `FaceDataset` from image files: near-duplicates, split, crops kept in memory."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deid_jax import checks
from deid_jax.data import images, splits
from deid_jax.data.dataset import DataOptions, FaceDataset, StoredExamples
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

MAX_CACHED_BYTES = 2**30  # in larger sets, images are decoded again on every read
_DECODED_AT_ONCE = 1024  # at least: whole persons


class Source(NamedTuple):
    """One image file; the same attributes are known of all images of a set."""

    person: str
    name: str
    content: Path
    title: str
    attributes: Mapping[str, bool]


@dataclasses.dataclass(frozen=True)
class UndecodedImages:
    """The image files of a data set, N of P persons.

    Only a name and a few numbers are kept in memory per image, so that data sets of hundreds of
    thousands of images need little more memory than one batch.

    Attributes:
      persons: those with images, sorted.
      labels: int32[N], each image's person.
      names: unique within a person.
      content: position -> the image's file, or the file's bytes; thread safe; raises
        `InputError` with the image's name.
      title: position -> the image's name in messages.
      fingerprint: identifies the images without decoding them; None if unknown.
      attributes: as in `FaceDataset`.
      examples: as in `FaceDataset`.
    """

    persons: tuple[str, ...]
    labels: NumpyArray
    names: Sequence[str]
    content: Callable[[int], Path | bytes]
    title: Callable[[int], str]
    fingerprint: str | None = None
    attributes: Mapping[str, NumpyArray] = dataclasses.field(default_factory=dict)
    examples: StoredExamples | None = None


def from_sources(sources: Sequence[Source]) -> UndecodedImages:
    """The images of one source or more, sorted by person and name."""
    ordered = sorted(sources, key=lambda source: (source.person, source.name))
    persons = tuple(sorted({source.person for source in ordered}))
    label_of = {person: label for label, person in enumerate(persons)}
    return UndecodedImages(
        persons=persons,
        labels=np.array([label_of[source.person] for source in ordered], dtype=np.int32),
        names=[source.name for source in ordered],
        content=lambda index: ordered[index].content,
        title=lambda index: ordered[index].title,
        attributes={
            name: np.array([source.attributes[name] for source in ordered], dtype=bool)
            for name in ordered[0].attributes
        },
    )


def build_dataset(
    name: str,
    undecoded: UndecodedImages,
    options: DataOptions,
    provenance: Mapping[str, object],
) -> FaceDataset:
    """Returns the requested split; images keep their order.

    One pass decodes all images, to find near-duplicates and unreadable images. It keeps the
    crops if those of all splits together fit into `MAX_CACHED_BYTES` (1 GiB); otherwise `read`
    decodes on demand.

    Images with a fingerprint are always decoded on demand, and for the split "all" there is no
    pass: unreadable images are found when they are read.

    Args:
      name: the data set's name.
      undecoded: the images of all splits.
      options: size, crop, split, seed, and whether to skip unreadable images.
      provenance: facts to which those found here are added.

    Raises:
      InputError: an option is out of range, an image cannot be read (and `skip_unreadable`
        is off), fewer than two persons remain, or a person cannot be split.
    """
    checks.count("image_size", options.image_size, least=1)
    checks.count("seed", options.seed)
    if options.crop not in images.CROPS:
        raise InputError(f"crop must be one of {', '.join(images.CROPS)}, got {options.crop}")
    faces: dict[int, NumpyArray] = {}

    def read(index: int) -> NumpyArray:
        if index in faces:
            return faces[index]
        title = undecoded.title(index)
        return _face(images.decode_image(undecoded.content(index), title), title, options)

    facts = {**provenance, **_facts(options, len(undecoded.names), len(undecoded.persons))}
    if undecoded.fingerprint is not None:
        facts["fingerprint"] = undecoded.fingerprint
    whole = FaceDataset(
        name=name,
        persons=undecoded.persons,
        labels=undecoded.labels,
        names=tuple(undecoded.names),
        read=read,
        image_size=options.image_size,
        split=options.split,
        attributes=undecoded.attributes,
        provenance=facts,
        skip_unreadable=options.skip_unreadable,
        examples=undecoded.examples,
    )
    if undecoded.fingerprint is not None:
        _check_num_persons(name, len(whole.persons))
        return whole if options.split == "all" else _split(whole, undecoded, options)
    keep = len(whole) * options.image_size**2 * 3 <= MAX_CACHED_BYTES
    return _split(whole, undecoded, options, faces if keep else None)


def _check_num_persons(name: str, count: int) -> None:
    if count < 2:
        raise InputError(f"{name} needs readable images of two persons or more, found {count}")


def _facts(options: DataOptions, num_images: int, num_persons: int) -> dict[str, object]:
    return {
        "crop": options.crop,
        "resize": images.FILTER.name.lower(),
        "seed": options.seed,
        "num_pictures": num_images,
        "num_persons": num_persons,
    }


def _face(pixels: NumpyArray, title: str, options: DataOptions) -> NumpyArray:
    try:
        return images.face_crop(pixels, options.crop, options.image_size)
    except InputError as error:
        raise InputError(f"{title}: {error}") from error


def _split(
    whole: FaceDataset,
    undecoded: UndecodedImages,
    options: DataOptions,
    faces: dict[int, NumpyArray] | None = None,
) -> FaceDataset:
    """The images of `options.split`, without the unreadable ones; fills `faces` with crops."""
    readable, pairs, unreadable = _scan(undecoded, options, faces)
    left, labels = np.unique(whole.labels[readable], return_inverse=True)
    _check_num_persons(whole.name, len(left))
    persons = tuple(whole.persons[label] for label in left)
    groups = splits.group_pairs(len(labels), pairs)
    chosen = splits.split_indices(labels, options.split, options.seed, groups, persons)
    facts = {
        **_facts(options, len(readable), len(persons)),
        "num_near_duplicate_pairs": len(pairs),
        "num_unreadable": len(unreadable),
        "unreadable": [whole.image_name(index) for index in unreadable],
    }
    relabelled = dataclasses.replace(
        whole,
        persons=persons,
        labels=np.searchsorted(left, whole.labels).astype(np.int32),
        provenance={**whole.provenance, **facts},
    )
    return relabelled.take(np.sort(readable[chosen]))


def _scan(
    undecoded: UndecodedImages, options: DataOptions, faces: dict[int, NumpyArray] | None
) -> tuple[NumpyArray, NumpyArray, list[int]]:
    """Decodes all images, ordered by person and name, a few persons at a time.

    Returns:
      The positions of the M readable images, int64[M], in that order; the near-duplicate pairs
      among them, int64[K, 2], as indices into these M; the positions of the unreadable images.
    """

    def decode(index: int) -> NumpyArray | InputError:
        title = undecoded.title(index)
        try:
            pixels = images.decode_image(undecoded.content(index), title)
        except InputError as error:
            return error
        if faces is not None:
            faces[index] = _face(pixels, title, options)
            faces[index].setflags(write=False)
        return images.thumbnail(pixels)

    keys = list(zip(undecoded.labels.tolist(), undecoded.names, strict=True))
    ordered = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    readable: list[int] = []
    unreadable: list[int] = []
    pairs: list[NumpyArray] = [np.zeros((0, 2), dtype=np.int64)]
    for run in _runs_of_persons(undecoded.labels[ordered]):
        start, thumbnails = len(readable), []
        positions = ordered[run.start : run.stop].tolist()
        with images.quiet_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, result in zip(positions, pool.map(decode, positions), strict=True):
                if not isinstance(result, InputError):
                    readable.append(index)
                    thumbnails.append(result)
                elif options.skip_unreadable:
                    unreadable.append(index)
                else:
                    pool.shutdown(cancel_futures=True)
                    raise InputError(f"{result}; --skip_unreadable leaves such images out")
        if thumbnails:
            labels = undecoded.labels[readable[start:]]
            pairs.append(start + splits.near_duplicate_pairs(np.stack(thumbnails), labels))
    return np.array(readable, dtype=np.int64), np.concatenate(pairs), unreadable


def _runs_of_persons(labels: NumpyArray) -> Iterator[range]:
    """Ranges of whole persons with at least `_DECODED_AT_ONCE` images; labels ascend."""
    ends = [*(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    start = 0
    for end in ends:
        if end - start >= _DECODED_AT_ONCE or end == len(labels):
            yield range(start, end)
            start = end
