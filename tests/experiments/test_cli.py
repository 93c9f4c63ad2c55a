import dataclasses
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping

import pytest

from deid_jax.errors import InputError
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
from experiments._common import cli, flags, method_settings, terminal
from experiments._common.flags import Flag, setting
from tests.experiments.conftest import REPOSITORY

COMMANDS = {
    aggregate: aggregate.AggregateSettings,
    attack: attack.AttackSettings,
    attributes: attributes.AttributesSettings,
    benchmark: benchmark.BenchmarkSettings,
    compare: compare.CompareSettings,
    growth: growth.GrowthSettings,
    scaling: scaling.ScalingSettings,
    protect: protect.ProtectSettings,
    sweep: sweep.SweepSettings,
    train: train.TrainSettings,
    transfer: transfer.TransferSettings,
    webapp: webapp.WebappSettings,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = setting("a", "Which one.", choices=("a", "b"))
    count: int | None = setting(None, "How many.")
    rate: float = setting(0.5, "How fast.")
    folder: str | None = setting(None, "Where.")
    loud: bool = setting(False, "Say more.")
    tags: tuple[str, ...] = setting((), "Words; as often as one likes.")
    others: Mapping[str, float | str] = flags.settings_of_others(
        {"alpha": Flag(float, None, "A step."), "steps": Flag(int, None, "Steps.")}
    )


def test_defaults_hold_where_nothing_is_given():
    assert flags.parse_flags(Settings, []) == Settings()


def test_flags_have_the_types_of_the_annotations():
    given = ["--name=b", "--count", "3", "--rate=1", "--folder=x", "--loud", "--alpha=2"]
    expected = Settings(
        name="b", count=3, rate=1.0, folder="x", loud=True, others={"alpha": 2.0}
    )
    parsed = flags.parse_flags(Settings, given)
    assert parsed == expected
    assert isinstance(parsed.rate, float)
    assert isinstance(parsed.others["alpha"], float)


def test_tuples_are_given_one_by_one():
    assert flags.parse_flags(Settings, ["--tags=a,b", "--tags=c"]).tags == ("a,b", "c")
    assert flags.parse_flags(Settings, []).tags == ()
    with pytest.raises(InputError, match="--tags is empty"):
        flags.parse_flags(Settings, ["--tags="])


def test_parsing_twice_starts_from_the_defaults():
    flags.parse_flags(Settings, ["--count=3", "--alpha=1"])
    assert flags.parse_flags(Settings, []) == Settings()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nmae=b"], "nmae"),
        (["--name=c"], "--name=c"),
        (["--count=1.5"], "--count=1.5"),
        (["--rate=fast"], "--rate=fast"),
        (["--loud=7"], "--loud=7"),
        (["--steps=x"], "--steps=x"),
        (["--folder="], "--folder is empty"),
        (["stray"], "'stray'"),
        (["--loud", "stray", "--count=1"], "'stray'"),
        (["--count"], "count"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(InputError) as caught:
        flags.parse_flags(Settings, arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
def test_help_is_printed_and_nothing_is_run(flag, capsys):
    def run(settings):
        raise AssertionError

    assert cli.binary(run, Settings)(["--count=1", flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("--name=a|b", "--count=INTEGER", "--[no]loud", "--alpha=NUMBER", "A step."):
        assert words in out


def test_help_shows_defaults_that_are_some(capsys):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own:
        seed: int = setting(0, "A number.")
        path: str = setting("", "Required: a path.")
        loud: bool = setting(False, "Say more.")

    assert cli.binary(lambda settings: None, Own)(["--help"]) == 0
    out = capsys.readouterr().out
    assert "A number. Default: 0." in out
    assert out.count("Default") == 1


@pytest.mark.parametrize("module", COMMANDS)
def test_help_of_every_command_shows_each_flag_with_a_description(module, capsys):
    assert module.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(module.__doc__.strip().splitlines()[0])
    lines = out.partition("Flags:\n")[2].splitlines()
    names = [line for line in lines if line.startswith("  --")]
    assert len(names) == len(flags.flags_of(COMMANDS[module]))
    for name in names:
        description = lines[lines.index(name) + 1]
        assert description.startswith(" " * 6)
        assert len(description.split()) >= 2
    assert max(map(len, lines)) <= 80


def test_every_setting_of_a_method_is_explained():
    for name in attack.AttackSettings.__dataclass_fields__["method_settings"].metadata["flags"]:
        assert name in method_settings.MEANINGS, name


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("count must be\n  more, got 3"), 2, "error: count must be more, got 3"),
        (OSError(28, "No space left", "out/x.png"), 2, "error: out/x.png: No space left"),
        (OSError("odd"), 2, "error: odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(error, status, line, capsys):
    def run(settings):
        raise error

    assert cli.binary(run, Settings)([]) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_defects_are_not_hidden():
    def run(settings):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.binary(run, Settings)([])


def test_settings_reach_run(capsys):
    seen = []
    assert cli.binary(seen.append, Settings)(["--count=3"]) == 0
    assert seen == [Settings(count=3)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("default")
def test_warnings_for_users_are_one_line_and_others_are_silent(capsys):
    before = warnings.showwarning

    def run(settings):
        warnings.warn("this\ndiverges", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert cli.binary(run, Settings)([]) == 0
    assert capsys.readouterr().err == "warning: this diverges\n"
    assert warnings.showwarning is before


def test_no_progress_bar_where_there_is_no_terminal(capsys):
    with terminal.progress_bar("work") as update:
        update(1, 2, "text")
    assert capsys.readouterr() == ("", "")


def test_progress_bar_fits_80_columns_on_a_terminal(monkeypatch, capsys):
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal.progress_bar("training model_a") as update:
        update(14, 480, "epoch 2, test accuracy 66.7 %")
    out, err = capsys.readouterr()
    assert out == ""
    assert "14/480" in err
    assert "epoch 2, test accuracy 66.7 %" in err
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err))
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_run(tmp_path):
    """In a process of its own: JAX settles where its cache is when it first compiles."""
    code = (
        "import jax; from experiments._common import cli; cli.keep_compiled_programs(); "
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); "
        "jax.jit(lambda x: x + 1)(1)"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = {**inherited, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def compile_something(**more):
        command = [sys.executable, "-c", code]
        subprocess.run(command, env={**environment, **more}, check=True, cwd=REPOSITORY)

    own = tmp_path / "own"
    compile_something(JAX_COMPILATION_CACHE_DIR=str(own))
    assert any(own.iterdir())
    assert not (tmp_path / "deid_jax").exists()
    compile_something()
    assert any((tmp_path / "deid_jax" / "compiled").iterdir())
    (tmp_path / "a_file").touch()
    compile_something(XDG_CACHE_HOME=str(tmp_path / "a_file"))  # No place: nothing is kept.
