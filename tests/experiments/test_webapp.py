"""The page without a browser: what becomes of uploads, what is said, who is answered."""

import dataclasses
import html.parser
import io
import re
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from deid_jax.photos import Face, FaceReport, FaceVerdict, Verifier
from deid_jax.photos.file_records import NOT_PROTECTED, PROTECTED, UNJUDGED, status_of
from deid_jax.recognisers.embedders import Embedder, FunctionModule
from experiments import protect, webapp
from experiments._webapp.page import worked
from experiments._webapp.page_text import (
    overview_html,
    rms_levels,
    said,
    strength_label,
    verdict_html,
    verifiers_html,
)
from experiments._webapp.uploads import (
    MAX_FILES,
    MAX_PIXELS,
    UploadOutcome,
    amplified_difference,
    around,
    forget,
    marked,
    outcome_of,
)
from tests.experiments.protect_helpers import BOX, FACES, ONE, TWO, picture
from tests.photos.photo_bytes import SECRETS, exif_by_hand, talkative_jpeg

# What a browser would run, were it not shown as the text that it is.
EVIL = "<img src=x onerror=alert(1)> & 'b' \"c\".png"
FACE = Face(tuple(map(float, BOX)))
pytestmark = pytest.mark.usefixtures("light_attack")


@pytest.fixture(scope="module")
def studio(light_attack):
    """Of a quick recogniser, and a detector that finds one face in all but small photos."""
    settings = webapp.WebappSettings(recogniser=ONE, threshold="0.9", num_steps=8)
    return dataclasses.replace(
        webapp.protector_of(settings),
        detector=lambda pixels: [FACE] if min(pixels.shape[:2]) >= 90 else [],
    )


def report(*verdicts, psnr=40.0, box=BOX):
    status = status_of(verdicts, 0.9)
    return FaceReport(tuple(map(float, box)), 0.9, status, 40.0, psnr, 0.99, verdicts)


def verdict(cosine, name="one", *, fitted=True):
    return FaceVerdict(name, fitted, cosine, 0.5, 0.5 - cosine, cosine < 0.5)


def photo(path, seed=0):
    Image.fromarray(picture(seed)).save(path)
    return path


class _Parser(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def parsed(text):
    parser = _Parser()
    parser.feed(text)
    parser.close()
    return parser


@pytest.mark.slow
def test_an_upload_becomes_the_file_that_protect_writes(studio, tmp_path):
    source, other = tmp_path / "in", tmp_path / "other"
    source.mkdir()
    photo(source / "a.png")
    Image.fromarray(picture(1)).save(source / "b.jpg", quality=95)
    Image.fromarray(picture(0)).save(source / "c.webp", lossless=True)
    arguments = ["--recogniser=" + ONE, "--threshold=0.9", "--num_steps=8", FACES]
    protect.main([f"--input={source}", f"--output={other}", *arguments, "--strength=light"])
    for path in sorted(source.iterdir()):
        outcome = outcome_of(path, "light", studio, tmp_path)
        assert outcome.name == outcome.output.name == path.name
        assert outcome.output.read_bytes() == (other / path.name).read_bytes()
        assert outcome.output.read_bytes() != path.read_bytes()
        assert outcome.status == UNJUDGED


def talking_png(pixels):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "Comment-Bob")
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG", pnginfo=notes, exif=exif_by_hand())
    return target.getvalue()


@pytest.mark.parametrize(("name", "make"), [("a.jpg", talkative_jpeg), ("a.png", talking_png)])
def test_the_file_holds_no_metadata(name, make, studio, tmp_path):
    path = tmp_path / name
    path.write_bytes(make(picture(0)))
    assert any(secret in path.read_bytes() for secret in SECRETS)
    outcome = outcome_of(path, "medium", studio, tmp_path)
    data = outcome.output.read_bytes()
    assert not any(secret in data for secret in SECRETS)
    with Image.open(outcome.output) as image:
        assert not image.getexif()
        assert {"exif", "xmp", "comment"}.isdisjoint(image.info)
    # Nor do the images that the page shows.
    for shown in [path for view in outcome.previews for path in view]:
        with Image.open(shown) as image:
            assert image.info == {}


