"""--skip_unreadable with archives: what cannot be read is left out, told, and never shown."""

import json

import pytest

from deid_jax.errors import InputError
from experiments import attack, compare, sweep, transfer
from tests.data.packing import pack_tar
from tests.experiments import transfer_helpers
from tests.experiments.conftest import SIZE, write_faces
from tests.reports.runs_helpers import read_csv

LEFT_OUT = "left out 3 unreadable images\n"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """An archive of three persons; each one's first image is cut short."""
    folder = tmp_path_factory.mktemp("damaged")
    faces = write_faces(folder / "faces", pictures=12)
    for path in faces.glob("*/00.png"):
        path.write_bytes(path.read_bytes()[:200])
    return pack_tar(folder / "faces.tar", faces)


@pytest.fixture
def arguments(damaged, workplace):
    return [
        "--dataset=archive", f"--data_dir={damaged}", "--skip_unreadable", "--split=all",
        f"--image_size={SIZE}", f"--recogniser={transfer_helpers.ONE}", "--output_dir=out",
    ]  # fmt: skip


@pytest.mark.slow
def test_attack_shows_what_it_has_read(arguments, workplace, capsys):
    assert attack.main([*arguments, "--num_steps=2", "--evolution"]) == 0
    assert capsys.readouterr().err == LEFT_OUT
    metrics = json.loads((workplace / "out/metrics.json").read_text())
    assert metrics["num_images"] == 33
    assert (workplace / "out/sheet.png").exists()
    assert (workplace / "out/evolution.png").exists()


@pytest.mark.slow
def test_sweep_shows_what_it_has_read(arguments, workplace, capsys):
    assert sweep.main([*arguments, "--method=mask", "--sweep=mask_size=0.5"]) == 0
    assert capsys.readouterr().err == LEFT_OUT
    assert len(read_csv(workplace / "out/per_image.csv")) == 33
    assert (workplace / "out/sheets/mask.png").exists()


@pytest.mark.slow
def test_comparison_counts_and_names_what_it_has_read(arguments, workplace, capsys):
    flags = ["--methods=ifgvm", "--num_steps=2", "--targets=random", "--peers=none"]
    assert compare.main([*arguments, *flags]) == 0
    assert capsys.readouterr().err == LEFT_OUT
    assert "\n33 images of archive" in (workplace / "out/compare.md").read_text()
    lines = read_csv(workplace / "out/per_image.csv")
    assert len(lines) == 33
    assert not [line for line in lines if line["picture"].endswith("/00")]


def test_protocol_is_drawn_from_what_can_be_read(damaged, workplace, capsys, monkeypatch):
    drawn = []

    def stop(embedder, faces, fars):
        drawn.extend(faces.names)
        raise InputError("enough")

    monkeypatch.setattr(transfer.GalleryJudge, "of", stop)
    flags = ["--dataset=archive", "--skip_unreadable", "--output_dir=out", "--far=0.1"]
    assert transfer.main(transfer_helpers.quick(damaged, *flags)) == 2
    assert capsys.readouterr().err == f"{LEFT_OUT}error: enough\n"
    assert len(drawn) == 33
    assert not [name for name in drawn if name.endswith("/00")]
