"""`experiments.transfer` on whole photos of made-up persons, with a made-up detector."""

import itertools
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from deid_jax.errors import InputError
from deid_jax.photos.alignment import crop_matrix
from deid_jax.photos.faces import Face
from deid_jax.photos.verifiers import DEFAULTS
from experiments import transfer
from experiments._common import loading
from experiments._transfer.photo_runs import read_photos
from tests.experiments.conftest import assert_refused
from tests.experiments.protect_helpers import (
    FIRST,
    ONE,
    ONE_AGAIN,
    SECOND,
    THIRD,
    TWO,
    embedding,
    picture,
)
from tests.experiments.transfer_helpers import chosen, rows_of, tables_of, unit
from tests.helpers import refused

FAR = 0.3
SEEDS = {ONE: 1, TWO: 2}
NOBODY = "p3/1.jpg"


def faces_of(pixels):
    """A made-up detector: two faces wherever the photo is not black in its corner."""
    scale = pixels.shape[1] / 220
    boxes = [(130, 20, 60, 60), (20, 15, 60, 60)]
    found = [Face(tuple(scale * n for n in box)) for box in boxes]
    return found if pixels[:3, :3].any() else []


@pytest.fixture
def detector(monkeypatch):
    monkeypatch.setattr(transfer, "load_detector", lambda name: faces_of)


def _write(folder, person, number):
    """A photo of the person on one side, and of somebody on the other."""
    own, else_ = (picture(seed).astype(float) for seed in (person, 100 * person + number + 7))
    pixels = np.concatenate([else_, 0.75 * own + 0.25 * else_[:, ::-1]], axis=1)
    if number % 2:
        pixels = np.roll(pixels, 110, axis=1)
    if f"p{person}/{number}.jpg" == NOBODY:
        pixels[:16, :16] = 0
    path = folder / f"p{person}/{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(path, quality=95)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two photos of six persons each, and three or four others; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    for person, number in itertools.product(range(6), range(6)):
        _write(folder / ("photos" if number < 2 else "gallery"), person, number)
    return folder


def _given(sources, *more):
    return [
        f"--photos={sources}/photos",
        f"--gallery={sources}/gallery",
        f"--fit={ONE}",
        f"--test={ONE},{TWO}",
        "--psnr=32",
        "--num_steps=4",
        "--processing=jpeg75,photographed_again",
        f"--far={FAR},0.001",
        *more,
    ]


def _shown(path):
    with Image.open(path) as image:
        return np.array(image)


def _named(name, pixels):
    """The face of the photo's person: on the right, in every other photo on the left."""
    return faces_of(pixels)[int(name[-5]) % 2]


def _unit_vectors(paths, seed):
    """name -> unit vector of the person's face, in NumPy's float64."""
    found = {}
    for name, path in paths.items():
        pixels = _shown(path)
        found[name] = embedding(pixels, crop_matrix(_named(name, pixels)), seed)
    return found


def _threshold(embeddings, person):
    pairs = itertools.combinations(embeddings, 2)
    apart = [
        float(embeddings[a] @ embeddings[b])
        for a, b in pairs
        if len({a[:2], b[:2], person}) == 3
    ]
    return sorted(apart, reverse=True)[int(len(apart) * FAR)]


@pytest.mark.slow
def test_table_agrees_with_kept_files(sources, workplace, capsys, detector, light_attack):
    assert transfer.main(_given(sources, "--keep_images")) == 0
    printed = capsys.readouterr().out
    folder = workplace / "runs/transfer"
    assert f"no face of the person found: photos/{NOBODY}" in printed
    assert f"photos/{NOBODY}" in (folder / "transfer.md").read_text()
    rows, lines = rows_of(folder, "photos.csv"), rows_of(folder, "per_photo.csv")
    assert {(row["fit"], row["test"], row["psnr"], row["transformation"]) for row in rows} == {
        (fit, test, psnr, kind)
        for (fit, psnr), test, kind in itertools.product(
            (("", ""), (ONE, "32.0")), (ONE, TWO), ("none", "jpeg75", "photographed_again")
        )
    }
    assert {row["far"] for row in rows} == {str(FAR)}
    clean = {
        f"{path.parent.name}/{path.name}": path
        for path in sorted(sources.glob("*/*/*.jpg"))
        if not str(path).endswith(f"photos/{NOBODY}")
    }
    kept = {
        f"{path.parent.name}/{path.name}": path
        for path in sorted((folder / f"photos/{ONE}-32dB").glob("*/*.jpg"))
    }
    assert sorted(kept) == sorted(n for n in clean if n[-5] in "01")
    for test, seed in SEEDS.items():
        known, written = _unit_vectors(clean, seed), _unit_vectors(kept, seed)
        unmatched = {"self": [], "others": [], "mean": []}
        own = chosen(lines, fit=ONE, test=test, transformation="none")
        by_name = {line["photo"]: line for line in own}
        for name, vector in written.items():
            others = [known[n] for n in known if n[:2] == name[:2] and n != name]
            scores = {
                "self": [float(vector @ known[name])],
                "others": [float(vector @ other) for other in others],
                "mean": [float(vector @ unit(np.mean(others, axis=0)))],
            }
            threshold = _threshold(known, name[:2])
            assert float(by_name[name]["self_threshold"]) == pytest.approx(threshold, abs=1e-5)
            for compared, values in scores.items():
                line = by_name[name]
                assert float(line[compared]) == pytest.approx(np.mean(values), abs=1e-4)
                limit = float(line[f"{compared}_threshold"])
                assert min(abs(value - limit) for value in values) > 1e-5
                flags = [value < limit for value in values]
                assert float(line[f"{compared}_unmatched"]) == np.mean(flags)
                unmatched[compared] += flags
        (row,) = chosen(rows, fit=ONE, test=test, transformation="none")
        for compared, flags in unmatched.items():
            assert float(row[compared]) == pytest.approx(np.mean(flags))
            assert float(row[f"{compared}_low"]) <= np.mean(flags)
            assert int(row[f"{compared}_count"]) == len(flags)
        assert (row["lost"], row["num_photos"]) == ("0.0", "11")
        assert 32 <= float(row["psnr_mean"]) < 33
        (before,) = chosen(rows, fit="", test=test, transformation="none")
        assert float(before["self"]) == 0
        assert float(before["others"]) < float(row["others"])
    report = tables_of((folder / "transfer.md").read_text())
    head, body = report[f"Non-match rates at FAR {100 * FAR:g} %"]
    assert len(body) == 4
    assert re.fullmatch(r"\d+\.\d % \[\d+–\d+\]", body[-1][head.index("others")])


