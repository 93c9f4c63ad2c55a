"""One photo from bytes to bytes: how strong, how often, who judges what."""

import io
import math

import jax
import numpy as np
import pytest
from PIL import Image

from deid_jax.errors import InputError
from deid_jax.photos import Face, FaceVerdict, Strength, face_attack, files
from deid_jax.photos import protector as protecting
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.verifiers import comparable_of, crops_of
from tests.experiments import protect_helpers
from tests.experiments.protect_helpers import (
    BLIND,
    FIRST,
    KEY,
    NEVER,
    SECOND,
    may_change,
    picture,
    protector,
    reach,
    ssim_of,
    verifier,
    views_of,
)
from tests.photos.bad_files import encoded
from tests.photos.photo_bytes import decode

LEFT, RIGHT = Face((12.0, 10.0, 50.0, 50.0)), Face((98.0, 20.0, 40.0, 40.0))


def protect(photo, faces, *verifiers, **options):
    return protector(*verifiers, **options).protect_photo(photo, faces, "a.png")


def parsed(pixels, kind="PNG", **options):
    return files.parse_photo(encoded(pixels, kind, **options), "photo")


@pytest.fixture(scope="module")
def wide():
    """A photo with room for two faces."""
    return parsed(picture(3, size=(160, 90)))


def psnr_of(before, after, face):
    return protect_helpers.psnr_of(before, after, crop_matrix(face))


def test_the_smallest_face_keeps_its_budget(wide):
    done = protect(wide, [Face((12.0, 10.0, 2.0, 2.0))], verifier())
    assert done.faces[0].psnr >= done.faces[0].strength_db


@pytest.mark.parametrize(
    ("psnrs", "num_steps", "message"),
    [
        ((), 3, r"psnrs must be numbers, each below the last, got \(\)"),
        ((40.0, 40.0), 3, "psnrs must be numbers"),
        ((40.0, 41.0), 3, "psnrs must be numbers"),
        ((math.inf, 41.0), 3, "psnrs must be numbers"),
        ((math.nan,), 3, "psnrs must be numbers"),
        ((40.0,), 0, "num_steps must be"),
    ],
)
def test_strengths_must_fall_in_decibels(psnrs, num_steps, message):
    with pytest.raises(InputError, match=message):
        Strength(psnrs, num_steps)


def test_somebody_to_fool_must_be_given():
    with pytest.raises(InputError, match="verifiers must have one or more surrogates"):
        protector(verifier(is_surrogate=False))


def test_blind_recognisers_are_refused(wide):
    with pytest.raises(InputError, match="recogniser zero: embeddings must not be 0"):
        protect(wide, [LEFT], verifier(), verifier(BLIND, is_surrogate=False))
    beside = Face((500.0, 500.0, 30.0, 30.0))
    with pytest.raises(InputError, match="recogniser one: embeddings must not be 0"):
        protect(wide, [beside])


@pytest.mark.slow
def test_what_is_returned_is_what_the_file_shows(wide):
    before = wide.pixels.copy()
    done = protect(wide, [LEFT, RIGHT])
    np.testing.assert_array_equal(wide.pixels, before)
    with Image.open(io.BytesIO(done.data)) as image:
        np.testing.assert_array_equal(np.asarray(image), done.pixels)
    assert done.quality is None
    changed = np.any(done.pixels != before, axis=2)
    reaches = reach(LEFT.box), reach(RIGHT.box)
    assert not np.any(changed & ~may_change(changed.shape, *reaches))
    for face, report in zip((LEFT, RIGHT), done.faces, strict=True):
        assert changed[may_change(changed.shape, reach(face.box))].any()
        assert report.box == face.box
        assert report.psnr == pytest.approx(psnr_of(before, done.pixels, face), abs=1e-6)
        assert report.psnr >= report.strength_db
        (own,) = comparable_of(FIRST, crops_of(before, [face]))
        wanted = ssim_of(before, done.pixels, crop_matrix(face))
        assert report.ssim == pytest.approx(wanted, abs=1e-4)
        (verdict,) = report.verdicts
        cosine = max(comparable_of(FIRST, views_of(done.pixels, face)) @ own)
        assert verdict.similarity == pytest.approx(cosine, abs=1e-5)
        assert report.status == ("unjudged" if cosine < 0.9 else "not protected")
    assert done.status == min(report.status for report in done.faces)


