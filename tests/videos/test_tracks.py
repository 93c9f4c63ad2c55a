"""Tracks, by closed forms and NumPy's own interpolation."""

import numpy as np
import pytest

from deid_jax.photos.faces import Face
from deid_jax.videos.tracks import Track, Tracker


def line(start, speed, width=40.0, growth=0.0):
    """A face whose middle moves by `speed` a frame, and whose width grows by `growth`."""

    def box(number):
        size = width + growth * number
        middle = np.array(start) + number * np.array(speed)
        return (*(middle - size / 2).tolist(), size, 1.2 * size)

    return box


def landmarks_in(box):
    """float64[5, 2] at shares of a box."""
    shares = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    return np.array(box[:2]) + shares * np.array(box[2:])


def follow(places, looks, *, every, num_frames, pointed=False, alike=None, num_kept=1):
    """Tracks of what is found: frame -> [(sign, box)], and each look's tracks."""
    tracker, given = Tracker(every, alike or anybody, num_kept), []
    for number in looks:
        found = places(number)
        faces = [Face(box, landmarks_in(box) if pointed else None) for _, box in found]
        given.append(tracker.see(number, faces, [sign for sign, _ in found]))
    return tracker.tracks(num_frames), given


def anybody(known, new):
    return True


def by_name(known, new):
    return new in known


def assert_follows(track, box, numbers, pointed=False):
    for number in numbers:
        face = track.at(number)
        np.testing.assert_allclose(face.box, box(number), atol=1e-9)
        if pointed:
            np.testing.assert_allclose(face.landmarks, landmarks_in(box(number)), atol=1e-9)
        else:
            assert face.landmarks is None


# --- Steady motion ---


@pytest.mark.parametrize("pointed", [False, True])
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("seed", range(2))
def test_steady_motion_is_followed_exactly(seed, every, pointed):
    """Between looks, and as far beyond them as a track goes."""
    generator = np.random.default_rng(seed)
    box = line(generator.uniform(80, 120, 2), generator.uniform(-1.5, 1.5, 2), 40, 0.2)
    looks = range(10, 41, every)
    (track,), given = follow(
        lambda number: [("a", box(number))], looks, every=every, num_frames=100, pointed=pointed
    )
    assert given == [[track]] * len(looks)
    assert track.frames == list(looks)
    assert (track.first, track.last) == (10 - (every - 1), looks[-1] + every - 1)
    assert_follows(track, box, range(track.first, track.last + 1), pointed)


@pytest.mark.parametrize("seed", range(2))
def test_looks_that_miss_the_face_change_nothing(seed):
    """Any two in a row, so that looks lie unevenly."""
    generator = np.random.default_rng(seed)
    box = line((100, 100), generator.uniform(-0.5, 0.5, 2), 50, -0.1)
    looks = np.arange(0, 101, 5)
    missed = set((15 * generator.permutation(6)[:4] + 5).tolist())
    missed |= {number + 5 for number in sorted(missed)[:2]}

    def places(number):
        return [] if number in missed else [("a", box(number))]

    (track,), _ = follow(places, looks, every=5, num_frames=101)
    assert track.frames == [number for number in looks.tolist() if number not in missed]
    assert_follows(track, box, range(101))


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize(("misses", "number"), [(0, 1), (2, 1), (3, 2)])
def test_patience_is_two_looks(every, misses, number):
    looks = [n * every for n in (0, 1, *range(2 + misses, 5 + misses))]
    box = line((60, 60), (0, 0))
    tracks, _ = follow(lambda n: [("a", box(n))], looks, every=every, num_frames=1000)
    assert len(tracks) == number
    assert [frame for track in tracks for frame in track.frames] == looks
    if number == 2:
        # In between nobody is followed but for what lies next to the looks.
        assert tracks[0].last == every + every - 1
        assert tracks[1].first == looks[2] - every + 1
        assert tracks[0].last < tracks[1].first


def test_tracks_end_with_the_video():
    box = line((60, 60), (1, 0))
    (track,), _ = follow(lambda n: [("a", box(n))], range(0, 21, 5), every=5, num_frames=22)
    assert (track.first, track.last) == (0, 21)
    assert_follows(track, box, range(22))
    assert [number for number in range(22) if track.detected(number)] == list(range(21))
    (track,), _ = follow(lambda n: [("a", box(n))], (3, 8), every=5, num_frames=400)
    assert (track.first, track.last) == (0, 12)
    assert [number for number in range(13) if track.detected(number)] == list(range(3, 9))


# --- Who is who ---


