"""Video files: decodes upright frames, and writes the video again with new pixels, using PyAV.

Only one frame is in memory at a time. Sound is copied packet by packet, with its timestamps;
frames keep their timestamps, rotation, pixel aspect ratio and colour space. Metadata (place,
time, device, titles, subtitles) is written only on request, cover images and data tracks never.
"""

import contextlib
import errno
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deid_jax.data.images import MAX_PIXELS
from deid_jax.errors import InputError, TransientError, one_line
from deid_jax.photos.metadata import MARK
from deid_jax.types import NumpyArray
from deid_jax.videos.frames import (
    FrameChange,
    apply,
    copy_colours,
    display_matrix,
    format_of,
    in_format,
    shown,
)

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

# Containers that can be read and written again: suffix -> FFmpeg's name.
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}

# Encoders and their options. x264's macroblock tree reads uninitialised memory, so that no two
# runs would give the same bytes.
_X264: tuple[str, dict[str, str]] = ("libx264", {"preset": "medium", "mbtree": "0"})
_X265 = ("libx265", {"preset": "medium", "x265-params": "log-level=none"})
_VP9 = ("libvpx-vp9", {"b": "0", "cpu-used": "2"})
_ENCODERS = {"h264": _X264, "hevc": _X265, "vp8": _VP9, "vp9": _VP9, "av1": _VP9}
# A playlist of other files or addresses must not pass for a video.
_OWN = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska"}
# The number of threads is fixed, so that the bytes do not depend on the number of cores.
_THREADS = 2
_COMMENT = "comment"
# Seconds by which a complete file may be shorter than its header says.
_SLACK = 0.5


class TimedFrame(NamedTuple):
    """An upright frame, uint8[H, W, 3] in RGB, and its presentation time in seconds."""

    time: Fraction
    pixels: NumpyArray


