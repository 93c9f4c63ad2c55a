"""What is not written again: metadata, cover images, and files that are no videos."""

import hashlib
import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deid_jax.errors import InputError, TransientError
from deid_jax.videos import containers
from tests.videos.test_containers import SIZE, frames, rewrite, ticks_of
from tests.videos.video_helpers import decoded, encoder, rgb, sound_alone, times, write

# --- What a file tells ---

WHOLE = {
    "title": "T-Secret",
    "comment": "C-Bob",
    "artist": "Ann",
    "location": "+12.3456+078.9012/",
    "creation_time": "2020-02-03T04:05:06.000000Z",
    "com.apple.quicktime.model": "Phone-9",
}
OF_STREAMS = {"title": "V-Title", "handler_name": "V-Handler", "language": "deu"}
SECRETS = (b"T-Secret", b"C-Bob", b"Ann", b"12.3456", b"Phone-9", b"V-Title", b"V-Handler")
SECRETS += (b"Chapter-One", b"Font-Bytes", b"font/ttf")


def cover():
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (255, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def talkative(path, codec, sound):
    """A video with everything that a container may tell."""

    def setup(out, video):
        out.metadata.update(WHOLE)
        video.metadata.update(OF_STREAMS)
        chapter = {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000)}
        out.set_chapters([chapter | {"metadata": {"title": "Chapter-One"}}])
        if path.suffix == ".mkv":
            out.add_attachment("a.ttf", "font/ttf", b"Font-Bytes")
        if path.suffix in (".mp4", ".mov"):
            small = out.add_mux_stream("mjpeg", width=16, height=16)
            small.disposition = av.stream.Disposition.attached_pic
            out.start_encoding()
            packet = av.Packet(cover())
            packet.stream, packet.pts, packet.dts = small, 0, 0
            packet.time_base = Fraction(1, 25)
            out.mux(packet)

    options = {"movflags": "use_metadata_tags"} if path.suffix == ".mov" else {}
    return write(path, frames(5), codec, sound=sound, setup=setup, **options)


TALKATIVE = [
    (".mp4", "libx264", "aac"),
    (".mov", "libx264", "aac"),
    (".mkv", "libx264", "flac"),
    (".webm", "libvpx-vp9", "libopus"),
]


@pytest.mark.parametrize(("suffix", "codec", "sound"), TALKATIVE)
def test_metadata_go_or_stay(tmp_path, suffix, codec, sound):
    source = talkative(tmp_path / f"in{suffix}", codec, sound)
    before = source.read_bytes()
    inside = [secret for secret in SECRETS if secret in before]
    assert len(inside) >= 6
    silent = rewrite(source, tmp_path / f"out{suffix}")
    telling = rewrite(source, tmp_path / f"kept{suffix}", keep_metadata=True)
    content = silent.read_bytes()
    assert [secret for secret in SECRETS if secret in content] == []
    with av.open(str(source)) as one, av.open(str(silent)) as other:
        told = {name.lower(): value for name, value in one.metadata.items()}
        assert told.keys() & {"title", "comment", "artist", "creation_time"}
        # What is left tells of the format alone.
        assert {name.lower() for name in other.metadata} <= {
            *("major_brand", "minor_version", "compatible_brands", "encoder")
        }
        assert other.metadata.get("encoder", "Lavf") == "Lavf"
        for stream in other.streams:
            names = {name.lower() for name in stream.metadata}
            assert names <= {"language", "handler_name", "vendor_id", "duration"}
            assert stream.metadata.get("handler_name", "VideoHandler").endswith("Handler")
        assert other.streams.video[0].language == one.streams.video[0].language
    with av.open(str(source)) as one, av.open(str(telling)) as other:
        for name, value in one.metadata.items():
            if name.lower() not in ("encoder", "minor_version", "compatible_brands"):
                assert other.metadata[name] == value
        names = {"handler_name", "HANDLER_NAME", "title"}
        first, second = one.streams.video[0].metadata, other.streams.video[0].metadata
        kept = {name: value for name, value in first.items() if name in names}
        assert kept and kept.items() <= second.items()


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_cover_pictures_and_further_tracks_never_stay(tmp_path, suffix):
    source = talkative(tmp_path / f"in{suffix}", "libx264", "aac")
    for keep in (False, True):
        target = rewrite(source, tmp_path / f"{keep}{suffix}", keep_metadata=keep)
        assert b"\xff\xd8\xff" not in target.read_bytes()
        assert b"Chapter-One" not in target.read_bytes()
        with av.open(str(target)) as container:
            assert [stream.type for stream in container.streams] == ["video", "audio"]
            assert container.chapters() == []
    if suffix == ".mp4":
        assert cover() in source.read_bytes()


