import dataclasses
import functools
import itertools
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deid_jax.data.pair_lists import Positions
from deid_jax.recognisers.embedders import Embedder
from deid_jax.transfer import Faces, GalleryJudge, TransferEvaluation, fine_tune
from deid_jax.transfer.transfer_tables import TRAINED
from experiments import transfer
from tests.experiments.conftest import assert_refused, listing, write_faces
from tests.experiments.protect_helpers import CELLS
from tests.experiments.protect_helpers import OWN as OTHERS
from tests.experiments.transfer_helpers import (
    FARS,
    ONE,
    OWN,
    SIZE,
    TWO,
    chosen,
    dataset_of,
    put_right,
    quick,
    rows_of,
    tables_of,
)


@pytest.mark.slow
def test_same_command_twice_writes_the_same_bytes(pictures, workplace):
    given = quick(pictures, "--transformations=flip", "--keep_images", "--processing=noise")
    assert transfer.main(given) == 0
    first = listing(workplace)
    assert any(name.endswith(".png") for name in first)
    assert transfer.main(given) == 0
    assert listing(workplace) == first


@pytest.mark.slow
def test_protocol_is_kept_to_and_refused_where_it_was_changed(pictures, workplace, capsys):
    assert transfer.main([*quick(pictures), "--output_dir=first", "--seed=3"]) == 0
    file = workplace / "first/protocol.json"
    given = quick(pictures, "--output_dir=again", "--per_person=1", "--protocol=mine.json")
    (workplace / "mine.json").write_bytes(file.read_bytes())
    assert transfer.main(given) == 0
    assert (workplace / "again/protocol.json").read_bytes() == file.read_bytes()
    # Another seed decides other things than the lists.
    clean = [chosen(rows_of(workplace / name), method="none") for name in ("first", "again")]
    assert clean[0] == clean[1]
    capsys.readouterr()

    content = json.loads(file.read_text())
    moved = content["probes"].pop()
    content["gallery"] = sorted([*content["gallery"], moved])
    (workplace / "mine.json").write_text(json.dumps(content))
    given[-2:] = ["--output_dir=third", "--protocol=mine.json"]
    message = "protocol mine.json is not as it was written: its sha256 is another"
    assert_refused(transfer.main, given, message, workplace, capsys)
    # With the hash put right, too, where a photo is in the lists that is not in the folder.
    content["probes"].append("nobody/99")
    (workplace / "mine.json").write_text(put_right(content))
    message = "probes has nobody/99, which is not in the data set"
    assert_refused(transfer.main, given, message, workplace, capsys)


def test_what_cannot_be_measured_is_said(pictures, workplace):
    more = ("--per_person=1", "--average=2", "--processing=none", "--methods=mask")
    assert transfer.main(quick(pictures, *more)) == 0
    folder = workplace / "runs/transfer"
    text = (folder / "transfer.md").read_text()
    assert "Not measured: of at least one person only one photo is protected." in text
    assert "Not measured: of no person 2 photos or more are protected." in text
    assert "Not measured: no processing was asked for." in text
    for heading, (_, body) in tables_of(text).items():
        assert body, heading
    assert {row["compared"] for row in rows_of(folder)} == {"gallery"}


def test_functions_of_a_module_beside_the_command(pictures, workplace, monkeypatch):
    """Two of one module without a package; the module is looked for in the current folder."""
    (workplace / "mine_too.py").write_text(f"from {OWN} import one, two\n")
    monkeypatch.delitem(sys.modules, "mine_too", raising=False)
    given = quick(pictures, "--fit=mine_too:one,mine_too:two", "--methods=mask")
    assert transfer.main(given) == 0
    rows = rows_of(workplace / "runs/transfer")
    assert {row["test"] for row in rows} == {"mine_too:one", "mine_too:two"}


