"""Converts video frames to upright RGB and back to a frame's own planes and colours.

Frames are PyAV's; pixels are uint8[H, W, 3], RGB.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from deid_jax.types import NumpyArray

if TYPE_CHECKING:
    from av import VideoCodecContext, VideoFrame

# Planar formats that all encoders accept. Others become 8-bit 4:2:0, and RGB becomes 4:4:4.
_KEPT = {
    **{f"yuv{kind}p": f"yuv{kind}p" for kind in (420, 422, 444)},
    **{f"yuvj{kind}p": f"yuv{kind}p" for kind in (420, 422, 444)},
    **{f"yuv{kind}p10le": f"yuv{kind}p10le" for kind in (420, 422, 444)},
}
_FULL_RANGE = 2
_RGB, _BT709 = 0, 1  # FFmpeg's numbers of colour spaces.

# (the frame's number, uint8[H, W, 3], upright) -> its new pixels, or None to keep them.
FrameChange = Callable[[int, NumpyArray], NumpyArray | None]


def display_matrix(frame: "VideoFrame") -> NumpyArray | None:
    """int32[9], the transform from the stored to the displayed frame; None: identity."""
    found = frame.side_data.get("DISPLAYMATRIX")
    # PyAV types it `object`.
    return None if found is None else np.frombuffer(bytes(found), np.int32)  # type: ignore[call-overload]


def orientation(frame: "VideoFrame") -> tuple[bool, int]:
    """How a frame becomes upright: mirrored left to right or not, then quarter turns."""
    matrix = display_matrix(frame)
    if matrix is None:
        return False, 0
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = matrix[:5].astype(float)
    sign = -1 if a * d < b * c else 1
    return sign < 0, round(-math.atan2(sign * b, sign * a) / (math.pi / 2)) % 4


def upright(pixels: NumpyArray, mirrored: bool, turns: int) -> NumpyArray:
    """Mirrors pixels if `mirrored`, then rotates by quarter turns, counter-clockwise."""
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, turns))


def rgb_of(frame: "VideoFrame") -> NumpyArray:
    """Converts a frame to uint8[H, W, 3], without rotation."""
    return _reformat(frame, format="rgb24", dst_color_range=_FULL_RANGE).to_ndarray()


def shown(frame: "VideoFrame") -> NumpyArray:
    """The frame as it is shown: upright, uint8[H, W, 3]."""
    return upright(rgb_of(frame), *orientation(frame))


class _Reformat(TypedDict, total=False):
    """Options of PyAV's `VideoFrame.reformat`."""

    format: str
    src_color_range: int
    dst_color_range: int
    dst_colorspace: int


def _reformat(frame: "VideoFrame", **options: Unpack[_Reformat]) -> "VideoFrame":
    from av.video.reformatter import Interpolation

    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    return frame.reformat(interpolation=int(exact), threads=1, **options)


def _planar(pixels: NumpyArray, like: "VideoFrame", pix_fmt: str) -> "VideoFrame":
    """Converts RGB pixels to a frame in the colour space of another frame."""
    from av import VideoFrame

    plain = VideoFrame.from_ndarray(pixels, format="rgb24")
    return _reformat(
        plain,
        format=pix_fmt,
        src_color_range=_FULL_RANGE,
        dst_colorspace=like.colorspace,
        dst_color_range=_range_of(like),
    )


def _range_of(frame: "VideoFrame") -> int:
    """FFmpeg's number of the colour range: 0 unknown, 1 limited, 2 full."""
    return _FULL_RANGE if frame.format.name.startswith("yuvj") else int(frame.color_range)


def _planes(frame: "VideoFrame") -> list[NumpyArray]:
    """Views of a frame's planes: uint8 or uint16, [h, w]."""
    kind = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else np.uint16)
    found = []
    for plane in frame.planes:
        whole = np.frombuffer(memoryview(plane), kind).reshape(
            -1, plane.line_size // kind.itemsize
        )
        found.append(whole[: plane.height, : plane.width])
    return found


def replaced(
    frame: "VideoFrame", before: NumpyArray, after: NumpyArray, pix_fmt: str
) -> "VideoFrame":
    """Adds the difference of two RGB images to the frame's own planes.

    Where the images are equal, the frame's values are unchanged, since they never pass through
    RGB.
    """
    from av import VideoFrame

    made = VideoFrame(frame.width, frame.height, pix_fmt)
    most = 2 ** made.format.components[0].bits - 1
    pair = [_planes(_planar(pixels, frame, pix_fmt)) for pixels in (before, after)]
    for target, source, one, other in zip(_planes(made), _planes(frame), *pair, strict=True):
        target[...] = np.clip(source.astype(np.int32) + other - one, 0, most)
    copy_colours(frame, made)
    return made


def copy_colours(source: "VideoFrame", target: "VideoFrame | VideoCodecContext") -> None:
    """Copies the colour space and range."""
    for kind in ("colorspace", "color_primaries", "color_trc"):
        setattr(target, kind, getattr(source, kind))
    target.color_range = _range_of(source)


def format_of(frame: "VideoFrame", encoder: "VideoCodecContext") -> str:
    """The pixel format to write: the frame's own, or the closest that the encoder accepts."""
    odd = frame.width % 2 or frame.height % 2
    rgb = frame.format.is_rgb or frame.format.has_palette
    default = "yuv444p" if odd or rgb else "yuv420p"
    kept = default if odd else _KEPT.get(frame.format.name, default)
    # Some builds of libvpx only support 8 bits.
    known = [one.name for one in encoder.codec.video_formats or ()]
    return kept if kept in known else kept.removesuffix("10le")


def in_format(frame: "VideoFrame", pix_fmt: str) -> "VideoFrame":
    """Converts a frame to the pixel format to write."""
    if _KEPT.get(frame.format.name) == pix_fmt:
        return frame
    if frame.colorspace == _RGB:  # Otherwise the planar frame would still claim to be RGB.
        return _reformat(frame, format=pix_fmt, dst_colorspace=_BT709)
    return _reformat(frame, format=pix_fmt)


def apply(frame: "VideoFrame", number: int, change: FrameChange, pix_fmt: str) -> "VideoFrame":
    """The frame to encode, with its new pixels."""
    time, (mirrored, turns) = (frame.pts, frame.time_base, frame.duration), orientation(frame)
    frame = in_format(frame, pix_fmt)
    before = rgb_of(frame)
    after = change(number, upright(before, mirrored, turns))
    back = turns if mirrored else -turns  # Mirroring and turning is its own inverse.
    after = before if after is None else upright(after, mirrored, back)
    made = replaced(frame, before, after, pix_fmt)
    made.pts, made.time_base, made.duration = time
    return made