def test_two_who_cross_keep_their_ways():
    """At the look at which they meet only where they came from tells them apart."""
    ways = {"a": line((60, 100), (2, 0)), "b": line((140, 104), (-2, 0.2))}

    def places(number):
        order = "ab" if number % 10 else "ba"
        return [(name, ways[name](number)) for name in order]

    tracks, _ = follow(places, range(0, 51, 5), every=5, num_frames=51, num_kept=11)
    assert len(tracks) == 2
    assert [set(track.features) for track in tracks] == [{"a"}, {"b"}]
    for track, name in zip(tracks, "ab", strict=True):
        assert_follows(track, ways[name], range(51))


def test_two_who_change_places_are_told_apart_by_their_looks():
    """From one look to the next, so that places say the contrary."""

    def places(number):
        left, right = ("a", "b") if number < 15 else ("b", "a")
        return [(left, (10.0, 10.0, 40.0, 40.0)), (right, (30.0, 12.0, 40.0, 40.0))]

    looks = range(0, 31, 5)
    tracks, _ = follow(places, looks, every=5, num_frames=31, alike=by_name, num_kept=9)
    assert [set(track.features) for track in tracks] == [{"a"}, {"b"}]
    assert [len(track.frames) for track in tracks] == [7, 7]
    tracks, _ = follow(places, looks, every=5, num_frames=31, num_kept=9)
    assert [set(track.features) for track in tracks] == [{"a", "b"}, {"a", "b"}]


def test_cut_begins_new_tracks():
    """Somebody else in the same place; and the first one again, while the track is open."""

    def places(number):
        return [("a" if number < 20 or number >= 30 else "b", (10.0, 10.0, 40.0, 40.0))]

    tracks, given = follow(
        places, range(0, 46, 5), every=5, num_frames=46, alike=by_name, num_kept=20
    )
    assert [track.frames for track in tracks] == [
        [0, 5, 10, 15, 30, 35, 40, 45],
        [20, 25],
    ]
    assert [track.features for track in tracks] == [["a"] * 8, ["b"] * 2]
    assert [own is tracks[0] for (own,) in given] == [True] * 4 + [False] * 2 + [True] * 4


def test_each_face_goes_to_the_track_that_it_overlaps_most():
    """Three in a row that all move by less than half of what parts them."""

    def places(number):
        found = [
            (name, (10.0 + 22 * k + 2 * number, 10.0, 40.0, 40.0))
            for k, name in enumerate("abc")
        ]
        return [found[k] for k in np.random.default_rng(number).permutation(3)]

    tracks, given = follow(places, range(0, 40, 5), every=5, num_frames=40, num_kept=8)
    assert [set(track.features) for track in tracks] == [{"a"}, {"b"}, {"c"}]
    for number, own in zip(range(0, 40, 5), given, strict=True):
        names = [name for name, _ in places(number)]
        assert [tracks.index(track) for track in own] == ["abc".index(name) for name in names]


@pytest.mark.parametrize(
    ("box", "goes_on"),
    [
        # Intersection over union of two squares of 100 shifted by x: (100 − x) / (100 + x).
        ((50.0, 0.0, 100.0, 100.0), True),
        # Without enough of it the middles may lie a width apart, of the wider one.
        ((99.0, 0.0, 100.0, 100.0), True),
        ((101.0, 0.0, 100.0, 100.0), False),
        ((0.0, -99.0, 100.0, 100.0), True),
        ((0.0, 101.0, 100.0, 100.0), False),
        ((71.0, 69.0, 100.0, 100.0), True),
        ((71.0, 72.0, 100.0, 100.0), False),
        # And one may be 1.4 times as wide as the other: 69.5 + 50 - 50 < 139.
        ((69.5, 0.0, 139.0, 100.0), True),
        ((69.5, 0.0, 141.0, 100.0), False),
        ((90.0, 0.0, 72.0, 100.0), True),
        ((90.0, 0.0, 71.0, 100.0), False),
        # Where enough is shared their sizes do not matter: 100² of 170 × 170.
        ((0.0, 0.0, 170.0, 170.0), True),
        ((0.0, 0.0, 190.0, 190.0), False),
    ],
)
def test_how_far_a_face_may_go_from_look_to_look(box, goes_on):
    """Of one that was seen once: no motion is known."""
    tracks, _ = follow(
        lambda n: [("a", (0.0, 0.0, 100.0, 100.0) if n == 0 else box)],
        (0, 5),
        every=5,
        num_frames=6,
    )
    assert len(tracks) == (1 if goes_on else 2)


