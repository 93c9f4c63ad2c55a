"""Folders: names, what is done again and what is not, what is in the way."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from deid_jax.errors import TransientError
from deid_jax.photos.manifest import Manifest
from deid_jax.videos import FileProtector, file_protector
from tests.experiments.conftest import listing
from tests.experiments.protect_helpers import (
    OWN,
    arguments,
    hashes,
    picture,
    places,
    records_of,
    run,
    write_photos,
)

pytestmark = pytest.mark.usefixtures("light_attack")
NAME = "manifest.jsonl"


@pytest.fixture
def source(tmp_path):
    """The input: four photos."""
    write_photos(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def output(tmp_path):
    """It is not there yet."""
    return tmp_path / "out"


def test_tree_is_mirrored(source, output):
    (source / "deep/.hidden").mkdir()
    Image.fromarray(picture(7)).save(source / "deep/.hidden/x.png")
    (source / ".DS_Store").write_bytes(b"hidden")
    (source / "empty").mkdir()
    assert run(arguments(source, output)) == 0
    names = ["a.png", "b.jpg", "deep/c.webp", "deep/er/d.png"]
    assert sorted(hashes(output)) == sorted(map(os.fsencode, [*names, NAME]))
    assert list(records_of(output)) == names
    for name, record in records_of(output).items():
        assert record["output"] == name
        assert record["source_sha256"] == hashes(source)[name.encode()]
        assert record["output_sha256"] == hashes(output)[name.encode()]


def test_finished_files_are_not_done_again(source, output, worked_on):
    assert run(arguments(source, output)) == 0
    before, manifest, number = places(output), (output / NAME).read_bytes(), len(worked_on)
    assert number == 4
    assert run(arguments(source, output)) == 0
    assert len(worked_on) == number
    assert places(output) == before
    assert (output / NAME).read_bytes() == manifest


@pytest.mark.parametrize(
    "more",
    ["--seed=1", "--keep_metadata", f"--judge={OWN}:two", "--faces=21:15:60:60"],
)
def test_changed_settings_do_all_again(source, output, worked_on, more):
    run(arguments(source, output))
    del worked_on[:]
    run(arguments(source, output, more))
    assert worked_on == ["a.png", "b.jpg", "deep/c.webp", "deep/er/d.png"]


@pytest.mark.slow
def test_recogniser_that_became_another_does_all_again(source, output, worked_on, monkeypatch):
    run(arguments(source, output))
    del worked_on[:]
    module = sys.modules[OWN]
    monkeypatch.setattr(module, "one", lambda images: module._embed(images, 5))
    run(arguments(source, output))
    assert len(worked_on) == 4


def test_changed_lost_and_new_files_are_done(source, output, worked_on, tmp_path):
    assert run(arguments(source, output)) == 0
    before = places(output)
    del worked_on[:]
    Image.fromarray(picture(11)).save(source / "a.png")
    Image.fromarray(picture(12)).save(source / "new.png")
    (output / "b.jpg").write_bytes(b"spoilt")
    (output / "deep/c.webp").unlink()
    assert run(arguments(source, output)) == 0
    assert worked_on == ["a.png", "b.jpg", "deep/c.webp", "new.png"]
    assert places(output)["deep/er/d.png"] == before["deep/er/d.png"]
    assert run(arguments(source, tmp_path / "fresh")) == 0
    assert listing(output) == listing(tmp_path / "fresh")


def test_photo_that_became_none_leaves_no_output(source, output):
    assert run(arguments(source, output)) == 0
    (source / "a.png").write_bytes(b"no photo any more")
    assert run(arguments(source, output)) == 1
    assert not (output / "a.png").exists()
    assert records_of(output)["a.png"]["status"] == "unreadable"


def test_unreadable_file_is_looked_at_anew(source, output, worked_on):
    """What could not be read has no content by which it would be known again."""
    (source / "z.png").symlink_to("nowhere.png")
    assert run(arguments(source, output)) == 1
    assert "No such file" in records_of(output)["z.png"]["reason"]
    (source / "z.png").unlink()
    (source / "z.png").symlink_to("deep")
    del worked_on[:]
    assert run(arguments(source, output)) == 1
    assert worked_on == ["z.png"]
    assert "is a link to a folder" in records_of(output)["z.png"]["reason"]


def test_what_failed_for_want_of_memory_is_done_anew(source, output, worked_on, monkeypatch):
    parse = file_protector.files.parse_photo

    def short(data, name, **limits):
        if name == "a.png":
            raise TransientError("a.png does not fit into memory")
        return parse(data, name, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(file_protector.files, "parse_photo", short)
        assert run(arguments(source, output)) == 1
    assert records_of(output)["a.png"]["reason"] == "a.png does not fit into memory"
    del worked_on[:]
    assert run(arguments(source, output)) == 0
    assert worked_on == ["a.png"]


@pytest.mark.parametrize("name", ["old.avi", "DISC.VOB"])
def test_videos_of_other_kinds_are_named_as_such(source, output, name):
    (source / name).write_bytes(b"RIFF")
    assert run(arguments(source, output)) == 1
    assert "is a video of a kind that is not written" in records_of(output)[name]["reason"]


def test_interrupted_run_goes_on(source, output, worked_on, tmp_path, monkeypatch, capsys):
    do = FileProtector.protect

    def interrupted(work, name, *rest):
        if name.startswith("deep/c"):
            raise KeyboardInterrupt
        return do(work, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FileProtector, "protect", interrupted)
        assert run(arguments(source, output)) == 130
    assert capsys.readouterr().err == "interrupted\n"
    before = places(output)
    assert sorted(before) == ["a.png", "b.jpg"]
    del worked_on[:]
    assert run(arguments(source, output)) == 0
    assert worked_on == ["deep/c.webp", "deep/er/d.png"]
    assert before.items() <= places(output).items()
    assert run(arguments(source, tmp_path / "whole")) == 0
    assert listing(output) == listing(tmp_path / "whole")


@pytest.mark.parametrize("rest", ["", '{"file": "b.jpg", "status"'])
def test_run_that_ended_between_a_file_and_its_line_goes_on(
    source, output, worked_on, tmp_path, monkeypatch, rest
):
    assert run(arguments(source, tmp_path / "whole")) == 0
    add = Manifest.add

    def ended(manifest, record):
        if record.file == "b.jpg":
            with (output / NAME).open("a") as file:
                file.write(rest)
            raise KeyboardInterrupt
        return add(manifest, record)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add", ended)
        assert run(arguments(source, output)) == 130
    assert (output / "b.jpg").exists()
    assert (output / NAME).read_text().endswith(rest or "\n")
    del worked_on[:]
    assert run(arguments(source, output)) == 0
    assert worked_on == ["b.jpg", "deep/c.webp", "deep/er/d.png"]
    assert listing(output) == listing(tmp_path / "whole")


def test_two_runs_at_once_are_refused(source, output, capsys):
    with Manifest(output, "other").open():
        assert run(arguments(source, output)) == 2
        assert (output / NAME).read_bytes() == b""
    message = f"error: output {output} is being written by another run: name another folder\n"
    assert capsys.readouterr() == ("", message)
    assert run(arguments(source, output)) == 0


# Beside spaces, ends of lines and quotes: no UTF-8, looks like a flag, controls a terminal.
ODD = (
    b"a b.png",
    b"line\nbreak.png",
    b"\xff\xfe\x80.png",
    b"--seed=7.png",
    b"-.png",
    "Ännchen ß 名.png".encode(),
    "A\u0308nnchen.png".encode(),
    b"bell\x07\x1b[31m.png",
    "\u202egnp.png".encode(),
    b"[red]%s{0}\\n.png",
    b"no suffix",
    b"capitals.PNG",
    b"sp ace\xff/\n/c.png",
)


def test_odd_names(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    content = tmp_path / "a.png"
    Image.fromarray(picture(0)).save(content)
    for name in ODD:
        path = source / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read_bytes())
    given = arguments(source, output, "--threshold=0.97")
    assert run(given) == 0
    assert sorted(hashes(output)) == sorted([*ODD, NAME.encode()])
    lines = (output / NAME).read_text("utf-8").split("\n")[:-1]
    assert [os.fsencode(json.loads(line)["file"]) for line in lines] == [
        os.fsencode(name) for name in sorted(map(os.fsdecode, ODD))
    ]
    out, _ = capsys.readouterr()
    assert "\x07" not in out and "\x1b" not in out and "\u202e" not in out
    before = places(output)
    assert run(given) == 0
    assert places(output) == before


def test_photo_that_takes_the_manifests_name_is_told(source, output):
    Image.fromarray(picture(3)).save(source / "x.png")
    (source / "x.png").rename(source / NAME)
    assert run(arguments(source, output)) == 1
    record = records_of(output)[NAME]
    assert record["status"] == "unreadable"
    assert record["reason"] == f"{NAME} is what the record of all files is called"


def test_links_within_the_output_lead_to_no_original(source, output, tmp_path):
    """Somebody's link in the place of a folder: what it leads to is left alone."""
    elsewhere = tmp_path / "elsewhere"
    write_photos(elsewhere)
    for target in (source, elsewhere):
        assert run(arguments(source, output)) == 0
        for path in sorted((output / "deep").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (output / "deep").rmdir()
        (output / "deep").symlink_to(target / "deep")
        before = hashes(elsewhere)
        assert run(arguments(source, output)) == 1
        assert hashes(elsewhere) == before
        for name in ("deep/c.webp", "deep/er/d.png"):
            record = records_of(output)[name]
            assert record["status"] == "not protected" and record["output"] is None
            assert record["reason"] == (
                "nothing was written: a link in its place leads out of the output folder"
            )
        assert records_of(output)["a.png"]["status"] == "unjudged"
        (output / "deep").unlink()


def test_files_and_folders_that_changed_places(source, output):
    """What is in the way in the output stays, and is told; once it is gone all is done."""
    assert run(arguments(source, output)) == 0
    (source / "a.png").unlink()
    (source / "a.png").mkdir()
    Image.fromarray(picture(3)).save(source / "a.png/x.png")
    (source / "deep/er").rename(source / "er")
    Image.fromarray(picture(4)).save(source / "y.png")
    (source / "y.png").rename(source / "deep/er")
    before = places(output)
    assert run(arguments(source, output)) == 1
    found = records_of(output)
    wrong = {name: one for name, one in found.items() if one["status"] != "unjudged"}
    reasons = {name: record["reason"] for name, record in wrong.items()}
    assert reasons == {
        "a.png/x.png": "nothing was written: in its folder's place is a file",
        "deep/er": "nothing was written: in its place is a folder",
    }
    assert before.items() <= places(output).items()
    (output / "a.png").unlink()
    (output / "deep/er/d.png").unlink()
    (output / "deep/er").rmdir()
    assert run(arguments(source, output)) == 0
    assert found.keys() - {"a.png", "deep/er/d.png"} == records_of(output).keys()


@pytest.mark.slow
def test_as_a_process(source, output):
    """As users start it: nothing but the table and its one line of what is not protected."""
    (source / "z.jpg").write_bytes(b"no photo")
    command = [sys.executable, "-m", "experiments.protect", *arguments(source, output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"not protected: 1 of 5 files; see {output}/{NAME}\n"
    assert "4 of 4 faces, 4 of 5 files." in " ".join(ended.stdout.split())
