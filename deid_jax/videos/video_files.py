"""Video files: decoded upright frame by frame, and written again with other pictures.

Read and written by PyAV. One frame is in memory at a time, whatever the video's length. Sound
is copied packet by packet, with its times; pictures keep the times, rotation, shape of pixels
and colour space that they had. What else a video's file may tell (place, time, device, titles,
subtitles) is not written unless asked for; cover pictures and tracks of data never are.
"""

import contextlib
import errno
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deid_jax.data.images import MAX_PIXELS
from deid_jax.errors import InputError, TransientError
from deid_jax.videos.video_frames import (
    Change,
    changed,
    format_of,
    in_format,
    range_of,
    rgb_of,
    upright,
    way,
)

# Containers that can be written again as they were: the suffix, and what FFmpeg calls them.
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
SUFFIXES = frozenset(FORMATS)
# The source's codec -> the encoder, its options, the option that says how much it may lose.
# x264's macroblock tree reads unwritten memory: with it no two runs give the same bytes.
_X264: tuple[str, dict[str, str]] = ("libx264", {"preset": "medium", "mbtree": "0"})
_X265 = ("libx265", {"preset": "medium", "x265-params": "log-level=none"})
_VP9 = ("libvpx-vp9", {"b": "0", "cpu-used": "2"})
_ENCODERS = {"h264": _X264, "hevc": _X265, "vp8": _VP9, "vp9": _VP9, "av1": _VP9}
# What looks like a video may be a list of other files, or of addresses.
_OWN = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska"}
# The same bytes on every machine, so not as many as there are cores.
_THREADS = 2
# Seconds that may miss at the end of a whole file, against what its header says.
_SLACK = 0.5


class Picture(NamedTuple):
    """One frame.

    Attributes:
      time: when it is shown, in seconds.
      pixels: uint8[H, W, 3], RGB, upright.
    """

    time: Fraction
    pixels: np.ndarray


class VideoInfo(NamedTuple):
    """What is known of a video before it is decoded.

    Attributes:
      width: of a frame as it is shown, upright, in pixels.
      height: likewise.
      num_frames: as the file says, to tell how far one has come; 0 where it does not.
    """

    width: int
    height: int
    num_frames: int


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What PyAV raises, as one `InputError`."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError(f"video {path} cannot be written: {reason}") from error
        raise InputError(f"video {path} cannot be read: {reason}") from error


