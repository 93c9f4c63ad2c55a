"""Faces found by detectors, told by files and by words."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from deid_jax.errors import InputError
from deid_jax.photos import detectors, faces
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.faces import Face

# Eileen Collins' pupils in skimage.data.astronaut(), by eye.
EYES = np.array([[203.7, 101.2], [246.6, 103.4]])


@pytest.fixture(scope="module")
def astronaut():
    found = skimage.data.astronaut()
    assert found.shape == (512, 512, 3)
    return found


def resized(pixels, width, height):
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def holds(box, points):
    left, top, width, height = box
    low, high = np.array([left, top]), np.array([left + width, top + height])
    return bool(np.all((points > low) & (points < high)))


# --- The cascade ---


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_cascade_finds_a_face_whatever_the_photos_size(astronaut, scale):
    (face,) = detectors.cascade(resized(astronaut, *2 * [int(512 * scale)]))
    box = np.array(face.box) / scale
    assert holds(box, EYES)
    assert 2 * 43 < box[2] == box[3] < 3 * 43  # in distances of the eyes
    np.testing.assert_allclose(box[:2] + box[2:] / 2, EYES.mean(0) + np.array([0, 15]), atol=8)
    assert face.landmarks is None and face.score >= 7


def test_cascade_is_deterministic_and_leaves_the_photo_alone(astronaut):
    before = astronaut.copy()
    first = detectors.cascade(astronaut)
    assert all(detectors.cascade(astronaut) == first for _ in range(5))
    np.testing.assert_array_equal(astronaut, before)


def test_larger_faces_come_first_and_small_ones_not_at_all(astronaut):
    """A tenth of the shorter side is the least."""
    pixels = np.full((700, 1200, 3), 200, np.uint8)
    pixels[:400, :400] = resized(astronaut, 400, 400)
    pixels[100:612, 400:912] = astronaut
    large, small = detectors.cascade(pixels)
    assert holds(large.box, EYES + np.array([400, 100]))
    assert holds(small.box, EYES * 400 / 512)
    pixels = np.full((1200, 1200, 3), 200, np.uint8)
    pixels[:512, :512] = astronaut  # A face of 102 pixels.
    assert detectors.cascade(pixels) == []
    assert len(detectors.cascade(pixels[:900, :900])) == 1


def test_cascade_finds_nothing_where_nobody_is():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    blank = [np.full((200, 150, 3), value, np.uint8) for value in (0, 128, 255)]
    others = [skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    for pixels in (noise, *blank, *others):
        assert detectors.cascade(pixels) == []


@pytest.mark.parametrize("shape", [(1, 1), (10, 300), (300, 23), (23, 23), (24, 24), (1, 5000)])
def test_cascade_takes_the_smallest_of_pictures(shape):
    assert detectors.cascade(np.full((*shape, 3), 90, np.uint8)) == []


def test_cascade_needs_scikit_image(astronaut, monkeypatch):
    detectors._cascade.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InputError) as caught:
        detectors.cascade(astronaut)
    message = "finding faces needs scikit-image: pip install 'deid_jax[photos]'"
    assert str(caught.value) == message


@pytest.mark.slow
def test_boxes_of_the_cascade_lie_about_landmarks_as_crops_take_it(real_photos):
    """Of 24 photos it finds 20 faces; the other figures are those that alignment.py states."""
    told, shares = faces.read_faces(real_photos / "landmarks.csv"), []
    for name, (face,) in told.items():
        points = face.landmarks
        for found in detectors.cascade(np.array(Image.open(real_photos / name).convert("RGB"))):
            if holds(found.box, points):
                left, top, width, height = found.box
                (x, y), spread = points.mean(0), np.sqrt(np.sum(np.var(points, axis=0)))
                shares.append([(x - left) / width, (y - top) / height, spread / width])
                # Landmarks' crop and the box's are nearly the same.
                other = crop_matrix(face)[:, :2] @ np.linalg.inv(crop_matrix(found)[:, :2])
                np.testing.assert_allclose(other, np.eye(2), atol=0.3)
    assert len(told) == 24 and len(shares) == 20
    np.testing.assert_allclose(np.mean(shares, axis=0), [0.500, 0.576, 0.242], atol=6e-4)
    deviations = np.std(shares, axis=0, ddof=1)
    np.testing.assert_allclose(deviations, [0.022, 0.021, 0.016], atol=6e-4)


# --- Windows that agree ---


@pytest.fixture
def windows(monkeypatch):
    """What the cascade finds is told: boxes; and what it was asked."""
    told, asked = [], {}

    def detect_multi_scale(**options):
        asked.update(options)
        return [
            dict(zip(("c", "r", "width", "height"), window, strict=True)) for window in told
        ]

    fake = types.SimpleNamespace(detect_multi_scale=detect_multi_scale)
    monkeypatch.setattr(detectors, "_cascade", lambda: fake)
    return told, asked


FULL = np.zeros((480, 640, 3), np.uint8)
AT = (100, 80, 60, 60)


@pytest.mark.parametrize(("count", "found"), [(0, 0), (6, 0), (7, 1), (30, 1)])
def test_a_face_needs_seven_windows(windows, count, found):
    told, asked = windows
    told += [AT] * count
    assert detectors.cascade(FULL) == [Face((100.0, 80.0, 60.0, 60.0), None, count)] * found
    assert asked["img"].shape == (480, 640, 3)
    assert (asked["min_size"], asked["max_size"]) == ((48, 48), (480, 480))


def test_boxes_are_the_windows_mean_in_the_photos_pixels_in_any_order(windows):
    told, asked = windows
    generator = np.random.default_rng(0)
    first = generator.integers(-3, 4, (9, 4)) + np.array([100, 80, 60, 60])
    second = generator.integers(-3, 4, (11, 4)) + np.array([300, 200, 50, 50])
    alone = np.array([[500, 20, 40, 40]] * 6)
    pixels = np.zeros((960, 1280, 3), np.uint8)
    for _ in range(4):
        told[:] = generator.permutation(np.concatenate([first, second, alone])).tolist()
        # The larger first, though fewer agree.
        one, other = detectors.cascade(pixels)
        assert asked["img"].shape == (480, 640, 3)
        np.testing.assert_allclose(one.box, 2 * first.mean(0), rtol=1e-12)
        np.testing.assert_allclose(other.box, 2 * second.mean(0), rtol=1e-12)
        assert (one.score, other.score) == (9, 11)


@pytest.mark.parametrize(("height", "found"), [(30, 1), (29, 0)])
def test_windows_agree_from_half_of_their_union_on(windows, height, found):
    told, _ = windows
    told += [(0, 0, 60, 60)] * 4 + [(0, 0, 60, height)] * 3
    assert len(detectors.cascade(FULL)) == found


@pytest.mark.parametrize(("left", "found"), [(110, 1), (144, 1), (145, 2), (300, 2)])
def test_parts_of_a_face_are_no_faces(windows, left, found):
    """Windows of 30 pixels, more than half of which lies within the box or not."""
    told, _ = windows
    told += [AT] * 20 + [(left, 90, 30, 30)] * 8
    assert [face.score for face in detectors.cascade(FULL)] == [20, 8][:found]


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
def test_missing_models_are_refused(cv2, path):
    with pytest.raises(InputError, match=rf"^detector file {path} does not exist\Z"):
        detectors.yunet(path)


def test_yunet_needs_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    message = r"^YuNet needs OpenCV: pip install 'deid_jax\[opencv\]'\Z"
    with pytest.raises(InputError, match=message):
        detectors.yunet("yunet.onnx")


# --- Words ---


def test_faces_are_told_in_words():
    assert faces.parse_faces("largest") == "largest"
    assert faces.parse_faces("all") == "all"
    wanted = [Face((1.0, -2.0, 3.5, 4.0), None, 1.0), Face((0.0, 0.0, 10.0, 0.5))]
    assert faces.parse_faces("1:-2:3.5:4,0:0:1e1:.5") == wanted


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
        ("1:2:3:0", "faces: a box must be wider and higher than 0, got 3.0x0.0"),
        ("9:9:9:9,1:2:-3:4", "faces: a box must be wider and higher than 0, got -3.0x4.0"),
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
