"""Small videos made and read by PyAV alone, and faces in them whose places are known."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation

from deid_jax.photos import Face, Strength
from deid_jax.photos.alignment import crop_matrix
from deid_jax.videos import VideoJob
from deid_jax.videos.video import EVERY
from tests.experiments import protect_helpers
from tests.experiments.protect_helpers import picture, protector, psnr_of

WIDTH, HEIGHT = 144, 112
RATE = 25
# What a codec's encoder is told: as quick as it can be, and to lose little.
_QUICK = {
    "libx264": {"preset": "ultrafast", "crf": "0"},
    "libx265": {"preset": "ultrafast", "crf": "4", "x265-params": "log-level=none"},
    "libvpx-vp9": {"cpu-used": "8", "b": "0", "crf": "4"},
    "libvpx": {"cpu-used": "8", "b": "2000000"},
    "libsvtav1": {"preset": "12", "crf": "10"},
}
SAMPLES = 48_000


def encoder(*names):
    """Whether PyAV was built with encoders."""
    return all(name in av.codecs_available for name in names)


def write(
    path,
    frames,
    codec="libx264",
    pix_fmt="yuv420p",
    *,
    ticks=None,
    time_base=Fraction(1, RATE),
    rate=RATE,
    sound=None,
    sound_starts=0,
    setup=None,
    options=None,
    colours=None,
    **container_options,
):
    """Writes a video of uint8[H, W, 3] frames.

    Ticks say when each is shown, in units of `time_base`; None: one after the other. The rate
    is what the file is to tell, and how long the last frame lasts. Sound is an audio encoder,
    and starts in samples. `setup` is given the container and the video's stream before anything
    is written, `options` stand in the place of the encoder's quick ones, and `colours` are
    attributes of frames and encoder.
    """
    frames = list(frames)
    ticks = list(range(len(frames))) if ticks is None else ticks
    if path.suffix in (".mp4", ".m4v", ".mov"):
        ticked = {"video_track_timescale": str(time_base.denominator)}
        # So that tracks may begin at any moment.
        container_options = ticked | {"movie_timescale": "720000"} | container_options
    with av.open(str(path), "w", container_options=container_options) as out:
        video = out.add_stream(codec, rate=rate, options=options or _QUICK.get(codec, {}))
        video.codec_context.flags |= av.codec.context.Flags.frame_duration
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.time_base = video.codec_context.time_base = time_base
        for name, value in (colours or {}).items():
            setattr(video.codec_context, name, value)
        audio = None
        if sound is not None:
            audio = out.add_stream(sound, rate=SAMPLES)
            audio.codec_context.layout = "mono"
        if setup is not None:
            setup(out, video)
        ends = [*ticks[1:], ticks[-1] + round(1 / (rate * time_base))]
        for tick, end, pixels in zip(ticks, ends, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if pix_fmt != "rgb24":
                space = (colours or {}).get("colorspace")
                frame = frame.reformat(format=pix_fmt, dst_colorspace=space)
            for name, value in (colours or {}).items():
                setattr(frame, name, value)
            frame.pts, frame.duration, frame.time_base = int(tick), int(end - tick), time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            seconds = float((ticks[-1] + 1) * time_base)
            _write_sound(out, audio, round(seconds * SAMPLES / 1024) or 1, sound_starts)
    return path


def sound_alone(source, target, kind=None):
    """Writes only the sound of a video."""
    with av.open(str(source)) as whole, av.open(str(target), "w", kind) as out:
        copy = out.add_stream_from_template(whole.streams.audio[0])
        for packet in whole.demux(whole.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                out.mux(packet)


def _write_sound(out, audio, number, start):
    generator = np.random.default_rng(number)
    kind = audio.codec_context.format.name
    for place in range(number):
        levels = generator.normal(0, 0.1, (1, 1024)).clip(-1, 1)
        samples = levels.astype(np.float32)
        if not kind.startswith("flt"):
            samples = (32_000 * levels).astype({"s16": np.int16, "s32": np.int32}[kind])
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.sample_rate, frame.time_base = SAMPLES, Fraction(1, SAMPLES)
        frame.pts = start + 1024 * place
        out.mux(audio.encode(frame))
    out.mux(audio.encode(None))


def decoded(path):
    """PyAV's frames of the one video that is no cover."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def times(path):
    """When frames are shown, in seconds."""
    return [frame.pts * frame.time_base for frame in decoded(path)]


def rgb(path):
    """uint8[N, H, W, 3], not turned, without the shortcuts that FFmpeg takes by default."""
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    options = {"format": "rgb24", "interpolation": int(exact), "dst_color_range": 2}
    return np.stack([frame.to_ndarray(**options) for frame in decoded(path)])


