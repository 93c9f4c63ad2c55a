"""Whom the command protects, from whom, and how much."""

import numpy as np
import pytest
from PIL import Image

from deid_jax.photos import STRENGTHS, Face
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.face_search import load_search
from experiments import protect
from tests.experiments.protect_helpers import (
    CONSTANT,
    ONE,
    TWO,
    arguments,
    detected,
    embedding,
    hashes,
    may_change,
    picture,
    reach,
    reach_of,
    records_of,
    run,
    seen,
    shown,
)

pytestmark = pytest.mark.usefixtures("light_attack")
SIZE = (110, 100)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A folder of one photo; not to be changed."""
    folder = tmp_path_factory.mktemp("one")
    Image.fromarray(picture(0)).save(folder / "a.png")
    return folder


def _changed(source, output):
    return np.any(shown(source / "a.png") != shown(output / "a.png"), axis=2)


def test_judge_who_is_never_fooled_is_reported(photo, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(arguments(photo, output, f"--judge={CONSTANT}")) == 1
    out, err = capsys.readouterr()
    assert "not protected" in out
    assert f"2: {CONSTANT}, judge; match: similarity" in out
    assert "There was no judge" not in out
    assert err == f"not protected: 1 of 1 file; see {output}/manifest.jsonl\n"
    (record,) = records_of(output).values()
    assert record["status"] == "not protected"
    assert record["reason"] == ("fools every surrogate, but a judge still matches a face")
    assert "Fool every surrogate (budget: 40 dB): 1 of 1 face, 1 of 1 file." in out
    assert "every judge as well): 0 of 1 face, 0 of 1 file." in out
    (face,) = record["faces"]
    assert face["strength_db"] == 40.0 and 40 <= face["psnr"] < 40.3
    first, second = face["verdicts"]
    assert (first["recogniser"], first["fitted"]) == (ONE, True)
    assert (second["recogniser"], second["fitted"], second["fooled"]) == (
        CONSTANT,
        False,
        False,
    )
    assert second["similarity"] == pytest.approx(1) and second["margin"] < 0


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_whole_strength_is_spent(photo, tmp_path, strength):
    assert run(arguments(photo, tmp_path / "out", f"--strength={strength}")) == 0
    (record,) = records_of(tmp_path / "out").values()
    (face,) = record["faces"]
    assert face["strength_db"] == STRENGTHS[strength]
    assert 0 <= face["psnr"] - face["strength_db"] < 0.05


@pytest.mark.slow
def test_least_rises_step_by_step_to_the_first_that_suffices(photo, tmp_path):
    """Thresholds that the first try is below by a margin of 0.1, only the next, and none."""

    def face(threshold):
        output = tmp_path / str(threshold)
        more = ("--strength=strong", "--least", f"--threshold={threshold}")
        status = run(arguments(photo, output, *more))
        (record,) = records_of(output).values()
        return status, record["faces"][0]

    status, first = face(0.999)
    assert status == 0 and first["strength_db"] in (46, 44, 42)
    similarity = first["verdicts"][0]["similarity"]
    status, second = face(round(similarity + 0.1 - 1e-4, 5))
    assert status == 0 and second["strength_db"] == first["strength_db"] - 2
    assert second["verdicts"][0]["similarity"] < similarity
    status, hard = face(-0.99)
    assert status == 1 and hard["strength_db"] == STRENGTHS["strong"]
    assert hard["verdicts"][0]["similarity"] < second["verdicts"][0]["similarity"]


@pytest.mark.slow
def test_several_recognisers_are_fooled_together(photo, tmp_path):
    assert run(arguments(photo, tmp_path / "out", recogniser=f"{ONE}, {TWO}")) == 0
    (record,) = records_of(tmp_path / "out").values()
    assert record["faces"][0]["strength_db"] >= 38
    verdicts = record["faces"][0]["verdicts"]
    assert [verdict["recogniser"] for verdict in verdicts] == [ONE, TWO]
    assert all(verdict["fooled"] and verdict["fitted"] for verdict in verdicts)


# Too far apart to touch one another.
SMALLER, LARGER = (6.0, 4.0, 26.0, 26.0), (50.0, 40.0, 40.0, 40.0)


@pytest.fixture
def detector(monkeypatch):
    """A stand-in: finds two faces, whatever the photo."""
    found = [Face(LARGER, None, 9.0), Face(SMALLER, None, 8.0)]
    monkeypatch.setattr(protect, "load_detector", lambda name: lambda pixels: list(found))
    return found


@pytest.mark.parametrize(
    ("which", "boxes"), [("all", [LARGER, SMALLER]), ("largest", [LARGER])]
)
def test_faces_that_are_found(photo, tmp_path, detector, which, boxes, capsys):
    assert run([*detected(photo, tmp_path / "out"), f"--faces={which}"]) in (0, 1)
    (record,) = records_of(tmp_path / "out").values()
    assert [tuple(face["box"]) for face in record["faces"]] == boxes
    left = len(detector) - len(boxes)
    assert record["faces_left"] == left
    told = "Not chosen by --faces, and left as is: 1 other face." in capsys.readouterr().out
    assert told is bool(left)
    changed = _changed(photo, tmp_path / "out")
    for box in (LARGER, SMALLER):
        inside = may_change(changed.shape, reach(box))
        assert changed[inside].any() is np.bool_(box in boxes)
        changed &= ~inside
    assert not changed.any()


def test_faces_that_are_told_on_the_command_line(photo, tmp_path):
    output = tmp_path / "out"
    told = "--faces=" + ",".join(":".join(map(str, box)) for box in (SMALLER, LARGER))
    assert run([*detected(photo, output), told]) in (0, 1)
    (record,) = records_of(output).values()
    assert [tuple(face["box"]) for face in record["faces"]] == [SMALLER, LARGER]
    changed = _changed(photo, output)
    allowed = may_change(changed.shape, reach(SMALLER), reach(LARGER))
    assert changed.any() and not np.any(changed & ~allowed)


def test_faces_that_a_file_tells(photo, tmp_path):
    """By name or path; of photos that it does not name none is told."""
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/a.png", "deep/c.png"):
        (source / name).write_bytes((photo / "a.png").read_bytes())
    rows = [("a.png", LARGER), ("deep/a.png", SMALLER), ("c.png", SMALLER), ("c.png", LARGER)]
    text = "file,left,top,width,height\n"
    text += "".join(f"{name},{','.join(map(str, box))}\n" for name, box in rows)
    # Beside the photos: it is none of them.
    (source / "boxes.csv").write_text(text)
    output = tmp_path / "out"
    given = detected(source, output, f"--boxes={source / 'boxes.csv'}")
    assert run(given) == 1
    found = records_of(output)
    assert {name: [tuple(f["box"]) for f in r["faces"]] for name, r in found.items()} == {
        "a.png": [LARGER],
        "b.png": [],
        "deep/a.png": [SMALLER],
        "deep/c.png": [SMALLER, LARGER],
    }
    assert found["b.png"]["status"] == "no face found"
    assert not (output / "b.png").exists()
    assert run([*given, "--faces=largest"]) == 1
    found = records_of(output)
    assert [tuple(f["box"]) for f in found["deep/c.png"]["faces"]] == [LARGER]


def test_boxes_file_and_links_that_lead_nowhere(photo, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "loop.png").symlink_to("loop.png")
    (source / "nowhere.png").symlink_to("gone.png")
    (source / "a.png").write_bytes((photo / "a.png").read_bytes())
    (source / "boxes.csv").write_text("file,left,top,width,height\na.png,20,15,60,60\n")
    (tmp_path / "link.csv").symlink_to(source / "boxes.csv")
    given = detected(source, tmp_path / "out", f"--boxes={tmp_path / 'link.csv'}")
    assert run(given) == 1
    found = {name: record["status"] for name, record in records_of(tmp_path / "out").items()}
    assert found == {
        "a.png": "unjudged",
        "loop.png": "unreadable",
        "nowhere.png": "unreadable",
    }


def test_crops_on_the_template(tmp_path):
    """Squares are whole faces, and so are CelebA's; other shapes are none."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    sizes = {"square.png": (112, 112), "small.png": (80, 80), "celeba.png": (178, 218)}
    for seed, (name, size) in enumerate((sizes | {"wide.png": (120, 100)}).items()):
        Image.fromarray(picture(seed, size)).save(source / name)
    assert run([*detected(source, output), "--aligned"]) == 1
    found = records_of(output)
    assert found["wide.png"]["faces"] == [] and not (output / "wide.png").exists()
    assert found["wide.png"]["reason"] == (
        "wide.png is no aligned face: it is 120x100, not square"
    )
    for name, size in sizes.items():
        assert found[name]["faces"][0]["box"] == [0.0, 0.0, *map(float, size)]
        changed = np.any(shown(source / name) != shown(output / name), axis=2)
        assert changed.mean() > 0.2


