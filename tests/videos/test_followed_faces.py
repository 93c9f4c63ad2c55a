"""Faces of a video: whose places are changed, who judges them, and what is known of them."""

import numpy as np
import pytest
from PIL import Image

from deid_jax.photos import Face, Strength, face_attack
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.face_search import load_search
from deid_jax.videos import video
from deid_jax.videos.followed_faces import FollowedFace, VideoAttack, VideoJudge
from deid_jax.videos.tracks import Track
from tests.experiments.protect_helpers import (
    FIRST,
    KEY,
    may_change,
    protector,
    reach,
    reach_of,
    seen,
    verifier,
)
from tests.videos.video_helpers import (
    HEIGHT,
    NUMBER,
    QUICK,
    SIZE,
    STEPS,
    WIDTH,
    Told,
    boxes,
    embedding,
    face_frame,
    film,
    planes,
    psnrs_of,
    rgb,
    run,
    span,
    still,
    vectors_of,
    way,
    write,
)

# --- Where is changed ---


@pytest.mark.slow
def test_two_faces_of_which_one_goes(tmp_path, monkeypatch):
    """Beyond its last look only frames in which somebody knows it are its own."""
    left, right = (14, 40, SIZE, SIZE), (80, 34, SIZE, SIZE)

    def places(number):
        return [(1, left), (2, right)] if number < 8 else [(2, right)]

    source = film(tmp_path / "in.mp4", places)
    monkeypatch.setattr(video, "QUALITY", 0)
    detector = Told(lambda number: [box for _, box in places(number)])
    report = run(source, tmp_path / "out.mp4", detector=detector)
    assert report.status == "unjudged" and report.num_face_frames == NUMBER
    first, second = report.faces
    assert (first.box, second.box) == (left, right)
    assert span(first) == (0, 7, 8)
    assert span(second) == (0, 15, 16)
    errors = planes(tmp_path / "out.mp4")[0] != planes(source)[0]
    own = [may_change((HEIGHT, WIDTH), reach(box), block=2) for box in (left, right)]
    assert not (own[0] & own[1]).any()
    changed = [[one[inside].any() for inside in own] for one in errors]
    assert changed == [[number < 8, True] for number in range(NUMBER)]
    assert not errors[:, ~(own[0] | own[1])].any()


@pytest.mark.slow
def test_looks_that_miss_the_face_leave_no_gap(source, tmp_path, monkeypatch):
    """Nor do those that find it beside its place move what lies between them."""
    monkeypatch.setattr(video, "QUALITY", 0)
    detector = Told(lambda number: boxes(number) if number != 5 else [])
    report = run(source, tmp_path / "out.mp4", detector=detector)
    assert report.status == "unjudged"
    assert span(report.faces[0]) == (0, NUMBER - 1, NUMBER)
    errors = planes(tmp_path / "out.mp4")[0] != planes(source)[0]
    for number, one in enumerate(errors):
        allowed = may_change((HEIGHT, WIDTH), reach(way(number)), block=2)
        assert one[allowed].mean() > 0.3 and not one[~allowed].any()


@pytest.mark.slow
def test_grey_videos_stay_grey(tmp_path, monkeypatch):
    frames = [face_frame(number, [(1, way(number))]) for number in range(NUMBER)]
    grey = [np.repeat(one.mean(2, keepdims=True).astype(np.uint8), 3, 2) for one in frames]
    source = write(tmp_path / "in.mp4", grey)
    monkeypatch.setattr(video, "QUALITY", 0)
    assert run(source, tmp_path / "out.mp4").written
    luma, chroma = planes(tmp_path / "out.mp4")
    assert np.all(chroma == 128) and np.all(planes(source)[1] == 128)
    assert np.all(np.any(luma != planes(source)[0], axis=(1, 2)))


def test_turned_videos_are_changed_upright(tmp_path):
    frames = [np.rot90(face_frame(n, [(1, way(n))])).copy() for n in range(NUMBER)]
    matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]
    source = write(
        tmp_path / "in.mp4", frames, setup=lambda out, one: one.set_display_matrix(matrix)
    )
    report = run(source, tmp_path / "out.mp4")
    assert report.status == "unjudged" and (report.width, report.height) == (WIDTH, HEIGHT)
    upright = [np.rot90(rgb(path), -1, (1, 2)) for path in (source, tmp_path / "out.mp4")]
    errors = np.abs(upright[1].astype(int) - upright[0]).sum(3)
    for number, one in enumerate(errors):
        allowed = may_change((HEIGHT, WIDTH), reach(way(number)))
        assert one[allowed].mean() > 2 * one[~allowed].mean()
    psnrs = psnrs_of(*upright, [way(number) for number in range(NUMBER)])
    assert report.faces[0].psnr == pytest.approx(min(psnrs), abs=0.02)


