"""`experiments.attributes`: what it reads and writes, and whom its classifier learns from."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from deid_jax.data import DATASETS, DataOptions, FaceDataset, load_dataset
from deid_jax.evaluation import attributes as library
from deid_jax.recognisers import TrainConfig
from experiments import attack, attributes
from experiments._attributes import attribute_runs
from tests.experiments.conftest import COMMON, assert_refused, listing
from tests.reports.runs_helpers import read_csv

SIZE = 16
PERSONS, PICTURES = 6, 5
CHECKPOINT = "checkpoints/attributes-synthetic-16px-seed0"


def load_plain(options):
    """Stands in for the synthetic loader: a hue, a bright side; "luck" is not to be seen."""
    random = np.random.default_rng(options.seed)
    count = PERSONS * PICTURES
    hue, left, luck = (random.integers(0, k, count) for k in (3, 2, 2))
    pixels = random.integers(0, 60, (count, SIZE, SIZE, 3))
    pixels[np.arange(count), :, :, hue] += 90
    for picture, side in zip(pixels, left, strict=True):
        picture[:, : SIZE // 2] += 90 * side
        picture[:, SIZE // 2 :] += 90 * (1 - side)
    pixels = pixels.astype(np.uint8)
    return FaceDataset(
        name="synthetic",
        persons=tuple(f"person_{i}" for i in range(PERSONS)),
        labels=np.repeat(np.arange(PERSONS, dtype=np.int32), PICTURES),
        names=tuple(f"{i:03d}" for i in range(PICTURES)) * PERSONS,
        read=lambda index: pixels[index],
        image_size=options.image_size,
        split=options.split,
        attributes={
            "hue": np.array(["red", "green", "blue"])[hue],
            "bright_left": left == 1,
            "luck": luck == 1,
        },
        provenance={"persons_seed": options.seed, "crop": "none"},
    )


def load_named(options):
    """Stands in for CelebA's: persons by name, of whom several seeds draw the same."""
    faces = load_plain(options)
    drawn = np.random.default_rng(options.seed).choice(20, PERSONS, replace=False)
    persons = tuple(f"celebrity_{i:02d}" for i in sorted(drawn))
    return dataclasses.replace(faces, name="celeba", persons=persons, provenance={})


def use_plain_sets(patch):
    """The sets are plain ones, and their classifier learns fast."""
    patch.setitem(DATASETS, "synthetic", f"{__name__}:load_plain")
    patch.setitem(DATASETS, "celeba", f"{__name__}:load_named")
    patch.setattr(attributes, "_OTHERS", {"synthetic": (8, "test"), "celeba": (4, "all")})
    patch.setattr(attributes, "_LEAST_PERSONS", 5)
    recipe = TrainConfig(epochs=6, learning_rate=2e-3, batch_size=16, flips=False)
    patch.setattr(library, "RECIPE", recipe)
    patch.setattr(library, "MIRRORED", ("bright_left",))


SETTINGS = {
    "dataset": "synthetic", "data_dir": None, "image_size": SIZE, "crop": None,
    "skip_unreadable": False, "seed": 0, "split": "test", "target": None, "init": None,
    "quantize": False,
}  # fmt: skip


def write_run(folder, pictures=None, method="pfgvm", config=None, faces=None, **settings):
    """What `experiments.attack` leaves; `pictures` uint8[N, H, W, 3], None: the originals."""
    faces = faces or load_plain(DataOptions(image_size=SIZE, split="test", seed=0))
    pictures = originals(faces) if pictures is None else pictures
    folder.mkdir(parents=True)
    figures = {"method": method, "model": "model_a", "config": config or {"num_steps": 3}}
    (folder / "metrics.json").write_text(json.dumps(figures))
    (folder / "config.json").write_text(json.dumps({"settings": SETTINGS | settings}))
    lines = ["person,name,target"]
    for name, picture in zip(faces.image_names, pictures, strict=False):
        lines.append(name.replace("/", ",") + ",x")
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    (folder / "per_image.csv").write_text("\n".join(lines) + "\n")
    return folder


def originals(faces=None):
    faces = faces or load_plain(DataOptions(image_size=SIZE, split="test", seed=0))
    return np.stack([faces.read(index) for index in range(len(faces))])


