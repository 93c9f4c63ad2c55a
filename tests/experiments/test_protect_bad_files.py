"""Two hundred bad files in one folder: no crash, nothing lost, each accounted for."""

import os

import numpy as np
import pytest
from PIL import Image

from tests.experiments.protect_helpers import (
    FACES,
    arguments,
    hashes,
    places,
    records_of,
    run,
)
from tests.photos import bad_files

NAME = "manifest.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_two_hundred_bad_files_are_each_accounted_for(tmp_path, seed, capsys):
    source, output = tmp_path / "in", tmp_path / "out"
    readable = bad_files.make(source, seed)
    # An empty folder is no file; a pipe is none either, and reading it would never end.
    (folder,) = [name for name in readable if name.endswith("_folder.jpg")]
    del readable[folder]
    os.mkfifo(source / "pipe.jpg")
    readable["pipe.jpg"] = bad_files.REFUSED
    whole = FACES.replace("20:15:60:60", "0:0:30:30")
    given = [whole if one == FACES else one for one in arguments(source, output)]
    assert run(given) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "Traceback" not in out
    found = records_of(output)
    assert len(found) == bad_files.COUNT == 200
    assert found.keys() == readable.keys()
    written = {os.fsdecode(name) for name in hashes(output)} - {NAME}
    assert written == {name for name, record in found.items() if record["output"]}
    for name, record in found.items():
        must = readable[name]
        expected = ("unjudged", "not protected", "unreadable", "no face found")
        assert record["status"] in expected, name
        assert record["reason"], name
        assert record["reason"] is None or record["reason"].strip(), name
        if must is not None:
            assert (record["status"] != "unreadable") is must, (name, record["reason"])
        assert (record["output"] is None) is (record["faces"] == []), name
    for name in written:
        with Image.open(output / name) as image:
            shown = np.asarray(image.convert("RGB"))
        assert shown.shape[:2] == (found[name]["height"], found[name]["width"])
        assert hashes(output)[os.fsencode(name)] == found[name]["output_sha256"]
    before = places(output)
    assert run(given) == 1
    assert places(output) == before