@pytest.mark.slow
def test_face_that_a_detector_finds(tmp_path, monkeypatch):
    """The astronaut of scikit-image comes nearer and goes by; the real detector looks."""
    from skimage import data

    whole, number, size = Image.fromarray(data.astronaut()), 18, (208, 176)
    # Left, upper end and width of what each frame shows.
    views = [(110 + 2 * n, 20 + n, 220 - 2 * n) for n in range(number)]
    shown = [
        whole.resize(size, Image.Resampling.BICUBIC, (x, y, x + w, y + w * size[1] / size[0]))
        for x, y, w in views
    ]
    source = write(tmp_path / "in.mp4", map(np.array, shown))
    monkeypatch.setattr(video, "QUALITY", 0)
    report = run(
        source,
        tmp_path / "out.mp4",
        detector=load_search(),
        strength=Strength((40.0, 38.0), 4),
    )
    (track,) = report.faces
    assert span(track) == (0, number - 1, number)
    assert report.num_face_frames == report.num_frames == number
    (found,) = load_search()(data.astronaut())
    errors = planes(tmp_path / "out.mp4")[0] != planes(source)[0]
    for (left, top, width), error in zip(views, errors, strict=True):
        scale = size[0] / width
        low_x, low_y, high_x, high_y = reach_of(crop_matrix(found))
        place = (low_x - left, low_y - top, high_x - left, high_y - top)
        x, y, right, bottom = scale * np.array(place)
        # Landmarks tremble.
        allowed = may_change(errors.shape[1:], (x, y, right, bottom), margin=8)
        assert not error[~allowed].any()
        # Eileen Collins' eyes and mouth.
        changed = []
        for across, down in ((206, 105), (243, 105), (226, 145)):
            column, row = round(scale * (across - left)), round(scale * (down - top))
            changed.append(error[row - 4 : row + 4, column - 4 : column + 4].mean())
        assert np.mean(changed) > 0.1


# --- Who judges ---


def followed(box, looks, references, num_frames=1000, reach=0, verifiers=None):
    track = Track()
    for number in looks:
        track.add(number, Face(tuple(map(float, box))))
    track.features.append(references)
    track.extend(reach, num_frames)
    return FollowedFace(track, verifiers or [verifier()] * len(references), 0)


def test_frames_that_only_a_judge_recognises_count_but_are_not_attacked():
    """Those in which nobody recognises the face are left out."""
    whole, absent = face_frame(0, [(1, still(0))]), face_frame(0)
    faint = (0.75 * whole + 0.25 * face_frame(0, [(2, still(0))])).astype(np.uint8)
    known = embedding(whole, still(0), 1)
    cosine = embedding(faint, still(0), 1) @ known
    assert embedding(absent, still(0), 1) @ known < cosine - 0.1 < cosine + 0.02 < 1
    given = verifier(threshold=cosine + 0.01), verifier(FIRST, cosine - 0.01, False)
    one = followed(still(0), (5, 10), [known, known], reach=4, verifiers=given)
    frames = [faint if n in (3, 4) else whole if 5 <= n <= 10 else absent for n in range(20)]
    attack = VideoAttack(protector(*given), KEY, [one])
    outside = [n for n in range(20) if not 5 <= n <= 10]
    assert all(attack.perturb(n, frames[n]) is None for n in outside)
    judge = VideoJudge(given, lambda pixels: [], [one], 5)
    for number, pixels in enumerate(frames):
        judge.see(number, pixels, pixels)
    judge.finish()
    assert (one.first, one.last, one.num_frames) == (3, 10, 8)
    assert judge.face_frames == set(range(3, 11))
    assert one.fooled.tolist() == [2, 0]
    assert one.similarities == pytest.approx([1.0, 1.0], abs=1e-3)
    # Nothing was changed.
    assert one.lowest_psnr == 100.0 and one.sum_psnr == 800.0


@pytest.mark.parametrize("crop", range(7))
def test_frames_that_the_detector_sees_are_judged_by_the_crops_of_photos(crop):
    """The others by the crop that was perturbed alone."""
    pixels, face = face_frame(0, [(1, still(0))]), Face(tuple(map(float, still(0))))
    vectors = seen(pixels, face)
    assert len(vectors) == 7
    cosines = vectors @ vectors[crop]
    for number, wanted in ((5, 1.0), (6, cosines[0])):
        one = followed(still(0), (5, 10), [vectors[crop]])
        judge = VideoJudge([verifier()], lambda pixels: [face], [one], 5)
        judge.see(number, pixels, pixels)
        judge.finish()
        assert one.similarities == pytest.approx([wanted], abs=1e-3)


