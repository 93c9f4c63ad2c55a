"""Faces given by a CSV file."""

import re

import numpy as np
import pytest

from deid_jax.errors import InputError
from deid_jax.photos import faces
from deid_jax.photos.faces import Face

NUMBERED = "x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"
NAMED = "leye_x,leye_y,reye_x,reye_y,nose_x,nose_y,lmouth_x,lmouth_y,rmouth_x,rmouth_y"
BOX = "left,top,width,height"
POINTS = [[30.5, 40], [70, 42], [50, 60], [35, 80], [66, 81.25]]
TEXT = ",".join(str(n) for point in POINTS for n in point)


@pytest.fixture
def read(tmp_path):
    """Reads a file of these lines, or these bytes."""

    def read(*lines):
        path = tmp_path / "boxes.csv"
        content = lines[0] if isinstance(lines[0], bytes) else "\n".join(lines).encode()
        path.write_bytes(content)
        return faces.read_faces(path)

    return read


def refusal(read, *lines):
    """The message, one line, without the folder's name."""
    with pytest.raises(InputError) as caught:
        read(*lines)
    message = str(caught.value)
    assert "\n" not in message and "boxes.csv" in message
    return re.sub(r"[^ ]*/boxes.csv", "boxes.csv", message)


def test_boxes(read):
    found = read(f"file,{BOX}", "a.jpg,1,-2.5,30,4e1", "deep/b c.png,0,0,2.5,2")
    assert found == {
        "a.jpg": [Face((1.0, -2.5, 30.0, 40.0), None, 1.0)],
        "deep/b c.png": [Face((0.0, 0.0, 2.5, 2.0), None, 1.0)],
    }


@pytest.mark.parametrize("names", [NUMBERED, NAMED])
def test_landmarks_have_a_box_drawn_around_them(read, names):
    (face,) = read(f"file,{names}", f"a.jpg,{TEXT}")["a.jpg"]
    assert face.landmarks.dtype == np.float64
    np.testing.assert_array_equal(face.landmarks, POINTS)
    # Twice theirs, about the same middle.
    assert face.box == (30.5 - 19.75, 40 - 20.625, 79, 82.5)
    assert face.score == 1


def test_each_line_may_leave_one_of_them_empty(read):
    header = f"file,{BOX},{NUMBERED},{NAMED}"
    none = "," * 9
    found = read(
        header,
        f"a,1,2,3,4,{none},{none}",
        f"a,,,,,{TEXT},{none}",
        f"a,,,,,{none},{TEXT}",
    )["a"]
    assert [face.landmarks is None for face in found] == [True, False, False]
    assert found[1].box == found[2].box == (10.75, 19.375, 79, 82.5)


def test_other_columns_are_free_and_any_order_will_do(read):
    """A width alone is the photo's."""
    (face,) = read("note,height,top,file,width,left", "x,4,2,a,3,1")["a"]
    assert face.box == (1, 2, 3, 4)
    (face,) = read(f"width,file,{NAMED},height,person", f"wide,a,{TEXT},,7")["a"]
    np.testing.assert_array_equal(face.landmarks, POINTS)
    assert face.box == (10.75, 19.375, 79, 82.5)


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_spreadsheets_marks_and_line_ends(read, ends):
    lines = [f"file,{BOX}".encode(), '"ä,""b"".jpg",1,2,3,4'.encode(), b""]
    found = read(b"\xef\xbb\xbf" + ends.join(lines))
    assert list(found) == ['ä,"b".jpg']
    # Names on disk may hold line ends: they are kept as they are.
    assert list(read(b'file,left,top,width,height\n"a\r\nb",1,2,3,4\n')) == ["a\r\nb"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("1,2,3", "must have a file and a value for every column"),
        ("1,2,3,4,5", "must have a file and a value for every column"),
        (",,,", "must have left,top,width,height or x1,y1,…,y5"),
        ("1,,3,4", "must be numbers, got '1,,3,4'"),
        ("1,two,3,4", "must be numbers, got '1,two,3,4'"),
        ('1,"2\n",3,"4\nx"', "must be numbers, got '1,2\\n,3,4\\nx'"),
        ("1,2,inf,4", "must be finite numbers"),
        ("1,nan,3,4", "must be finite numbers"),
        ("1,2,1e999,4", "must be finite numbers"),
        ("1,2,0,4", "boxes are in pixels, 2 or more wide and high, got 0x4"),
        ("1,2,3,-4", "boxes are in pixels, 2 or more wide and high, got 3x-4"),
    ],
)
def test_lines_that_are_no_boxes_are_named(read, values, message):
    line = 3 + values.count("\n")
    found = refusal(read, f"file,{BOX}", "a,1,2,3,4", f"b,{values}")
    assert found == f"boxes.csv, line {line}: {message}"


def test_some_columns_of_landmarks_are_not_enough(read):
    short = NUMBERED.removesuffix(",y5"), TEXT.rpartition(",")[0]
    found = refusal(read, f"file,{short[0]}", f"a,{short[1]}")
    assert found == "boxes.csv, line 2: must have left,top,width,height or x1,y1,…,y5"
    (face,) = read(f"file,{short[0]},{BOX}", f"a,{short[1]},1,2,3,4")["a"]
    assert face == Face((1.0, 2.0, 3.0, 4.0))


def test_shares_of_the_photo_are_no_pixels(read):
    shares = ",".join(str(n / 100) for point in POINTS for n in point)
    message = refusal(read, f"file,{NUMBERED}", f"a,{shares}")
    assert message == "boxes.csv, line 2: landmarks are in pixels, and these lie within 1"
    message = refusal(read, f"file,{BOX}", "a,.3,.2,.25,.3")
    assert message.endswith("boxes are in pixels, 2 or more wide and high, got 0.25x0.3")


def turned(angle, points):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.array(points) @ turn.T


@pytest.mark.parametrize("angle", [0.0, 2.0])
def test_mirrored_landmarks_are_refused_at_any_angle(read, angle):
    """The other left, the mouth above the eyes, or all in one place."""

    def line(points):
        return "a," + ",".join(str(n) for n in turned(angle, points).ravel())

    (face,) = read(f"file,{NUMBERED}", line(POINTS))["a"]
    np.testing.assert_allclose(face.landmarks, turned(angle, POINTS), rtol=1e-12)
    swapped = [POINTS[n] for n in (1, 0, 2, 4, 3)]
    for points in (
        swapped,
        np.array(POINTS) * [-1, 1],
        np.array(POINTS) * [1, -1],
        [[3, 4]] * 5,
    ):
        found = refusal(read, f"file,{NUMBERED}", line(points))
        assert found.startswith("boxes.csv, line 2: landmarks must be left and right eye, nose")


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"name,left,top,width,height\na,1,2,3,4\n", b"File,left\n", b"a.jpg 1 2 3 4"],
)
def test_files_need_a_column_of_files(read, content):
    assert refusal(read, content) == "boxes file boxes.csv must have a column file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,left\n\xff\xfe,1\n", "'utf-8' codec can't decode byte 0xff"),
        (b'file,left\n"a" b,1\n', "',' expected after '\"'"),
        (b'file,left\n"a,1\n', "unexpected end of data"),
        (b"file,left\n" + b"a" * 200_000, "field larger than field limit"),
    ],
)
def test_files_that_are_no_csv_are_refused(read, content, message):
    found = refusal(read, content)
    assert found.startswith(f"boxes file boxes.csv cannot be read: {message}")


def test_files_that_are_not_there_are_refused(tmp_path):
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"^boxes file {path} cannot be read: {reason}"):
            faces.read_faces(path)
