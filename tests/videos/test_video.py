"""Videos from file to file: who is changed where, how strongly, and what the report says."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.photos import Face, Strength, face_attack
from deid_jax.videos import VideoReport, video
from deid_jax.videos.video import EVERY
from tests.experiments.protect_helpers import (
    BLIND,
    KEY,
    NEVER,
    SECOND,
    may_change,
    reach,
    verifier,
)
from tests.videos.video_helpers import (
    HEIGHT,
    NEXT,
    NUMBER,
    STEPS,
    WIDTH,
    Told,
    assert_same_times_and_sound,
    boxes,
    embedding,
    film,
    number_of,
    packets,
    planes,
    psnrs_of,
    rgb,
    run,
    span,
    still,
    vectors_of,
    way,
)


@pytest.fixture
def tried(monkeypatch):
    """(dB, steps, the change begun with, the changes found) of every call of the attack."""
    found = []
    perturbations = face_attack.perturbations

    def spied(*given, **options):
        changes = perturbations(*given, **options)
        found.append((options["psnr"], options["num_steps"], given[3], changes))
        return changes

    monkeypatch.setattr(face_attack, "perturbations", spied)
    return found


@pytest.fixture
def pretended(monkeypatch):
    """As `tried`, of an attack that finds but noise, so that nothing is compiled."""
    found = []

    def noise(verifiers, canvases, references, initial, *, psnr, keys, num_steps):
        generator = np.random.default_rng(len(found))
        changes = generator.normal(0, 0.01, canvases.images.shape).astype(np.float32)
        found.append((psnr, num_steps, initial, changes))
        return changes

    monkeypatch.setattr(face_attack, "perturbations", noise)
    return found


@pytest.mark.slow
def test_report_is_what_the_two_files_show(source, tmp_path):
    """In every frame; also to one who is not known to the attack and fooled by some alone."""
    before = rgb(source)
    places = [way(number) for number in range(NUMBER)]
    likeness = {}

    def judged(threshold):
        target = tmp_path / "out.mp4"
        given = verifier(), verifier(SECOND, threshold, False)
        report = run(source, target, *given, strength=Strength((42.0,), STEPS))
        after = rgb(target)
        for seed in (1, 2):
            looks = [embedding(before[n], way(n), seed) for n in range(0, NUMBER, EVERY)]
            known = np.mean(looks, axis=0)
            known = known / np.linalg.norm(known)
            likeness[seed] = np.array(
                [(vectors_of(after[n], n, way(n), seed) @ known).max() for n in range(NUMBER)]
            )
        (track,) = report.faces
        assert span(track) == (0, NUMBER - 1, NUMBER)
        assert track.box == way(0)
        psnrs = psnrs_of(before, after, places)
        assert track.psnr == pytest.approx(min(psnrs), abs=0.02)
        assert track.mean_psnr == pytest.approx(np.mean(psnrs), abs=0.02)
        assert (report.width, report.height) == (WIDTH, HEIGHT)
        assert report.written and report.num_frames == report.num_face_frames == NUMBER
        for one, seed, least in zip(track.verdicts, (1, 2), (0.9, threshold), strict=True):
            assert (one.fitted, one.threshold) == (seed == 1, least)
            assert one.recogniser == {1: "one", 2: "two"}[seed]
            assert one.similarity == pytest.approx(likeness[seed].max(), abs=2e-3)
        fooled = [one.fooled_frames for one in track.verdicts]
        status = "protected" if all(share == 1 for share in fooled) else "not protected"
        assert report.status == track.status == status
        return fooled

    judged(0.99)
    # Half of the frames, and far from any one's likeness.
    ordered = np.sort(likeness[2])
    gaps = np.diff(ordered)[4:-4]
    place = 4 + int(np.argmax(gaps))
    threshold = float(ordered[place : place + 2].mean())
    first, second = judged(threshold)
    assert first == 1
    # But for those on the edge.
    unsure = (np.abs(likeness[2] - threshold) < 2e-3).mean()
    assert second == pytest.approx((likeness[2] < threshold).mean(), abs=unsure)
    assert 0.1 < second < 0.9 and unsure < 0.2


@pytest.mark.slow
def test_times_and_sound_stay_and_nothing_else_is_left(source, tmp_path):
    target = tmp_path / "deep/er/out.mp4"
    content = source.read_bytes()
    assert run(source, target).status == "unjudged"
    assert_same_times_and_sound(target, source)
    assert packets(source, "audio") != []
    assert [path.name for path in target.parent.iterdir()] == ["out.mp4"]
    assert source.read_bytes() == content


@pytest.mark.usefixtures("pretended")
def test_only_faces_change(source, tmp_path, monkeypatch):
    """Bit for bit, where the encoder loses nothing; else by what encoding does."""
    luma, chroma = planes(source)
    for quality in (0, video.QUALITY):
        monkeypatch.setattr(video, "QUALITY", quality)
        target = tmp_path / f"{quality}.mp4"
        assert run(source, target).written
        new_luma, new_chroma = planes(target)
        for number in range(NUMBER):
            allowed = may_change((HEIGHT, WIDTH), reach(way(number)), block=2)
            assert 0.1 < allowed.mean() < 0.4
            errors = new_luma[number].astype(int) - luma[number]
            colours = new_chroma[number].astype(int) - chroma[number]
            coarse = may_change((HEIGHT, WIDTH), reach(way(number)), block=2, margin=2)
            coarse = coarse[::2, ::2]
            assert np.abs(errors[allowed]).mean() > 0.5
            if quality == 0:
                assert not errors[~allowed].any()
                assert not colours[:, ~coarse].any()
            else:
                assert np.sqrt(np.square(errors[~allowed]).mean()) < 1.5
                assert np.sqrt(np.square(colours[:, ~coarse]).mean()) < 1.5


def test_detector_looks_at_the_source_and_at_what_is_written(source, tmp_path):
    shown = []
    told = Told(boxes)

    def detector(pixels):
        shown.append(pixels.copy())
        return told(pixels)

    target = tmp_path / "out.mp4"
    assert run(source, target, detector=detector).status == "unjudged"
    looks = list(range(0, NUMBER, EVERY))
    assert told.numbers == looks * 2
    wanted = [*rgb(source)[looks], *rgb(target)[looks]]
    for one, other in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


# --- How strong, how often ---


def test_frames_go_on_from_the_last_ones_change(source, tmp_path, tried):
    """With fewer steps than a frame that begins anew has."""
    report = run(source, tmp_path / "out.mp4")
    assert report.status == "unjudged"
    assert [one[:2] for one in tried] == [(42.0, STEPS)] + [(42.0, NEXT)] * (NUMBER - 1)
    assert tried[0][2] is None
    for one, other in itertools.pairwise(tried):
        np.testing.assert_array_equal(other[2], one[3])
    (track,) = report.faces
    assert track.strength_db == 42.0


def assert_known(report, fitted):
    """The last witness is fooled by no frame, and it is said."""
    assert report.written and report.status == "not protected"
    last = report.faces[0].verdicts[-1]
    assert (last.recogniser, last.fitted, last.fooled_frames) == ("constant", fitted, 0)
    assert last.similarity == pytest.approx(1)


@pytest.mark.parametrize("psnrs", [(42.0, 40.0, 38.0), (38.0,)])
def test_one_who_is_never_fooled_is_tried_to_the_cap(source, tmp_path, pretended, psnrs):
    """In each frame first with more steps, then with more strength."""
    report = run(source, tmp_path / "out.mp4", verifier(NEVER), strength=Strength(psnrs, STEPS))
    assert_known(report, True)
    assert len(rgb(tmp_path / "out.mp4")) == NUMBER
    kinds = [(psnr, steps, before is not None) for psnr, steps, before, _ in pretended]
    first = [(psnr, STEPS, place > 0) for place, psnr in enumerate(psnrs)]
    further = [(38.0, NEXT, True), (38.0, STEPS, True)] * (NUMBER - 1)
    # The next round begins where this one ended; one at the cap is the last.
    again = [(38.0, STEPS, False), *further] if len(psnrs) > 1 else []
    assert kinds == [*first, *further, *again]
    assert report.faces[0].strength_db == 38.0


@pytest.mark.slow
def test_judge_who_is_never_fooled_is_told_and_changes_nothing(source, tmp_path, tried):
    """Neither strength nor rounds: the file is that of who was not judged."""
    judge = verifier(NEVER, is_surrogate=False)
    report = run(source, tmp_path / "out.mp4", verifier(), judge)
    assert_known(report, False)
    assert report.faces[0].verdicts[0].fooled and report.faces[0].strength_db == 42.0
    assert len(tried) == NUMBER
    assert run(source, tmp_path / "alone.mp4", verifier()).status == "unjudged"
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "out.mp4").read_bytes()


@pytest.mark.slow
def test_seed_decides_and_repeats(source, tmp_path):
    def written(name, key):
        target = tmp_path / name
        report = run(source, target, key=key)
        return target.read_bytes(), report

    first = written("a.mp4", KEY)
    assert written("b.mp4", KEY) == first
    other, report = written("c.mp4", jax.random.key(1))
    assert other != first[0] and report.status == "unjudged"


# --- Who is followed ---


def test_cut_to_another_face_in_the_same_place(tmp_path, tried):
    """Nobody is judged by somebody else's face, and each begins anew."""
    source = film(tmp_path / "in.mp4", lambda number: [(1 if number < 8 else 2, still(0))])
    before = rgb(source)
    assert embedding(before[0], still(0), 1) @ embedding(before[9], still(0), 1) < 0.8
    report = run(source, tmp_path / "out.mp4", detector=Told(lambda number: [still(0)]))
    assert report.status == "unjudged"
    assert list(map(span, report.faces)) == [(0, 7, 8), (8, 15, 8)]
    assert [steps for _, steps, _, _ in tried] == ([STEPS] + [NEXT] * 7) * 2
    assert [one[2] is None for one in tried] == ([True] + [False] * 7) * 2
    after = rgb(tmp_path / "out.mp4")
    for track, looks in zip(report.faces, ((0, 5), (10, 15)), strict=True):
        known = np.sum([embedding(before[n], still(0), 1) for n in looks], axis=0)
        known = known / np.linalg.norm(known)
        own = range(track.first_frame, track.last_frame + 1)
        highest = max((vectors_of(after[n], n, still(0), 1) @ known).max() for n in own)
        assert track.verdicts[0].similarity == pytest.approx(highest, abs=2e-3)


