import dataclasses
import json
import math
import re

import pytest

from deid_jax.devices.processes import Group
from deid_jax.errors import InputError
from deid_jax.photos.file_records import (
    FaceReport,
    FaceVerdict,
    FileRecord,
    PhotoFigures,
    TrackReport,
    TrackVerdict,
    VideoFigures,
    read_record,
    write_record,
)
from deid_jax.photos.manifest import NAME, Manifest, sha256_of

SOURCE = sha256_of(b"source")


def record(folder, file, data=b"written", source=SOURCE):
    """A line of a file whose output is written, or of none without data."""
    if data is not None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    if data is None:
        return FileRecord(file, "no face found", "no face", source_sha256=source)
    return FileRecord(file, "protected", None, file, source, sha256_of(data))


def lines(folder):
    return (folder / NAME).read_bytes().decode("utf-8").split("\n")[:-1]


# The last ones are no UTF-8, and what some take for the end of a line.
ODD = ["a.png", "Ä/ö.png", " b.png", "c\n.png", "d\udcff.png", "e\u2028\x85\x0c.png", '"\\.png']


def test_lines_are_sorted_whole_and_read_again(tmp_path):
    with Manifest(tmp_path, "s").open() as manifest:
        for name in reversed(ODD):
            added = manifest.add(record(tmp_path, name))
            assert added.settings == "s"
        assert len(lines(tmp_path)) == len(ODD)
    written = (tmp_path / NAME).read_bytes()
    assert [json.loads(line)["file"] for line in lines(tmp_path)] == sorted(ODD)
    assert "Ä/ö.png" in written.decode()
    with Manifest(tmp_path, "s").open() as manifest:
        for name in ODD:
            wanted = dataclasses.replace(record(tmp_path, name), settings="s")
            assert manifest.done(name, SOURCE) == wanted
    assert (tmp_path / NAME).read_bytes() == written


def test_done_means_same_source_settings_and_output(tmp_path):
    with Manifest(tmp_path, "s").open() as manifest:
        manifest.add(record(tmp_path, "a"))
        manifest.add(record(tmp_path, "none", None))
        manifest.add(record(tmp_path, "lost", None, source=""))
        assert manifest.done("lost", "") is None
        assert manifest.done("a", SOURCE) is not None
        assert manifest.done("none", SOURCE) is not None
        assert manifest.done("a", sha256_of(b"other")) is None
        assert manifest.done("b", SOURCE) is None
    with Manifest(tmp_path, "t").open() as manifest:
        assert manifest.done("a", SOURCE) is None
    with Manifest(tmp_path, "s").open() as manifest:
        (tmp_path / "a").write_bytes(b"changed")
        assert manifest.done("a", SOURCE) is None
        (tmp_path / "a").unlink()
        assert manifest.done("a", SOURCE) is None
        (tmp_path / "a").mkdir()
        assert manifest.done("a", SOURCE) is None


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_lines_that_were_cut_or_are_none_do_not_count(tmp_path, cut):
    with Manifest(tmp_path, "s").open() as manifest:
        for name in ("a", "b"):
            manifest.add(record(tmp_path, name))
    path = tmp_path / NAME
    first, second, _ = path.read_bytes().split(b"\n")
    strays = b'{}\n[1]\nnull\n\xff\xfe\n\n{"file": "b"}\n'
    number = json.dumps(json.loads(second) | {"file": 3}).encode() + b"\n"
    path.write_bytes(first + b"\n" + strays + number + second[:-cut])
    with Manifest(tmp_path, "s").open() as manifest:
        assert manifest.done("a", SOURCE) is not None
        assert manifest.done("b", SOURCE) is None
    assert path.read_bytes() == first + b"\n"


def test_a_killed_run_leaves_its_lines_and_no_unfinished_files(tmp_path):
    try:
        with Manifest(tmp_path, "s").open() as manifest:
            manifest.add(record(tmp_path, "deep/b"))
            manifest.add(record(tmp_path, "a"))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [json.loads(line)["file"] for line in lines(tmp_path)] == ["deep/b", "a"]
    (tmp_path / "deep/.c.png.0123.unfinished").write_bytes(b"half")
    (tmp_path / "deep/mine.unfinished").write_bytes(b"mine")
    with Manifest(tmp_path, "s").open() as manifest:
        assert manifest.done("deep/b", SOURCE) is not None
    assert [json.loads(line)["file"] for line in lines(tmp_path)] == ["a", "deep/b"]
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a", "b", NAME, "mine.unfinished"]


def test_second_run_at_once_is_refused(tmp_path):
    with Manifest(tmp_path, "s").open() as manifest:
        manifest.add(record(tmp_path, "a"))
        before = (tmp_path / NAME).read_bytes()
        with (
            pytest.raises(InputError, match="is being written by another run"),
            Manifest(tmp_path, "s").open(),
        ):
            pass
        assert (tmp_path / NAME).read_bytes() == before
    with Manifest(tmp_path, "s").open():
        pass


def test_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    message = re.escape(f"output {tmp_path} holds holiday.jpg, and no {NAME}")
    with pytest.raises(InputError, match=message), Manifest(tmp_path, "s").open():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    (tmp_path / "holiday.jpg").rename(tmp_path / ".hidden")
    with Manifest(tmp_path, "s").open():
        pass


