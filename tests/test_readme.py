"""README, guide and results are true: their links, tables, flags and examples."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deid_jax.attacks import BASELINES
from deid_jax.data import DATASETS
from deid_jax.data.images import CROPS
from deid_jax.evaluation import TARGETS
from deid_jax.models import MODELS
from deid_jax.photos.face_search import load_search
from deid_jax.photos.file_records import PROTECTED, status_of
from deid_jax.photos.verdicts import judge
from deid_jax.photos.verifiers import (
    DEFAULTS,
    THRESHOLDS,
    Verifier,
    face_embeddings,
    thresholds_of,
)
from deid_jax.recognisers.embedders import load_embedder
from experiments import (
    aggregate,
    attack,
    attributes,
    benchmark,
    compare,
    growth,
    protect,
    scaling,
    sweep,
    train,
    transfer,
    webapp,
)
from experiments._common import flags

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "experiments/GUIDE.md", "experiments/RESULTS.md")
}
README, GUIDE = PAGES["README.md"], PAGES["experiments/GUIDE.md"]
TEXT = "\n".join(PAGES.values())
SETTINGS = {
    "aggregate": aggregate.AggregateSettings,
    "attack": attack.AttackSettings,
    "attributes": attributes.AttributesSettings,
    "train": train.TrainSettings,
    "benchmark": benchmark.BenchmarkSettings,
    "compare": compare.CompareSettings,
    "growth": growth.GrowthSettings,
    "scaling": scaling.ScalingSettings,
    "protect": protect.ProtectSettings,
    "sweep": sweep.SweepSettings,
    "transfer": transfer.TransferSettings,
    "webapp": webapp.WebappSettings,
}


def test_readme_is_short():
    assert README.count("\n") <= 200
    assert len(README.encode()) <= 12_000


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "checkpoints/README.md"])
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), flags=re.MULTILINE)
            anchors = [
                re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles
            ]
            assert anchor in anchors, target


def test_commands_have_the_flags_that_they_are_given():
    commands = re.findall(r"python -m experiments\.(?!NAME)(\w+.*)", TEXT)
    assert len(commands) > 10
    for command in commands:
        name, *words = command.replace("`", " ").replace("|", " ").replace(")", " ").split()
        known = flags.flags_of(SETTINGS[name])
        given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        assert not given - known.keys(), command


def test_flags_in_the_text_exist():
    known = {name for settings in SETTINGS.values() for name in flags.flags_of(settings)}
    known |= {"no-deps", "help"}
    assert set(re.findall(r"`--(\w[\w-]*)", TEXT)) <= known


def test_everything_by_name_is_mentioned():
    names = [*BASELINES, *DATASETS, *MODELS, *TARGETS, *CROPS, *SETTINGS]
    assert [name for name in names if not re.search(rf"\b{name}\b", TEXT)] == []


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@\w+@|TODO|TBD|[A-Z]+_[A-Z]+_?\n", TEXT)


PICTURES = ROOT / "experiments/pictures"


def test_the_first_pictures_are_what_they_are_said_to_be():
    before, after, difference = (
        np.asarray(Image.open(PICTURES / name)).astype(int)
        for name in ("astronaut.jpg", "protected/astronaut.jpg", "difference.png")
    )
    original = pytest.importorskip("skimage.data").astronaut()
    assert np.abs(before - original).mean() < 2
    np.testing.assert_array_equal(difference, np.clip(128 + 20 * (after - before), 0, 255))
    assert 0 < np.abs(after - before).mean() < 1


@pytest.mark.slow
def test_the_astronaut_is_protected_as_it_says(recogniser_files):
    """By the worst view of each recogniser."""
    before, after = (
        np.asarray(Image.open(PICTURES / name))
        for name in ("astronaut.jpg", "protected/astronaut.jpg")
    )
    search = load_search()
    faces = search(before)
    files = {name: f"{name}:{file}" for name, file in recogniser_files.items()}
    *_, judging = DEFAULTS
    embedders = [load_embedder(files.get(name, name), image_size=112) for name in DEFAULTS]
    pairs = zip(embedders, thresholds_of(None, embedders), strict=True)
    verifiers = [
        Verifier(embedder, threshold, embedder.name != judging) for embedder, threshold in pairs
    ]
    (own,) = face_embeddings(verifiers, before, faces)
    references = [[one.references(sign) for one, sign in zip(verifiers, own, strict=True)]]
    (verdicts,) = judge(after, faces, references, verifiers, search)
    assert status_of(verdicts, faces[0].score) == PROTECTED
    told = re.findall(r"([\d.]+), (?:threshold )?([\d.]+)\)", README)
    found = [abs(verdict.similarity) for verdict in verdicts]
    np.testing.assert_allclose(found, [float(one) for one, _ in told], atol=0.02)
    assert [float(threshold) for _, threshold in told] == list(THRESHOLDS.values())


def test_example_is_python_and_uses_public_names():
    import deid_jax

    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "deid_jax"
    }
    assert names <= set(deid_jax.__all__)
    code = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(code) <= 10


@pytest.mark.slow
def test_user_supplied_recogniser_is_attacked(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    (tmp_path / "my_recogniser.py").write_text(example, "utf-8")
    (command,) = re.findall(r"python -m experiments\.attack (.*my_recogniser.*)", GUIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*command.split(), "--max_images=4", "--output_dir=run"]
    assert attack.main(flags) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert metrics["mr_uint8"] == 1
