import json
import shutil

import numpy as np
import pytest
from PIL import Image

from deid_jax.attacks import METHODS
from deid_jax.pixels import LEVELS
from deid_jax.runs import RunFolder
from experiments import attack
from experiments._common.flags import parse_flags
from tests.experiments.conftest import COMMON, assert_refused, finish, listing, process
from tests.reports.runs_helpers import read_csv

CONTRACT = {
    "method", "model", "dataset", "split", "num_images", "num_devices", "l2", "linf", "mssim",
    "mr", "target_rate", "clean_error", "l2_uint8", "mssim_uint8", "mr_uint8",
    "num_gradients", "seconds", "images_per_second", "config",
}  # fmt: skip
TIMING = {
    "seconds", "images_per_second", "compile_seconds", "attack_seconds", "startup_seconds",
    "read_seconds", "write_seconds",
}  # fmt: skip
QUICK = "--num_steps=3"


def read(folder):
    """(metrics, records, description) of a run."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return (
        metrics,
        read_csv(folder / "per_image.csv"),
        json.loads((folder / "config.json").read_text()),
    )


def timeless(folder):
    """The content of a run's files, without what the clock decides."""
    files = listing(folder)
    metrics = json.loads(files.pop("metrics.json"))
    return files, {name: value for name, value in metrics.items() if name not in TIMING}


@pytest.mark.slow
def test_train_and_attack_as_a_newcomer_runs_them(faces, workplace):
    shutil.copytree(faces, workplace / "faces")
    common = [*COMMON, "--data_dir=faces"]
    status, out, err = finish(process("train", *common, "--epochs=1", cwd=workplace))
    assert (status, err) == (0, "")
    assert "Checkpoint: checkpoints/model_a-folder-faces-16px-seed0" in out
    status, out, err = finish(process("attack", *common, cwd=workplace))
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines()[:-1])) <= 80  # The last line is a path.
    assert "misclassified (MR)" in out
    folder = workplace / "runs/attack/model_a-folder-faces-16px-seed0-test-pfgvm"
    metrics, records, _ = read(folder)
    assert metrics.keys() >= CONTRACT
    assert metrics["num_images"] == len(records) == 3
    assert metrics["num_gradients"] == metrics["config"]["num_steps"] == 50
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "images", "metrics.json", "per_image.csv", "sheet.png",
    ]  # fmt: skip


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_diverging_step_goes_on_with_one_warning(arguments, workplace, capsys):
    flags = ["--step_size=0.5", "--penalty_weight=4", "--num_steps=3"]
    assert attack.main([*arguments, *flags]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: step_size * penalty_weight is 0.5 * 4 = 2")
    assert err.count("\n") == 1


@pytest.mark.parametrize("method", ["pfgvm", "blur"])
def test_methods_write_what_it_measured(arguments, workplace, method):
    steps = [QUICK] if "num_steps" in METHODS[method].settings() else []
    figures = attack.main([*arguments, f"--method={method}", *steps])
    assert figures == 0
    metrics, records, description = read(workplace / "out")
    assert metrics["method"] == method
    assert metrics["config"].keys() == set(METHODS[method].settings())
    assert description["settings"]["method"] == method
    assert "pictures" not in description["recogniser"]
    for name in ("l2", "mssim", "l2_uint8", "linf"):
        mean = np.mean([float(record[name]) for record in records])
        assert metrics[name] == pytest.approx(mean, rel=1e-6)
    share = np.mean([record["misclassified_uint8"] == "True" for record in records])
    assert metrics["mr_uint8"] == pytest.approx(share)
    assert (metrics["target_rate"] is None) == (method == "blur")
    written = {str(p.relative_to(workplace / "out/images")) for p in _pictures(workplace)}
    assert written == {f"{record['person']}/{record['name']}.png" for record in records}
    for path in _pictures(workplace):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (16, 16))


