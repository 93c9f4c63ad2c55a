"""A `FaceDataset` from a list of image files: decoding, near-duplicates, split, cache."""

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

MAX_CACHED_BYTES = 2**30  # larger sets are decoded again whenever an image is read


@dataclasses.dataclass(frozen=True)
class Source:
    """One image before it is decoded.

    Attributes:
      person: who it shows.
      name: unique within the person.
      content: its file, or the file's bytes.
      title: what messages call it.
      attributes: what is known of it; the same keys for all images of a set.
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
    """Decodes all sources once and returns the split asked for.

    The cropped images stay in memory if all of them, of whatever split, fit
    `MAX_CACHED_BYTES` (1 GiB); `read` decodes on demand otherwise.

    Args:
      name: the data set's name.
      sources: the images of all splits, in any order.
      options: size, crop, split, seed, and what to do about unreadable images.
      provenance: facts to which the ones found here are added.

    Raises:
      InputError: an option is out of range, an image cannot be read (and `skip_unreadable`
        is off), fewer than two persons are left, or one cannot be divided as the split needs.
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
    """Refuses a set with images of fewer than two persons."""
    if count < 2:
        raise InputError(f"{name} needs readable images of two persons or more, found {count}")


def facts(options: DataOptions, num_pictures: int, num_persons: int) -> dict[str, object]:
    """The provenance of any data set."""
    return {
        "crop": options.crop,
        "resize": images.FILTER.name.lower(),
        "seed": options.seed,
        "num_pictures": num_pictures,
        "num_persons": num_persons,
    }


def comparison_facts(pairs: NumpyArray, unreadable: Sequence[str]) -> dict[str, object]:
    """The provenance of a data set whose images were all decoded and compared."""
    return {
        "num_near_duplicate_pairs": len(pairs),
        "num_unreadable": len(unreadable),
        "unreadable": list(unreadable),
    }


def divide(
    labels: NumpyArray, pairs: NumpyArray, persons: Sequence[str], options: DataOptions
) -> NumpyArray:
    """Positions of the split asked for, of images ordered by person, then name."""
    groups = splits.group_pairs(len(labels), pairs)
    return splits.split_indices(labels, options.split, options.seed, groups, persons)


def decode_in_threads(
    decode: Callable[[T], R | InputError], things: Iterable[T], options: DataOptions
) -> Iterator[R | InputError]:
    """The result of `decode` for each thing, in order.

    Raises:
      InputError: one that `decode` returned, unless unreadable images are left out.
    """
    with images.quiet_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(decode, things):
            if isinstance(result, InputError) and not options.skip_unreadable:
                pool.shutdown(cancel_futures=True)
                raise InputError(f"{result}; --skip_unreadable leaves such images out")
            yield result


def read_face(content: Path | bytes, title: str, options: DataOptions) -> NumpyArray:
    """An image file as the crop asked for, uint8[image_size, image_size, 3].

    Raises:
      InputError: it cannot be read, or cropped so; the message begins with `title`.
    """
    return _face(images.decode_image(content, title), title, options)


def _face(pixels: NumpyArray, title: str, options: DataOptions) -> NumpyArray:
    try:
        return images.face_crop(pixels, options.crop, options.image_size)
    except InputError as error:
        raise InputError(f"{title}: {error}") from error


def _label(name: str, sources: Sequence[Source]) -> tuple[tuple[str, ...], NumpyArray]:
    """The persons, sorted, and int32[N] positions in them."""
    persons = tuple(sorted({source.person for source in sources}))
    check_num_persons(name, len(persons))
    position = {person: label for label, person in enumerate(persons)}
    return persons, np.array([position[source.person] for source in sources], dtype=np.int32)


def _decode_all(
    sources: Sequence[Source], options: DataOptions
) -> tuple[list[Source], NumpyArray, NumpyArray | None, list[str]]:
    """The readable sources, their thumbnails, their crops if these fit, the others' names."""
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
    """Bool[N] by name."""
    return {
        name: np.array([source.attributes[name] for source in sources], dtype=bool)
        for name in sources[0].attributes
    }