def _bad(message, *given):
    return pytest.param(given, message, id=" ".join(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        _bad("cannot be imported: No module named 'nowhere'", "--fit=nowhere:embed"),
        _bad("has no attribute 'three'", f"--fit={OWN}:three"),
        _bad("is no function", f"--fit={OTHERS}:number"),
        _bad("must give a vector for each image", f"--fit={OTHERS}:scalar"),
        _bad(f"recogniser {OWN}:zero: embeddings must not be 0", f"--test={OWN}:zero"),
        _bad("recogniser must be NAME or NAME:FILE", "--test=nobody"),
        _bad("missing.npz", "--fit=mobilefacenet_ms1m:missing.npz"),
        _bad("mobilefacenet is given twice", "--fit=mobilefacenet:x,mobilefacenet:y"),
        _bad("recognisers must be named, got ''", f"--fit={ONE},"),
        _bad("recognisers must be named", f"--test={ONE}++{TWO}"),
        _bad(
            f"judge {OTHERS}:one_again is the same network as the fitted {OTHERS}:one",
            f"--fit={OTHERS}:one",
            f"--test={OTHERS}:one_again",
        ),
        _bad("methods must be of apfgvm", "--methods=mifgvm,magic"),
        _bad("processing must be of none, jpeg95", "--processing=jpeg74"),
        _bad("transformations must be of resize_pad_flip", "--transformations=flip+none"),
        _bad("psnr must be numbers by commas, got '40,,42'", "--psnr=40,,42"),
        _bad("psnr must be numbers > 0 and < 200, got inf", "--psnr=1e999"),
        _bad("psnr must be numbers > 0 and < 200, got nan", "--psnr=nan"),
        _bad("epsilon must be numbers by commas, got '4/0'", "--epsilon=4/0"),
        _bad("epsilon must be numbers by commas, got '4/'", "--epsilon=4/"),
        _bad("epsilon must be numbers > 0 and < 1, got 1.5", "--epsilon=1.5"),
        _bad("far must be numbers > 0 and < 1, got 0", "--far=0"),
        _bad("far 0.01 needs 100 impostor scores or more, got 24", "--far=0.1,0.01"),
        _bad("fine_tune trains a recogniser's weights, and", "--fine_tune"),
        _bad("margin must be a cosine's, -2 to 2, got nan", "--margin=nan"),
        _bad("num_steps must be an integer >= 1, got 0", "--num_steps=0"),
        _bad("num_samples must be an integer >= 1, got 0", "--num_samples=0"),
        _bad("per_person must be an integer >= 1, got 0", "--per_person=0"),
        _bad("gallery_size must be an integer >= 1, got 0", "--gallery_size=0"),
        _bad("num_pairs must be an integer >= 1, got 0", "--num_pairs=0"),
        _bad("average must be an integer >= 0, got -1", "--average=-1"),
        _bad("seed must be an integer >= 0, got -1", "--seed=-1"),
        _bad("image_size must be an integer >= 11", "--image_size=10"),
        _bad("has 2 different photos, the lists need 3", "--data_dir=few"),
        _bad("two persons or more", "--data_dir=alone"),
        _bad("data_dir nowhere does not exist", "--data_dir=nowhere"),
        _bad("crop=arcface needs images of 178x218", "--crop=arcface"),
        _bad("does not apply to --dataset=synthetic", "--dataset=synthetic"),
        _bad("protocol nowhere.json cannot be read", "--protocol=nowhere.json"),
        _bad("protocol file cannot be read: it is no JSON file", "--protocol=file"),
        _bad("output_dir file is a file", "--output_dir=file"),
    ],
)
def test_bad_input_ends_in_one_line_before_any_attack(
    pictures, workplace, capsys, monkeypatch, given, message
):
    def never(*arguments, **options):
        raise AssertionError("an attack ran")

    monkeypatch.setattr("deid_jax.transfer.fitting.perturb_on_grid", never)
    (workplace / "file").write_text("mine")
    write_faces(workplace / "few", pictures=2)
    write_faces(workplace / "alone", persons=1)
    assert_refused(transfer.main, quick(pictures, *given), message, workplace, capsys)


def test_help_tells_what_budgets_and_rates_are(capsys):
    assert transfer.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("ifgsm, mifgsm, pgd", "apfgvm, ddn, fmn, cw", "the lowest PSNR of any image"):
        assert words in text


