"""Published recognisers on real faces: what they are worth, and what protection is: minutes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from deid_jax.metrics import verification
from deid_jax.photos.alignment import aligned_face
from deid_jax.photos.verifiers import comparable_of, crops_of, thresholds_of
from deid_jax.recognisers.embedders import load_embedder
from experiments import protect, transfer
from tests.experiments.conftest import peak_bytes

pytestmark = pytest.mark.slow

# FACTS of the two: accuracy on pairs of one person and of two of celeba30.
ACCURACY = {"mobilefacenet_ms1m": 0.984, "mobilefacenet_casia": 0.980}


def _given(files):
    return ",".join(f"{name}:{file}" for name, file in files.items())


@pytest.fixture(scope="module")
def protected(real_faces, recogniser_files, tmp_path_factory):
    """Rows of the table: two photos a person, at 42 dB, fitted on each recogniser."""
    folder = tmp_path_factory.mktemp("transfer")
    flags = [
        *("--per_person=2", "--psnr=42", "--average=0"),
        "--transformations=none,resize_pad_flip",
        "--processing=jpeg75",
    ]
    assert (
        transfer.main(
            [
                f"--data_dir={real_faces}",
                f"--fit={_given(recogniser_files)}",
                f"--output_dir={folder / 'out'}",
                *flags,
            ]
        )
        == 0
    )
    with (folder / "out/transfer.csv").open() as lines:
        return list(csv.DictReader(lines))


def _shares(rows, **wanted):
    """The protected shares at FAR 1 %, by (fitted on, judged by)."""
    wanted |= {"far": "0.01", "compared": "gallery", "opponent": ""}
    return {
        (row["fit"], row["test"]): float(row["protected"])
        for row in rows
        if all(row[name] == value for name, value in wanted.items())
    }


def test_they_tell_same_from_different_as_published(protected):
    found = {row["test"]: float(row["accuracy"]) for row in protected}
    assert found.keys() == ACCURACY.keys()
    for name, accuracy in ACCURACY.items():
        assert found[name] == pytest.approx(accuracy, abs=0.01)


@pytest.mark.parametrize("name", ["dlib_resnet", *ACCURACY])
def test_thresholds_are_those_at_a_far_of_one_percent(real_faces, recogniser_files, name):
    """Over all pairs of 900 photos, each cut by the recogniser's own template."""
    file = recogniser_files.get(name)
    embedder = load_embedder(f"{name}:{file}" if file else name, image_size=112)
    paths = sorted(real_faces.glob("*/*.jpg"))
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    crops = [crops_of(p, aligned_face(p), embedder.alignment) for p in photos]
    found = comparable_of(embedder, np.concatenate(crops))
    scores = verification.similarities(found, found, embedder.distance)
    persons = np.array([path.parent.name for path in paths])
    same, pairs = persons[:, None] == persons, np.triu_indices(len(paths), 1)
    impostor, genuine = scores[pairs][~same[pairs]], scores[pairs][same[pairs]]
    assert len(impostor) == 391_500
    (threshold,) = thresholds_of(None, [embedder])
    assert np.mean(impostor >= threshold) == pytest.approx(0.01, abs=8e-4)
    assert np.mean(genuine < threshold) == pytest.approx(0.02, abs=0.005)


def test_protection_carries_over_to_the_one_never_seen(protected):
    """Floors of 300 photos, less what chance may take of 60."""
    shares = _shares(protected, foreseen="resize_pad_flip", transformation="none")
    for fitted in ACCURACY:
        (other,) = ACCURACY.keys() - {fitted}
        assert shares[fitted, fitted] >= 0.95
        assert shares[fitted, other] >= 0.70
    unprotected = _shares(protected, method="none", transformation="none")
    assert max(unprotected.values()) <= 0.05
    assert all(
        float(row["psnr_min"]) >= 42 - 1e-3 for row in protected if row["method"] != "none"
    )


def test_foreseeing_changes_of_the_photo_carries_farther(protected):
    blind = _shares(protected, foreseen="", method="mifgvm", transformation="none")
    aware = _shares(protected, foreseen="resize_pad_flip", transformation="none")
    for pair in aware:
        if pair[0] != pair[1]:
            assert aware[pair] > blind[pair] + 0.05


def test_jpeg_takes_little(protected):
    before = _shares(protected, foreseen="resize_pad_flip", transformation="none")
    after = _shares(protected, foreseen="resize_pad_flip", transformation="jpeg75")
    for pair, share in before.items():
        assert after[pair] >= 0.9 * share


def test_every_face_in_whole_photos_fools_surrogates(real_photos, recogniser_files, tmp_path):
    """By the written files, at 38 dB or more."""
    source = tmp_path / "in"
    source.mkdir()
    for photo in sorted(real_photos.glob("*.jpg"))[::3]:
        (source / photo.name).write_bytes(photo.read_bytes())
    given = f"--recogniser={_given(recogniser_files)}"
    flags = [f"--input={source}", given, "--strength=strong"]
    assert protect.main([*flags, f"--output={tmp_path / 'out'}"]) == 0
    lines = (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 8
    assert {record["status"] for record in records} == {"unjudged"}
    faces = [face for record in records for face in record["faces"]]
    assert len(faces) >= 8
    for face in faces:
        assert face["psnr"] >= 38
        assert len(face["verdicts"]) == 2
        assert all(verdict["similarity"] < verdict["threshold"] for verdict in face["verdicts"])
    for record in records:
        if record["output"]:
            written, original = (
                np.asarray(Image.open(folder / record["file"]), float)
                for folder in (tmp_path / "out", source)
            )
            assert written.shape == original.shape
            assert np.abs(written - original).mean() < 3


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_24_megapixels_fit_into_3_gb(real_photos, recogniser_files, tmp_path, suffix):
    photo = Image.open(real_photos / "7201_002.jpg")
    ratio = (24e6 / (photo.width * photo.height)) ** 0.5
    size = (round(photo.width * ratio), round(photo.height * ratio))
    photo.resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"large.{suffix}")
    flags = [f"--input=large.{suffix}", "--output=out"]
    given = f"--recogniser={_given(recogniser_files)}"
    assert peak_bytes("protect", *flags, given, cwd=tmp_path) < 3e9
