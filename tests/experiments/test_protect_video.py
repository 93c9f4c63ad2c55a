"""Videos in folders beside photos: what is written, told, done again and not."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from deid_jax.errors import InputError, TransientError
from deid_jax.photos import Face
from deid_jax.photos.verifiers import EmbeddingError
from deid_jax.runs import UNFINISHED
from deid_jax.videos import VideoJob
from experiments import protect
from tests.experiments.conftest import listing
from tests.experiments.protect_helpers import (
    arguments,
    detected,
    hashes,
    may_change,
    picture,
    places,
    reach,
    records_of,
    run,
)
from tests.videos.video_helpers import assert_same_times_and_sound, rgb, sound_alone, write

pytestmark = pytest.mark.usefixtures("light_attack")
NAME = "manifest.jsonl"
SIZE, NUMBER = (112, 96), 12


def frames(seed, number=NUMBER):
    """A face that stays, and beside it something that moves."""
    for place in range(number):
        pixels = picture(seed, SIZE, contrast=8)
        pixels[84:92, 4 * place : 4 * place + 8] = 200
        yield pixels


def film(path, seed, codec="libx264", sound="aac", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, frames(seed), codec, sound=sound, **options)


def bad_ones(folder, whole):
    """{name: what its record says} of files that only look like videos."""
    content = whole.read_bytes()
    sound_alone(whole, folder / "sound.m4v", "mp4")
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    (folder / "empty.mov").write_bytes(b"")
    (folder / "letter.MP4").write_bytes(b"Not a video, but a letter.\n" * 9)
    (folder / "noise.webm").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "old.avi").write_bytes(content)
    return {
        "sound.m4v": "has 0 video streams, not one",
        "cut.mp4": "cannot be read: Invalid data found when processing input",
        "empty.mov": "cannot be read: Invalid data found when processing input",
        "letter.MP4": "cannot be read: Invalid data found when processing input",
        "noise.webm": "cannot be read: Invalid data found when processing input",
        "old.avi": "old.avi is a video of a kind that is not written: convert it to one of "
        ".m4v, .mkv, .mov, .mp4, .webm",
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, light_attack):
    """(input, output, {bad name: reason}, what was printed) of one run; not to be changed."""
    folder = tmp_path_factory.mktemp("mixed")
    source, output = folder / "in", folder / "out"
    source.mkdir()
    Image.fromarray(picture(0)).save(source / "a.png")
    film(source / "deep/b.mp4", 1)
    film(source / "deep/er/c.MOV", 2, "libx265")
    film(source / "d.webm", 3, "libvpx-vp9", "libopus")
    film(source / "e.mkv", 4, sound=None)
    bad = bad_ones(source, source / "deep/b.mp4")
    assert run(arguments(source, output)) == 1
    return source, output, bad


VIDEOS = ["d.webm", "deep/b.mp4", "deep/er/c.MOV", "e.mkv"]


@pytest.mark.slow
def test_videos_lie_beside_photos(mixed):
    source, output, bad = mixed
    found = records_of(output)
    assert found.keys() == {"a.png", *VIDEOS, *bad}
    assert sorted(hashes(output)) == sorted(name.encode() for name in ("a.png", *VIDEOS, NAME))
    for name in ("a.png", *VIDEOS):
        record = found[name]
        assert record["status"] == "unjudged"
        assert record["output"] == name
        assert record["output_sha256"] == hashes(output)[name.encode()]
        assert record["source_sha256"] == hashes(source)[name.encode()]
    assert not list(output.rglob(f".*{UNFINISHED}"))


@pytest.mark.slow
def test_bad_videos_are_listed_and_left_out(mixed):
    _, output, bad = mixed
    for name, reason in bad.items():
        record = records_of(output)[name]
        assert record["status"] == "unreadable"
        assert record["output"] is record["output_sha256"] is None and record["faces"] == []
        assert record["reason"].endswith(reason) and "\n" not in record["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_what_a_video_keeps(mixed, name):
    source, output, _ = mixed
    assert_same_times_and_sound(output / name, source / name)
    before, after = rgb(source / name).astype(int), rgb(output / name).astype(int)
    assert before.shape == after.shape == (NUMBER, *SIZE[::-1], 3)
    allowed = may_change(SIZE[::-1], reach(), block=2, margin=2)
    errors = np.square(after - before).mean((0, 3))
    assert errors[allowed].mean() > 2 * errors[~allowed].mean()
    assert errors[~allowed].mean() < 4


@pytest.fixture
def folders(tmp_path):
    """(input of a photo, two videos and a broken one; output that is not there yet)."""
    source = tmp_path / "in"
    film(source / "b.mp4", 1)
    film(source / "deep/c.mkv", 2)
    (source / "deep/broken.mp4").write_bytes(b"letter")
    Image.fromarray(picture(0)).save(source / "a.png")
    return source, tmp_path / "out"


@pytest.mark.slow
def test_interrupted_and_killed_runs_go_on(folders, worked_on, tmp_path, monkeypatch, capsys):
    """In the middle of a video: nothing of it is left, what was finished stands."""
    source, output = folders
    assert run(arguments(source, tmp_path / "whole")) == 1
    del worked_on[:]
    job_run = VideoJob.run

    def interrupted(job):
        def count(stage, number, whole):
            if job.name == "deep/c.mkv" and (stage, number) == ("judge", 5):
                raise KeyboardInterrupt
            job.progress(stage, number, whole)

        return job_run(dataclasses.replace(job, progress=count))

    with monkeypatch.context() as patch:
        patch.setattr(VideoJob, "run", interrupted)
        capsys.readouterr()
        assert run(arguments(source, output)) == 130
    assert capsys.readouterr().err == "interrupted\n"
    before = places(output)
    assert sorted(before) == ["a.png", "b.mp4"]
    # As a run that was killed would leave it.
    (output / "deep").mkdir(exist_ok=True)
    (output / f"deep/.c.mkv.0123{UNFINISHED}").write_bytes(b"half")
    del worked_on[:]
    assert run(arguments(source, output)) == 1
    assert worked_on == ["deep/c.mkv"]
    assert {name: places(output)[name] for name in before} == before
    assert listing(output) == listing(tmp_path / "whole")


@pytest.fixture
def single(tmp_path):
    """(input of one video, output that is not there yet)."""
    film(tmp_path / "in/b.mp4", 1, setup=lambda out, one: out.metadata.update(title="Secret"))
    return tmp_path / "in", tmp_path / "out"


@pytest.mark.slow
@pytest.mark.parametrize("which", ["all", "largest"])
def test_faces_that_are_found_and_those_that_are_left(single, monkeypatch, which):
    source, output = single
    larger, smaller = (50.0, 16.0, 40.0, 40.0), (8.0, 40.0, 24.0, 24.0)

    def detector(pixels):
        return [Face(larger, None, 9.0), Face(smaller, None, 8.0)]

    monkeypatch.setattr(protect, "load_detector", lambda name: detector)
    assert run(detected(source, output, f"--faces={which}")) in (0, 1)
    (record,) = records_of(output).values()
    boxes = [tuple(face["box"]) for face in record["faces"]]
    assert boxes == ([smaller, larger] if which == "all" else [larger])
    assert record["faces_left"] == (0 if which == "all" else 1)


def test_video_without_a_face_is_listed_and_not_written(single, monkeypatch, capsys):
    source, output = single
    monkeypatch.setattr(protect, "load_detector", lambda name: lambda pixels: [])
    assert run(detected(source, output)) == 1
    assert list(hashes(output)) == [NAME.encode()]
    (record,) = records_of(output).values()
    assert record["status"] == "no face found"
    assert record["reason"] == "no face was found: nothing was written"
    assert "no face was found: nothing was written" in capsys.readouterr().out


@pytest.mark.slow
def test_boxes_that_a_file_tells_are_those_of_every_frame(folders, tmp_path):
    source, output = folders
    box = (40, 20, 40, 40)
    (tmp_path / "boxes.csv").write_text(
        f"file,left,top,width,height\nb.mp4,{','.join(map(str, box))}\nc.mkv,900,900,9,9\n"
    )
    assert run(detected(source, output, f"--boxes={tmp_path / 'boxes.csv'}")) == 1
    found = records_of(output)
    assert found["b.mp4"]["faces"][0]["box"] == list(box)
    assert found["b.mp4"]["num_face_frames"] == NUMBER
    assert found["deep/c.mkv"]["status"] == "no face found"
    assert "a face's box lies beside the photo" in found["deep/c.mkv"]["reason"]
    assert not (output / "deep/c.mkv").exists()


def test_gallery_of_videos_is_refused(single, tmp_path, capsys):
    source, output = single
    (tmp_path / "gallery").mkdir()
    film(tmp_path / "gallery/x.mp4", 2)
    assert run(arguments(source, output, f"--gallery={tmp_path / 'gallery'}")) == 2
    assert capsys.readouterr().err.endswith("x.mp4 is a video\n")
    assert not output.exists()


@pytest.mark.slow
def test_progress_tells_what_is_done_to_a_video(single, bar):
    source, output = single
    assert run(arguments(source, output)) == 0
    said = [text.partition("faces/s ")[2] for name, _, _, text in bar if name == "protect"]
    wanted = [
        f"{doing} {n + 1}/{NUMBER}"
        for doing in ("find", "protect", "judge")
        for n in range(NUMBER)
    ]
    assert said == [*wanted, ""]
    line = json.loads((output / NAME).read_text())
    assert line["num_frames"] == NUMBER


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EmbeddingError("recogniser a: embeddings must be finite and not 0"), "not protected"),
        (TransientError("videos need PyAV"), "unreadable"),
        (InputError("video b.mp4 is cut off"), "unreadable"),
    ],
)
def test_what_stops_a_video_is_told_as_what_it_is(
    folders, worked_on, monkeypatch, error, status
):
    """What may be well next time is tried again, what a file is to blame for is not."""
    source, output = folders

    def refused(*given, **options):
        raise error

    monkeypatch.setattr(VideoJob, "run", refused)
    assert run(arguments(source, output)) == 1
    record = records_of(output)["b.mp4"]
    assert (record["status"], record["reason"], record["output"]) == (status, str(error), None)
    del worked_on[:]
    assert run(arguments(source, output)) == 1
    assert ("b.mp4" in worked_on) is isinstance(error, TransientError)