class Small(nn.Module):
    """A recogniser with weights to train."""

    @nn.compact
    def __call__(self, images):
        means = images.reshape(len(images), CELLS, SIZE // CELLS, CELLS, -1, 3).mean((2, 4))
        return nn.Dense(8)(means.reshape(len(images), -1))


@pytest.mark.slow
def test_opponent_who_trains_is_judged_by_the_other_half(pictures, monkeypatch):
    dataset = dataset_of(pictures)
    labels = dataset.labels
    positions = np.arange(36)
    place = positions % 12
    pairs = np.array(list(itertools.combinations(range(36), 2)))
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    lists = Positions(
        positions[place < 4],
        tuple(positions[(place >= 4) & (place < 8) & (labels == p)] for p in range(3)),
        positions[place >= 8],
        pairs[same],
        pairs[~same],
    )
    faces = Faces(
        np.stack([dataset.read(i) for i in range(36)]), labels, lists, dataset.image_names
    )
    module = Small()
    variables = module.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    judge = GalleryJudge.of(Embedder("small", module, variables), faces, FARS)
    settings = transfer.TransferSettings(fit=ONE, average=0, fine_tune=True)
    plan = dataclasses.replace(transfer.plan_of(settings)[0], fars=FARS)
    # So many and so large steps that he reads clean photos otherwise than before, too.
    thorough = functools.partial(fine_tune, epochs=20, learning_rate=0.02)
    monkeypatch.setattr("deid_jax.transfer.transfer_tables.fine_tune", thorough)
    photos = 255 - faces.protected
    evaluation = TransferEvaluation(plan, faces, {"small": judge}, {})
    verdicts = [judge.judge(p, faces.protected_labels) for p in (photos, faces.protected)]
    found = list(evaluation.opposed("small", photos, *verdicts))
    assert {name for name, _, _ in found} == {TRAINED}
    rows = [rates for _, _, rates in found]
    assert {(row.far, row.num_images) for row in rows} == {(far, 6) for far in FARS}
    # He sets thresholds anew; who does not train is left as he was.
    assert rows[0].threshold != judge.thresholds[rows[0].far]
    np.testing.assert_array_equal(
        judge.embedder.variables["params"]["Dense_0"]["kernel"],
        variables["params"]["Dense_0"]["kernel"],
    )
    again = evaluation.opposed("small", photos, *verdicts)
    assert [rates for _, _, rates in again] == rows
    known = np.arange(12) % 2 == 0
    shown = np.flatnonzero((place >= 4) & (place < 8))
    tuned = thorough(
        judge.embedder,
        np.concatenate([photos[known], faces.images[shown]]),
        np.concatenate([faces.protected_labels[known], labels[shown]]),
        judge.galleries,
        seed=plan.seed,
    )
    _assert_tuned(rows, tuned, judge, faces, photos)


def _assert_tuned(rows, tuned, judge, faces, photos):
    """What he reads of the second half, protected and not, and what was hidden before."""
    directions = []
    for embedder in (tuned, judge.embedder):
        own = [embedder.embed(faces.images[places]) for places in faces.lists.gallery]
        own = [np.mean(e / np.linalg.norm(e, axis=1, keepdims=True), axis=0) for e in own]
        directions.append([centre / np.linalg.norm(centre) for centre in own])
    half = np.arange(1, 12, 2)
    for row in (row for row in rows if row.compared == "gallery"):
        hidden = []
        old = judge.embedder, directions[1], judge.thresholds[row.far]
        new = tuned, directions[0], row.threshold
        for pictures, (embedder, centres, threshold) in (
            (photos, new),
            (faces.protected, new),
            (photos, old),
            (faces.protected, old),
        ):
            found = embedder.embed(pictures[half])
            scores = np.sum(found * np.array(centres)[faces.protected_labels[half]], axis=1)
            hidden.append(scores / np.linalg.norm(found, axis=1) < threshold)
        after, clean, before, clean_before = hidden
        assert row.protected == after.mean()
        assert row.unprotected == clean.mean()
        assert row.kept == after[before].mean()
        # None of them is another one.
        shares = {part.mean() for part in (after, clean, clean_before)}
        assert len(shares) == 3 and 0 < row.kept < 1