def test_channels_that_differ_by_one_level_are_grey(monkeypatch):
    """As lossy codecs leave them, and as in photos: no channel is changed by itself."""
    generator = np.random.default_rng(0)

    def noise(verifiers, canvases, *given, **options):
        return generator.normal(0, 0.01, canvases.images.shape).astype(np.float32)

    monkeypatch.setattr(face_attack, "perturbations", noise)
    grey = face_frame(0, [(1, still(0))]).mean(2, keepdims=True).astype(np.uint8)
    for most in (1, 2):
        pixels = grey + generator.integers(0, most + 1, (HEIGHT, WIDTH, 3), np.uint8)
        one = followed(still(0), (0,), [embedding(pixels, still(0), 1)])
        change = VideoAttack(protector(), KEY, [one]).perturb(0, pixels) - pixels
        assert change.any()
        assert np.any(np.ptp(change.view(np.int8), axis=2)) == (most == 2)


def test_recognisers_are_left_behind_by_a_margin():
    """Who is fooled by little only is tried more."""
    pixels = face_frame(0, [(1, still(0))])
    known = embedding(pixels, still(0), 1)

    def changed(threshold, margin):
        one = followed(still(0), (0,), [known])
        attack = VideoAttack(
            protector(verifier(threshold=threshold), strength=QUICK), KEY, [one]
        )
        attack.begin(margin)
        after = attack.perturb(0, pixels)
        return embedding(after, still(0), 1) @ known, one.level

    least, level = changed(0.99, 0.0)
    assert least < 0.9 and level == 0
    cosine, level = changed(least + 0.05, 0.0)
    assert cosine < least + 0.05 and level == 0
    cosine, level = changed(least + 0.05, 0.2)
    assert level > 0
    assert cosine < least - 0.05


def test_face_that_is_matched_in_the_file_gets_more_strength_if_there_is_more(monkeypatch):
    tried = []

    def nothing(verifiers, canvases, *given, psnr, num_steps, **options):
        tried.append((psnr, num_steps))
        return np.zeros(canvases.images.shape, np.float32)

    monkeypatch.setattr(face_attack, "perturbations", nothing)
    pixels = face_frame(0, [(1, still(0))])
    for psnrs in ((42.0,), (42.0, 40.0)):
        one = followed(still(0), (0,), [embedding(pixels, still(0), 1)])
        # The similarity is 1, below the threshold by the margin; in the file it is not.
        given = protector(verifier(threshold=1.15), strength=Strength(psnrs, STEPS))
        attack = VideoAttack(given, KEY, [one])
        attack.begin(0.1)
        attack.perturb(0, pixels)
        assert not attack.may_improve()
        one.judged(0, np.array([1.2]), np.array([1.15]), 40.0)
        assert attack.may_improve() is (len(psnrs) > 1)
    attack.begin(0.1, last=True)
    attack.perturb(0, pixels)
    one.judged(0, np.array([1.2]), np.array([1.15]), 40.0)
    assert one.matched and not attack.may_improve()
    assert tried == [(42.0, STEPS), (42.0, STEPS), (40.0, STEPS)]


# --- What is known ---


@pytest.mark.slow
def test_other_photos_of_a_person_count_too(source, tmp_path):
    """The highest likeness to the face itself, each photo and their mean, in NumPy."""
    before = rgb(source)
    looks = [embedding(before[n], way(n), 1) for n in range(0, NUMBER, 5)]
    own = np.sum(looks, axis=0) / np.linalg.norm(np.sum(looks, axis=0))
    generator = np.random.default_rng(0)
    photos = own + generator.normal(0, 0.08, (4, len(own)))
    photos /= np.linalg.norm(photos, axis=1, keepdims=True)
    middle = photos.sum(0) / np.linalg.norm(photos.sum(0))
    assert own @ middle > 0.9
    stranger = generator.normal(size=(3, len(own)))
    stranger /= np.linalg.norm(stranger, axis=1, keepdims=True)
    for given, known in (
        (photos, np.stack([own, middle, *photos])),
        (stranger, own[None]),
        (None, own[None]),
    ):
        report = run(source, tmp_path / "out.mp4", verifier(gallery=given))
        after = rgb(tmp_path / "out.mp4")
        cosines = [(vectors_of(after[n], n, way(n), 1) @ known.T).max() for n in range(NUMBER)]
        (one,) = report.faces[0].verdicts
        assert one.similarity == pytest.approx(max(cosines), abs=2e-3)
        assert one.fooled_frames == np.mean(np.array(cosines) < 0.9)
