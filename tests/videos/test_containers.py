"""What a video that is written again keeps: times, sound, subtitles, shape and colours."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from deid_jax.videos import containers
from deid_jax.videos import frames as frame_files
from tests.videos.video_helpers import (
    assert_same_times_and_sound,
    decoded,
    encoder,
    packets,
    rgb,
    times,
    write,
)

# Container, encoder, its codec, pixel format, sound.
KINDS = [
    (".mp4", "libx264", "h264", "yuv420p", "aac"),
    (".mp4", "libx264", "h264", "yuv420p10le", None),
    (".mp4", "libx265", "hevc", "yuv420p10le", "aac"),
    (".mp4", "libvpx-vp9", "vp9", "yuv420p", "aac"),
    (".m4v", "libx264", "h264", "yuv420p", "aac"),
    (".mov", "libx264", "h264", "yuv422p10le", "pcm_s16le"),
    (".mov", "libx265", "hevc", "yuv420p", "aac"),
    (".mkv", "libx264", "h264", "yuv444p", "flac"),
    (".mkv", "libx265", "hevc", "yuv422p", "libopus"),
    (".mkv", "libvpx-vp9", "vp9", "yuv444p", "libopus"),
    (".webm", "libvpx-vp9", "vp9", "yuv420p", "libopus"),
]
KINDS = [kind for kind in KINDS if encoder(kind[1], kind[4] or kind[1])]
SIZE = (96, 80)


def frames(number=10, size=SIZE, seed=0):
    """uint8[N, H, W, 3]: soft blotches that move, in slowly changing colours."""
    width, height = size
    generator = np.random.default_rng(seed)
    blotches = Image.fromarray(generator.integers(0, 256, (7, 16), np.uint8))
    grey = np.array(blotches.resize((2 * width, height), Image.Resampling.BICUBIC), float)
    y, x = np.mgrid[:height, :width] / height
    colours = np.stack([60 * x, 60 - 60 * y, 90 * x * y], axis=2)
    return [
        (0.5 * grey[:, 3 * n :][:, :width, None] + colours + 20).astype(np.uint8)
        for n in range(number)
    ]


def rewrite(source, target, change=lambda number, pixels: None, **options):
    given = {"suffix": target.suffix, "quality": 16} | options
    containers.rewrite(source, target, change, **given)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("keep", [False, True])
def test_mark_is_seen_and_shows_nothing_else(suffix, keep, tmp_path):
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    notes = {"comment": "of Ann", "title": "Garden"}

    def setup(out, video):
        out.metadata.update(notes)

    source = write(tmp_path / f"in{suffix}", frames(3), codec, setup=setup)
    assert not containers.look(source).is_marked
    plain = rewrite(source, tmp_path / f"plain{suffix}", keep_metadata=keep)
    assert not containers.look(plain).is_marked
    target = rewrite(source, tmp_path / f"out{suffix}", keep_metadata=keep, mark=True)
    assert containers.look(target).is_marked
    assert b"of Ann" not in target.read_bytes()
    assert (b"Garden" in target.read_bytes()) is keep


def assert_alike(target, source):
    errors = rgb(target).astype(int) - rgb(source)
    assert np.sqrt(np.mean(np.square(errors))) < 2.5


def ticks_of(number, least, most, start=0, seed=0):
    """Increasing whole numbers whose steps vary."""
    steps = np.random.default_rng(seed).integers(least, most, number - 1)
    return [start, *(start + np.cumsum(steps)).tolist()]


@pytest.mark.parametrize(("suffix", "codec", "name", "pix_fmt", "sound"), KINDS)
def test_times_sound_codec_and_format_stay(tmp_path, suffix, codec, name, pix_fmt, sound):
    """Frames a few and many milliseconds apart, which begin late."""
    base = Fraction(1, 1000 if suffix in (".mkv", ".webm") else 90_000)
    scale = base.denominator // 1000
    ticks = ticks_of(10, 9 * scale, 90 * scale, start=33 * scale + 1)
    source = write(
        tmp_path / f"in{suffix}",
        frames(),
        codec,
        pix_fmt,
        ticks=ticks,
        time_base=base,
        sound=sound,
    )
    target = rewrite(source, tmp_path / f"out{suffix}")
    assert times(source) == [tick * base for tick in ticks]
    assert_same_times_and_sound(target, source)
    assert bool(packets(target, "audio")) is (sound is not None)
    with av.open(str(source)) as one, av.open(str(target)) as other:
        assert other.format.name == one.format.name
        (before,), (after,) = one.streams.video, other.streams.video
        assert after.codec_context.name == before.codec_context.name == name
        kept = pix_fmt in [f.name for f in av.Codec(codec, "w").video_formats]
        assert after.format.name == (pix_fmt if kept else pix_fmt.removesuffix("10le"))
        assert (after.width, after.height) == SIZE
        assert [s.type for s in other.streams] == [s.type for s in one.streams]
        # To the end of the last frame, which VP9 does not tell.
        assert after.duration == before.duration or name == "vp9"
    assert_alike(target, source)


@pytest.mark.parametrize("rate", [Fraction(1001, 30_000), Fraction(1, 1)])
def test_even_rates_and_the_whole_length_stay(tmp_path, rate):
    """To the end of the last frame, whatever the container's own ticks."""
    base = Fraction(1, rate.denominator)
    ticks = [n * rate.numerator for n in range(7)]
    source = write(
        tmp_path / "in.mp4",
        frames(7),
        ticks=ticks,
        time_base=base,
        rate=1 / rate,
        options={"bf": "2"},
    )
    target = rewrite(source, tmp_path / "out.mp4")
    assert times(target) == [n * rate for n in range(7)]
    with av.open(str(target)) as container:
        (stream,) = container.streams.video
        assert stream.duration * stream.time_base == 7 * rate
        assert stream.average_rate == 1 / rate


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_one_frame(tmp_path, suffix):
    source = write(tmp_path / f"in{suffix}", frames(1), sound="aac")
    target = rewrite(source, tmp_path / f"out{suffix}")
    assert times(target) == [0]
    assert packets(target, "audio") == packets(source, "audio")