@pytest.mark.slow
def test_evolution_shows_the_way_from_noise_and_goes_with_the_run(arguments, workplace):
    flags = ["--init=noise", "--penalty_weight=2", "--num_steps=30", "--max_images=2"]
    assert attack.main([*arguments, *flags, "--evolution"]) == 0
    first = listing(workplace / "out")
    with Image.open(workplace / "out/evolution.gif") as gif:
        assert gif.n_frames > 10
    with Image.open(workplace / "out/evolution.png") as image:
        strip = np.asarray(image.convert("RGB")).astype(int)
    tile, step = 136, 146
    frames = [strip[36 : 36 + tile, 10 + i * step : 10 + i * step + tile] for i in range(8)]
    last = strip[36 : 36 + tile, 20 + 8 * step : 20 + 8 * step + tile]
    distances = [np.abs(frame - last).mean() for frame in frames]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.2 * distances[0]
    assert attack.main([*arguments, *flags, "--evolution"]) == 0
    again = listing(workplace / "out")
    assert again["evolution.gif"] == first["evolution.gif"]
    # A run without the figure leaves none of an earlier run's.
    assert attack.main([*arguments, *flags]) == 0
    names = {path.name for path in (workplace / "out").iterdir()}
    assert names == {"config.json", "images", "metrics.json", "per_image.csv", "sheet.png"}


def _pictures(workplace):
    return sorted((workplace / "out/images").glob("*/*.png"))


@pytest.mark.slow
def test_other_flags_do_what_they_say(arguments, workplace, trained):
    flags = ["--target=none", "--init=noise", "--quantize", "--max_images=2", "--split=train"]
    assert attack.main([*arguments, *flags, QUICK]) == 0
    metrics, records, _ = read(workplace / "out")
    assert (metrics["num_images"], metrics["split"]) == (2, "train")
    assert metrics["target_rate"] is None
    assert metrics["l2"] == pytest.approx(metrics["l2_uint8"], rel=1e-6)
    names = [f"{record['person']}/{record['name']}" for record in records]
    assert names == list(trained[2].info.pictures[:2])
    # Three steps from noise are still far from the image.
    assert metrics["mssim"] < 0.5


@pytest.mark.slow
def test_quantised_attacks_succeed_in_the_files_they_write(
    arguments, workplace, trained, faces
):
    recogniser = trained[2]
    flags = ["--method=fmn", "--num_steps=20", "--split=all"]
    assert attack.main([*arguments, *flags]) == 0
    assert not read(workplace / "out")[2]["settings"]["quantize"]
    assert attack.main([*arguments, *flags, "--quantize"]) == 0
    metrics, records, _ = read(workplace / "out")
    assert metrics["target_rate"] == metrics["target_rate_uint8"] == 1
    assert metrics["l2"] == metrics["l2_uint8"]
    pixels = [
        np.asarray(Image.open(workplace / f"out/images/{r['person']}/{r['name']}.png"))
        for r in records
    ]
    logits = recogniser.model.apply(recogniser.variables, LEVELS[np.stack(pixels)])
    persons = sorted({record["person"] for record in records})
    named = [persons[k] for k in np.argmax(logits, axis=-1)]
    assert named == [record["target"] for record in records]


@pytest.mark.parametrize("method", ["pfgvm", "apfgvm", "blur"])
def test_quantize_is_each_methods_own_unless_given(method):
    def protocol(*flags):
        settings = parse_flags(attack.AttackSettings, [f"--method={method}", *flags])
        config = METHODS[method].config(**settings.settings_of(method))
        quantize = settings.protocol(method).quantize
        assert getattr(config, "quantize", quantize) == quantize
        return quantize

    assert protocol() == METHODS[method].quantizes
    assert protocol("--quantize") is True
    assert protocol("--noquantize") is False


@pytest.mark.slow
def test_settings_that_are_names_have_choices(arguments, workplace, capsys):
    flags = [*arguments, "--method=apfgvm", QUICK, "--noquantize"]
    assert attack.main([*flags, "--penalty=ssim"]) == 0
    assert "penalty ssim, quantize False" in capsys.readouterr().out
    assert read(workplace / "out")[0]["config"]["penalty"] == "ssim"
    assert_refused(attack.main, [*flags, "--penalty=l7"], "--penalty=l7", workplace, capsys)


@pytest.mark.slow
def test_same_command_writes_the_same_bytes(arguments, workplace):
    for name in ("one", "two"):
        assert attack.main([*arguments, QUICK, "--split=all", "--init=noise"]) == 0
        (workplace / "out").rename(workplace / name)
    (files, metrics), (other_files, other_metrics) = map(
        timeless, (workplace / "one", workplace / "two")
    )
    assert files == other_files
    assert metrics == other_metrics
    assert len(files) > 18