def planes(path):
    """Luma uint8[N, H, W] and chroma uint8[N, 2, H / 2, W / 2] of 4:2:0."""
    whole = np.stack([frame.to_ndarray() for frame in decoded(path)])
    height = 2 * whole.shape[1] // 3
    return whole[:, :height], whole[:, height:].reshape(len(whole), 2, height // 2, -1)


def packets(path, kind):
    """[stream's number among its kind, (time, decoding time, duration, bytes)] in order."""
    with av.open(str(path)) as container:
        streams = [one for one in container.streams if one.type == kind]
        found = []
        for packet in container.demux(streams) if streams else ():
            if packet.size:
                base = packet.time_base
                moments = [
                    n if n is None else n * base
                    for n in (packet.pts, packet.dts, packet.duration)
                ]
                found.append((streams.index(packet.stream), *moments, bytes(packet)))
        return sorted(found, key=lambda one: (one[0], one[1]))


def assert_same_times_and_sound(path, source):
    assert times(path) == times(source)
    assert packets(path, "audio") == packets(source, "audio")


# --- Faces ---


def face_frame(number, faces=()):
    """uint8[HEIGHT, WIDTH, 3], soft blotches, its number < 256 in eight bars above.

    Faces are (seed, (left, top, width, height)) in whole pixels, each an image of its own that
    fills all of a recogniser's crop.
    """
    pixels = picture(99, (WIDTH, HEIGHT))
    for seed, (left, top, width, height) in faces:
        low_x, low_y = left - width // 5, top - height // 4
        own = picture(seed, (width + 2 * (width // 5), height + 2 * (height // 4)))
        first_x, first_y = max(low_x, 0), max(low_y, 0)
        target = pixels[first_y : low_y + own.shape[0], first_x : low_x + own.shape[1]]
        shown = own[first_y - low_y :, first_x - low_x :]
        target[...] = shown[: target.shape[0], : target.shape[1]]
    for bit in range(8):
        pixels[:8, 8 * bit : 8 * bit + 8] = 216 if number >> bit & 1 else 40
    return pixels


def number_of(pixels):
    """The number that a frame's bars tell."""
    bars = pixels[2:6, :64].reshape(4, 8, 8, 3)[:, :, 2:6].mean((0, 2, 3))
    return sum(int(bar > 128) << bit for bit, bar in enumerate(bars))


class Told:
    """A detector that is told each frame's boxes, and tells what it was shown."""

    def __init__(self, places):
        self._places = places
        self.numbers = []

    def __call__(self, pixels):
        assert pixels.dtype == np.uint8
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        self.numbers.append(number_of(pixels))
        return [Face(tuple(map(float, box))) for box in self._places(self.numbers[-1])]


# --- Protecting ---

# More than the steps of a frame that goes on.
STEPS = 12
NEXT = 4
QUICK = Strength((42.0, 40.0, 38.0), STEPS)
NUMBER = 16
SIZE = 48


def way(number):
    """Where the first face is: it moves steadily."""
    return 30 + 2 * number, 34 + number, SIZE, SIZE


def still(number):
    return 72, 44, SIZE, SIZE


def film(path, places, **options):
    """A video of faces; (frame's number) -> [(seed, box)]."""
    frames = [face_frame(number, places(number)) for number in range(NUMBER)]
    return write(path, frames, **options)


def span(track):
    return track.first_frame, track.last_frame, track.num_frames


def boxes(number):
    return [way(number)]


def run(source, target, *verifiers, detector=None, strength=QUICK, **options):
    """Protects a video, and reports on it."""
    rest = {"progress": options.pop("progress")} if "progress" in options else {}
    quick = protector(*verifiers, strength=strength, **options)
    return VideoJob(quick, source, target, "a.mp4", detector or Told(boxes), **rest).run()


def matrix_of(box):
    return crop_matrix(Face(tuple(map(float, box))))


def embedding(pixels, box, seed):
    """A tiny recogniser's unit vector, in NumPy's float64."""
    return protect_helpers.embedding(pixels, matrix_of(box), seed)


def vectors_of(pixels, number, box, seed):
    """By all crops that a written frame is judged by; the detector finds the same box."""
    if number % EVERY == 0:
        return protect_helpers.seen(pixels, Face(tuple(map(float, box))), seed)
    return embedding(pixels, box, seed)[None]


def psnrs_of(before, after, places):
    """Of the pixels that each frame's change may touch, in dB."""
    return [
        psnr_of(old, new, matrix_of(box))
        for old, new, box in zip(before, after, places, strict=True)
    ]
