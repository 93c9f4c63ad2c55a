"""What would end `experiments.transfer` later is said before anything is computed."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from deid_jax.data.pair_lists import make_lists
from deid_jax.errors import InputError
from experiments import transfer
from tests.embedding_helpers import tiny_embedder
from tests.experiments.conftest import assert_refused
from tests.experiments.transfer_helpers import FARS, ONE, TWO, dataset_of, put_right, quick

A, B = "mobilefacenet_ms1m", "mobilefacenet_casia"


@pytest.fixture
def nothing_runs(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("something was computed")

    monkeypatch.setattr(transfer.ClassifierJudge, "trained", never)
    monkeypatch.setattr(transfer.GalleryJudge, "of", never)


@pytest.fixture
def protocol(pictures, workplace):
    """(dataset, file) of a protocol as it is written."""
    dataset = dataset_of(pictures)
    file = workplace / "mine.json"
    make_lists(dataset, per_person=3).write(file)
    return dataset, file


def test_denoiser_that_is_missing(pictures, workplace, capsys, monkeypatch, nothing_runs):
    monkeypatch.setitem(sys.modules, "skimage.restoration", None)
    given = quick(pictures, "--processing=all", "--classifiers=model_a")
    message = "denoise needs scikit-image: pip install 'deid_jax[photos]'"
    assert_refused(transfer.main, given, message, workplace, capsys)


def test_protocol_of_other_pixels(pictures, protocol, workplace, capsys, nothing_runs):
    given = quick(pictures, "--protocol=mine.json")
    message = (
        "protocol mine.json does not fit the data set: its photos had other pixels; files, "
    )
    size = f"{message}image_size (20 here) and crop"
    assert_refused(transfer.main, [*given, "--image_size=20"], size, workplace, capsys)
    shutil.copytree(pictures, workplace / "faces")
    file = workplace / "faces/person_1/03.png"
    pixels = np.array(Image.open(file))
    pixels[8:16, 8:16] ^= 255
    Image.fromarray(pixels).save(file)
    given.append("--data_dir=faces")
    assert_refused(transfer.main, given, message, workplace, capsys)


def test_protocol_without_probes_of_a_person(
    pictures, protocol, workplace, capsys, nothing_runs
):
    content = json.loads(protocol[1].read_text())
    content["probes"] = [n for n in content["probes"] if not n.startswith("person_1/")]
    protocol[1].write_text(put_right(content))
    message = "mine.json does not fit the data set: probes has no photo of person person_1"
    given = quick(pictures, "--protocol=mine.json")
    assert_refused(transfer.main, given, message, workplace, capsys)


def test_one_photo_is_not_half_to_train_on_and_half_to_judge(protocol):
    dataset, _ = protocol
    lists = make_lists(dataset, per_person=3)
    settings = transfer.TransferSettings(fit=ONE, processing="none", fine_tune=True)
    plan = dataclasses.replace(transfer.plan_of(settings)[0], fars=FARS, judges=("tiny",))
    two, one = (
        dataclasses.replace(lists, protected=lists.protected[:n]).positions(dataset)
        for n in (2, 1)
    )
    transfer._check(plan, {"tiny": tiny_embedder()}, two)
    with pytest.raises(InputError, match=r"two protected photos or more, .* has 1$"):
        transfer._check(plan, {"tiny": tiny_embedder()}, one)


@pytest.mark.parametrize(
    ("fit", "fits", "written"),
    [
        (f"{A}:/c++/A,1.npz", [[A]], {A: f"{A}:/c++/A,1.npz"}),
        (f"{A}:a+b.npz,{B}:c,d.npz,{A}+{B}", [[A], [B], [A, B]], {B: f"{B}:c,d.npz"}),
        (f"{ONE}+{TWO},{ONE}", [[ONE, TWO], [ONE]], {ONE: ONE, TWO: TWO}),
        ("mobilefacenets.api:embed", [["mobilefacenets.api:embed"]], {}),
    ],
)
def test_recognisers_are_named_once_wherever_their_files_lie(fit, fits, written):
    plan, found = transfer.plan_of(transfer.TransferSettings(fit=fit))
    assert [list(group) for group in plan.fits] == fits
    assert found | written == found
    assert set(plan.judges) == {name for group in fits for name in group}


def test_judges_are_listed_by_commas(pictures):
    settings = transfer.TransferSettings(fit=A, test=f"{B}:x,y+z.npz, {ONE},{A}")
    plan, written = transfer.plan_of(settings)
    assert plan.judges == (B, ONE, A) and written[B] == f"{B}:x,y+z.npz"


def test_help_says_what_is_counted(capsys):
    assert transfer.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "of all comparisons of a clean photo with the gallery of another person",
        "takes images of 178x218",
        "0 or 1: none does",
    ):
        assert words in text
    assert "sha256" not in text