def _container(path: Path) -> Any:
    import av

    try:
        return av.open(str(path.absolute()), metadata_errors="replace", options=_OWN)
    except av.ArgumentError:  # What FFmpeg calls formats that `_OWN` does not name.
        kinds = "MP4, MOV, Matroska or WebM"
        raise InputError(f"video {path} cannot be read: it is no {kinds}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its one video stream.

    Raises:
      InputError: PyAV is not installed, or the file has not one video stream that fits.
    """
    try:
        import av
    except ImportError:
        raise TransientError("videos need PyAV: pip install 'deid_jax[video]'") from None
    with (
        _errors(path),
        _container(path) as container,
    ):
        covers = av.stream.Disposition.attached_pic
        streams = [one for one in container.streams.video if not one.disposition & covers]
        if len(streams) != 1:
            raise InputError(f"video {path} has {len(streams)} video streams, not one")
        (stream,) = streams
        if stream.codec_context is None or not (stream.width and stream.height):
            raise InputError(f"video {path} cannot be read: no decoder, or no frame size")
        if stream.width * stream.height > MAX_PIXELS:
            raise InputError(f"video {path} has frames of more than {MAX_PIXELS} pixels")
        stream.thread_type = "AUTO"
        yield container, stream


def look(path: Path) -> VideoInfo:
    """Reads what a file says of itself, and its first frame.

    Raises:
      InputError: it is missing, no video, damaged, or has several video streams.
    """
    with _opened(path) as (_, stream):
        count = stream.frames
    first = _first_frame(path)
    height, width = upright(rgb_of(first), *way(first)).shape[:2]
    return VideoInfo(width, height, count)


def pictures(path: Path) -> Iterator[Picture]:
    """Every frame, decoded, in the order in which they are shown.

    Raises:
      InputError: it cannot be read, ends before its time, or changes its size in between.
    """
    with _opened(path) as (container, stream):
        for _, frame in _read(container, stream, path):
            if frame is not None:
                yield Picture(frame.pts * frame.time_base, upright(rgb_of(frame), *way(frame)))


def _read(container: Any, stream: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """(packet, None) of what is copied, (None, frame) of the video."""
    size, end, last = (stream.width, stream.height), Fraction(0), None
    copied = _copied(container)
    for packet in container.demux([stream, *copied]):
        if packet.is_corrupt:
            raise InputError(f"video {path} is damaged or cut off")
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index != stream.index:
            if packet.size:
                yield packet, None
            continue
        for frame in packet.decode():
            if frame.pts is None or (last is not None and frame.pts <= last):
                raise InputError(f"video {path} has frames without times in order")
            if (frame.width, frame.height) != size:
                raise InputError(f"video {path} changes the size of its frames")
            last = frame.pts
            yield None, frame
    if container.duration is not None:
        # Of the header; what was cut off came after what was read.
        told = Fraction(container.duration + max(container.start_time or 0, 0), 1_000_000)
        if told - end > _SLACK:
            there = f"{float(end):.1f} of {float(told):.1f} seconds"
            raise InputError(f"video {path} is cut off: {there}")


def _copied(container: Any, keep_metadata: bool = True) -> list[Any]:
    """Streams of sound, and of texts, in which drones write where they are."""
    kinds = ("audio", "subtitle") if keep_metadata else ("audio",)
    return [one for one in container.streams if one.type in kinds]


def rewrite(
    source: Path,
    target: Path,
    change: Change,
    *,
    suffix: str,
    quality: int,
    keep_metadata: bool = False,
) -> None:
    """Writes a video anew with changed pictures.

    H.264, H.265 and VP9 stay what they are; VP8 and AV1 become VP9, others H.264.

    Args:
      source: the file to read.
      target: the file to write.
      change: called for every frame in order.
      suffix: a key of `FORMATS`: the container to write.
      quality: the constant rate factor of the encoder, 0 the best.
      keep_metadata: whether titles, place, time and the like stay, and subtitles.

    Raises:
      InputError: the source cannot be read, or the container cannot hold what is in it.
    """
    import av

    first = _first_frame(source)
    with (
        _opened(source) as (container, stream),
        av.open(
            str(target.absolute()),  # Whose first letters are no protocol.
            "w",
            format=FORMATS[suffix],
            container_options=_options(container, stream, suffix, keep_metadata),
        ) as out,
    ):
        if keep_metadata:
            out.metadata.update(container.metadata)
        copies: dict[int, Any] = {}
        try:
            for one in container.streams:
                if one.index == stream.index:
                    made = _video_stream(out, one, first, quality)
                    _describe(made, one, keep_metadata)
                elif one in _copied(container, keep_metadata):
                    copies[one.index] = out.add_stream_from_template(one, opaque=True)
                    _describe(copies[one.index], one, keep_metadata)
        except ValueError as error:
            raise InputError(
                f"video {source} cannot be written as {suffix}: {error}"
            ) from error
        number = 0
        for packet, frame in _read(container, stream, source):
            if frame is None:
                if packet.stream.index in copies:
                    packet.stream = copies[packet.stream.index]
                    out.mux(packet)
                continue
            out.mux(made.encode(changed(frame, number, change, made.pix_fmt)))
            number += 1
        out.mux(made.encode(None))


def _first_frame(path: Path) -> Any:
    with _opened(path) as (container, stream):
        for _, frame in _read(container, stream, path):
            if frame is not None:
                return frame
    raise InputError(f"video {path} has no frames")


def _options(container: Any, stream: Any, suffix: str, keep_metadata: bool) -> dict[str, str]:
    """Options of the container to write."""
    # Else Matroska draws a random number to name the file by.
    options = {"fflags": "+bitexact"}
    if FORMATS[suffix] in ("mp4", "mov") and stream.time_base.numerator == 1:
        # The ticks in which times are counted, also those before a track begins.
        bases = [one.time_base.denominator for one in (stream, *_copied(container))]
        whole = math.lcm(*bases)
        options["video_track_timescale"] = str(bases[0])
        options["movie_timescale"] = str(whole if whole < 2**31 else bases[0])
    if keep_metadata and suffix == ".mov":
        options["movflags"] = "use_metadata_tags"  # What phones tell has names of its own.
    return options


def _describe(copy: Any, one: Any, keep_metadata: bool) -> None:
    """What a stream's header says: all, or its language alone."""
    copy.disposition = one.disposition
    if keep_metadata:
        copy.metadata.update(one.metadata)
    elif "language" in one.metadata:
        copy.metadata["language"] = one.metadata["language"]


def _video_stream(out: Any, stream: Any, first: Any, quality: int) -> Any:
    """The encoder, set to what the source is."""
    from av.codec.context import Flags

    # A decoder's own name may be another: AV1's is that of its library.
    name, options = _ENCODERS.get(stream.codec_context.codec.canonical_name, _X264)
    # No `rate`: it is what frames without times would be given.
    made = out.add_stream(name, rate=stream.average_rate, options=options)
    matrix = first.side_data.get("DISPLAYMATRIX")
    made.options = {**options, "crf": str(quality)}
    made.width, made.height = first.width, first.height
    made.pix_fmt = format_of(first, made.codec)
    first = in_format(first, made.pix_fmt)
    made.time_base = made.codec_context.time_base = stream.time_base
    made.codec_context.thread_count = _THREADS
    if stream.sample_aspect_ratio:
        made.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio
    for kind in ("colorspace", "color_primaries", "color_trc"):
        setattr(made.codec_context, kind, getattr(first, kind))
    made.codec_context.color_range = range_of(first)
    # Else the last frame's is guessed.
    made.codec_context.flags |= Flags.frame_duration
    if name == "libx265" and out.format.name in ("mp4", "mov"):
        made.codec_context.codec_tag = "hvc1"  # Apple's players know no other.
    if matrix is not None:
        made.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
    return made