def _bad(message, *given):
    return pytest.param(given, message, id=" ".join(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        _bad("--methods=pgd does not apply to --photos", "--methods=pgd"),
        _bad("--data_dir=x does not apply to --photos", "--data_dir=x"),
        _bad("photos nowhere must hold photos as <person>/<name>", "--photos=nowhere"),
        _bad("processing must be of none, jpeg75", "--processing=noise"),
        _bad("num_steps must be an integer >= 1", "--num_steps=0"),
        _bad("far 0.01 accepts only 3 impostor pairs", "--far=0.01"),
        _bad(
            f"judge {ONE_AGAIN} is the same network as the fitted {ONE}", f"--test={ONE_AGAIN}"
        ),
        _bad("recognisers must be named", f"--fit={ONE},"),
    ],
)
def test_bad_input_ends_in_one_line(sources, workplace, capsys, detector, given, message):
    given = _given(sources, *given)
    assert_refused(transfer.main, given, message, workplace, capsys)


def test_a_photo_is_not_in_its_own_gallery(sources, workplace, capsys, detector):
    given = _given(sources, f"--gallery={sources}/photos")
    message = "photos/p0/0.jpg has the same content as "
    assert_refused(transfer.main, given, message, workplace, capsys)


def test_what_cannot_be_read_and_copies_in_the_gallery_are_left_out(sources, tmp_path):
    folders = {part: tmp_path / part for part in ("photos", "gallery")}
    for part, folder in folders.items():
        shutil.copytree(sources / part, folder)

    def read():
        return read_photos(folders, faces_of, {"one": FIRST}, lambda *_: None)

    whole = read()
    assert whole.left_out == []
    for part in ("photos", "gallery"):
        (folders[part] / "p0/z.jpg").write_bytes(b"")
    (folders["gallery"] / "p1/z.jpg").symlink_to("2.jpg")
    (folders["gallery"] / "p1/z.mp4").write_bytes(b"film")
    again = read()
    assert again.left_out == [
        "photos/p0/z.jpg is an empty file",
        "gallery/p0/z.jpg is an empty file",
        f"{tmp_path}/gallery/p1/z.jpg has the same content as {tmp_path}/gallery/p1/2.jpg",
        "gallery/p1/z.mp4 is a video",
    ]
    assert (again.photos, again.not_found) == (whole.photos, whole.not_found)
    np.testing.assert_array_equal(again.embeddings["one"], whole.embeddings["one"])
    for path in folders["photos"].glob("*/?.jpg"):
        path.write_bytes(b"")
    with refused("left out: photos/p0/0.jpg is an empty file"):
        read()


def test_default_recognisers_are_loaded_once(sources, workplace, monkeypatch, detector):
    networks, loaded = dict(zip(DEFAULTS, (FIRST, SECOND, THIRD), strict=True)), []

    def load(text, size):
        loaded.append(text)
        return networks[text]._replace(name=text)

    def read(folders, detector, embedders, done):
        assert tuple(embedders) == DEFAULTS
        raise InputError("enough")

    monkeypatch.setattr(loading, "load_embedder_with_bar", load)
    monkeypatch.setattr(transfer, "read_photos", read)
    settings = transfer.TransferSettings(
        photos=f"{sources}/photos", gallery=f"{sources}/gallery"
    )
    with refused("enough"):
        transfer.run(settings)
    assert tuple(loaded) == DEFAULTS


def test_photos_and_gallery_need_each_other(pictures, workplace, capsys):
    for flag, message in (
        ("--photos=x", "--photos needs a --gallery"),
        ("--gallery=x", "--gallery=x needs --photos"),
    ):
        assert_refused(transfer.main, [flag], message, workplace, capsys)


def test_each_recogniser_is_left_out_once():
    settings = transfer.TransferSettings(photos="x", gallery="y", test=f"{ONE},{TWO}")
    plan, _ = transfer.photo_plan_of(settings)
    assert plan.fits == ((TWO,), (ONE,))
    assert (plan.judges, plan.psnrs) == ((ONE, TWO), (40, 38))
