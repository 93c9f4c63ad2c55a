"""The report of `experiments.transfer` on whole photos."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax.photos.strangers import MEAN, OTHERS, SELF, NonMatchRate
from deid_jax.reports.tables import percent
from experiments._transfer.photo_runs import PhotoEvaluation, PhotoRow, PhotoRun, PhotoTables
from experiments._transfer.transfer_report import far_text, markdown_table

_WHO = """\
Somebody publishes whole photos that are protected as by `experiments.protect`: the attack is
fitted on surrogates ("fitted on"), the perturbation is added to the photo's own pixels, and the
file is written in its own format. Recognisers that judge photos protected against themselves
are marked *; all other judges never steer the attack. A stranger takes the written file,
detects the face in it (here always with CenterFace), cuts the crop of their own recogniser, and
compares its embedding with those of unprotected photos:

- others: each other photo of the person. Rates are over pairs.
- self: the same photo. Few people have it.
- mean: the mean embedding of the others. Rates are over photos.

The figures are non-match rates: the share of comparisons with a similarity below the threshold.
The threshold of a person is set at a false accept rate (FAR) on impostor pairs, which show two
different persons, neither of them this person. The rates of unprotected photos are the judge's
own error. Square brackets are 95 % intervals of a bootstrap over persons, which also resamples
the thresholds. Photos in which the face is no longer detected count in no rate; their share is
"lost". The person's face in a clean photo is the one that is most similar to the person's other
photos, by a majority of the recognisers.