def test_shape_of_pixels_stays(tmp_path):
    def setup(out, video):
        video.codec_context.sample_aspect_ratio = Fraction(4, 3)

    source = write(tmp_path / "in.mp4", frames(2), setup=setup)
    with av.open(str(rewrite(source, tmp_path / "out.mp4"))) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.skipif(not encoder("libx265"), reason="PyAV was built without x265")
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_apples_players_know_hevc(tmp_path, suffix):
    # x265 gives fewer than three frames no times that a file could be written with.
    source = write(tmp_path / f"in{suffix}", frames(6), "libx265")
    target = rewrite(source, tmp_path / f"out{suffix}")
    assert b"hvc1" in target.read_bytes() and b"hev1" not in target.read_bytes()


# --- The same bytes ---


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_same_source_same_bytes(tmp_path, suffix):
    """Whatever the file is called, and whenever it is written."""
    codec = {".mov": "libx265", ".webm": "libvpx-vp9"}.get(suffix, "libx264")
    source = write(tmp_path / f"in{suffix}", frames(12, (128, 96)), codec, options={"bf": "2"})
    change = lambda number, pixels: pixels[::-1] if number % 2 else None  # noqa: E731
    written = {
        hashlib.sha256(rewrite(source, tmp_path / f"{n}{suffix}", change).read_bytes()).digest()
        for n in range(2)
    }
    assert len(written) == 1


def test_quality_is_the_encoders(tmp_path):
    source = write(tmp_path / "in.mp4", frames())
    written = [rewrite(source, tmp_path / f"{q}.mp4", quality=q) for q in (4, 16, 28, 40)]
    sizes = [path.stat().st_size for path in written]
    errors = [np.square(rgb(path).astype(int) - rgb(source)).mean() for path in written]
    for (large, small), (fine, coarse) in zip(
        itertools.pairwise(sizes), itertools.pairwise(errors), strict=True
    ):
        assert large > 1.2 * small and fine < coarse


# --- No videos ---


