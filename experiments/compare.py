"""Compares our least-distortion attacks with other libraries' at equal numbers of gradients.

    python -m experiments.compare --num_steps=10,20,50,100

Our attacks and the peers' (foolbox, adv-lib) perturb the same images with the same targets and
weights, and the same recogniser decides which of them succeed. Writes `compare.md`,
`compare.csv` (one line per method, target and number of gradients), `compare.png`,
`per_image.csv`, `timing.csv` and `config.json` into --output_dir. Peers need PyTorch:
`pip install --no-deps -r tests/requirements-peers.txt`.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from deid_jax.attacks import ATTACKS, LeastPerturbation, of_kind
from deid_jax.data import load_dataset
from deid_jax.errors import InputError
from deid_jax.evaluation import TARGETS
from deid_jax.recognisers import Recogniser
from deid_jax.reports import distortion_plot
from deid_jax.reports.tables import percent
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from experiments._common import cli, data_settings, loading, machine, terminal
from experiments._common.flags import setting
from experiments._common.lists import read_counts, read_names
from experiments._compare import compare_tables
from experiments._compare.compare_tables import TrialSummary
from experiments._compare.trial_runs import Comparison, ComparisonPlan
from experiments._compare.trials import Trial
from experiments._peers.least_distortion import (
    PEERS,
    check_peers,
    check_persons_for,
    search_split,
)

_CONTENTS = (
    "images",
    "compare.md",
    "compare.csv",
    "compare.png",
    "per_image.csv",
    "timing.csv",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSettings(data_settings.EvaluationSettings):
    """Settings of `experiments.compare`."""

    methods: str = setting(
        ",".join(of_kind(ATTACKS, LeastPerturbation)),
        f"Ours, by commas, of {', '.join(ATTACKS)}.",
    )
    num_steps: str = setting(
        "10,20,50,100",
        "Numbers of gradients, by commas, increasing; other settings stay each method's own.",
    )
    targets: str = setting(
        "random,none", f"Targets, by commas, of {', '.join(TARGETS)}; none = untargeted."
    )
    peers: str = setting(
        "all", f"Other libraries', by commas, of {', '.join(PEERS)}, all or none."
    )
    reference: str | None = setting(
        None, "Method or peer that each is tested against; default: the first of --methods."
    )
    quantize: bool = setting(True, "Finish ours on the 8-bit grid, with success kept.")
    keep_images: bool = setting(
        False, "Keep every image, under images/METHOD-STEPS-TARGET/<person>/<name>.png."
    )
    output_dir: str | None = setting(None, "Where to write; default: under runs/compare/.")


def comparison_plan(settings: CompareSettings) -> ComparisonPlan:
    """Parses the settings that hold lists.

    Raises:
      InputError: an unknown name, a number of steps below 1, or a peer that cannot run.
    """
    settings.check()
    methods = read_names("methods", settings.methods, ATTACKS)
    targets = read_names("targets", settings.targets, TARGETS)
    num_steps = read_counts("num_steps", settings.num_steps)
    peers = read_names("peers", settings.peers, PEERS, all_or_none=True)
    reference = settings.reference or methods[0]
    if settings.recogniser is not None and peers:
        raise InputError("peers must be none with --recogniser: their twins are of --model")
    check_peers(peers, settings.judge, num_steps[0])
    if reference not in (*methods, *peers):
        known = ", ".join((*methods, *peers))
        raise InputError(f"reference must be one of those compared ({known}), got {reference}")
    return ComparisonPlan(methods, peers, num_steps, targets, reference)


def run(settings: CompareSettings) -> list[TrialSummary]:
    """Compares the attacks, writes and prints the tables; returns the lines of `compare.csv`.

    Raises:
      InputError: bad settings, data, checkpoint or output folder. Nothing is written in that
        case.
    """
    machine.share_with_pytorch()
    plan = comparison_plan(settings)
    folder = RunFolder(Path(settings.output_dir or _default_output(settings)), _CONTENTS)
    folder.check()
    if plan.peers:
        # Refuses a data set that is too small before a missing recogniser is trained.
        whole = load_dataset(settings.dataset, settings.options(settings.split))
        check_persons_for(plan.peers, len(whole.persons))
    split = loading.load_split(settings)
    faces = loading.without_unreadable(settings.chosen(split))
    recogniser = loading.load_or_train_recogniser(settings, split)
    with folder:
        compared = Comparison(
            plan=plan,
            faces=faces,
            recogniser=recogniser,
            model=settings.judge,
            seed=settings.seed,
            quantize=settings.quantize,
            batch_size=settings.batch_size,
            images=folder if settings.keep_images else None,
        )
        profiled = loading.profiled(settings.profile_dir)
        with profiled, terminal.progress_bar("compare") as update:
            trials = compared.trials(update)
        rows = compare_tables.summaries_of(trials, settings.judge, plan.reference)
        _write(folder, settings, compared, trials, rows)
    _print(rows, recogniser, folder.path)
    return rows


def _write(
    folder: RunFolder,
    settings: CompareSettings,
    compared: Comparison,
    trials: Sequence[Trial],
    rows: Sequence[TrialSummary],
) -> None:
    """Writes every file but the images."""
    faces, plan = compared.faces, compared.plan
    heading = (
        f"{len(faces)} images of {settings.dataset}, split {settings.split}, against "
        f"{settings.judge}. Every attack spends as many gradients per image as a column "
        "says, on the same images, targets and weights; `compare.csv` has what was spent "
        "beside them (forward passes, and gradients where rounding had to be mended). This "
        "project's recogniser judges all, in float32; 8-bit images are judged as they read "
        "back from PNG."
    )
    most = plan.num_steps[-1]
    panels = {
        _panel(target): [
            distortion_plot.Series(trial.method, trial.uint8_distances, trial.is_peer)
            for trial in trials
            if (trial.target, trial.num_steps) == (target, most)
        ]
        for target in plan.targets
    }
    title = f"{len(faces)} images of {settings.dataset}, {settings.judge}, {most} gradients"
    folder.write_csv("compare.csv", [row.to_row() for row in rows])
    folder.write_text(
        "compare.md", compare_tables.compare_markdown(rows, heading, notes_on(plan))
    )
    folder.write_bytes("compare.png", distortion_plot.draw_success_curves(panels, title=title))
    folder.write_csv("per_image.csv", [row for trial in trials for row in trial.rows()])
    folder.write_csv("timing.csv", compare_tables.timing_of(trials))
    packages = {package for peer in plan.peers for package in PEERS[peer].packages}
    description = describe(
        settings,
        dataset=faces.provenance,
        recogniser=compared.recogniser.describe(),
        plan=dataclasses.asdict(plan),
        peers={package: machine.version(package) for package in sorted(packages)},
    )
    folder.write_json(DESCRIPTION, description)


def _panel(target: str) -> str:
    return (
        "untargeted: misclassified" if target == "none" else f"predicted as a {target} target"
    )


def notes_on(plan: ComparisonPlan) -> list[str]:
    """Notes on the peers, which a reader of the tables needs to know."""
    if not plan.peers:
        return []
    libraries = dict.fromkeys(PEERS[name].library for name in plan.peers)
    notes = [
        f"Peers ({', '.join(libraries)}) run with their libraries' own settings on a PyTorch "
        "twin with the same weights. They know nothing of 8 bits (but for adv_lib_ddn, which "
        "rounds by itself): their images are rounded, which may undo a success.",
    ]
    if "foolbox_cw" in plan.peers:
        splits = ", ".join(
            "{}: {} × {}".format(number, *search_split(number)) for number in plan.num_steps
        )
        notes.append(
            "foolbox_cw shares its gradients among searches for a weight (gradients: searches "
            f"× steps; {splits}), and does not give up early: its own 9 × 10000 is made for "
            "more. Where it finds nothing it returns black; the original counts instead."
        )
    if "foolbox_fmn" in plan.peers:
        notes.append(
            "foolbox_fmn is as foolbox 3.3.4 has it, where the projection onto the bound that "
            "FMN adapts leaves every perturbation as it is."
        )
    if "adv-lib" in libraries:
        notes.append(
            "adv-lib also asks for torchvision and visdom, for its LPIPS distance and its "
            "plots; where they are not installed, empty modules stand in for them while it is "
            "imported. No attack here uses them."
        )
    return notes


def _default_output(settings: CompareSettings) -> Path:
    """The default output: one folder per recogniser and split, named like the checkpoint."""
    return Path("runs", "compare", f"{settings.checkpoint_name}-{settings.split}")


def _print(rows: Sequence[TrialSummary], recogniser: Recogniser, path: Path) -> None:
    """Prints one table per target: mean L2 and success rate of the 8-bit images."""
    console = terminal.console()
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        print(f"target {target}, 8-bit images: mean L2 (success)")
        table = Table()
        table.add_column("gradients")
        for number in dict.fromkeys(row.num_steps for row in own):
            table.add_column(str(number), justify="right")
        for method in dict.fromkeys(row.method for row in own):
            table.add_row(method, *(_cell(row) for row in own if row.method == method))
        console.print(table)
    print(f"{loading.accuracy_line(recogniser)}\nTables, curves and figures: {path}")


def _cell(row: TrialSummary) -> str:
    mean, rate = row.l2_mean_uint8, row.success_rate_uint8
    return f"{'–' if math.isnan(mean) else f'{mean:.3f}'} ({percent(rate)})"


main = cli.binary(run, CompareSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