def test_what_was_written_goes_where_nothing_is_written_any_more(tmp_path):
    with Manifest(tmp_path, "s").open() as manifest:
        for name in ("ours", "changed"):
            manifest.add(record(tmp_path, name))
    (tmp_path / "changed").write_bytes(b"by the user")
    with Manifest(tmp_path, "s").open() as manifest:
        for name in ("ours", "changed"):
            manifest.add(record(tmp_path, name, None))
    assert not (tmp_path / "ours").exists()
    assert (tmp_path / "changed").read_bytes() == b"by the user"


def test_photo_whose_original_is_gone_stays_with_its_line(tmp_path):
    with Manifest(tmp_path, "s").open() as manifest:
        manifest.add(record(tmp_path, "kept"))
        manifest.add(record(tmp_path, "lost"))
        manifest.add(record(tmp_path, "faceless", None))
        manifest.add(record(tmp_path, "there", None))
        (tmp_path / "lost").unlink()
        manifest.keep({"there"})
    assert [json.loads(line)["file"] for line in lines(tmp_path)] == ["kept", "there"]
    assert (tmp_path / "kept").read_bytes() == b"written"


def test_line_leads_nowhere_else(tmp_path):
    """A manifest that somebody wrote cannot have files outside of the folder removed."""
    folder = tmp_path / "out"
    outside = tmp_path / "mine"
    outside.write_bytes(b"mine")
    folder.mkdir()
    lie = FileRecord("a", "protected", None, "../mine", "", sha256_of(b"mine"), settings="s")
    (folder / NAME).write_text(write_record(lie))
    with Manifest(folder, "s").open() as manifest:
        assert manifest.done("a", SOURCE) is None
        manifest.add(record(folder, "a", None))
    assert outside.read_bytes() == b"mine"


def test_lines_of_another_process_that_was_killed_are_taken_in(tmp_path):
    (tmp_path / NAME).write_text("")
    done = FileRecord("a.png", "no face found", "none", source_sha256="1", settings="s")
    half = write_record(dataclasses.replace(done, file="b.png"))[:-9]
    (tmp_path / ".manifest-3.jsonl").write_text(write_record(done) + half)
    with Manifest(tmp_path, "s").open() as manifest:
        assert manifest.done("a.png", "1") == done
        assert manifest.done("b.png", "1") is None
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_text() == write_record(done)


def test_the_others_add_to_files_of_their_own(tmp_path):
    Manifest(tmp_path, "s", Group(2, 3)).add(FileRecord("a.png", "unreadable", "bad"))
    assert [path.name for path in tmp_path.iterdir()] == [".manifest-2.jsonl"]


BOX = (1.234, 2.0, 30.001, 4.0)
VERDICT = ("one", True, 0.123456, 0.3, 0.176544, True)
FACE = FaceReport(
    BOX, 0.87654, "unjudged", 40.0, math.inf, 0.987654321, (FaceVerdict(*VERDICT),)
)
TRACK = TrackReport(
    BOX, 0.87654, 0, 8, 9, "unjudged", 40.0, 39.98765, 41.1, (TrackVerdict(*VERDICT, 0.999999),)
)


@pytest.mark.parametrize(
    ("face", "figures", "faces_json", "figures_json"),
    [
        (
            FACE,
            PhotoFigures(1, 20, 30, None),
            '{"box": [1.23, 2.0, 30.0, 4.0], "score": 0.8765, "status": "unjudged", '
            '"strength_db": 40.0, "psnr": null, "ssim": 0.98765, "verdicts": '
            '[{"recogniser": "one", "fitted": true, '
            '"similarity": 0.12346, "threshold": 0.3, "margin": 0.17654, "fooled": true}], '
            '"in_gallery": null}',
            '"faces_left": 1, "height": 20, "width": 30, "quality": null',
        ),
        (
            TRACK,
            VideoFigures(0, 20, 30, 12, 9),
            '{"box": [1.23, 2.0, 30.0, 4.0], "score": 0.8765, "first_frame": 0, '
            '"last_frame": 8, "num_frames": 9, "status": "unjudged", "strength_db": 40.0, '
            '"psnr": 39.988, '
            '"mean_psnr": 41.1, "verdicts": [{"recogniser": "one", "fitted": true, '
            '"similarity": 0.12346, "threshold": 0.3, "margin": 0.17654, "fooled": true, '
            '"fooled_frames": 1.0}], "in_gallery": null}',
            '"faces_left": 0, "height": 20, "width": 30, "num_frames": 12, '
            '"num_face_frames": 9',
        ),
    ],
)
def test_lines_are_byte_for_byte_these(face, figures, faces_json, figures_json):
    whole = FileRecord("a", "unjudged", None, "a", "1", "2", (face,), figures, settings="s")
    line = write_record(whole)
    assert line == (
        '{"file": "a", "status": "unjudged", "reason": null, "output": "a", '
        f'"source_sha256": "1", "output_sha256": "2", "faces": [{faces_json}], '
        f'{figures_json}, "settings": "s"}}\n'
    )
    again = read_record(line)
    assert write_record(again) == line
    assert type(again.faces[0]) is type(face) and again.figures == figures
