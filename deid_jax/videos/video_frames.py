"""Frames of videos: upright in RGB and back, in a frame's own planes, colours and range.

Frames are PyAV's; pictures are uint8[H, W, 3], RGB.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Planar formats that all encoders take; others become 4:2:0 of 8 bits, and RGB 4:4:4.
_KEPT = {
    **{f"yuv{kind}p": f"yuv{kind}p" for kind in (420, 422, 444)},
    **{f"yuvj{kind}p": f"yuv{kind}p" for kind in (420, 422, 444)},
    **{f"yuv{kind}p10le": f"yuv{kind}p10le" for kind in (420, 422, 444)},
}
_FULL_RANGE = 2
_RGB, _BT709 = 0, 1  # Of colour spaces, by FFmpeg's numbers.

# (the frame's number, uint8[H, W, 3], upright) -> the same changed, or None: as it is.
Change = Callable[[int, np.ndarray], np.ndarray | None]


def way(frame: Any) -> tuple[bool, int]:
    """What brings a frame upright: a mirror, left for right, then quarter turns."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 0
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    sign = -1 if a * d < b * c else 1
    return sign < 0, round(-math.atan2(sign * b, sign * a) / (math.pi / 2)) % 4


def upright(pixels: np.ndarray, mirrored: bool, turns: int) -> np.ndarray:
    """Mirrored, if it is to be, and then turned by quarters, counter-clockwise."""
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, turns))


def rgb_of(frame: Any) -> np.ndarray:
    """uint8[H, W, 3] of a frame, not turned."""
    return _reformat(frame, format="rgb24", dst_color_range=_FULL_RANGE).to_ndarray()


def _reformat(frame: Any, **options: Any) -> Any:
    from av.video.reformatter import Interpolation

    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    return frame.reformat(interpolation=int(exact), threads=1, **options)


def _planar(pixels: np.ndarray, like: Any, pix_fmt: str) -> Any:
    """A frame of RGB pixels, in the colours of another frame."""
    from av import VideoFrame

    plain = VideoFrame.from_ndarray(pixels, format="rgb24")
    return _reformat(
        plain,
        format=pix_fmt,
        src_color_range=_FULL_RANGE,
        dst_colorspace=like.colorspace,
        dst_color_range=range_of(like),
    )


def range_of(frame: Any) -> int:
    """FFmpeg's number: 0 unknown, 1 of television, 2 from 0 to 255."""
    return _FULL_RANGE if frame.format.name.startswith("yuvj") else int(frame.color_range)


def _planes(frame: Any) -> list[np.ndarray]:
    """Views of a frame's planes: uint8 or uint16, [h, w]."""
    kind = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else np.uint16)
    found = []
    for plane in frame.planes:
        whole = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        found.append(whole[: plane.height, : plane.width])
    return found


def replaced(frame: Any, before: np.ndarray, after: np.ndarray, pix_fmt: str) -> Any:
    """The frame with the difference of two RGB pictures added to its own planes.

    Where they are alike the frame's own values stay: they do not go through RGB.
    """
    from av import VideoFrame

    made = VideoFrame(frame.width, frame.height, pix_fmt)
    most = 2 ** made.format.components[0].bits - 1
    pair = [_planes(_planar(pixels, frame, pix_fmt)) for pixels in (before, after)]
    for target, source, one, other in zip(_planes(made), _planes(frame), *pair, strict=True):
        target[...] = np.clip(source.astype(np.int32) + other - one, 0, most)
    for kind in ("colorspace", "color_primaries", "color_trc"):
        setattr(made, kind, getattr(frame, kind))
    made.color_range = range_of(frame)
    return made


def format_of(frame: Any, encoder: Any) -> str:
    """The pixel format to write: the same, or one that loses no colours and takes any size."""
    odd = frame.width % 2 or frame.height % 2
    rgb = frame.format.is_rgb or frame.format.has_palette
    default = "yuv444p" if odd or rgb else "yuv420p"
    kept = default if odd else _KEPT.get(frame.format.name, default)
    # Some builds of libvpx know 8 bits alone.
    known = [one.name for one in encoder.video_formats]
    return kept if kept in known else kept.removesuffix("10le")


def in_format(frame: Any, pix_fmt: str) -> Any:
    """The frame in the pixel format to write."""
    if _KEPT.get(frame.format.name) == pix_fmt:
        return frame
    # Else what was in RGB would go on saying so.
    colours = {"dst_colorspace": _BT709} if frame.colorspace == _RGB else {}
    return _reformat(frame, format=pix_fmt, **colours)


def changed(frame: Any, number: int, change: Change, pix_fmt: str) -> Any:
    """The frame to encode."""
    time, (mirrored, turns) = (frame.pts, frame.time_base, frame.duration), way(frame)
    frame = in_format(frame, pix_fmt)
    before = rgb_of(frame)
    after = change(number, upright(before, mirrored, turns))
    back = turns if mirrored else -turns  # A mirror, turned or not, is its own inverse.
    after = before if after is None else upright(after, mirrored, back)
    made = replaced(frame, before, after, pix_fmt)
    made.pts, made.time_base, made.duration = time
    return made