@pytest.mark.parametrize("movie", ["600", "48000"])
@pytest.mark.parametrize("late", ["sound", "pictures"])
def test_tracks_may_begin_at_any_moment(tmp_path, late, movie):
    """Whatever ticks the source counts them in."""
    start = 1001 if late == "pictures" else 0
    source = write(
        tmp_path / "in.mp4",
        frames(),
        ticks=ticks_of(10, 900, 9000, start),
        sound="aac",
        time_base=Fraction(1, 90_000),
        sound_starts=7001 if late == "sound" else 0,
        movie_timescale=movie,
    )
    target = rewrite(source, tmp_path / "out.mp4")
    first = times(source)[0]
    assert (first > 0) is (late == "pictures")
    assert_same_times_and_sound(target, source)
    assert (packets(source, "audio")[0][1] > 0.1) is (late == "sound")


def test_several_sounds_stay_and_subtitles_on_request(tmp_path):
    """Subtitles may tell places: drones write theirs there."""
    (tmp_path / "a.srt").write_text(
        "1\n00:00:00,080 --> 00:00:00,200\nHello\n\n2\n00:00:00,240 --> 00:00:00,333\n«Ü»\n"
    )
    with av.open(str(tmp_path / "a.srt")) as texts:

        def setup(out, video):
            written = out.add_stream_from_template(texts.streams.subtitles[0])
            written.metadata["language"] = "ita"
            second = out.add_stream("flac", rate=48_000)
            second.codec_context.layout = "mono"
            second.disposition = av.stream.Disposition.comment
            out.start_encoding()
            for packet in texts.demux():
                if packet.size:
                    packet.stream = written
                    out.mux(packet)
            frame = av.AudioFrame.from_ndarray(
                np.arange(4096, dtype=np.int16)[None], format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = 48_000, 0
            out.mux([*second.encode(frame), *second.encode(None)])

        source = write(tmp_path / "in.mkv", frames(), setup=setup)
    silent = rewrite(source, tmp_path / "silent.mkv")
    assert packets(silent, "audio") == packets(source, "audio") != []
    assert b"Hello" not in silent.read_bytes()
    with av.open(str(silent)) as container:
        assert not container.streams.subtitles
    target = rewrite(source, tmp_path / "out.mkv", keep_metadata=True)
    texts = packets(target, "subtitle")
    assert texts == packets(source, "subtitle")
    assert [(one[1], one[3]) for one in texts] == [
        (Fraction(80, 1000), Fraction(120, 1000)),
        (Fraction(240, 1000), Fraction(93, 1000)),
    ]
    assert [one[-1].decode() for one in texts] == ["Hello", "«Ü»"]
    assert packets(target, "audio") == packets(source, "audio") != []
    with av.open(str(target)) as container:
        assert container.streams.subtitles[0].language == "ita"
        assert container.streams.audio[0].disposition == av.stream.Disposition.comment


# --- Which way is up ---

# Matrices (a, b, c, d): a point (x, y) is shown at (a x + c y, b x + d y).
WAYS = {
    "a quarter": (0, 1, -1, 0),
    "a half": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "across": (0, -1, -1, 0),
}


def shown_by(pixels, way):
    """Every point where the matrix says; the least places are 0."""
    a, b, c, d = way
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    shown = np.zeros((down.max() + 1, across.max() + 1, 3), pixels.dtype)
    shown[down, across] = pixels
    return shown


def matrix_of(frame):
    return np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32).tolist()


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("name", WAYS)
def test_rotation_is_applied_and_stays(tmp_path, name, suffix):
    """Changes are made to the upright image and come where it was stored."""
    a, b, c, d = WAYS[name]
    whole = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    source = write(
        tmp_path / f"in{suffix}",
        frames(3),
        codec,
        setup=lambda out, video: video.set_display_matrix(whole),
    )
    stored = rgb(source)
    info = containers.look(source)
    upright = shown_by(stored[0], WAYS[name])
    assert (info.height, info.width) == upright.shape[:2]
    seen = []

    def change(number, pixels):
        seen.append(pixels.copy())
        changed = pixels.copy()
        changed[8:24, 16:48] = (255, 0, 0)
        return changed

    target = rewrite(source, tmp_path / f"out{suffix}", change)
    for number, picture in enumerate(containers.read_frames(source)):
        wanted = shown_by(stored[number], WAYS[name]).astype(int)
        np.testing.assert_allclose(picture.pixels, wanted, atol=3)
        np.testing.assert_array_equal(seen[number], picture.pixels)
    assert len(seen) == 3
    for before, after in zip(decoded(source), decoded(target), strict=True):
        assert matrix_of(after)[:5] == matrix_of(before)[:5] == whole[:5]
    for pixels in rgb(target):
        red = np.abs(shown_by(pixels, WAYS[name]).astype(int) - (255, 0, 0)).max(2) < 60
        assert red[10:22, 18:46].all() and red.sum() < 16 * 32 + 100


