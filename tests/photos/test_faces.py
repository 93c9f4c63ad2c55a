"""Faces found by detectors, and given by files and flags."""

import sys
from pathlib import Path

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.photos import detectors, faces
from deid_jax.photos.faces import Face

# --- Boxes ---


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 0, 2, 2), 1 / 3),
        ((0, 0, 4, 4), (1, 1, 2, 1), 1 / 8),
        ((0, 0, 3, 3), (2, 2, 3, 3), 1 / 17),
        ((0, 0, 2, 2), (2, 0, 2, 2), 0),
        ((0, 0, 2, 2), (9, 9, 2, 2), 0),
        ((-1.5, -1, 1, 1), (-1, -1, 1, 1), 1 / 3),
    ],
)
def test_overlap_is_intersection_over_union(one, other, wanted):
    assert faces.overlap(one, other) == faces.overlap(other, one) == pytest.approx(wanted)


# --- YuNet ---


class _Cv2:
    """In the place of OpenCV: what networks are given, and rows as the test tells them."""

    def __init__(self):
        self.error = type("error", (Exception,), {})
        self.rows, self.seen, self.sizes = None, [], []
        self.fails_to = None
        self.FaceDetectorYN = self

    def create(self, model, config, size):
        self._fail("create")
        assert isinstance(model, str) and config == ""
        self.sizes.append(size)
        return self

    def setInputSize(self, size):  # noqa: N802
        self.sizes.append(size)

    def detect(self, image):
        self._fail("detect")
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        # As OpenCV does, where sizes differ.
        assert self.sizes[-1] == (image.shape[1], image.shape[0])
        self.seen.append(image)
        return 1, self.rows

    def _fail(self, what):
        if self.fails_to == what:
            raise self.error("OpenCV(5.0.0)\n> bad layer\n" + 300 * "x")


@pytest.fixture
def cv2(monkeypatch, tmp_path):
    fake = _Cv2()
    monkeypatch.setitem(sys.modules, "cv2", fake)
    (tmp_path / "yunet.onnx").write_bytes(b"model")
    monkeypatch.chdir(tmp_path)
    return fake


def test_yunet_is_given_pixels_as_opencv_has_them(cv2):
    detector = detectors.yunet(Path("yunet.onnx"))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    assert detector(pixels) == detector(pixels[:50]) == []
    assert cv2.sizes[-2:] == [(90, 70), (90, 50)]
    np.testing.assert_array_equal(cv2.seen[-2], pixels[:, :, [2, 1, 0]])