def test_what_was_protected_is_refused(studio, tmp_path, monkeypatch):
    """What the page itself wrote, and what is marked."""
    message = "a.png is protected already, and protecting it again may undo that: give the "
    made = outcome_of(photo(tmp_path / "a.png", 21), "medium", studio, tmp_path)
    again = outcome_of(made.output, "medium", studio, tmp_path)
    assert (again.output, again.message) == (None, f"{message}original.")
    marking = dataclasses.replace(studio, mark=True)
    made = outcome_of(photo(tmp_path / "a.png", 22), "medium", marking, tmp_path)
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path / "none"))
    again = outcome_of(made.output, "medium", studio, tmp_path)
    assert (again.output, again.message) == (None, f"{message}original.")


def test_pictures_show_the_file(studio, tmp_path):
    outcome = outcome_of(photo(tmp_path / "a.png"), "medium", studio, tmp_path)
    (before, after, difference), face = [
        [np.asarray(Image.open(path)) for path in view] for view in outcome.previews
    ]
    np.testing.assert_array_equal(before, picture(0))
    np.testing.assert_array_equal(after, np.asarray(Image.open(outcome.output)))
    assert not np.array_equal(before, after)
    assert difference.shape == before.shape
    left, top, width, height = BOX
    rows = slice(max(top - height // 2, 0), top + 3 * height // 2)
    columns = slice(max(left - width // 2, 0), left + 3 * width // 2)
    np.testing.assert_array_equal(face[0], before[rows, columns])
    np.testing.assert_array_equal(face[1], after[rows, columns])
    change = face[1].astype(float) - face[0]
    np.testing.assert_array_equal(face[2], np.clip(128 + 20 * change, 0, 255))
    assert len(np.unique(change)) > 2


def test_the_amplified_difference_is_that_of_pixels():
    generator = np.random.default_rng(0)
    before = generator.integers(0, 256, (31, 17, 3), np.uint8)
    after = generator.integers(0, 256, (31, 17, 3), np.uint8)
    after[:8] = np.clip(before[:8].astype(int) + generator.integers(-7, 8), 0, 255)
    for step in (1, 3):
        expected = np.empty((-(-31 // step), -(-17 // step), 3), np.uint8)
        for row, column, channel in np.ndindex(expected.shape):
            place = row * step, column * step, channel
            level = 128 + 20 * (int(after[place]) - int(before[place]))
            expected[row, column, channel] = min(max(level, 0), 255)
        np.testing.assert_array_equal(amplified_difference(before, after, step), expected)
    np.testing.assert_array_equal(
        amplified_difference(before, before), np.full_like(before, 128)
    )


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((10, 20, 40, 30), (5, 65), (0, 70)),
        ((-30, -30, 20, 20), (0, 1), (0, 1)),
        ((190, 90, 40, 40), (70, 100), (170, 200)),
        ((300, 300, 10, 10), (99, 100), (199, 200)),
    ],
)
def test_around_a_face_is_within_the_photo(box, rows, columns):
    found = around(report(box=box), (100, 200, 3))
    assert [(one.start, one.stop) for one in found] == [rows, columns]


def test_faces_are_marked_where_they_are():
    grey = np.full((200, 300, 3), 128, np.uint8)
    changed = np.any(marked(grey, [report(box=(100, 40, 80, 60))], 0.5) != 128, axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (20, 50, 50, 90)
    np.testing.assert_array_equal(marked(grey, [], 1), grey)


def texts(paths, studio, folder, strength="medium"):
    """What is said, in turn, and what is done in the end."""
    *steps, (last, done) = worked([str(path) for path in paths], strength, studio, folder)
    return [text for text, _ in steps], last, done


def test_too_many_files_are_refused_unread(studio, tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(MAX_FILES + 1)]  # There are none.
    steps, last, done = texts(paths, studio, tmp_path)
    assert (steps, done) == ([], [])
    assert "21 files are too many: at most 20 at once" in parsed(last).text
    assert "wrong" in last
    for nothing in ((), []):
        ((text, done),) = worked(nothing, "medium", studio, tmp_path)
        assert "No photo was chosen" in text
        assert done == []


def test_each_file_is_accounted_for(studio, tmp_path):
    photo(tmp_path / "right.png")
    (tmp_path / "letter.png").write_text("Dear all")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (50, 50)).save(tmp_path / "small.png")
    whole = (tmp_path / "right.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    names = ["letter.png", "right.png", "empty.jpg", "small.png", "half.png", "gone.png"]
    steps, last, done = texts([tmp_path / name for name in names], studio, tmp_path)
    assert [outcome.name for outcome in done] == names
    assert [outcome.output is not None for outcome in done] == [
        name == "right.png" for name in names
    ]
    text = parsed(last).text
    assert text.startswith("1 of 6 photos")
    for said_of in (
        "letter.png is damaged or no image",
        "empty.jpg is an empty file",
        "No face was found in small.png",
        "half.png cannot be read",
        "cannot be read: No such file",
    ):
        assert said_of in text
    assert "right.png" not in text
    assert [f"Photo {n} of 6" in step for n, step in enumerate(steps, 1)] == [True] * 6
    assert str(tmp_path) not in last.replace(str(tmp_path / "gone.png"), "")


def test_a_recogniser_that_sees_nothing_is_said_and_the_rest_is_done(studio, tmp_path):
    module = FunctionModule(lambda images: jnp.zeros((len(images), 4)))
    verifier = Verifier(Embedder("blind", module, {}), 0.5, True)
    blind = dataclasses.replace(studio, verifiers=(verifier,))
    outcome = outcome_of(photo(tmp_path / "a.png"), "medium", blind, tmp_path)
    assert outcome.output is None
    assert "blind" in outcome.message


def test_a_full_disk_is_said(studio, tmp_path):
    outcome = outcome_of(photo(tmp_path / "a.png"), "medium", studio, tmp_path / "missing")
    assert outcome.output is None
    assert outcome.message == "a.png cannot be written: No such file or directory."


def test_large_photos_are_refused_from_their_header(studio, tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (8200, 6220)).save(path)
    assert MAX_PIXELS < 8200 * 6220

    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    outcome = outcome_of(path, "medium", studio, tmp_path)
    assert outcome.message == "large.png has more than 50000000 pixels: 8200x6220."
    # Pillow itself would warn of it, and refuse it.
    data = bytearray(path.read_bytes())
    data[16:24] = b"\0\1\0\0\0\1\0\0"
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    message = outcome_of(path, "medium", studio, tmp_path).message
    assert re.search("large.png .* pixels", message)


def test_names_are_shown_as_they_are():
    face = report(verdict(0.6, EVIL))
    wrong = UploadOutcome(EVIL, f"{EVIL} is damaged.")
    done = UploadOutcome(EVIL, None, Path("x"), (), (face,))
    embedder = Embedder(EVIL, None, None)
    shown = [
        overview_html([wrong]),
        overview_html([wrong, done]),
        overview_html([done]),
        verdict_html(done),
        said(EVIL),
        verifiers_html([Verifier(embedder, 0.5, True)]),
    ]
    for text in shown:
        seen = parsed(text)
        assert EVIL in seen.text
        assert "img" not in [tag for tag, _ in seen.tags]
        assert not any(name.startswith("on") for _, own in seen.tags for name in own)


def test_verdicts_are_shown_per_face_and_recogniser():
    faces = (
        report(verdict(0.123, "first"), verdict(0.5, "second", fitted=False)),
        report(verdict(-0.2, "first"), verdict(0.499, "second", fitted=False), psnr=np.inf),
    )
    outcome = UploadOutcome("a.png", None, Path("a.png"), (), faces)
    rows = re.findall("<tr>(.*?)</tr>", verdict_html(outcome))[1:]
    assert [parsed(row).text for row in rows] == [
        "12.6(40.0 dB)firstfooled0.123 < 0.5",
        "second (judge)not fooled0.500 ≥ 0.5",
        "2nonefirstfooled-0.200 < 0.5",
        "second (judge)fooled0.499 < 0.5",
    ]
    assert verdict_html(UploadOutcome("a.png", "No face.")) == ""


FITTED, JUDGE = verdict(0.1), verdict(0.1, "two", fitted=False)
KNOWN, JUDGE_KNOWN = verdict(0.6), verdict(0.6, "two", fitted=False)


@pytest.mark.parametrize(
    ("faces", "status", "kind", "text"),
    [
        ([[FITTED, JUDGE]], PROTECTED, "right", "matched by no surrogate and no judge."),
        ([[FITTED], [FITTED]], UNJUDGED, "open", "by no surrogate; there was no judge."),
        (
            [[FITTED, JUDGE], [FITTED, JUDGE_KNOWN]],
            NOT_PROTECTED,
            "wrong",
            "not protected. 2 faces found, of which a judge still matches 1.",
        ),
        (
            [[KNOWN, JUDGE], [KNOWN, JUDGE_KNOWN], [FITTED, JUDGE]],
            NOT_PROTECTED,
            "wrong",
            "not protected. 3 faces found, of which a recogniser still matches 2.",
        ),
        ([], NOT_PROTECTED, "wrong", "not protected. 0 faces found"),
    ],
)
def test_only_judges_make_a_photo_protected(faces, status, kind, text):
    reports = tuple(report(*own) for own in faces)
    outcome = UploadOutcome("a.png", None, Path("a.png"), (), reports)
    assert outcome.status == status
    ((tag, attributes),) = parsed(overview_html([outcome])).tags
    assert (tag, attributes["class"]) == ("p", f"said {kind}")
    assert text in parsed(overview_html([outcome])).text


def test_totals_tell_judged_and_unjudged_apart():
    made = {
        name: UploadOutcome(name, None, Path(name), (), (report(*verdicts),))
        for name, verdicts in (("a", (FITTED, JUDGE)), ("b", (FITTED,)), ("c", (KNOWN,)))
    }
    gone = UploadOutcome("d", "No face was found in d.")
    judged = "1 of {} photos protected: no surrogate and no judge matches a face"
    unjudged = "1 of {} photos unjudged: the faces found fool every surrogate"
    for names, heads, kind in (
        ("ab", [judged, unjudged], "open"),
        ("ac", [judged], "wrong"),
        ("bc", [unjudged], "wrong"),
        ("abc", [judged, unjudged], "wrong"),
    ):
        shown = parsed(overview_html([made[name] for name in names]))
        assert shown.tags[0][1]["class"] == f"said {kind}"
        assert shown.text.startswith(heads[0].format(len(names)))
        assert [head.format(len(names)) in shown.text for head in (judged, unjudged)] == [
            head in heads for head in (judged, unjudged)
        ]
        assert ("c: not protected" in shown.text) is ("c" in names)
    text = parsed(overview_html([gone, gone])).text
    assert text.startswith("0 of 2 photos protected") and text.count("No face was found") == 2


def test_words_on_strengths_and_recognisers():
    before = np.zeros(10000)
    after = before + 3 * np.random.default_rng(0).choice([-1.0, 1.0], 10000)
    psnr = -10 * np.log10(np.mean((after - before) ** 2) / 255**2)
    np.testing.assert_allclose(rms_levels(psnr), 3, rtol=1e-12)
    assert strength_label("medium").startswith("medium: 2.6 levels of 255")
    assert "PSNR 40 dB" in strength_label("medium")
    known = webapp.protector_of(webapp.WebappSettings(recogniser=ONE, threshold="0.9"))
    assert "--judge" in verifiers_html(known.verifiers)
    both = webapp.protector_of(
        webapp.WebappSettings(recogniser=ONE, judge=TWO, threshold="0.9")
    )
    text = parsed(verifiers_html(both.verifiers)).text
    assert "--judge" not in text
    assert f"{ONE}: surrogate" in text
    assert f"{TWO}: judge" in text


def test_what_was_made_is_forgotten(studio, tmp_path):
    own, uploads = tmp_path / "own", tmp_path / "uploads"
    own.mkdir()
    uploads.mkdir()
    paths = [photo(uploads / f"{n}.png", n) for n in range(2)]
    *_, (_, done) = worked(paths, "medium", studio, own)
    assert len(list(own.iterdir())) == 2
    forget([done[0], UploadOutcome("b.png", "No face.")])
    assert list(own.iterdir()) == [done[1].output.parents[1]]
    forget(done)
    assert list(own.iterdir()) == []
    assert sorted(uploads.iterdir()) == paths
