"""Builds a `FaceDataset` from image files: decoding, near-duplicates, split, cache."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from deid_jax import checks
from deid_jax.data import images, splits
from deid_jax.data.dataset import DataOptions, FaceDataset
from deid_jax.errors import InputError
from deid_jax.types import NumpyArray

T = TypeVar("T")
R = TypeVar("R")

MAX_CACHED_BYTES = 2**30  # in larger sets, images are decoded again on every read


@dataclasses.dataclass(frozen=True)
class Source:
    """One image before it is decoded.

    Attributes:
      person: the person it shows.
      name: unique within the person.
      content: its file, or the file's bytes.
      title: its name in messages.
      attributes: its known attributes; the same keys for all images of a set.
    """

    person: str
    name: str
    content: Path | bytes
    title: str
    attributes: Mapping[str, bool] = dataclasses.field(default_factory=dict)


def build_dataset(
    name: str,
    sources: Sequence[Source],
    options: DataOptions,
    provenance: Mapping[str, object],
) -> FaceDataset:
    """Decodes all sources once and returns the requested split.

    The cropped images are kept in memory if those of all splits together fit into
    `MAX_CACHED_BYTES` (1 GiB); otherwise `read` decodes on demand.

    Args:
      name: the data set's name.
      sources: the images of all splits, in any order.
      options: size, crop, split, seed, and whether to skip unreadable images.
      provenance: facts to which those found here are added.

    Raises:
      InputError: an option is out of range, an image cannot be read (and `skip_unreadable`
        is off), fewer than two persons remain, or a person cannot be split.
    """
    check_options(options)
    ordered = sorted(sources, key=lambda source: (source.person, source.name))
    readable, thumbnails, cache, unreadable = _decode_all(ordered, options)
    persons, labels = _label(name, readable)
    pairs = splits.near_duplicate_pairs(thumbnails, labels)
    whole = FaceDataset(
        name=name,
        persons=persons,
        labels=labels,
        names=tuple(source.name for source in readable),
        read=_reader(readable, cache, options),
        image_size=options.image_size,
        split=options.split,
        attributes=_attributes(readable),
        provenance={
            **provenance,
            **facts(options, len(readable), len(persons)),
            **comparison_facts(pairs, unreadable),
        },
        skip_unreadable=options.skip_unreadable,
    )
    if options.split == "all":
        return whole
    return whole.take(divide(labels, pairs, persons, options))


def check_options(options: DataOptions) -> None:
    """Refuses a size, seed or crop that is out of range."""
    checks.count("image_size", options.image_size, least=1)
    checks.count("seed", options.seed)
    if options.crop not in images.CROPS:
        raise InputError(f"crop must be one of {', '.join(images.CROPS)}, got {options.crop}")


def check_num_persons(name: str, count: int) -> None:
    """Refuses a data set with fewer than two persons."""
    if count < 2:
        raise InputError(f"{name} needs readable images of two persons or more, found {count}")


def facts(options: DataOptions, num_pictures: int, num_persons: int) -> dict[str, object]:
    """The provenance that all data sets have."""
    return {
        "crop": options.crop,
        "resize": images.FILTER.name.lower(),
        "seed": options.seed,
        "num_pictures": num_pictures,
        "num_persons": num_persons,
    }


def comparison_facts(pairs: NumpyArray, unreadable: Sequence[str]) -> dict[str, object]:
    """The provenance added if all images were decoded and compared."""
    return {
        "num_near_duplicate_pairs": len(pairs),
        "num_unreadable": len(unreadable),
        "unreadable": list(unreadable),
    }


def divide(
    labels: NumpyArray, pairs: NumpyArray, persons: Sequence[str], options: DataOptions
) -> NumpyArray:
    """The positions of the requested split, for images ordered by person, then name."""
    groups = splits.group_pairs(len(labels), pairs)
    return splits.split_indices(labels, options.split, options.seed, groups, persons)


def decode_in_threads(
    decode: Callable[[T], R | InputError], things: Iterable[T], options: DataOptions
) -> Iterator[R | InputError]:
    """Applies `decode` to each item in threads, and returns the results in order.

    Raises:
      InputError: the first that `decode` returned, unless unreadable images are skipped.
    """
    with images.quiet_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(decode, things):
            if isinstance(result, InputError) and not options.skip_unreadable:
                pool.shutdown(cancel_futures=True)
                raise InputError(f"{result}; --skip_unreadable leaves such images out")
            yield result


def read_face(content: Path | bytes, title: str, options: DataOptions) -> NumpyArray:
    """Decodes an image file and applies the crop: uint8[image_size, image_size, 3].

    Raises:
      InputError: it cannot be read or cropped; the message begins with `title`.
    """
    return _face(images.decode_image(content, title), title, options)


def _face(pixels: NumpyArray, title: str, options: DataOptions) -> NumpyArray:
    try:
        return images.face_crop(pixels, options.crop, options.image_size)
    except InputError as error:
        raise InputError(f"{title}: {error}") from error


def _label(name: str, sources: Sequence[Source]) -> tuple[tuple[str, ...], NumpyArray]:
    """The persons, sorted, and the labels int32[N]."""
    persons = tuple(sorted({source.person for source in sources}))
    check_num_persons(name, len(persons))
    position = {person: label for label, person in enumerate(persons)}
    return persons, np.array([position[source.person] for source in sources], dtype=np.int32)


def _decode_all(
    sources: Sequence[Source], options: DataOptions
) -> tuple[list[Source], NumpyArray, NumpyArray | None, list[str]]:
    """The readable sources, their thumbnails, their crops if these fit, unreadable names."""
    keep = len(sources) * options.image_size**2 * 3 <= MAX_CACHED_BYTES

    def decode(source: Source) -> tuple[NumpyArray, NumpyArray | None] | InputError:
        try:
            pixels = images.decode_image(source.content, source.title)
        except InputError as error:
            return error
        face = _face(pixels, source.title, options) if keep else None
        return images.thumbnail(pixels), face

    readable, thumbnails, faces, unreadable = [], [], [], []
    decoded = decode_in_threads(decode, sources, options)
    for source, result in zip(sources, decoded, strict=True):
        if isinstance(result, InputError):
            unreadable.append(f"{source.person}/{source.name}")
            continue
        readable.append(source)
        thumbnails.append(result[0])
        faces.append(result[1])
    if not keep or not readable:
        return readable, np.array(thumbnails), None, unreadable
    cache = np.stack([face for face in faces if face is not None])
    cache.setflags(write=False)
    return readable, np.stack(thumbnails), cache, unreadable


def _reader(
    sources: Sequence[Source], cache: NumpyArray | None, options: DataOptions
) -> Callable[[int], NumpyArray]:
    """Position -> uint8[H, W, 3], from the cache or from the source."""
    if cache is not None:
        return cache.__getitem__
    return lambda index: read_face(sources[index].content, sources[index].title, options)


def _attributes(sources: Sequence[Source]) -> dict[str, NumpyArray]:
    """The attributes: name -> bool[N]."""
    return {
        name: np.array([source.attributes[name] for source in sources], dtype=bool)
        for name in sources[0].attributes
    }