@pytest.mark.parametrize(("shape", "ratio"), [((480, 640), 1), ((1280, 960), 2), ((90, 80), 1)])
def test_yunets_rows_are_faces_in_the_photos_pixels(cv2, shape, ratio):
    detector = detectors.yunet("yunet.onnx")
    points = np.arange(10) + 0.5
    small, large = [5, 6, 20, 30, *points, 0.75], [-3, 7, 40, 50, *(2 * points), 0.5]
    cv2.rows = np.array([small, large], np.float32)
    found = detector(np.zeros((*shape, 3), np.uint8))
    assert cv2.seen[-1].shape == (shape[0] // ratio, shape[1] // ratio, 3)
    assert [face.score for face in found] == [0.5, 0.75]
    for face, row in zip(found, (large, small), strict=True):
        assert face.box == tuple(ratio * n for n in row[:4])
        assert face.landmarks.dtype == np.float64
        wanted = ratio * np.reshape(row[4:14], (5, 2))
        np.testing.assert_array_equal(face.landmarks, wanted)


@pytest.mark.parametrize("moment", ["create", "detect"])
def test_files_that_are_no_yunet_are_refused_in_one_line(cv2, moment):
    """Other networks load, and fail once they look."""
    cv2.fails_to = moment
    with pytest.raises(InputError) as caught:
        detectors.yunet("yunet.onnx")
    start = "detector file yunet.onnx is no YuNet model: OpenCV(5.0.0) > bad layer xxx"
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260


@pytest.mark.parametrize("path", ["none.onnx", "."])
def test_missing_models_are_refused(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "cv2", None)  # To install it would not help.
    with pytest.raises(InputError, match=rf"^detector file {path} does not exist\Z"):
        detectors.yunet(path)


def test_yunet_needs_opencv(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "yunet.onnx").write_bytes(b"model")
    message = r"^YuNet needs OpenCV: pip install 'deid_jax\[opencv\]' \(import of cv2 halted"
    with pytest.raises(InputError, match=message):
        detectors.yunet(tmp_path / "yunet.onnx")


# --- User-supplied boxes ---


def face_in(seen, box=(40.0, 30.0, 20.0, 30.0)):
    """What is made of a box, and what was shown of a photo that counts its pixels."""
    pixels = np.zeros((100, 120, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(120), np.arange(100)[:, None]
    shown = []

    def detector(part):
        shown.append(part)
        return seen

    return faces.face_within(detector, pixels, box), shown[0]


def test_landmarks_are_found_within_a_given_box():
    points = np.arange(10.0).reshape(5, 2)
    # In the part that is shown, which begins at (25, 15).
    near = Face((16.0, 14.0, 22.0, 28.0), points, 0.75)
    beside = Face((0.0, 0.0, 20.0, 20.0), points + 50, 0.9)
    found, shown = face_in([beside, near])
    assert shown.shape == (60, 50, 3)
    assert shown[0, 0].tolist() == [25, 15, 0]
    assert (found.box, found.score) == ((40.0, 30.0, 20.0, 30.0), 0.75)
    np.testing.assert_array_equal(found.landmarks, points + np.array([25, 15]))


@pytest.mark.parametrize("seen", [[], [Face((0.0, 0.0, 20.0, 20.0), np.ones((5, 2)), 0.9)]])
def test_a_given_box_in_which_no_face_is_detected_scores_0(seen):
    found, _ = face_in(seen)
    assert found == Face((40.0, 30.0, 20.0, 30.0), None, 0.0)


def test_only_given_faces_without_landmarks_are_searched_for():
    pointed = Face((1.0, 1.0, 5.0, 5.0), np.ones((5, 2)))
    bare = Face((3.0, 1.0, 5.0, 5.0))
    choice = faces.FaceChoice([pointed, bare], landmarker=lambda pixels: [])
    found, _ = choice.faces("a.png", np.zeros((9, 9, 3), np.uint8))
    assert found[0] is pointed and found[1] == bare._replace(score=0.0)


@pytest.mark.parametrize(
    "told",
    [
        Face((-90.0, 0.0, 100.0, 9.0)),
        Face((-1e5, -1e5, 3e5, 3e5)),
        Face((2.0, 2.0, 5.0, 5.0), 20.0 + np.arange(10.0).reshape(5, 2)),
    ],
)
def test_told_faces_that_lie_beside_the_photo_are_refused(told):
    choice = faces.FaceChoice([told])
    with pytest.raises(faces.FaceError, match=r"^a\.png: a face's \w+ lies? beside the photo"):
        choice.faces("a.png", np.zeros((12, 12, 3), np.uint8))


# --- Words ---


def test_faces_are_told_in_words():
    assert faces.parse_faces("largest") == "largest"
    assert faces.parse_faces("all") == "all"
    wanted = [Face((1.0, -2.0, 3.5, 4.0), None, 1.0), Face((0.0, 0.0, 10.0, 2.5))]
    assert faces.parse_faces("1:-2:3.5:4,0:0:1e1:2.5") == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "faces must be largest, all or ") for text in ("", "every", "1:2:3", "1,2")),
        *(
            (text, "faces must be largest, all or ")
            for text in ("1:2:3:4,", "1:2:3:4:5", "ALL")
        ),
        ("1:2:x:4", "faces: must be numbers, got '1,2,x,4'"),
        ("1:2::4", "faces: must be numbers, got '1,2,,4'"),
        ("1:2:nan:4", "faces: must be finite numbers"),
        ("-inf:2:3:4", "faces: must be finite numbers"),
        ("1:2:3:0", "faces: boxes are in pixels, 2 or more wide and high, got 3x0"),
        ("9:9:9:9,1:2:-3:4", "faces: boxes are in pixels, 2 or more wide and high, got -3x4"),
    ],
)
def test_other_words_are_refused(text, message):
    with pytest.raises(InputError) as caught:
        faces.parse_faces(text)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_largest_is_the_first_of_the_largest():
    boxes = [(0, 0, 2, 2), (5, 5, 4, 2), (1, 1, 2, 4), (0, 0, 7, 1)]
    found = [Face(tuple(map(float, box)), score=n) for n, box in enumerate(boxes)]

    def chosen(which, order):
        choice = faces.FaceChoice(which, detector=lambda pixels: order)
        return choice.faces("a.png", np.zeros((9, 9, 3), np.uint8))

    assert chosen("largest", found) == ([found[1]], 3)
    assert chosen("largest", found[::-1]) == ([found[2]], 3)
    assert chosen("all", found) == (found, 0)
    assert chosen("largest", []) == chosen("all", []) == ([], 0)
