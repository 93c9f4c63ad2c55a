"""Builds a `FaceDataset` whose images stay in their archives until they are read.

Only a name and a few numbers are kept in memory per image, whatever its size, so that data sets
of hundreds of thousands of images need little more memory than one batch.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from deid_jax.data import images, pictures, splits
from deid_jax.data.dataset import DataOptions, FaceDataset, StoredExamples
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

_DECODED_AT_ONCE = 1024  # at least, when searching for near-duplicates: whole persons


@dataclasses.dataclass(frozen=True)
class Stream:
    """N images of P persons, undecoded.

    Attributes:
      persons: those with images, sorted.
      labels: int32[N], each image's person.
      names: unique within a person.
      content: position -> the image's file; thread safe; raises `InputError` with the image's
        name.
      title: position -> the image's name in messages.
      fingerprint: identifies the images; computed without decoding them.
      attributes: as in `FaceDataset`.
      examples: as in `FaceDataset`.
    """

    persons: tuple[str, ...]
    labels: NumpyArray
    names: Sequence[str]
    content: Callable[[int], bytes]
    title: Callable[[int], str]
    fingerprint: str
    attributes: Mapping[str, NumpyArray] = dataclasses.field(default_factory=dict)
    examples: StoredExamples | None = None


def build_stream(
    name: str, stream: Stream, options: DataOptions, provenance: Mapping[str, object]
) -> FaceDataset:
    """Returns the requested split, like `build_dataset`; images keep the stream's order.

    For the split "all" nothing is decoded, and unreadable images are found only when they are
    read. The other splits need one pass over all images to find near-duplicates, which also
    finds unreadable images; only the resulting split is kept.

    Args:
      name: the data set's name.
      stream: the images of all splits.
      options: size, crop, split, seed, and whether to skip unreadable images.
      provenance: facts to which those found here are added.

    Raises:
      InputError: as for `build_dataset`.
    """
    pictures.check_options(options)
    pictures.check_num_persons(name, len(stream.persons))
    whole = FaceDataset(
        name=name,
        persons=stream.persons,
        labels=stream.labels,
        names=tuple(stream.names),
        read=lambda i: pictures.read_face(stream.content(i), stream.title(i), options),
        image_size=options.image_size,
        split=options.split,
        attributes=stream.attributes,
        provenance={
            **provenance,
            **pictures.facts(options, len(stream.labels), len(stream.persons)),
            "fingerprint": stream.fingerprint,
        },
        skip_unreadable=options.skip_unreadable,
        examples=stream.examples,
    )
    return whole if options.split == "all" else _split(whole, stream, options)


def _split(whole: FaceDataset, stream: Stream, options: DataOptions) -> FaceDataset:
    """The images of `options.split`, without the unreadable ones."""
    labels = stream.labels
    keys = list(zip(labels.tolist(), stream.names, strict=True))
    ordered = sorted(range(len(keys)), key=keys.__getitem__)
    readable, pairs, unreadable = _compare(stream, np.array(ordered), options)
    left, label_of = np.unique(labels[readable], return_inverse=True)
    pictures.check_num_persons(whole.name, len(left))
    persons = tuple(whole.persons[label] for label in left)
    chosen = readable[pictures.divide(label_of, pairs, persons, options)]
    facts = {
        **pictures.facts(options, len(readable), len(persons)),
        **pictures.comparison_facts(pairs, [whole.picture(index) for index in unreadable]),
    }
    relabelled = dataclasses.replace(
        whole,
        persons=persons,
        labels=np.searchsorted(left, labels).astype(np.int32),
        provenance={**whole.provenance, **facts},
    )
    return relabelled.take(np.sort(chosen))


def _compare(
    stream: Stream, ordered: NumpyArray, options: DataOptions
) -> tuple[NumpyArray, NumpyArray, list[int]]:
    """Decodes all images, a few persons at a time.

    Args:
      stream: the images.
      ordered: int64[N], all positions, ordered by person and name.
      options: whether to skip unreadable images.

    Returns:
      The positions of the M readable images, int64[M], in that order; the near-duplicate pairs
      among them, int64[K, 2], as indices into these M; the positions of the unreadable images.
    """

    def decode(index: int) -> NumpyArray | InputError:
        try:
            pixels = images.decode_image(stream.content(index), stream.title(index))
        except InputError as error:
            return error
        return images.thumbnail(pixels)

    readable: list[int] = []
    unreadable: list[int] = []
    pairs: list[NumpyArray] = [np.zeros((0, 2), dtype=np.int64)]
    for run in _runs_of_persons(stream.labels[ordered]):
        start, thumbnails = len(readable), []
        positions = ordered[run.start : run.stop].tolist()
        decoded = pictures.decode_in_threads(decode, positions, options)
        for index, result in zip(positions, decoded, strict=True):
            if isinstance(result, InputError):
                unreadable.append(index)
                continue
            readable.append(index)
            thumbnails.append(result)
        if thumbnails:
            labels = stream.labels[readable[start:]]
            found = splits.near_duplicate_pairs(np.stack(thumbnails), labels)
            pairs.append(start + found)
    return np.array(readable, dtype=np.int64), np.concatenate(pairs), unreadable


def _runs_of_persons(labels: NumpyArray) -> Iterator[range]:
    """Ranges of whole persons with at least `_DECODED_AT_ONCE` images; labels ascend."""
    ends = [*(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    start = 0
    for end in ends:
        if end - start >= _DECODED_AT_ONCE or end == len(labels):
            yield range(start, end)
            start = end
