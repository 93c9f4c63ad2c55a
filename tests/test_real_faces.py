"""The paper's experiment on real faces, and the main job on rendered ones: minutes each."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import attack, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(real_faces, tmp_path_factory):
    """Model A trained on celeba30 at 64 px, as `experiments.train` does by default."""
    folder = tmp_path_factory.mktemp("real")
    data = {"dataset": "folder", "data_dir": str(real_faces)}
    settings = train.TrainSettings(
        **data, checkpoint=str(folder / "model_a"), output_dir=str(folder / "train")
    )
    return data | {"checkpoint": str(folder / "model_a")}, train.run(settings)


def test_model_a_learns_real_faces(real):
    _, recogniser = real
    assert recogniser.info.accuracy["train"] >= 0.97
    assert recogniser.info.accuracy["test"] >= 0.60


def test_pfgvm_hides_people_that_training_never_saw(real, tmp_path):
    settings, _ = real
    figures = attack.run(attack.AttackSettings(**settings, output_dir=str(tmp_path / "pfgvm")))
    assert figures["num_images"] == 150
    assert figures["mr_uint8"] >= 0.99
    assert figures["target_rate_uint8"] >= 0.97
    assert figures["mssim_uint8"] > 0.94
    with (tmp_path / "pfgvm" / "per_image.csv").open() as lines:
        records = list(csv.DictReader(lines))
    for record in records[::10]:
        path = tmp_path / "pfgvm" / "images" / record["person"] / f"{record['name']}.png"
        assert np.asarray(Image.open(path)).shape == (64, 64, 3)


def test_ad_hoc_methods_cost_more_than_pfgvm_at_less_protection(real, tmp_path):
    settings, _ = real

    def run(method):
        output = str(tmp_path / method)
        return attack.run(
            attack.AttackSettings(
                **settings, method=method, output_dir=output, max_images=60, batch_size=60
            )
        )

    ours = run("pfgvm")
    for method in ("blur", "pixelate", "mask", "noise"):
        theirs = run(method)
        assert theirs["mr_uint8"] < ours["mr_uint8"]
        assert theirs["mssim_uint8"] < ours["mssim_uint8"]


def test_main_job_trains_and_hides_rendered_faces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures = attack.run(attack.AttackSettings(output_dir="run"))
    assert figures["num_images"] == 150
    assert figures["clean_error"] <= 0.05
    assert figures["mr_uint8"] >= 0.99
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["mr_uint8"] == figures["mr_uint8"]
    assert len(list((tmp_path / "run" / "images").glob("*/*.png"))) == 150
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    # The README's example follows that very command.
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    example = next(re.finditer(r"```python\n(.*?)```", readme, flags=re.DOTALL))[1]
    names = {}
    exec(example, names)
    assert names["result"].success.all()
