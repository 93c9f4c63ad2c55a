"""The report of `experiments.transfer` on whole photos."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax.photos.strangers import MEAN, OTHERS, SELF, HiddenRate
from deid_jax.reports.tables import percent
from experiments._transfer.photo_runs import PhotoEvaluation, PhotoRow, PhotoRun, PhotoTables
from experiments._transfer.transfer_report import far_text, markdown_table

_WHO = """\
Somebody publishes whole photos, protected on some recognisers ("fitted on"; such a judge is
marked *) by what `experiments.protect` does: the change is added to the photo's own pixels, and
the file is written in its own format. No judge steers it. A stranger has the written file,
detects the face anew, cuts a crop as the stranger's recogniser wants it, and compares it:

- self: with the same photo, unprotected. Few people have it.
- others: with each other photo of the person. The rate is over such pairs.
- mean: with the mean of these others. The rate is over photos.

A comparison is hidden where the recogniser says "another person". Its threshold is set by
impostor pairs, which show two persons, and by such alone as do not involve the person judged.
Square brackets are 95 % intervals of a bootstrap over persons that draws the thresholds anew,
too. What is hidden of unprotected photos is the recogniser's own error. Photos in which the
detector no longer finds the face are in no rate; their share is "lost". The person's face in a
clean photo is the one that most resembles the person's other photos, by most recognisers.

Crops that are aligned once and judged as they were attacked, which is what this command
measures without --photos, give an upper bound of these figures.
"""


def photo_markdown(tables: PhotoTables, evaluation: PhotoEvaluation) -> str:
    """The content of `transfer.md`."""
    plan, whole = evaluation.plan, evaluation.whole
    total = f"{len(whole.to_protect)} photos of {len(set(whole.labels[whole.to_protect]))}"
    parts = [
        "# How protection of whole photos carries over to other recognisers",
        f"{total} persons were protected, {len(whole.photos) - len(whole.to_protect)} others "
        f"are the gallery; {plan.num_steps} gradient steps, seed {plan.seed}. `photos.csv` has "
        "every rate, `per_photo.csv` every photo.",
        f"Not found, and in no figure: {', '.join(whole.not_found) or 'none'}.",
        "## Against whom",
        _WHO.strip(),
        "## Thresholds",
        _thresholds(tables, plan.fars),
    ]
    for far in plan.fars:
        rows = [row for row in tables.rows if row.far == far]
        if rows:
            parts += [f"## Hidden, at FAR {far_text(far)}", _hidden(rows)]
        parts += [
            f"{name}: {one.left_out[far]}, so that it is left out."
            for name, one in tables.strangers.items()
            if far in one.left_out
        ]
    kinds = [kind for kind in plan.processing if kind != "none"]
    rows = [row for row in tables.rows if row.far == plan.fars[0]]
    if kinds:
        parts += [
            f"## What survives, at FAR {far_text(plan.fars[0])}",
            "Hidden from others / from self after the file was processed; in brackets how much "
            "is kept of what was hidden before.",
            _survival_of(rows, kinds),
        ]
    return "\n\n".join(parts) + "\n"


def show_photos(tables: PhotoTables, evaluation: PhotoEvaluation) -> None:
    """Prints what is hidden at the first false accept rate from each judge, unprocessed."""
    plan, whole = evaluation.plan, evaluation.whole
    console = Console(highlight=False, markup=False)
    console.print(
        f"Hidden from others / from the same photo at FAR {far_text(plan.fars[0])}, in % "
        "(* fitted on)"
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
    for name in whole.not_found:
        console.print(f"not found: {name}", soft_wrap=True)


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


def _interval_of(rate: HiddenRate) -> str:
    if rate.low is None or rate.high is None:
        return percent(rate.share)
    return f"{percent(rate.share)} [{100 * rate.low:.0f}–{100 * rate.high:.0f}]"


def _thresholds(tables: PhotoTables, fars: Sequence[float]) -> str:
    """Each recogniser's thresholds, and who carries them."""
    body = []
    for name, one in tables.strangers.items():
        for far in fars:
            if far in one.left_out:
                continue
            own = one.thresholds[far, OTHERS]
            values = sorted(map(one.distance.as_similarity, own.values[0].tolist()))
            carried = [f"{own.num_pairs}", f"{own.num_persons}"]
            body.append([name, far_text(far), f"{values[0]:.3f}–{values[-1]:.3f}", *carried])
    head = ["recogniser", "FAR", "thresholds", "accepted impostor pairs", "persons in them"]
    return markdown_table(head, body)


def _named_run(row: PhotoRow) -> list[str]:
    fit = "+".join(row.run.fit) or "unprotected"
    return [fit, _budget(row.run), row.judge + _fitted(row)]


def _hidden(rows: Sequence[PhotoRow]) -> str:
    body = []
    for row in rows:
        if row.processing == "none":
            mean = "–" if row.psnr_mean is None else f"{row.psnr_mean:.2f}"
            rates = [_interval_of(row.judged[one].rate) for one in (OTHERS, SELF, MEAN)]
            body.append([*_named_run(row), *rates, percent(row.lost), mean])
    head = ["fitted on", "budget", "judge", *(f"from {one}" for one in (OTHERS, SELF, MEAN))]
    return markdown_table([*head, "lost", "mean PSNR"], body)


def _survival_of(rows: Sequence[PhotoRow], kinds: Sequence[str]) -> str:
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
        kept = percent(row.judged[compared].kept, 0)
        parts.append(f"{_short(row, compared)} ({kept})")
    return " / ".join(parts)