def test_photo_without_a_face_is_listed_and_not_written(tmp_path, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for seed in range(2):
        Image.fromarray(picture(seed)).save(source / f"{seed}.png")
    assert run(detected(source, output)) == 1
    assert list(hashes(output)) == [b"manifest.jsonl"]
    for name, record in records_of(output).items():
        assert record["status"] == "no face found"
        assert record["reason"] == "no face was found: nothing was written"
        assert record["output"] is record["output_sha256"] is None
        assert name in ("0.png", "1.png")
    out, err = capsys.readouterr()
    assert out.count("no face was found: nothing was written") == 2
    assert "No face found in 2 files." in out
    assert err.startswith("not protected: 2 of 2 files; see ")


@pytest.mark.slow
def test_face_that_the_detector_finds(tmp_path):
    """The astronaut of scikit-image, of whom the rocket behind her is no part."""
    from skimage import data

    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(data.astronaut()).save(source / "a.png")
    assert run(detected(source, output)) in (0, 1)
    (record,) = records_of(output).values()
    (face,) = record["faces"]
    left, top, width, height = face["box"]
    # Eileen Collins' eyes and mouth.
    for x, y in ((206, 105), (243, 105), (226, 145)):
        assert left < x < left + width and top < y < top + height
    changed = _changed(source, output)
    (found,) = load_search()(data.astronaut())
    np.testing.assert_allclose(face["box"], found.box, atol=0.01)
    assert face["score"] == pytest.approx(found.score, abs=1e-4)
    assert not np.any(changed & ~may_change(changed.shape, reach_of(crop_matrix(found))))


@pytest.mark.parametrize("flag", ["faces", "boxes"])
def test_given_boxes_are_judged_by_what_is_detected_in_the_written_file(
    photo, tmp_path, monkeypatch, flag
):
    looked_at = []

    def detector(pixels):
        looked_at.append(pixels)
        return []

    monkeypatch.setattr(protect, "load_detector", lambda name: detector)
    given = "--faces=" + ":".join(map(str, LARGER))
    if flag == "boxes":
        row = ",".join(map(str, LARGER))
        (tmp_path / "b.csv").write_text(f"file,left,top,width,height\na.png,{row}\n")
        given = f"--boxes={tmp_path}/b.csv"
    run(detected(photo, tmp_path / "out", given))
    np.testing.assert_array_equal(looked_at[-1], shown(tmp_path / "out/a.png"))


def test_box_without_a_face_is_reported_and_not_called_protected(
    photo, tmp_path, monkeypatch, capsys
):
    """Though it fools a judge; with a detected face it is protected."""
    seen = []
    monkeypatch.setattr(protect, "load_detector", lambda name: lambda pixels: list(seen))
    told = "--faces=" + ":".join(map(str, LARGER))
    given = [*detected(photo, tmp_path / "out", told), f"--judge={TWO}"]
    assert run([*given, "--strength=strong"]) == 0
    (record,) = records_of(tmp_path / "out").values()
    (face,) = record["faces"]
    assert all(verdict["fooled"] for verdict in face["verdicts"]) and face["score"] == 0
    assert record["status"] == face["status"] == "unjudged"
    assert record["reason"] == (
        "no face was detected in a given box: boxes are in pixels of the upright photo"
    )
    out = capsys.readouterr().out
    assert "No face was detected in 1 of" in out
    assert "judge as well): 0 of 1 face, 0 of 1 file." in out
    # Only the box and a margin around it are searched, from (30, 20) on.
    seen.append(Face((20.0, 20.0, 40.0, 40.0), None, 0.7))
    assert run([*given, "--strength=strong", "--seed=1"]) == 0
    (record,) = records_of(tmp_path / "out").values()
    assert (record["status"], record["reason"]) == ("protected", None)
    assert "No face was detected" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "judge", "agreed"),
    [(0, CONSTANT, True), (5, "none", False), (5, CONSTANT, False)],
)
def test_faces_that_not_every_recogniser_finds_in_the_gallery_are_named(
    photo, tmp_path, detector, capsys, known, judge, agreed
):
    """The judge takes everybody for the person, the other tells the two apart."""
    del detector[1]
    (tmp_path / "gallery").mkdir()
    Image.fromarray(picture(known)).save(tmp_path / "gallery" / "a.png")
    more = (f"--gallery={tmp_path / 'gallery'}", f"--judge={judge}")
    assert run(detected(photo, tmp_path / "out", *more)) == (judge != "none")
    assert records_of(tmp_path / "out")["a.png"]["faces"][0]["in_gallery"] is agreed
    text = " ".join(capsys.readouterr().out.split())
    assert ("In a.png, no face is matched with the gallery" in text) is not agreed