# --- Smoothing ---


def made(frames, rows, pointed=None):
    track = Track()
    for place, (number, row) in enumerate(zip(frames, rows, strict=True)):
        points = None
        if pointed is not None and pointed[place]:
            points = row[4:].reshape(5, 2)
        track.add(number, Face(tuple(map(float, row[:4])), points))
    track.extend(4, 10_000)
    return track


@pytest.mark.parametrize("seed", range(2))
def test_trembling_is_smoothed_one_two_one(seed):
    """At even looks a quarter of each neighbour; the first and last as they were found."""
    generator = np.random.default_rng(seed)
    rows = np.tile([50.0, 60.0, 40.0, 44.0], (30, 1)) + generator.normal(0, 1, (30, 4))
    frames = np.arange(0, 150, 5)
    track = made(frames.tolist(), rows)
    wanted = rows.copy()
    wanted[1:-1] = (rows[:-2] + 2 * rows[1:-1] + rows[2:]) / 4
    every = np.arange(146)
    shown = np.array([track.at(number).box for number in every])
    for column in range(4):
        interpolated = np.interp(every, frames, wanted[:, column])
        np.testing.assert_allclose(shown[:, column], interpolated, atol=1e-9)
    # The variance of (1 : 2 : 1) / 4 of independent numbers is 3/8 of theirs.
    spread = np.square(wanted[1:-1] - [50, 60, 40, 44]).mean()
    assert spread < 0.6


@pytest.mark.parametrize("seed", range(2))
def test_missing_landmarks_are_interpolated(seed):
    """Within boxes that move and grow; beyond the ends their places in the box stay."""
    generator = np.random.default_rng(seed)
    box = line(generator.uniform(80, 120, 2), generator.uniform(-1.5, 1.5, 2), 40, 0.2)
    frames = [0, 5, 10, 15, 20, 25]
    rows = [np.concatenate([box(n), landmarks_in(box(n)).ravel()]) for n in frames]
    track = made(frames, rows, [n not in (0, 10, 15, 25) for n in frames])
    assert_follows(track, box, range(30), pointed=True)
    # Landmarks that move in a box that stays: linear in between.
    still = (10.0, 10.0, 40.0, 40.0)
    rows = [np.concatenate([still, landmarks_in(box(n)).ravel()]) for n in frames]
    track = made(frames, rows, [n not in (5, 10) for n in frames])
    for number in range(26):
        np.testing.assert_allclose(track.at(number).landmarks, landmarks_in(box(number)))
    lone = made([3], rows[:1], [False]).at(3)
    assert lone.landmarks is None and lone.box == still


@pytest.mark.parametrize(
    ("scores", "score"),
    [((0, 0, 5), 0), ((0, 5), 0), ((0, 5, 7), 5), ((4, 0, 6, 8, 0), 4), ((7,), 7), ((0,), 0)],
)
def test_scores_of_tracks(scores, score):
    """Above 0 only if more than half of the detections are; in the middle otherwise."""
    track = Track()
    for number, one in enumerate(scores):
        track.add(number, Face((0.0, 0.0, 9.0, 9.0), None, one))
    assert track.score == score


def test_boxes_never_vanish_where_a_face_shrinks_fast():
    """Beyond the ends it goes on as it went, but for boxes that would be none."""
    sizes = np.array([[0.0, 0.0, size, size] for size in (43.0, 23.0, 3.0)])
    track = made([0, 5, 10], sizes)
    assert track.at(10).box == (0.0, 0.0, 3.0, 3.0)
    for number in range(11, 15):
        assert track.at(number).box == (0.0, 0.0, 3.0, 3.0)
    assert track.at(8).box[2] == pytest.approx(11)
    track = made([5, 10, 15], sizes[::-1])
    assert track.at(1).box == (0.0, 0.0, 3.0, 3.0)
    assert track.at(19).box[2] == pytest.approx(59)


def test_tracks_are_in_the_order_of_their_beginnings_and_places():
    boxes = {
        0: [(50.0, 0.0, 20.0, 20.0)],
        5: [(200.0, 0.0, 20.0, 20.0), (0.0, 0.0, 20.0, 20.0)],
    }
    tracks, given = follow(
        lambda n: [(n, box) for box in boxes.get(n, [])], (0, 5, 10), every=5, num_frames=11
    )
    assert [track.faces[0].box[0] for track in tracks] == [50, 0, 200]
    assert given == [[tracks[0]], [tracks[2], tracks[1]], []]
    assert Tracker(5, anybody).tracks(9) == []