@pytest.mark.slow
def test_earlier_run_is_replaced_and_strangers_are_left_alone(arguments, workplace):
    assert attack.main([*arguments, "--split=all", "--method=mask"]) == 0
    (workplace / "out/notes.txt").write_text("mine")
    assert attack.main([*arguments, "--max_images=1", "--method=blur"]) == 0
    assert read(workplace / "out")[0]["method"] == "blur"
    assert len(_pictures(workplace)) == 1
    assert (workplace / "out/notes.txt").read_text() == "mine"
    assert not (workplace / "out/.images.unfinished").exists()


@pytest.mark.parametrize("error", [RuntimeError("broken"), OSError(28, "disk full")])
@pytest.mark.slow
def test_failure_in_the_middle_leaves_the_earlier_run(
    arguments, workplace, monkeypatch, capsys, error
):
    assert attack.main([*arguments, "--method=mask"]) == 0
    before = listing(workplace)
    whole = RunFolder.write_png

    def fail(folder, name, picture):
        if len(list(workplace.rglob("images/*/*.png"))) >= 5:
            raise error
        return whole(folder, name, picture)

    monkeypatch.setattr(RunFolder, "write_png", fail)
    flags = [*arguments, "--method=blur", "--split=all"]
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="broken"):
            attack.main(flags)
    else:
        capsys.readouterr()
        assert attack.main(flags) == 2
        assert capsys.readouterr() == ("", "error: out: disk full\n")
    assert listing(workplace) == before


@pytest.mark.slow
def test_missing_default_checkpoint_is_trained_and_kept(faces, workplace, monkeypatch, capsys):
    from deid_jax.recognisers import recipes

    monkeypatch.setitem(recipes.RECIPES, ("model_a", "any"), recipes.TrainConfig(1, 1e-3))
    shutil.copytree(faces, workplace / "faces")
    arguments = [*COMMON, "--data_dir=faces", "--method=mask"]
    assert attack.main(arguments) == 0
    err = capsys.readouterr().err
    assert "No checkpoint at checkpoints/model_a-folder-faces-16px-seed0 yet: training" in err
    assert [path.name for path in (workplace / "checkpoints").iterdir()] == [
        "model_a-folder-faces-16px-seed0"
    ]
    assert attack.main(arguments) == 0
    assert capsys.readouterr().err == ""


def _bad(message, *arguments):
    return pytest.param(arguments, message, id=" ".join(arguments))