def test_video_without_a_face_is_not_written(source, tmp_path):
    target = tmp_path / "deep/out.mp4"
    report = run(source, target, detector=Told(lambda number: []))
    assert report == VideoReport(False, WIDTH, HEIGHT, NUMBER)
    assert report.status == "not protected"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("hits", "status"), [(2, "unjudged"), (3, "protected")])
def test_given_box_counts_as_judged_if_most_samples_show_a_face(source, tmp_path, hits, status):
    """Of four samples; where none is found, the score is 0."""

    def detector(pixels):
        number = number_of(pixels)
        return [Face(tuple(map(float, way(number))), None, 9.0 * (number < hits * EVERY))]

    given = verifier(threshold=0.99), verifier(SECOND, 0.999, False)
    report = run(source, tmp_path / "out.mp4", *given, detector=detector)
    assert report.status == status
    assert report.faces[0].score == (9 if status == "protected" else 0)


# --- What goes wrong ---


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "when"),
    [(StopError, "find"), (KeyboardInterrupt, "protect"), (InputError, "judge")],
)
def test_nothing_is_left_where_it_ends_in_the_middle(source, tmp_path, when, kind):
    """What an earlier run wrote stays as it was."""
    target = tmp_path / "out/a.mp4"
    target.parent.mkdir()
    target.write_bytes(b"from an earlier run")

    def update(doing, number, whole):
        if doing == when and number == 9:
            raise kind("stop")

    with pytest.raises(kind):
        run(source, target, progress=update)
    assert [path.name for path in target.parent.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == b"from an earlier run"
    assert run(source, target).status == "unjudged"
    assert [path.name for path in target.parent.iterdir()] == ["a.mp4"]


def test_bad_arguments_and_files_are_refused(source, tmp_path):
    target = tmp_path / "out/a.mp4"
    with pytest.raises(InputError, match=r"a\.avi must end in one of \.mp4, \.m4v, \.mov"):
        run(source, target.with_suffix(".avi"))
    with pytest.raises(InputError, match=r"none\.mp4 cannot be read: No such file"):
        run(tmp_path / "none.mp4", target)
    with pytest.raises(InputError, match="recogniser zero: embeddings must not be 0"):
        run(source, target, verifier(), verifier(BLIND, is_surrogate=False))
    assert list(tmp_path.rglob("*")) == []


def test_container_that_cannot_keep_times_is_refused(tmp_path):
    """Matroska counts milliseconds."""
    places = lambda number: [(1, way(number))]  # noqa: E731
    ticks = np.cumsum([0] + [1001] * (NUMBER - 1)).tolist()
    source = film(tmp_path / "in.mp4", places, ticks=ticks, time_base=Fraction(1, 30_000))
    with pytest.raises(InputError, match="cannot keep its frames' times"):
        run(source, tmp_path / "out/a.mkv")
    assert list((tmp_path / "out").iterdir()) == []
