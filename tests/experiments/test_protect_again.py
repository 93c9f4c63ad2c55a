"""Files that are protected already are refused, and those of a finished run are not."""

import shutil

import numpy as np
import pytest

from deid_jax.photos import FaceChoice, Strength, face_attack
from deid_jax.photos.detectors import DEFAULT
from deid_jax.photos.manifest import sha256_of
from deid_jax.photos.written_files import remember
from deid_jax.transforms.alignments import Misalignment
from deid_jax.videos import FileProtector
from tests.experiments.protect_helpers import (
    FACES,
    SECOND,
    arguments,
    hashes,
    places,
    protector,
    records_of,
    run,
    shown,
    verifier,
    write_photos,
)

pytestmark = pytest.mark.usefixtures("light_attack")
NAMES = ["a.png", "b.jpg", "deep/c.webp"]
REASON = " is protected already, and protecting it again may undo that: give the original"


@pytest.fixture(scope="module")
def protected(tmp_path_factory, light_attack):
    """(originals, what became of them); not to be changed."""
    folder = tmp_path_factory.mktemp("once")
    write_photos(folder / "in", len(NAMES))
    assert run(arguments(folder / "in", folder / "out")) == 0
    return folder / "in", folder / "out"


def _assert_refused(output, names=NAMES):
    found = records_of(output)
    assert list(found) == names
    for name, record in found.items():
        assert (record["status"], record["reason"]) == ("not protected", name + REASON)
        assert record["output"] is None
        assert not (output / name).exists()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """On a machine that wrote nothing yet."""
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "cache"))


def test_what_was_written_is_refused_wherever_it_lies(protected, tmp_path, capsys):
    _, written = protected
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(written / name, tmp_path / "in" / name)
    assert run(arguments(tmp_path / "in", tmp_path / "out")) == 1
    _assert_refused(tmp_path / "out")
    out, err = capsys.readouterr()
    text = " ".join(out.split())
    assert text.count("is protected already") == len(NAMES)
    assert err.startswith("not protected: 3 of 3 files")
    assert run(arguments(tmp_path / "in" / "a.png", tmp_path / "one")) == 1
    _assert_refused(tmp_path / "one", ["a.png"])


def test_manifest_beside_it_tells_so_as_well(protected, tmp_path, elsewhere):
    _, written = protected
    shutil.copytree(written, tmp_path / "in")
    assert run(arguments(tmp_path / "in" / "b.jpg", tmp_path / "one")) == 1
    _assert_refused(tmp_path / "one", ["b.jpg"])
    (tmp_path / "in" / "manifest.jsonl").rename(tmp_path / "manifest.jsonl")
    # Without it, the same command looks at the file again.
    assert run(arguments(tmp_path / "in" / "b.jpg", tmp_path / "one")) == 0
    assert records_of(tmp_path / "one")["b.jpg"]["output"] == "b.jpg"
    (tmp_path / "manifest.jsonl").rename(tmp_path / "in" / "manifest.jsonl")
    assert run(arguments(tmp_path / "in", tmp_path / "out")) == 1
    assert records_of(tmp_path / "out").pop("manifest.jsonl")["status"] == "unreadable"


def test_mark_tells_so_on_every_machine(protected, tmp_path, elsewhere, monkeypatch):
    source, written = protected
    assert run(arguments(source, tmp_path / "marked", "--mark")) == 0
    for name in NAMES:
        np.testing.assert_array_equal(shown(tmp_path / "marked" / name), shown(written / name))
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "another"))
    (tmp_path / "marked" / "manifest.jsonl").unlink()
    assert run(arguments(tmp_path / "marked", tmp_path / "out")) == 1
    _assert_refused(tmp_path / "out")


def test_originals_are_done_again_and_resumed(protected, tmp_path, worked_on):
    source, written = protected
    shutil.copytree(written, tmp_path / "out")
    before = hashes(tmp_path / "out")
    assert run(arguments(source, tmp_path / "out")) == 0
    assert worked_on == []
    assert hashes(tmp_path / "out") == before
    assert run(arguments(source, tmp_path / "out", "--seed=1")) == 0
    assert worked_on == NAMES


def test_refusal_leaves_the_earlier_output_and_is_not_resumed(
    protected, tmp_path, worked_on, monkeypatch
):
    """The copies took the originals' place: they may be all that is left."""
    for folder, name in zip(protected, ("in", "out"), strict=True):
        shutil.copytree(folder, tmp_path / name)
    before = places(tmp_path / "out")
    shutil.copy(tmp_path / "out/a.png", tmp_path / "in/a.png")
    given = arguments(tmp_path / "in", tmp_path / "out")
    for _ in range(2):
        assert run(given) == 1
        record = records_of(tmp_path / "out")["a.png"]
        assert (record["status"], record["reason"]) == ("not protected", "a.png" + REASON)
        assert record["output"] == "a.png" and places(tmp_path / "out") == before
    assert worked_on == ["a.png", "a.png"]
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "cache"))
    assert run(given) == 0
    assert worked_on == ["a.png"] * 3
    assert records_of(tmp_path / "out")["a.png"]["status"] == "unjudged"
    # What is known to be no photo leaves no output, whatever was there before.
    shutil.copy(tmp_path / "out/a.png", tmp_path / "in/a.png")
    assert run(given) == 1
    (tmp_path / "in/a.png").write_bytes(b"no photo any more")
    assert run(given) == 1
    assert not (tmp_path / "out/a.png").exists()


def test_boxes_beside_the_photos_cost_no_finished_file(tmp_path):
    write_photos(tmp_path / "in", len(NAMES))
    given = arguments(tmp_path / "in", tmp_path / "out")
    assert run(given) == 0
    before = places(tmp_path / "out")
    wrong = [one.replace(FACES, "--faces=5000:5000:20:20") for one in given]
    assert run(wrong) == 1
    assert places(tmp_path / "out") == before


def test_digest_holds_all_that_decides_the_written_bytes(tmp_path, monkeypatch):
    def digest(*verifiers, **options):
        protects = protector(*verifiers, **options)
        work = FileProtector(protects, FaceChoice("all"), tmp_path, tmp_path / "out")
        return work.digest({"detector": DEFAULT})

    assert digest() == digest()
    found = [
        digest(),
        digest(verifier(threshold=0.8)),
        digest(verifier(SECOND)),
        digest(strength=Strength((42.0, 40.0), 2)),
        digest(strength=Strength((42.0, 40.0, 38.0), 3)),
        digest(strength=Strength((42.0, 40.0, 38.0), 2, 0.1)),
    ]
    monkeypatch.setattr(face_attack, "ATTACK", face_attack.FaceAttack(Misalignment(flips=0.0)))
    assert len({*found, digest()}) == len(found) + 1


def test_video_is_refused_before_it_is_decoded(tmp_path):
    content = np.random.default_rng(7).bytes(500)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(content)
    remember(sha256_of(content))
    assert run(arguments(tmp_path / "in", tmp_path / "out")) == 1
    _assert_refused(tmp_path / "out", ["a.mp4"])