def command(*folders, output="out"):
    return [f"--runs={','.join(map(str, folders))}", f"--output_dir={output}"]


@pytest.fixture(scope="module")
def first_time(tmp_path_factory):
    """The folder in which the command trained its classifier; not to be changed."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        use_plain_sets(patch)
        patch.chdir(folder)
        write_run(folder / "same")
        assert attributes.main(command("same")) == 0
    return folder


@pytest.fixture
def place(first_time, workplace, monkeypatch):
    """The current folder: plain sets and a kept classifier, which may not be trained again."""
    use_plain_sets(monkeypatch)
    shutil.copytree(first_time / CHECKPOINT, workplace / CHECKPOINT)
    monkeypatch.setattr(library, "train_classifier", None)
    return workplace


def rows_of(folder):
    rows = read_csv(folder / "attributes.csv")
    return {(row["method"], row["attribute"]): row for row in rows}


def test_written_pictures_that_are_the_originals_agree_wholly(first_time):
    rows = rows_of(first_time / "out")
    assert list(rows) == [("pfgvm", name) for name in ("hue", "bright_left", "luck")]
    for row in rows.values():
        assert (row["num_images"], row["settings"]) == (
            "30",
            "num_steps 3, target random, init image",
        )
        assert float(row["agreement"]) == float(row["kappa"]) == float(row["high"]) == 1
        assert 0.85 < float(row["low"]) < 1
        assert row["accuracy_before"] == row["accuracy_after"]
    truth = load_plain(DataOptions(image_size=SIZE)).attributes
    commonest = np.unique(truth["hue"], return_counts=True)[1].max() / 30
    assert float(rows["pfgvm", "hue"]["chance"]) == commonest
    assert float(rows["pfgvm", "hue"]["accuracy_before"]) > 0.85
    assert [row["told"] for row in rows.values()] == ["True", "True", "False"]
    assert [path.name for path in (first_time / "checkpoints").iterdir()] == [
        "attributes-synthetic-16px-seed0"
    ]


def test_destroyed_attributes_show_and_the_others_stay(place, capsys):
    pictures = originals()
    write_run(place / "same")
    write_run(place / "grey", np.broadcast_to(pictures.mean(3, keepdims=True), pictures.shape)
              .astype(np.uint8), method="blur", config={"blur_sigma": 0.05})  # fmt: skip
    write_run(place / "mirrored", pictures[:, :, ::-1], method="mask", config={"mask_size": 1})
    capsys.readouterr()
    assert attributes.main(command("same", "grey", "mirrored")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = rows_of(place / "out")
    assert rows["blur", "hue"]["settings"] == "blur_sigma 0.05"
    assert float(rows["blur", "hue"]["agreement"]) < 0.7
    assert abs(float(rows["blur", "hue"]["kappa"])) < 0.5
    assert float(rows["blur", "hue"]["accuracy_after"]) < 0.7
    assert float(rows["blur", "bright_left"]["agreement"]) > 0.8
    assert float(rows["mask", "hue"]["agreement"]) > 0.8
    assert float(rows["mask", "bright_left"]["agreement"]) < 0.2
    assert float(rows["mask", "bright_left"]["kappa"]) < -0.5
    for word in ("pfgvm", "blur", "mask", "bright_left", "mean kappa", "Tables: out"):
        assert word in out


def test_table_has_attributes_down_and_runs_across(place):
    write_run(place / "same")
    write_run(place / "mirrored", originals()[:, :, ::-1], method="mask")
    assert attributes.main(command("same", "mirrored")) == 0
    text = (place / "out/attributes.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert header == ["attribute", "chance", "accuracy", "pfgvm", "mask"]
    names = [cells[0] for cells in body]
    assert names == ["hue", "bright_left", "luck \\*", "mean", "mean kappa"]
    rows = rows_of(place / "out")
    for cells, name in zip(body, ("hue", "bright_left", "luck"), strict=False):
        assert cells[2] == f"{100 * float(rows['pfgvm', name]['accuracy_before']):.1f}"
        assert cells[4] == f"{100 * float(rows['mask', name]['agreement']):.1f}"
    told = [rows["mask", name] for name in ("hue", "bright_left")]
    assert body[3][3] == "100.0"
    assert body[3][4] == f"{100 * np.mean([float(row['agreement']) for row in told]):.1f}"
    assert body[4][4] == f"{np.mean([float(row['kappa']) for row in told]):.3f}"
    assert "\\* On persons that it was not trained on" in text
    description = json.loads((place / "out/config.json").read_text())
    assert description["data"]["seed"] == 0
    assert description["classifier"]["persons"] == 8 * PERSONS
    assert description["contents"] == ["attributes.csv", "attributes.md", "config.json"]


def test_same_command_writes_the_same_bytes(place, first_time):
    write_run(place / "same")
    assert attributes.main(command("same")) == 0
    assert listing(place / "out") == listing(first_time / "out")


def test_runs_of_one_method_are_told_apart_by_what_differs(place):
    write_run(place / "a", config={"penalty_weight": 0.3, "num_steps": 5})
    write_run(place / "b", config={"penalty_weight": 1.0, "num_steps": 5}, target="runner_up")
    write_run(place / "c", method="blur", config={"blur_sigma": 0.1}, quantize=True)
    runs = attribute_runs.read_runs("a, b,c")
    assert attributes._headings(runs) == [
        "pfgvm (penalty_weight 0.3, target random)",
        "pfgvm (penalty_weight 1, target runner_up)",
        "blur",
    ]
    assert runs[2].settings == {"blur_sigma": "0.1", "quantize": "yes"}
    shutil.copytree("a", "d")
    assert attributes._headings(attribute_runs.read_runs("a,d")) == ["pfgvm (a)", "pfgvm (d)"]


@pytest.mark.parametrize("name", ["synthetic", "celeba"])
def test_classifier_is_trained_on_other_persons(monkeypatch, name):
    use_plain_sets(monkeypatch)
    options = DataOptions(image_size=SIZE, split="test")
    evaluated = load_dataset(name, options)
    # Persons of the set of whom no image is evaluated are left out, too.
    part = evaluated.take(np.flatnonzero(evaluated.labels == 0))
    seen = []
    others = attributes.other_faces(part, options, lambda done, total: seen.append(done))
    assert len(set(others.persons)) == len(others.persons)
    assert not set(others.persons) & set(library.names_of_persons(evaluated))
    assert set(others.labels) == set(range(len(others.persons)))
    assert len(others) == PICTURES * len(others.persons)
    assert seen == list(range(1, attributes._OTHERS[name][0] + 1))
    if name == "synthetic":
        assert len(others.persons) == 8 * PERSONS
        assert others.persons[:1] + others.persons[-1:] == ("1/person_0", "8/person_5")
    else:
        assert 5 <= len(others.persons) <= 20 - PERSONS
    # Images and attributes are still those of their persons.
    last = load_dataset(name, dataclasses.replace(options, seed=len(seen)))
    owner = last.persons[-1] if name == "celeba" else f"8/{last.persons[-1]}"
    if owner == others.persons[-1]:
        np.testing.assert_array_equal(others.read(len(others) - 1), last.read(len(last) - 1))
        assert others.attributes["hue"][-1] == last.attributes["hue"][-1]


def test_too_few_other_persons_are_said_in_one_line(monkeypatch, workplace, capsys):
    use_plain_sets(monkeypatch)
    monkeypatch.setattr(attributes, "_LEAST_PERSONS", 30)
    faces = load_named(DataOptions(image_size=SIZE, seed=0))
    write_run(workplace / "run", faces=faces, dataset="celeba")
    assert attributes.main(command("run")) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("No attribute classifier at checkpoints/attributes-celeba-16px")
    assert (
        "persons to train an attribute classifier on beside the 6 evaluated, 30 are" in err[1]
    )
    assert len(err) == 2
    assert [path.name for path in workplace.iterdir()] == ["run"]


def test_run_of_the_attack_command_is_read(trained, faces, workplace, capsys):
    """What `experiments.attack` writes today, up to the labels that a folder of files lacks."""
    settings = ["--method=mask", f"--checkpoint={trained[0]}", f"--data_dir={faces}"]
    assert attack.main([*COMMON, *settings, "--output_dir=run"]) == 0
    capsys.readouterr()
    (run,) = attribute_runs.read_runs("run")
    assert (run.method, run.model, run.settings) == ("mask", "model_a", {"mask_size": "0.5"})
    assert len(run.images) == 3
    assert run.read(0).shape == (SIZE, SIZE, 3)
    assert attributes.main(command("run")) == 2
    assert capsys.readouterr() == (
        "",
        "error: data set folder has no attribute labels here; synthetic and celeba (with its "
        "list of attributes) have\n",
    )


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _resize(folder):
    Image.new("RGB", (SIZE, SIZE + 1)).save(folder / "images/person_2/003.png")


def _cut(folder):
    path = folder / "images/person_2/003.png"
    path.write_bytes(path.read_bytes()[:60])


def _set(name, value):
    text = json.dumps({"settings": SETTINGS | {name: value}})
    return _write("config.json", text)


def _fewer(folder):
    path = folder / "per_image.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "b is no output folder of experiments.attack: it has no metrics.json"),
        (_remove("config.json"), "experiments.attack: it has no config.json"),
        (_write("metrics.json", "{"), "b/metrics.json is broken: "),
        (_write("metrics.json", "[]"), "b/metrics.json is broken: it must be a JSON object"),
        (_write("metrics.json", "{}"), "b/metrics.json lacks method"),
        (_write("config.json", "{}"), "b/config.json, settings lacks "),
        (_write("config.json", '{"settings": null}'), "b/config.json, settings lacks "),
        (_write("per_image.csv", "person,name\n"), "b/per_image.csv lists no image"),
        (_write("per_image.csv", "a,b\n1,2\n"), "csv lacks the columns person, name"),
        (_remove("images/person_2/003.png"), "b lacks the image b/images/person_2/003.png"),
        (_resize, "b/images/person_2/003.png is 16x17, but its run is of 16x16"),
        (_cut, "b/images/person_2/003.png cannot be read"),
        (_set("seed", 1), "a and b are not of the same images: seed is 0 and 1"),
        (_set("split", "all"), "not of the same images: split is test and all"),
        (_set("image_size", 32), "not of the same images: image_size is 16 and 32"),
        (_set("dataset", "lfw"), "not of the same images: dataset is synthetic and lfw"),
        (_fewer, "a and b are not of the same images: person_5/004 differs"),
    ],
)  # fmt: skip
def test_bad_runs_end_in_one_line_and_nothing_is_written(place, capsys, change, message):
    for name in "ab":
        write_run(place / name)
    change(place / "b")
    assert_refused(attributes.main, command("a", "b"), message, place, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--runs=DIR,DIR,... names output folders of experiments.attack"),
        (["--runs=,"], "--runs=DIR,DIR,... names output folders of experiments.attack"),
        (["--runs=a,./a"], "--runs names a twice"),
        (["--runs=a", "--output_dir=a/metrics.json"], "output_dir a/metrics.json is a file"),
    ],
)
def test_bad_flags_end_in_one_line(place, capsys, arguments, message):
    write_run(place / "a")
    assert_refused(attributes.main, arguments, message, place, capsys)


def test_run_of_pictures_that_the_data_set_has_not_is_refused(place, capsys):
    folder = write_run(place / "a")
    (folder / "images/person_0").rename(folder / "images/stranger")
    table = (folder / "per_image.csv").read_text()
    (folder / "per_image.csv").write_text(table.replace("person_0", "stranger"))
    assert attributes.main(command("a")) == 2
    assert "a has an image stranger/000, which data set synthetic lacks" in (
        capsys.readouterr().err
    )


def test_something_else_at_the_classifiers_place_is_kept(monkeypatch, workplace, capsys):
    use_plain_sets(monkeypatch)
    write_run(workplace / "a")
    (workplace / "checkpoints").mkdir()
    (workplace / CHECKPOINT).write_text("mine")
    assert attributes.main(command("a")) == 2
    assert "exists and is no checkpoint: it is kept" in capsys.readouterr().err
    assert (workplace / CHECKPOINT).read_text() == "mine"
