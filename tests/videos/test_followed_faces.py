"""Faces of a video: whose places are changed, who judges them, and what is known of them."""

import numpy as np
import pytest
from PIL import Image

from deid_jax.photos import Face, Strength
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.face_search import load_search
from deid_jax.videos import video
from deid_jax.videos.followed_faces import FollowedFace, VideoAttack, VideoJudge
from deid_jax.videos.tracks import Track
from tests.experiments.protect_helpers import (
    KEY,
    may_change,
    protector,
    reach,
    reach_of,
    verifier,
)
from tests.videos.video_helpers import (
    HEIGHT,
    NUMBER,
    QUICK,
    SIZE,
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


def followed(box, looks, references, num_frames=1000, reach=0):
    track = Track()
    for number in looks:
        track.add(number, Face(tuple(map(float, box))))
    track.features.append(references)
    track.extend(reach, num_frames)
    return FollowedFace(track, [verifier()] * len(references), 0)


def test_frames_without_the_face_are_not_judged():
    pixels = face_frame(0, [(1, still(0))])
    one = followed(still(0), (5, 10), [embedding(pixels, still(0), 1)], reach=4)
    one.idle.add(2)
    judge = VideoJudge([verifier()], lambda pixels: [], [one], 5)
    for number in range(20):
        judge.see(number, pixels, pixels)
    judge.finish()
    assert (one.first, one.last, one.num_frames) == (1, 14, 13)
    assert judge.num_face_frames == 13
    assert one.fooled.tolist() == [0] and one.similarities == pytest.approx([1.0], abs=1e-3)
    # Nothing was changed.
    assert one.lowest_psnr == 100.0 and one.sum_psnr == 1300.0


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
        cosines = [(known @ embedding(after[n], way(n), 1)).max() for n in range(NUMBER)]
        (one,) = report.faces[0].verdicts
        assert one.similarity == pytest.approx(max(cosines), abs=2e-3)
        assert one.fooled_frames == np.mean(np.array(cosines) < 0.9)
