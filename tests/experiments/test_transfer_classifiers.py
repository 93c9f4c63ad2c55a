import shutil

import jax
import numpy as np
import pytest

from deid_jax.data import pair_lists
from deid_jax.models import create_model
from deid_jax.transfer import ClassifierJudge, Faces, judges
from experiments import transfer
from tests.experiments.transfer_helpers import ONE, SIZE, arguments, chosen, dataset_of, rows_of

# Whole commands.
pytestmark = pytest.mark.slow


def _faces(pictures):
    dataset = dataset_of(pictures)
    positions = pair_lists.make_lists(dataset, per_person=3).positions(dataset)
    images = np.stack([dataset.read(place) for place in range(len(dataset))])
    return dataset, Faces(images, dataset.labels, positions, dataset.image_names)


def test_names_and_rates_are_those_of_the_logits(pictures):
    dataset, faces = _faces(pictures)
    classifier = ClassifierJudge.trained("model_a", dataset, faces, seed=1)
    model = create_model("model_a", num_classes=3, image_size=SIZE)
    photos, labels = faces.images, faces.labels
    logits = model.apply(classifier.variables, photos.astype(np.float32) / 255)
    named = np.argmax(logits, axis=-1)
    # It learned the others, of which there are no near-duplicates here.
    others = np.setdiff1d(np.arange(len(photos)), faces.lists.protected)
    assert np.mean(named[others] == labels[others]) > 0.8
    wrong = named[faces.lists.protected] != faces.protected_labels
    assert classifier.accuracy == 1 - wrong.mean()
    wrong_labels = (labels + 1) % 3
    verdict, clean = (classifier.judge(photos, of) for of in (wrong_labels, labels))
    np.testing.assert_array_equal(
        verdict.protected[None, judges.BY_NAME], named != wrong_labels
    )
    order = np.argsort(-logits, axis=-1)
    places = [list(row).index(own) + 1 for row, own in zip(order, wrong_labels, strict=True)]
    np.testing.assert_array_equal(verdict.ranks, places)
    (row,) = verdict.rates(clean)
    assert row.protected == np.mean(named != wrong_labels)
    assert row.unprotected == np.mean(named != labels)
    assert row.low < row.protected <= row.high
    assert row.rank1 == 1 - row.protected
    assert row.far is row.threshold is row.score is None


def test_protected_photos_and_near_duplicates_are_never_learned(
    pictures, tmp_path, monkeypatch
):
    """A copy of a protected photo is in no list, and so is not learned either."""
    folder = tmp_path / "faces"
    shutil.copytree(pictures, folder)
    copies = set()
    for number in range(3):
        for picture in range(12):
            copy = folder / f"person_{number}" / f"{picture:02}_again.png"
            shutil.copy(copy.with_name(f"{picture:02}.png"), copy)
            copies.add(f"person_{number}/{copy.stem}")
    dataset, faces = _faces(folder)
    assert copies < set(dataset.image_names)
    seen = []

    def train(model, known, config):
        seen.extend(known.train.image_names)
        model_variables = model.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), "f"))
        return model_variables, []

    monkeypatch.setattr(judges, "train", train)
    ClassifierJudge.trained("model_a", dataset, faces, seed=0)
    protected = {dataset.image_names[place] for place in faces.lists.protected}
    assert len(protected) == 9
    # Twelve different photos a person; of equal ones the first is in a list.
    assert sorted(seen) == sorted(set(dataset.image_names) - copies - protected)


def test_report_and_table_have_them_beside_their_own_error(pictures, tmp_path, capsys):
    folder = tmp_path / "run"
    given = arguments(pictures, "--classifiers=model_a", "--psnr=30", f"--output_dir={folder}")
    assert transfer.main(given) == 0
    rows = rows_of(folder)
    found = chosen(rows, test="model_a")
    assert {row["transformation"] for row in found} == {"none", "jpeg75"}
    assert {row["method"] for row in found} == {"none", "mifgvm"}
    (clean,) = chosen(found, method="none", transformation="none")
    assert float(clean["accuracy"]) == pytest.approx(1 - float(clean["protected"]))
    assert {row["fit"] for row in found} == {"", ONE}
    text = (folder / "transfer.md").read_text("utf-8")
    section = text[text.index("## Misclassified by classifiers") :].partition("\n## ")[0]
    assert "from the stranger's galleries and the probes" in section
    for row in chosen(found, transformation="none"):
        assert f"{100 * float(row['protected']):.1f} %" in section
    assert transfer.main([*given, "--classifiers=resnet", f"--output_dir={folder}2"]) == 2
    assert "classifiers must be of model_a, vgg16, got resnet" in capsys.readouterr().err