BAD_FLAGS = [
    _bad("step_size must be a number >= 0, got -1", "--step_size=-1"),
    _bad("epsilon must be a number >= 0, got -1", "--epsilon=-1", "--method=ifgsm"),
    _bad("num_steps must be an integer >= 0, got -1", "--num_steps=-1"),
    _bad("--num_steps=1.5", "--num_steps=1.5"),
    _bad("blur_sigma must be a number > 0 and <= 1, got 0", "--blur_sigma=0", "--method=blur"),
    _bad("max_images must be an integer >= 1, got -3", "--max_images=-3"),
    _bad("batch_size must be an integer >= 1, got 0", "--batch_size=0"),
    _bad("image_size must be an integer >= 11, got 10", "--image_size=10"),
    _bad("image_size must be at most 1024, got 9999", "--image_size=9999"),
    _bad("seed must be an integer >= 0, got -1", "--seed=-1"),
    _bad("--method=magic", "--method=magic"),
    _bad("--epsilon=0.1 does not apply to --method=pfgvm, which takes", "--epsilon=0.1"),
    _bad(
        "--penalty_weight=1.0 does not apply to --method=ifgsm",
        "--penalty_weight=1",
        "--method=ifgsm",
    ),
    _bad("--target=none does not apply to --method=blur", "--target=none", "--method=blur"),
    _bad("--init=image does not apply to --method=mask", "--init=image", "--method=mask"),
    _bad("--data_dir=", "--dataset=synthetic"),
    _bad("--data_dir is empty", "--data_dir="),
    _bad("data_dir nowhere does not exist", "--data_dir=nowhere"),
    _bad("output_dir file is a file", "--output_dir=file"),
    _bad("output_dir file/x lies below file, a file", "--output_dir=file/x"),
    _bad("output_dir foreign holds images", "--output_dir=foreign"),
    _bad("output_dir /proc/x cannot be written", "--output_dir=/proc/x"),
    _bad("checkpoint nowhere does not exist", "--checkpoint=nowhere"),
    _bad("checkpoint file is no checkpoint", "--checkpoint=file"),
    _bad("checkpoint foreign is no checkpoint", "--checkpoint=foreign"),
    _bad("it was made for the model model_a, not vgg16", "--model=vgg16", "--image_size=32"),
    _bad("it was made for images of size 16, not 32", "--image_size=32"),
    _bad("it was made for crop auto, not none", "--crop=none"),
    _bad("of the test split (its split is train, its seed 0)", "--seed=3"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_bad_input_ends_in_one_line_and_writes_nothing(
    arguments, workplace, capsys, flags, message
):
    (workplace / "file").write_text("mine")
    (workplace / "foreign/images").mkdir(parents=True)
    assert_refused(attack.main, [*arguments, *flags], message, workplace, capsys)


@pytest.mark.parametrize("flag", ["--crop=none", "--skip_unreadable"])
def test_flags_that_the_synthetic_set_ignores_are_refused(workplace, capsys, flag):
    assert attack.main([flag]) == 2
    assert "does not apply to --dataset=synthetic" in capsys.readouterr().err
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("info", "is no checkpoint"),
        ("info/metadata", "is damaged: its files have changed"),
        ("arrays", "is damaged: its files have changed"),
    ],
)
def test_damaged_checkpoint_is_refused(arguments, trained, workplace, capsys, damage, message):
    path = workplace / "damaged"
    shutil.copytree(trained[0], path)
    if damage == "info":
        shutil.rmtree(path)
        path.mkdir()
    elif damage == "arrays":
        shutil.rmtree(path / "arrays")
    else:
        (path / damage).write_text("{")
    flags = [*arguments, "--checkpoint=damaged"]
    assert_refused(attack.main, flags, f"checkpoint damaged {message}", workplace, capsys)


def test_checkpoint_of_other_persons_is_refused(arguments, faces, workplace, capsys):
    shutil.copytree(faces, workplace / "faces")
    (workplace / "faces/person_2").rename(workplace / "faces/stranger")
    assert attack.main([*arguments, "--data_dir=faces"]) == 2
    assert "it knows other persons (stranger)" in capsys.readouterr().err
    shutil.rmtree(workplace / "faces/stranger")
    assert attack.main([*arguments, "--data_dir=faces"]) == 2
    err = capsys.readouterr().err
    assert "this number of classes: 3, not 2" in err


@pytest.mark.slow
def test_bad_input_as_a_process(arguments, workplace):
    status, out, err = finish(process("attack", *arguments, "--epsilon=0.1", cwd=workplace))
    assert (status, out) == (2, "")
    assert err.startswith("error: --epsilon=0.1 does not apply to --method=pfgvm")
    assert err.count("\n") == 1
    assert not list(workplace.iterdir())


def test_damaged_images_are_refused(arguments, faces, workplace, capsys):
    shutil.copytree(faces, workplace / "faces")
    image = workplace / "faces/person_1/03.png"
    image.write_bytes(image.read_bytes()[:500])
    flags = [*arguments, "--data_dir=faces"]
    assert_refused(attack.main, flags, "faces/person_1/03.png", workplace, capsys)


@pytest.mark.slow
def test_summary_of_settings_names_every_choice(arguments, workplace, capsys):
    assert attack.main([*arguments, QUICK, "--target=runner_up", "--epsilon=inf",
                        "--method=ifgvm"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "step_size 0.1, epsilon inf, num_steps 3, target runner_up, init image" in out
    metrics = json.loads(
        (workplace / "out/metrics.json").read_text(), parse_constant=pytest.fail
    )
    assert metrics["config"]["epsilon"] == "inf"


def test_a_profile_is_written_on_request(arguments, workplace, capsys):
    profile = workplace / "profile"
    assert attack.main([*arguments, QUICK, f"--profile_dir={profile}"]) == 0
    assert list(profile.rglob("*.xplane.pb"))
    (workplace / "file").touch()
    capsys.readouterr()
    flags = [*arguments, QUICK, "--profile_dir=file"]
    assert_refused(attack.main, flags, "error: profile_dir", workplace, capsys)