Without --photos this command judges crops that are aligned once. Their rates are an upper bound
of these.
"""


def photo_markdown(tables: PhotoTables, evaluation: PhotoEvaluation) -> str:
    """The content of `transfer.md`."""
    plan, whole = evaluation.plan, evaluation.whole
    total = f"{len(whole.to_protect)} photos of {len(set(whole.labels[whole.to_protect]))}"
    parts = [
        "# How protection of whole photos transfers to other recognisers",
        f"{total} persons were protected; {len(whole.photos) - len(whole.to_protect)} others "
        f"are the gallery; {plan.num_steps} gradient steps, seed {plan.seed}. `photos.csv` has "
        "every rate, `per_photo.csv` every photo.",
        "No face of the person was found in these photos, which count in no rate: "
        f"{', '.join(whole.not_found) or 'none'}.",
        f"Left out: {'; '.join(whole.left_out) or 'none'}.",
        "## Threat model",
        _WHO.strip(),
        "## Thresholds",
        _thresholds(tables, plan.fars),
    ]
    for far in plan.fars:
        rows = [row for row in tables.rows if row.far == far]
        if rows:
            parts += [f"## Non-match rates at FAR {far_text(far)}", _non_match_rates(rows)]
        parts += [
            f"{name} is left out: {one.left_out[far]}."
            for name, one in tables.strangers.items()
            if far in one.left_out
        ]
    kinds = [kind for kind in plan.processing if kind != "none"]
    rows = [row for row in tables.rows if row.far == plan.fars[0]]
    if kinds:
        parts += [
            f"## What survives, at FAR {far_text(plan.fars[0])}",
            "Non-match rates for others / self after the file was processed. In brackets: of "
            "the comparisons that did not match before processing, how many still do not.",
            _survival_table(rows, kinds),
        ]
    return "\n\n".join(parts) + "\n"


def show_photos(tables: PhotoTables, evaluation: PhotoEvaluation) -> None:
    """Prints each judge's non-match rates at the first false accept rate, unprocessed."""
    plan, whole = evaluation.plan, evaluation.whole
    console = Console(highlight=False, markup=False)
    console.print(
        f"Non-match rates with other photos / the same photo at FAR {far_text(plan.fars[0])}, "
        "in % (* fitted on)"
    )
    numbers = {name: str(number) for number, name in enumerate(evaluation.embedders, 1)}
    for name, number in numbers.items():
        console.print(f"  recogniser {number}: {name}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("fitted on")
    for name in ("PSNR", "lost", *(f"by {numbers[name]}" for name in plan.judges)):
        table.add_column(name, justify="right", no_wrap=True)
    for run, rows in _by_photo_run(_at_first(tables.rows, plan.fars[0])).items():
        fit = "+".join(numbers[name] for name in run.fit) or "unprotected"
        cells = [f"{_short(r, OTHERS)} / {_short(r, SELF)}{_fitted(r)}" for r in rows]
        table.add_row(fit, _budget(run), f"{100 * rows[0].lost:.0f}", *cells)
    console.print(table)
    for text in whole.left_out:
        console.print(f"left out: {text}", soft_wrap=True)
    for name in whole.not_found:
        console.print(f"no face of the person found: {name}", soft_wrap=True)


def _at_first(rows: Iterable[PhotoRow], far: float) -> list[PhotoRow]:
    return [row for row in rows if row.far == far and row.processing == "none"]


def _by_photo_run(rows: Iterable[PhotoRow]) -> dict[PhotoRun, list[PhotoRow]]:
    groups: dict[PhotoRun, list[PhotoRow]] = {}
    for row in rows:
        groups.setdefault(row.run, []).append(row)
    return groups


def _budget(run: PhotoRun) -> str:
    return "–" if run.psnr is None else f"{run.psnr:g} dB"


def _fitted(row: PhotoRow) -> str:
    return " *" if row.judge in row.run.fit else ""


def _short(row: PhotoRow, compared: str) -> str:
    share = row.judged[compared].rate.share
    return "–" if share is None else f"{100 * share:.1f}"


def _interval_of(rate: NonMatchRate) -> str:
    if rate.low is None or rate.high is None:
        return percent(rate.share)
    return f"{percent(rate.share)} [{100 * rate.low:.0f}–{100 * rate.high:.0f}]"


def _thresholds(tables: PhotoTables, fars: Sequence[float]) -> str:
    """Each recogniser's thresholds, and the impostor pairs that they accept."""
    body = []
    for name, one in tables.strangers.items():
        for far in fars:
            if far in one.left_out:
                continue
            own = one.thresholds[far, OTHERS]
            values = sorted(map(one.distance.as_similarity, own.values[0].tolist()))
            accepted = [f"{own.num_pairs}", f"{own.num_persons}"]
            body.append([name, far_text(far), f"{values[0]:.3f}–{values[-1]:.3f}", *accepted])
    head = ["recogniser", "FAR", "thresholds", "accepted impostor pairs", "persons in them"]
    return markdown_table(head, body)


def _named_run(row: PhotoRow) -> list[str]:
    fit = "+".join(row.run.fit) or "unprotected"
    return [fit, _budget(row.run), row.judge + _fitted(row)]


def _non_match_rates(rows: Sequence[PhotoRow]) -> str:
    body = []
    for row in rows:
        if row.processing == "none":
            mean = "–" if row.psnr_mean is None else f"{row.psnr_mean:.2f}"
            rates = [_interval_of(row.judged[one].rate) for one in (OTHERS, SELF, MEAN)]
            body.append([*_named_run(row), *rates, percent(row.lost), mean])
    head = ["fitted on", "budget", "judge", OTHERS, SELF, MEAN]
    return markdown_table([*head, "lost", "mean PSNR"], body)


def _survival_table(rows: Sequence[PhotoRow], kinds: Sequence[str]) -> str:
    by_kind = {(row.run, row.judge, row.processing): row for row in rows}
    body = []
    for row in rows:
        if row.processing == "none":
            cells = [by_kind[row.run, row.judge, kind] for kind in kinds]
            body.append([*_named_run(row), *map(_survivor, cells)])
    return markdown_table(["fitted on", "budget", "judge", *kinds], body)


def _survivor(row: PhotoRow) -> str:
    parts = []
    for compared in (OTHERS, SELF):
        survival = percent(row.judged[compared].survival, 0)
        parts.append(f"{_short(row, compared)} ({survival})")
    return " / ".join(parts)