# --- Pixels ---


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p"])
def test_what_is_not_changed_passes_unchanged(tmp_path, pix_fmt):
    """Bit for bit, by an encoder that loses nothing; chroma spreads over two pixels."""
    source = write(tmp_path / "in.mp4", frames(), pix_fmt=pix_fmt)

    def change(number, pixels):
        if number % 3 == 0:
            return None
        if number % 3 == 1:
            return pixels
        changed = pixels.copy()
        changed[20:40, 30:60] = np.clip(changed[20:40, 30:60].astype(int) + 9, 0, 255)
        return changed

    target = rewrite(source, tmp_path / "out.mp4", change, quality=0)
    before, after = decoded(source), decoded(target)
    outside = np.ones(SIZE[::-1], bool)
    outside[18:42, 28:62] = False
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        if number % 3 < 2:
            np.testing.assert_array_equal(one.to_ndarray(), other.to_ndarray())
            continue
        old, new = (f.to_ndarray(format="rgb24").astype(int) for f in (one, other))
        np.testing.assert_array_equal(old[outside], new[outside])
        np.testing.assert_allclose((new - old)[22:38, 32:58], 9, atol=2)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv422p10le"])
def test_planes_keep_bits_that_rgb_has_not(tmp_path, pix_fmt):
    """Even of 10 bits: only the difference goes through 8-bit RGB."""
    source = write(tmp_path / "in.mkv", frames(2), pix_fmt=pix_fmt)
    frame = decoded(source)[1]
    own = frame.to_ndarray().astype(int)
    pixels = frame.to_ndarray(format="rgb24")
    same = frame_files.replaced(frame, pixels, pixels.copy(), pix_fmt)
    np.testing.assert_array_equal(same.to_ndarray(), own)
    brighter = np.clip(pixels.astype(int) + 10, 0, 255).astype(np.uint8)
    other = frame_files.replaced(frame, pixels, brighter, pix_fmt).to_ndarray().astype(int)
    deep = pix_fmt.endswith("10le")
    # PyAV hands out 4:2:2 of 10 bits as [3, H, W], others plane below plane.
    luma = (other - own)[0] if own.ndim == 3 else (other - own)[: SIZE[1]]
    # Of 219 levels from black to white, of 255.
    np.testing.assert_allclose(luma, 10 * 219 / 255 * (4 if deep else 1), atol=4 if deep else 1)
    white = np.full_like(pixels, 255)
    most = frame_files.replaced(frame, np.zeros_like(pixels), white, pix_fmt).to_ndarray()
    assert most.max() == (1023 if deep else 255)