@pytest.fixture
def script(monkeypatch):
    """Verdicts as they are told, and what was tried: (dB, steps, goes on) of each face."""
    rounds, tried = [], []
    perturbations = face_attack.perturbations

    def spied(verifiers, canvases, references, initial, **options):
        kind = (options["psnr"], options["num_steps"], initial is not None)
        tried.append([kind] * len(canvases.images))
        return perturbations(verifiers, canvases, references, initial, **options)

    def judged(pixels, faces, *rest):
        cosines = [0.0 if letter == "y" else 1.0 for letter in rounds.pop(0)]
        return [(FaceVerdict("one", True, c, 0.5, 0.5 - c, c < 0.5),) for c in cosines]

    monkeypatch.setattr(face_attack, "perturbations", spied)
    monkeypatch.setattr(protecting, "judge", judged)
    return rounds, tried


# What the judges say of both faces in each round, "y" is fooled; the last tries' dB; rounds.
ROUNDS = {
    "both at once": (["yy"], (42, 42), [["a", "a"]]),
    "one later": (["yn", "yn", "yy"], (42, 38), [["a", "a"], ["b"], ["c"]]),
    "known again": (["yn", "ny", "yy"], (40, 40), [["a", "a"], ["b"], ["b"]]),
    "both to the cap": (["nn"] * 3, (38, 38), [["a", "a"], ["b", "b"], ["c", "c"]]),
    "apart": (
        ["yn", "yn", "nn", "nn", "yn"],
        (38, 38),
        [["a", "a"], ["b"], ["c"], ["b"], ["c"]],
    ),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_each_face_rises_by_itself_until_it_is_fooled_or_at_the_cap(wide, script, name):
    told, last, wanted = ROUNDS[name]
    rounds, tried = script
    rounds += told
    done = protect(wide, [LEFT, RIGHT])
    assert rounds == []
    assert tuple(report.strength_db for report in done.faces) == last
    statuses = {"y": "unjudged", "n": "not protected"}
    assert [report.status for report in done.faces] == [statuses[one] for one in told[-1]]
    # The first try begins with nothing; the others go on from it, with half as many steps.
    kinds = {(42.0, 2, False): "a", (40.0, 1, True): "b", (38.0, 1, True): "c"}
    assert [[kinds[one] for one in own] for own in tried] == wanted
    for report in done.faces:
        assert report.strength_db <= report.psnr < report.strength_db + 0.6


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_overlapping_faces_keep_to_the_cap_together(kind):
    """Each would take all of it from the pixels that they share."""
    pixels = picture(4, size=(120, 110))
    found = parsed(pixels, kind, quality=95)
    faces = [Face((20.0 + 8 * n, 15.0, 55.0, 55.0)) for n in range(3)]
    given = verifier(NEVER, is_surrogate=False), verifier()
    done = protect(found, faces, *given, strength=Strength((38.0,), 2))
    for face, report in zip(faces, done.faces, strict=True):
        assert report.status == "not protected"
        psnr = psnr_of(found.pixels, done.pixels, face)
        assert psnr >= 38.0 and report.psnr == pytest.approx(psnr, abs=1e-6)


@pytest.mark.parametrize("contrast", [5, 10])
@pytest.mark.slow
def test_quality_is_the_photos_own_unless_encoding_takes_too_much(contrast):
    """A sixteenth of what the cap of 38 dB leaves: 50.04 dB."""
    pixels = np.full((100, 110, 3), 120, np.uint8)
    noise = np.random.default_rng(0).normal(0, contrast, pixels.shape)
    pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    found = parsed(pixels, "JPEG", quality=75, subsampling=0)
    face = Face((20.0, 15.0, 60.0, 60.0))
    again = encoded(found.pixels, "JPEG", quality=90, subsampling=0)
    with Image.open(io.BytesIO(again)) as image:
        psnr = psnr_of(found.pixels, np.asarray(image), face)
    enough = bool(psnr >= 38 + 10 * math.log10(16))
    done = protect(found, [face], verifier(NEVER))
    assert done.quality == 90 if enough else done.quality > 90
    assert enough is (contrast < 8)


def test_of_tries_that_all_cost_too_much_the_least_is_returned(monkeypatch):
    """60 dB are less than JPEG costs at any quality; the last try is not the best."""
    photo = parsed(picture(3, size=(120, 110)), "JPEG", quality=90)
    encoder = protecting._Encoder(photo, [LEFT], 60.0)
    perturbation = np.random.default_rng(0).normal(0, 0.02, (192, 192, 3)).astype(np.float32)
    tries, encode = [], files.encode_photo

    def spied(*given, **options):
        tries.append(encode(*given, **options))
        return tries[-1]

    monkeypatch.setattr(files, "encode_photo", spied)
    data, pixels = encoder.encode([perturbation], np.array([60.0]), False)
    psnrs = [psnr_of(photo.pixels, decode(one), LEFT) for one in tries]
    assert 60 > max(psnrs) > psnrs[-1]
    assert data == tries[int(np.argmax(psnrs))]
    np.testing.assert_array_equal(pixels, decode(data))


def test_a_judge_does_not_steer(wide):
    """One that is never fooled leaves the first budget that fools the surrogate."""
    alone = protect(wide, [LEFT], verifier())
    judged = protect(wide, [LEFT], verifier(), verifier(NEVER, is_surrogate=False))
    assert judged.data == alone.data
    assert judged.faces[0].strength_db == alone.faces[0].strength_db > 38
    assert (alone.status, judged.status) == ("unjudged", "not protected")


def test_grey_in_three_channels_stays_grey():
    pixels = np.repeat(picture(5)[..., :1], 3, axis=2)
    for kind, options in (("PNG", {}), ("WEBP", {"quality": 90})):
        found = parsed(pixels, kind, **options)
        done = protect(found, [LEFT])
        spread = done.pixels.max(axis=2).astype(int) - done.pixels.min(axis=2)
        assert spread.max() <= (1 if kind == "WEBP" else 0)
        assert np.any(done.pixels != found.pixels)


def test_grey_but_for_a_level_changes_alike_in_all_channels():
    """As lossy files of grey are; on the whole they stay as grey as they were."""
    pixels = np.repeat(picture(5)[..., :1], 3, axis=2)
    pixels[::3, ::2, 0] += 1
    found = parsed(pixels)
    done = protect(found, [LEFT])
    changes = done.pixels.astype(int) - pixels
    assert np.any(changes)
    for channel in (1, 2):
        np.testing.assert_array_equal(changes[..., channel], changes[..., 0])


def test_known_persons_photos_stand_for_the_faces_that_are_theirs(wide):
    """Of two faces one is the person's, from whose photos it is to be kept apart, too."""
    crops = crops_of(wide.pixels, [LEFT, RIGHT])
    own, others = comparable_of(FIRST, crops), comparable_of(SECOND, crops)
    noise = np.random.default_rng(0).normal(0, 0.05, own[0].shape)
    person = (own[0] + noise) / np.linalg.norm(own[0] + noise)
    assert own[0] @ person > 0.9 > own[1] @ person
    given = verifier(gallery=person[None]), verifier(SECOND, is_surrogate=False)
    done = protect(wide, [LEFT, RIGHT], *given, strength=Strength((40.0,), 2))
    views = [views_of(done.pixels, face) for face in (LEFT, RIGHT)]
    ours = [comparable_of(FIRST, own) for own in views]
    theirs = [comparable_of(SECOND, own) for own in views]
    wanted = [
        [max(*(ours[0] @ person), *(ours[0] @ own[0])), max(theirs[0] @ others[0])],
        [max(ours[1] @ own[1]), max(theirs[1] @ others[1])],
    ]
    got = [[verdict.similarity for verdict in report.verdicts] for report in done.faces]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert abs(max(ours[0] @ person) - max(ours[0] @ own[0])) > 1e-4


def test_judges_look_for_the_face_in_the_written_photo(wide):
    seen = []

    def detector(pixels):
        seen.append(pixels)
        return [LEFT._replace(box=(15.0, 12.0, 50.0, 50.0))]

    done = protect(wide, [LEFT], detector=detector)
    np.testing.assert_array_equal(seen[-1], done.pixels)
    (own,) = comparable_of(FIRST, crops_of(wide.pixels, [LEFT]))
    wanted = max(comparable_of(FIRST, views_of(done.pixels, LEFT, *detector(None))) @ own)
    assert done.faces[0].verdicts[0].similarity == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("box", [(-20, -15, 60, 60), (-40, 10, 200, 200)])
def test_faces_that_reach_over_the_border(box):
    found = parsed(picture(6))
    face = Face(tuple(map(float, box)))
    done = protect(found, [face])
    changed = np.any(done.pixels != found.pixels, axis=2)
    assert changed.any()
    assert not np.any(changed & ~may_change(changed.shape, reach(box)))
    assert done.faces[0].psnr >= done.faces[0].strength_db


def test_key_decides(wide):
    def data(key):
        return protect(wide, [LEFT], key=key).data

    assert data(KEY) == data(KEY)
    assert data(KEY) != data(jax.random.key(1))
