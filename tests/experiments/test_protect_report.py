"""What the command shows on the terminal."""

import contextlib
import re

from deid_jax.photos.judging import Witness
from deid_jax.recognisers.embedders import Embedder
from experiments import protect
from experiments._protect.protect_report import show
from tests.experiments.protect_helpers import (
    arguments,
    run,
    write_photos,
)

NAME = "manifest.jsonl"


def test_bar_tells_faces_a_second(tmp_path, monkeypatch):
    told = []

    @contextlib.contextmanager
    def bar(description, **options):
        yield lambda done, total, text="": told.append((description, done, total, text))

    monkeypatch.setattr(protect.cli, "progress_bar", bar)
    write_photos(tmp_path / "in")
    assert run(arguments(tmp_path / "in", tmp_path / "out")) == 0
    assert [one[:3] for one in told] == [("protect", n + 1, 4) for n in range(4)]
    assert all(re.fullmatch(r"[0-9]+\.[0-9]{2} faces/s", one[3]) for one in told)
    assert float(told[-1][3].split()[0]) > 0


def test_of_many_photos_only_what_went_wrong_is_shown(capsys, tmp_path):
    face = {"box": [1, 2, 3, 4], "protected": True, "psnr": 41.9, "ssim": 0.98}
    face["verdicts"] = [{"cosine": 0.1}]
    good = {"status": "protected", "reason": None, "faces": [face]}
    bad = {"status": "unreadable", "reason": "it is\x1b[31m empty", "faces": []}
    unchanged = good | {"faces": [face | {"psnr": None}]}
    records = [good | {"file": f"good{n}.png"} for n in range(39)]
    records += [unchanged | {"file": "same.png"}, bad | {"file": "bad\n.png"}]
    witness = Witness(Embedder("somebody", None, {}), 0.25, False)
    show(records, [witness], tmp_path, cap=38.0)
    out = capsys.readouterr().out
    assert "bad\\n.png" in out and "it is\\x1b[31m empty" in out
    assert "good" not in out and "same" not in out
    text = " ".join(out.split())
    assert "40 of 40 faces in 41 files are protected against these recognisers" in text
    assert "(cap: 38 dB); 1 files are not." in text
    assert "1: somebody, not known to the attack; takes two faces for one person's" in text
    assert "nobody looked at" not in text
    show(records[1:], [witness._replace(fitted=True)], tmp_path, cap=38.0)
    out = capsys.readouterr().out
    assert "good1.png" in out and "∞" in out and "41.9" in out and "3x4 at 1,2" in out
    assert "nobody looked at" in " ".join(out.split())


def test_frames_without_a_face_are_told_of(capsys, tmp_path):
    face = {"box": [1, 2, 3, 4], "protected": True, "psnr": 41.9, "verdicts": [{"cosine": 0.1}]}
    face |= {"first_frame": 2, "last_frame": 8}
    record = {"file": "a.mp4", "status": "protected", "reason": None, "faces": [face]}
    record |= {"num_frames": 40, "num_face_frames": 7, "faces_left": 2}
    show([record], [Witness(Embedder("a", None, {}), 0.25, True)], tmp_path, cap=38.0)
    text = " ".join(capsys.readouterr().out.split())
    assert "a.mp4: faces were found in 7 of 40 frames; the others are as they were." in text
    assert "(cap: 38 dB, of videos before encoding)" in text
    assert "2 other faces were found, not chosen by --faces, and left known." in text
