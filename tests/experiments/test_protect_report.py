"""What the command shows on the terminal."""

import dataclasses
import math
import re

import pytest

from deid_jax.photos import FaceReport, FaceVerdict, FileRecord
from deid_jax.photos.file_records import (
    NO_FACE,
    PhotoFigures,
    TrackReport,
    TrackVerdict,
    VideoFigures,
)
from experiments._protect.protection_table import print_protection
from tests.experiments.protect_helpers import (
    SECOND,
    arguments,
    protector,
    run,
    verifier,
    write_photos,
)

pytestmark = pytest.mark.usefixtures("light_attack")


def test_bar_tells_faces_a_second(tmp_path, bar):
    write_photos(tmp_path / "in")
    assert run(arguments(tmp_path / "in", tmp_path / "out")) == 0
    assert [one[:3] for one in bar] == [("protect", n + 1, 4) for n in range(4)]
    assert all(re.fullmatch(r"[0-9]+\.[0-9]{2} faces/s", one[3]) for one in bar)
    assert float(bar[-1][3].split()[0]) > 0


FACE = FaceReport(
    (1.0, 2.0, 3.0, 4.0),
    0.9,
    "protected",
    42.0,
    41.9,
    0.98,
    (FaceVerdict("a", True, 0.1, 0.3, 0.2, True),),
)


def photo(name, face=FACE, left=0):
    figures = PhotoFigures(left, 9, 9, None)
    return FileRecord(name, "protected", None, name, faces=(face,), figures=figures)


def test_of_many_photos_only_failures_are_shown(capsys, tmp_path):
    records = [photo(f"good{n}.png") for n in range(39)]
    records.append(photo("same.png", dataclasses.replace(FACE, psnr=math.inf)))
    records.append(FileRecord("bad\n.png", "unreadable", "it is\x1b[31m empty"))
    print_protection(records, protector(verifier(), verifier(SECOND, 0.25, False)), tmp_path)
    out = capsys.readouterr().out
    assert "bad\\n.png" in out and "it is\\x1b[31m empty" in out
    assert "good" not in out and "same" not in out
    text = " ".join(out.split())
    for said in (
        "Fool every surrogate (budget: 38 dB): 40 of 40 faces, 40 of 41 files.",
        "Protected (fool every judge as well): 40 of 40 faces, 40 of 41 files.",
    ):
        assert said in text
    assert "2: two, judge; match: similarity ≥ 0.25" in text
    assert "There was no judge" not in text and "do not publish" not in text
    records[2] = photo("seen.png", dataclasses.replace(FACE, status="not protected"))
    print_protection(records[1:], protector(), tmp_path)
    out = capsys.readouterr().out
    assert "good1.png" in out and "∞" in out and "41.9" in out and "3x4 at 1,2" in out
    text = " ".join(out.split())
    assert "Fool every surrogate (budget: 38 dB): " in text
    assert "There was no judge: --judge=NAME:FILE adds recognisers that only judge." in text
    assert "are still recognised: do not publish them as they are" in text


def test_without_a_face_nothing_is_said_of_recognisers(capsys, tmp_path):
    print_protection([FileRecord("a.png", NO_FACE, None)], protector(verifier()), tmp_path)
    text = " ".join(capsys.readouterr().out.split())
    assert "No face found in 1 file." in text
    assert "Protected" not in text and "Fool" not in text and "no judge" not in text


MISSED, MATCHED = (FaceVerdict("j", False, s, 0.3, 0.3 - s, s < 0.3) for s in (0.1, 0.4))


def test_fitted_and_judges_are_counted_apart(capsys, tmp_path):
    """A face that fools only surrogates is not called protected; nor is an empty box."""

    def judged(name, status, *more, **changes):
        face = dataclasses.replace(FACE, status=status, **changes)
        face = dataclasses.replace(face, verdicts=(*face.verdicts, *more))
        return dataclasses.replace(photo(name), faces=(face,), status=status)

    records = [
        judged("a.png", "protected", MISSED),
        judged("b.png", "not protected", MATCHED, in_gallery=False),
        judged("c.png", "unjudged", MISSED, score=0.0),
    ]
    records += [photo(f"good{n}.png") for n in range(40)]
    print_protection(records, protector(verifier(), verifier(SECOND, 0.25, False)), tmp_path)
    out = capsys.readouterr().out
    text = " ".join(out.split())
    assert "every surrogate (budget: 38 dB): 43 of 43 faces, 43 of 43 files." in text
    assert "every judge as well): 41 of 43 faces, 41 of 43 files." in text
    assert "No face was detected in 1 of the boxes given by --faces or --boxes" in text
    assert "In b.png, no face is matched with the gallery by every recogniser." in text
    assert "unjudged, no face detected" in text
    assert "b.png" in text and "c.png" in text and "a.png" not in text
    # Somebody else beside the person is not reported.
    faces = tuple(dataclasses.replace(FACE, in_gallery=known) for known in (False, True))
    group = dataclasses.replace(photo("group.png"), faces=faces)
    print_protection([photo("a.png"), group], protector(verifier()), tmp_path)
    text = capsys.readouterr().out
    assert "o face detected" not in text and "gallery" not in text


def test_frames_without_a_face_are_told_of(capsys, tmp_path):
    verdict = TrackVerdict("a", True, 0.1, 0.3, 0.2, True, 1.0)
    track = TrackReport(FACE.box, 0.9, 2, 8, 7, "protected", 42.0, 41.9, 42.0, (verdict,))
    record = dataclasses.replace(
        photo("a.mp4"), faces=(track,), figures=VideoFigures(2, 9, 9, 40, 7)
    )
    print_protection([record], protector(), tmp_path)
    text = " ".join(capsys.readouterr().out.split())
    assert "a.mp4: faces were found in 7 of 40 frames; the others are unchanged." in text
    assert "(budget: 38 dB, for videos before encoding)" in text
    assert "Not chosen by --faces, and left as is: 2 other faces." in text