class VideoInfo(NamedTuple):
    """Size of upright frames, their number by the header (0 if not given), and any mark.

    The mark, `metadata.MARK`, is a comment.
    """

    width: int
    height: int
    num_frames: int
    is_marked: bool


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns PyAV's errors into `InputError`."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = one_line(error.strerror or type(error).__name__)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError(f"video {path} cannot be written: {reason}") from error
        raise InputError(f"video {path} cannot be read: {reason}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """Opens a container and its only video stream.

    Raises:
      InputError: PyAV is not installed, or the file does not have one usable video stream.
    """
    try:
        import av
    except ImportError:
        raise TransientError("videos need PyAV: pip install 'deid_jax[video]'") from None
    with _errors(path):
        try:
            opened = av.open(str(path.absolute()), metadata_errors="replace", options=_OWN)
        except av.ArgumentError:  # Raised for formats outside `_OWN`.
            kinds = "MP4, MOV, Matroska or WebM"
            raise InputError(f"video {path} cannot be read: it is no {kinds}") from None
    with _errors(path), opened as container:
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
    """Reads the header and the first frame.

    Raises:
      InputError: the file is missing, damaged or not a video, or has several video streams.
    """
    with _opened(path) as (container, stream):
        count, is_marked = stream.frames, MARK in container.metadata.values()
    height, width = shown(_first_frame(path)).shape[:2]
    return VideoInfo(width, height, count, is_marked)


def read_frames(path: Path) -> Iterator[TimedFrame]:
    """Decodes every frame, in presentation order.

    Raises:
      InputError: the file cannot be read, is cut off, or changes its frame size.
    """
    for frame in _frames(path):
        yield TimedFrame(_seconds(frame), shown(frame))


def _frames(path: Path) -> Iterator["VideoFrame"]:
    import av

    with _opened(path) as (container, stream):
        for frame in _read(container, stream, path):
            if isinstance(frame, av.VideoFrame):
                yield frame


def _seconds(one: "Packet | VideoFrame") -> Fraction:
    """Presentation time; frames without one have been refused before."""
    assert one.pts is not None and one.time_base is not None
    return one.pts * Fraction(one.time_base)


def _read(
    container: "InputContainer", stream: "VideoStream", path: Path
) -> Iterator["Packet | VideoFrame"]:
    """Reads packets of the copied streams, and frames of the video."""
    import av

    size, end, last = (stream.width, stream.height), Fraction(0), None
    copied = _copied(container)
    for packet in container.demux([stream, *copied]):
        if packet.is_corrupt:
            raise InputError(f"video {path} is damaged or cut off")
        if packet.pts is not None:
            end = max(end, _seconds(packet) + (packet.duration or 0) * packet.time_base)
        if packet.stream.index != stream.index:
            if packet.size:
                yield packet
            continue
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            if frame.pts is None or (last is not None and frame.pts <= last):
                raise InputError(f"video {path} has frames without times in order")
            if (frame.width, frame.height) != size:
                raise InputError(f"video {path} changes the size of its frames")
            last = frame.pts
            yield frame
    if container.duration is not None:
        # A file that was cut off ends before the duration in its header.
        told = Fraction(container.duration + max(container.start_time or 0, 0), 1_000_000)
        if told - end > _SLACK:
            there = f"{float(end):.1f} of {float(told):.1f} seconds"
            raise InputError(f"video {path} is cut off: {there}")


def _copied(container: "InputContainer", keep_metadata: bool = True) -> "list[Stream]":
    """Streams to copy: sound, and, with metadata, subtitles (where drones log positions)."""
    kinds = ("audio", "subtitle") if keep_metadata else ("audio",)
    return [one for one in container.streams if one.type in kinds]


def rewrite(
    source: Path,
    target: Path,
    change: FrameChange,
    *,
    suffix: str,
    quality: int,
    keep_metadata: bool = False,
    mark: bool = False,
) -> None:
    """Writes a video again with new pixels; the suffix, a key of `FORMATS`, is the container's.

    H.264, H.265 and VP9 keep their codec; VP8 and AV1 become VP9, all others H.264. Quality is
    the encoder's constant rate factor; 0 is the best. Subtitles count as metadata. A mark
    takes the comment's place.

    Raises:
      InputError: the source cannot be read, or the container cannot hold its streams.
    """
    import av

    first = _first_frame(source)
    with (
        _opened(source) as (container, stream),
        av.open(
            str(target.absolute()),  # A relative name may look like a protocol.
            "w",
            format=FORMATS[suffix],
            container_options=_options(container, stream, suffix, keep_metadata),
        ) as out,
    ):
        notes = container.metadata if keep_metadata else {}
        out.metadata.update(notes | ({_COMMENT: MARK} if mark else {}))
        copies: dict[int, Stream] = {}
        try:
            for other in container.streams:
                if other.index == stream.index:
                    made = _video_stream(out, stream, first, quality)
                    _describe(made, stream, keep_metadata)
                elif other in _copied(container, keep_metadata):
                    copies[other.index] = out.add_stream_from_template(other, opaque=True)
                    _describe(copies[other.index], other, keep_metadata)
        except ValueError as error:
            raise InputError(
                f"video {source} cannot be written as {suffix}: {error}"
            ) from error
        number = 0
        for one in _read(container, stream, source):
            if isinstance(one, av.VideoFrame):
                out.mux(made.encode(apply(one, number, change, str(made.pix_fmt))))
                number += 1
            elif one.stream.index in copies:
                one.stream = copies[one.stream.index]
                out.mux(one)
        out.mux(made.encode(None))


def _first_frame(path: Path) -> "VideoFrame":
    for frame in _frames(path):
        return frame
    raise InputError(f"video {path} has no frames")


def _options(
    container: "InputContainer", stream: "VideoStream", suffix: str, keep_metadata: bool
) -> dict[str, str]:
    """Options of the container to write."""
    # Without this option Matroska files have a random identifier.
    options = {"fflags": "+bitexact"}
    if FORMATS[suffix] in ("mp4", "mov") and Fraction(stream.time_base or 0).numerator == 1:
        # The time units, also for the time before a track begins.
        copied = (stream, *_copied(container))
        bases = [Fraction(one.time_base or 0).denominator for one in copied]
        whole = math.lcm(*bases)
        options["video_track_timescale"] = str(bases[0])
        options["movie_timescale"] = str(whole if whole < 2**31 else bases[0])
    if keep_metadata and suffix == ".mov":
        options["movflags"] = "use_metadata_tags"  # Phones use non-standard names.
    return options


def _describe(copy: "Stream", one: "Stream", keep_metadata: bool) -> None:
    """Copies a stream's metadata: all of it, or only the language."""
    copy.disposition = one.disposition
    if keep_metadata:
        copy.metadata.update(one.metadata)
    elif "language" in one.metadata:
        copy.metadata["language"] = one.metadata["language"]


def _video_stream(
    out: "OutputContainer", stream: "VideoStream", first: "VideoFrame", quality: int
) -> "VideoStream":
    """Adds the video stream to write, with the source's properties."""
    from av.codec.context import Flags
    from av.video.stream import VideoStream

    # The decoder's name may be that of its library, as for AV1.
    name, options = _ENCODERS.get(stream.codec_context.codec.canonical_name, _X264)
    # The rate only matters for frames without timestamps.
    made = out.add_stream(name, rate=stream.average_rate, options=options)
    assert isinstance(made, VideoStream)
    matrix = display_matrix(first)
    made.options = {**options, "crf": str(quality)}
    made.width, made.height = first.width, first.height
    made.pix_fmt = format_of(first, made.codec_context)
    assert stream.time_base is not None
    made.time_base = made.codec_context.time_base = stream.time_base
    made.codec_context.thread_count = _THREADS
    if stream.sample_aspect_ratio:
        made.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio
    copy_colours(in_format(first, made.pix_fmt), made.codec_context)
    # Without this the last frame's duration is guessed.
    made.codec_context.flags |= Flags.frame_duration
    if name == "libx265" and out.format.name in ("mp4", "mov"):
        made.codec_context.codec_tag = "hvc1"  # The only tag that Apple's players accept.
    if matrix is not None:
        made.set_display_matrix(matrix.tolist())
    return made