# FFmpeg's numbers of colour spaces, primaries, transfer and range.
COLOURS = {
    "BT.709": {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1},
    "BT.601": {"colorspace": 5, "color_primaries": 5, "color_trc": 6, "color_range": 1},
    "BT.2020": {"colorspace": 9, "color_primaries": 9, "color_trc": 14, "color_range": 1},
    "full": {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 2},
}


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("codec", [c for c in ("libx264", "libx265") if encoder(c)])
def test_colours_mean_what_they_meant(tmp_path, codec, name):
    colours = COLOURS[name]
    source = write(tmp_path / "in.mp4", frames(6), codec, colours=colours)
    target = rewrite(source, tmp_path / "out.mp4", quality=4)
    for frame in (*decoded(source), *decoded(target)):
        assert {key: int(getattr(frame, key)) for key in colours} == colours
    np.testing.assert_allclose(rgb(target).astype(int), rgb(source).astype(int), atol=8)
    # Black and white are the ends of the range.
    for value in (0, 255):
        flat = lambda number, pixels, value=value: np.full_like(pixels, value)  # noqa: E731
        target = rewrite(source, tmp_path / f"{value}.mp4", flat, quality=4)
        np.testing.assert_allclose(rgb(target).astype(int), value, atol=6)


# Encoders that are none of ours: what is written is H.264, or VP9 for the free ones.
OTHERS = [
    (".mov", "mjpeg", "yuvj420p", "h264", "yuvj420p"),
    (".mov", "png", "rgb24", "h264", "yuv444p"),
    (".mov", "qtrle", "rgb24", "h264", "yuv444p"),
    (".mkv", "ffv1", "yuv420p16le", "h264", "yuv420p"),
    (".mp4", "mpeg4", "yuv420p", "h264", "yuv420p"),
    (".webm", "libvpx", "yuv420p", "vp9", "yuv420p"),
    (".webm", "libsvtav1", "yuv420p", "vp9", "yuv420p"),
    (".mp4", "libsvtav1", "yuv420p10le", "vp9", None),
]


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "name", "written"),
    [other for other in OTHERS if encoder(other[1])],
)
def test_other_codecs_become_ones_that_all_play(
    tmp_path, suffix, codec, pix_fmt, name, written
):
    source = write(tmp_path / f"in{suffix}", frames(4), codec, pix_fmt)
    target = rewrite(source, tmp_path / f"out{suffix}", quality=4)
    after = decoded(target)
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.name == name
    assert times(target) == times(source)
    if written is not None:
        assert after[0].format.name.replace("yuvj", "yuv") == written.replace("yuvj", "yuv")
    assert_alike(target, source)


@pytest.mark.parametrize(
    ("codec", "size"), [("ffv1", (97, 81)), ("libvpx-vp9", (96, 81)), ("mjpeg", (97, 80))]
)
def test_odd_sizes_stay(tmp_path, codec, size):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = write(tmp_path / "in.mkv", frames(3, size), codec, pix_fmt)
    target = rewrite(source, tmp_path / "out.mkv", quality=4)
    assert rgb(target).shape == (3, *size[::-1], 3)
    assert_alike(target, source)
    assert containers.look(source)[:2] == size