def test_gallery_is_what_the_person_is_kept_apart_from(photo, tmp_path, detector, capsys):
    """The likeness is the highest, to itself, the other photos and their mean, in NumPy."""
    del detector[1]
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    others = []
    for seed in range(2):
        noise = np.random.default_rng(seed).normal(0, 3, (*SIZE[::-1], 3))
        others.append(np.clip(np.rint(picture(0) + noise), 0, 255).astype(np.uint8))
        Image.fromarray(others[-1]).save(gallery / f"{seed}.png")
    output = tmp_path / "out"
    given = [*detected(photo, output), f"--gallery={gallery}"]
    assert run(given) == 0
    (record,) = records_of(output).values()
    matrix = crop_matrix(Face(LARGER))
    own, *given_ones = (embedding(pixels, matrix) for pixels in (picture(0), *others))
    mean = sum(given_ones) / np.linalg.norm(sum(given_ones))
    looks = seen(shown(output / "a.png"), Face(LARGER))
    highest = max((looks @ known).max() for known in (*given_ones, mean))
    assert highest > max(looks @ own) + 2e-3
    (verdict,) = record["faces"][0]["verdicts"]
    assert verdict["similarity"] == pytest.approx(highest, abs=1e-3)
    # Photos of somebody else say nothing of this face: it is compared with itself.
    for seed in range(2):
        Image.fromarray(picture(5 + seed)).save(gallery / f"{seed}.png")
    (gallery / "1.png").unlink()
    assert run(given) == 0
    (record,) = records_of(output).values()
    own = max(seen(shown(output / "a.png"), Face(LARGER)) @ own)
    assert record["faces"][0]["verdicts"][0]["similarity"] == pytest.approx(own, abs=2e-3)


def test_one_photo_alone(photo, tmp_path):
    """A file in the place of a folder gives what it gives among others."""
    assert run(arguments(photo, tmp_path / "folder")) == 0
    assert run(arguments(photo / "a.png", tmp_path / "file")) == 0
    assert hashes(tmp_path / "file") == hashes(tmp_path / "folder")
    assert sorted(hashes(tmp_path / "file")) == [b"a.png", b"manifest.jsonl"]