def refused(path, message, *, looked_at=True):
    """One line from all that read; nothing else is raised. A look may not reach the fault."""
    for reads in (
        lambda: containers.look(path) if looked_at else list(containers.read_frames(path)),
        lambda: list(containers.read_frames(path)),
        lambda: rewrite(path, path.parent / "written", suffix=".mp4"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            reads()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


NO_VIDEOS = {
    "empty": b"",
    "text": b"Not a video, but a letter.\n" * 50,
    "noise": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(5000),
    "page": b"<!DOCTYPE html><title>404 Not Found</title>",
    "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.0,\nin.mp4\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("name", NO_VIDEOS)
def test_what_is_no_video_is_refused(tmp_path, name, suffix):
    write(tmp_path / "in.mp4", frames(2))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(NO_VIDEOS[name])
    refused(path, "cannot be read: (it is no MP4|Invalid data|no decoder, or no frame size)")


def test_names_that_look_like_protocols_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = write(tmp_path / "in.mp4", frames(2)).read_bytes()
    for name in ("pipe:0.mp4", "a:b.mp4", "%03d.mp4", "-f.mp4"):
        path = Path(name)
        path.write_bytes(whole)
        assert len(list(containers.read_frames(path))) == 2
        assert len(decoded(rewrite(path, path.with_name(f"x:{name}")).absolute())) == 2


def test_lists_of_other_files_are_not_followed(tmp_path):
    """FFmpeg takes them for videos, by their content."""
    write(tmp_path / "other.mkv", frames())
    lying = tmp_path / "list.mp4"
    lying.write_text("ffconcat version 1.0\nfile other.mkv\n")
    with av.open(str(lying), options={"safe": "0"}) as container:  # As it would be.
        assert container.streams.video
    with pytest.raises(InputError, match="cannot be read"):
        containers.look(lying)


def test_sound_alone_and_two_videos_are_refused(tmp_path):
    both = write(tmp_path / "in.mp4", frames(3), sound="aac")
    sound_alone(both, tmp_path / "sound.mp4")
    refused(tmp_path / "sound.mp4", "has 0 video streams, not one")
    with av.open(str(both)) as source, av.open(str(tmp_path / "two.mkv"), "w") as out:
        copies = [out.add_stream_from_template(source.streams.video[0]) for _ in range(2)]
        for packet in source.demux(source.streams.video[0]):
            for copy in copies if packet.size else ():
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.time_base = packet.pts, packet.dts, packet.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                out.mux(again)
    refused(tmp_path / "two.mkv", "has 2 video streams, not one")


def test_frames_that_change_their_size_are_refused(tmp_path):
    with av.open(str(tmp_path / "in.mov"), "w") as out:
        video = out.add_mux_stream("mjpeg", rate=25, width=32, height=32)
        out.start_encoding()
        for number, size in enumerate((32, 32, 48)):
            content = io.BytesIO()
            Image.new("RGB", (size, size), (9, 99, 199)).save(content, "JPEG")
            packet = av.Packet(content.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), video
            packet.is_keyframe = True
            out.mux(packet)
    refused(tmp_path / "in.mov", "changes the size of its frames", looked_at=False)


def test_frames_too_large_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    source = write(tmp_path / "in.mp4", frames(2))
    monkeypatch.setattr(containers, "MAX_PIXELS", SIZE[0] * SIZE[1])
    assert containers.look(source) == (*SIZE, 2, False)
    monkeypatch.setattr(containers, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    refused(source, "has frames of more than 7679 pixels")


def test_containers_that_cannot_hold_it_are_refused(tmp_path):
    source = write(tmp_path / "in.mp4", frames(3), sound="aac")
    with pytest.raises(InputError, match=r"in\.mp4 cannot be written as \.webm: ") as caught:
        rewrite(source, tmp_path / "out.webm")
    assert "\n" not in str(caught.value)


def test_without_pyav_it_is_told_how_to_install_it(tmp_path, monkeypatch):
    source = write(tmp_path / "in.mp4", frames(2))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(
        TransientError, match=r"videos need PyAV: pip install 'deid_jax\[video\]'"
    ):
        containers.look(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_no_room_is_no_fault_of_the_file(tmp_path, suffix):
    source = write(tmp_path / f"in{suffix}", frames())
    with pytest.raises(TransientError, match="cannot be written: No space left on device"):
        rewrite(source, Path("/dev/full"), suffix=suffix)


# --- Damaged ---

BROKEN = [
    (".mp4", "libx264", {}),
    (".mp4", "libx264", {"movflags": "faststart"}),
    (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    (".mov", "libx265", {"movflags": "faststart"}),
    (".mkv", "libx264", {}),
    (".webm", "libvpx-vp9", {}),
]


@pytest.fixture(scope="module")
def long_ones(tmp_path_factory):
    """Content of two seconds in each container."""
    folder = tmp_path_factory.mktemp("long")
    found = []
    for suffix, codec, options in BROKEN:
        path = folder / f"{len(found)}{suffix}"
        sound = "libopus" if suffix == ".webm" else "aac"
        write(path, frames(30), codec, ticks=range(0, 60, 2), sound=sound, **options)
        found.append(path.read_bytes())
    return found


# Where frames are told before they come their last one is missed, too.
@pytest.mark.parametrize(("place", "share"), [(0, 0.98), (2, 0.6), (4, 0.3), (5, 0.1)])
def test_files_that_were_cut_off_are_refused(tmp_path, long_ones, place, share):
    suffix, content = BROKEN[place][0], long_ones[place]
    path = tmp_path / f"in{suffix}"
    path.write_bytes(content)
    assert len(list(containers.read_frames(path))) == 30
    path.write_bytes(content[: int(share * len(content))])
    for reads in (
        lambda: list(containers.read_frames(path)),
        lambda: rewrite(path, tmp_path / f"out{suffix}"),
    ):
        with pytest.raises(InputError, match=rf"video .*in\{suffix} ") as caught:
            reads()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(BROKEN)))
def test_flipped_bytes_end_in_one_line_or_a_whole_file(tmp_path, long_ones, place):
    suffix, content = BROKEN[place][0], long_ones[place]
    path, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    written = refusals = 0
    for seed in range(24):
        generator = np.random.default_rng(seed)
        broken = bytearray(content)
        # Half of them among what describes the rest.
        most = len(broken) if seed % 2 else 1500
        for at in generator.integers(0, most, 4):
            broken[at] ^= int(generator.integers(1, 256))
        path.write_bytes(bytes(broken))
        try:
            rewrite(path, target, quality=30)
        except InputError as error:
            assert "\n" not in str(error)
            refusals += 1
            continue
        written += 1
        assert times(target) == [picture.time for picture in containers.read_frames(path)]
    assert written + refusals == 24 and written > 2


def test_ticks_are_read_as_they_are(tmp_path):
    """Also where frames are stored in another order than they are shown."""
    ticks = ticks_of(20, 1, 4000, seed=3)
    source = write(
        tmp_path / "in.mp4",
        frames(20),
        ticks=ticks,
        time_base=Fraction(1, 60_000),
        options={"bf": "3", "b-adapt": "0", "crf": "1"},
    )
    found = list(containers.read_frames(source))
    assert [picture.time for picture in found] == [Fraction(tick, 60_000) for tick in ticks]
    for picture, pixels in zip(found, frames(20), strict=True):
        assert picture.pixels.dtype == np.uint8
        np.testing.assert_allclose(picture.pixels.astype(int), pixels, atol=12)
    info = containers.look(source)
    assert info == (*SIZE, 20, False)
