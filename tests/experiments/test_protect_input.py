"""Bad input is refused in one line, before anything is written."""

from urllib import request
from urllib.error import URLError

import pytest

from experiments import protect
from tests.experiments.conftest import assert_refused, listing, write_faces
from tests.experiments.protect_helpers import (
    FACES,
    ONE,
    OWN,
    arguments,
    detected,
    write_photos,
)

NO_YUNET = "detector file none.onnx does not exist"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--input=none"], "input none does not exist"),
        (["--output=in"], "output in must not lie within the input"),
        (["--output=in/deep/out"], "output in/deep/out must not lie within the input"),
        (["--output=link"], "output link must not lie within the input"),
        (["--output=."], "input in must not lie within the output"),
        (["--output=.."], "input in must not lie within the output"),
        (["--input=in/a.png", "--output=in"], "output in is the input's own folder"),
        (["--input=in/a.png", "--output=in/b.jpg"], "output in/b.jpg is not a folder"),
        (["--input=empty"], "input empty holds no files"),
        (["--output=mine"], "output mine holds person_0, and no manifest.jsonl"),
        (["--output=lost"], "output lost is a link that leads nowhere"),
        (["--num_steps=0"], "num_steps must be"),
        (["--seed=-1"], "seed must be"),
        (["--threshold=2"], f"threshold of {ONE} must be a cosine > -1 and < 1, got 2"),
        (["--strength=most"], "value should be one of <light|medium|strong>"),
        (["--faces=1:2:3"], "faces must be largest, all or LEFT:TOP:WIDTH:HEIGHT, …"),
        (["--faces=1:2:0:4"], "boxes are in pixels, 2 or more wide and high, got 0x4"),
        (
            ["--faces=0.3:0.2:0.25:0.3"],
            "boxes are in pixels, 2 or more wide and high, got 0.25",
        ),
        (["--faces=1:2:nan:4"], "faces"),
        (["--boxes=none.csv", "--faces=all"], "boxes file none.csv cannot be read"),
        (["--aligned"], "faces by boxes, boxes and aligned exclude each other"),
        (["--detector=none.onnx", "--faces=all"], NO_YUNET),
        (["--detector=none.onnx"], NO_YUNET),
        (["--detector=none.onnx", "--gallery=mine"], NO_YUNET),
        (
            ["--detector=none.onnx", "--gallery=mine", "--faces=all", "--aligned"],
            "--detector=none.onnx does not apply: the faces are given",
        ),
        (["--gallery=none"], "gallery none is not a folder"),
        (["--gallery=mine"], "gallery mine: no face was found in person_0/"),
        (["--gallery=bad"], "gallery bad: a.jpg is damaged or no image of"),
        (["--recogniser=vgg17"], "recogniser must be NAME or NAME:FILE"),
        (["--recogniser=mobilefacenet_ms1m:none.npz"], "none.npz"),
        (["--recogniser=mobilefacenet_ms1m:in/a.png"], "in/a.png"),
        ([f"--recogniser={OWN}:missing"], "missing"),
        ([f"--recogniser={OWN}:number"], f"{OWN}:number"),
        ([f"--recogniser={OWN}:scalar"], f"{OWN}:scalar"),
        ([f"--recogniser={OWN}:zero"], "embeddings must not be 0, but number 0 is"),
        ([f"--recogniser={OWN}:broken"], "embeddings must be finite, but number 0 is not"),
        ([f"--recogniser={ONE},{ONE}"], f"recogniser {ONE} is given twice"),
        ([f"--judge={ONE}"], f"recogniser {ONE} is given twice"),
        (
            ["--recogniser=mobilefacenet_ms1m:none.npz", "--judge=mobilefacenet_ms1m"],
            "recogniser mobilefacenet_ms1m is given twice",
        ),
        (["--judge="], "--judge is empty"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_input_is_refused_in_one_line(workplace, capsys, given, message):
    write_photos(workplace / "in")
    write_faces(workplace / "mine", 1, 1)
    for name in ("empty", "bad"):
        (workplace / name).mkdir()
    (workplace / "bad/a.jpg").write_bytes(b"no photo")
    (workplace / "link").symlink_to("in/deep")
    (workplace / "lost").symlink_to("nowhere")
    whole = arguments("in", "out", *given)
    assert_refused(protect.main, whole, message, workplace, capsys)


def test_folder_of_nothing_but_boxes_is_empty(workplace, capsys):
    (workplace / "in").mkdir()
    (workplace / "in/boxes.csv").write_text("file,left,top,width,height\na.png,1,2,3,4\n")
    given = detected("in", "out", "--boxes=in/boxes.csv")
    assert_refused(protect.main, given, "input in holds no files", workplace, capsys)


def test_input_and_output_must_be_given(workplace, capsys):
    for missing in ("input", "output"):
        given = [one for one in arguments("in", "out") if f"--{missing}" not in one]
        (workplace / "in").mkdir(exist_ok=True)
        message = f"--{missing} is empty"
        assert_refused(protect.main, given, message, workplace, capsys)


def test_names_without_weights_end_in_one_line(
    workplace, capsys, monkeypatch, tmp_path_factory
):
    """Offline, and nothing was downloaded before."""

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(request.OpenerDirector, "open", offline)
    monkeypatch.setenv("DEID_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    write_photos(workplace / "in", 1)
    before = listing(workplace)
    given = ["--input=in", "--output=out", FACES, "--recogniser=dlib_resnet,mobilefacenet_ms1m"]
    assert protect.main(given) == 2
    out, err = capsys.readouterr()
    # Beside it stands only whose weights they would have been.
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.endswith(f"{line}\n") and out == ""
    assert line.startswith(
        "error: no weights for mobilefacenet_ms1m: go online once, or give "
        "--recogniser=mobilefacenet_ms1m:FILE (cannot download https://"
    )
    assert listing(workplace) == before


def test_brought_along_needs_a_threshold(workplace, capsys):
    write_photos(workplace / "in", 1)
    given = [one for one in arguments("in", "out") if "threshold" not in one]
    message = f"recogniser {ONE} needs a --threshold"
    assert_refused(protect.main, given, message, workplace, capsys)
