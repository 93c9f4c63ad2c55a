"""The report of `experiments.transfer`: tables, and text on what they do and do not show."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax.attacks import ATTACKS, LeastPerturbation, of_kind
from deid_jax.data import FaceDataset
from deid_jax.reports.tables import percent
from deid_jax.transfer import TransferEvaluation, TransferPlan, TransferRun, TransferTables
from deid_jax.transfer.judges import BY_NAME, GALLERY, OTHERS
from deid_jax.transfer.transfer_tables import AVERAGES, TransferRow

_WHO = """\
Somebody publishes photos of a person. A stranger has other, ordinary photos of that person,
with the name, and a face recogniser. The stranger shows it a published photo and asks whether
this is the same person, or who of all known people it is. Before publishing, the photos were
perturbed, so little that people hardly see it and the recogniser answers wrongly.

Who protected them knew some recognisers and fitted the perturbation on these ("fitted on"). The
stranger's may be one of them (marked *), or one that was never looked at: that is what counts,
since nobody knows what a stranger uses.

The published photos, the stranger's (the "galleries") and those to fit with (the "probes") are
different photos of the same people, and who protected them never had the stranger's. The
probes have two more uses, for want of further photos: unchanged, they set the thresholds that
the stranger goes by, and classifiers, where there are any, learned from them beside the
galleries. So what the protector had to fit with is known to the other side, too.

A recogniser gives a score to how alike two faces are, and says "the same person" from a
threshold on. The threshold is set on unchanged photos, by how often it may be wrong: at a false
accept rate (FAR) of 1 %, one of a hundred photos of other people is taken for the person; at
0.1 %, one of a thousand. A photo counts as protected where its score is below. Who protects
photos does not know the stranger's threshold, and guesses it from the probes alone. Recognisers
miss some unchanged photos, too: the rows "unprotected" say how many, and only what lies above
them is the work of the perturbation.

The photos here are crops, aligned once and judged as they were attacked. That is an upper
bound: strangers detect faces in whole photos and cut crops by themselves (--photos), and may
have more photos.

These are measurements on the recognisers and the people of these photos. Other recognisers,
larger ones above all, later ones, and other photos of the same person give other figures. Where
nine of ten photos are protected, the tenth still tells who it is. What is published stays
published, and tomorrow's recogniser may read what today's cannot. A person who looks at the
photo still knows who it is.
"""


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """Everything that the report is made from; `protocol` is the protocol's SHA-256."""

    tables: TransferTables
    evaluation: TransferEvaluation
    dataset: FaceDataset
    protocol: str


def markdown(report: TransferReport) -> str:
    """The content of `transfer.md`."""
    plan, rows = report.evaluation.plan, report.tables.rows
    parts = [
        "# How protection transfers to other recognisers",
        _what(report),
        "## Threat model",
        _WHO.strip(),
        "## The recognisers on clean photos",
        _clean_table(report),
    ]
    for far in plan.fars:
        title = f"## Protected, at FAR {far_text(far)}"
        parts += [title, _runs_by(_unprocessed(rows, far), plan.judges, _with_interval)]
    far = plan.fars[0]
    compared = _unprocessed(rows, far, OTHERS)
    parts += [
        f"## Compared with other protected photos, at FAR {far_text(far)}",
        "The stranger has no clean photo, only other protected ones of the same person, and "
        "asks whether they show one person. The threshold is the one of clean photos.",
        _runs_by(compared, plan.judges, _with_interval)
        if compared
        else "Not measured: of at least one person only one photo is protected.",
        "## Ranked among all persons",
        "Share of photos whose person comes first (in brackets: is among the first five) of "
        f"the {len(report.dataset.persons)} persons whom the stranger knows.",
        _runs_by(_unprocessed(rows, far), plan.judges, _ranks),
        *_classified(report),
        f"## What survives, at FAR {far_text(far)}",
        "Protected after the photo was processed. In brackets, for attacks: of the photos that "
        "were protected unprocessed, how many still are. Processing hides photos by itself, "
        'too: the rows "unprotected" tell how many unchanged photos are missed after it.',
        *_survival(rows, plan, far),
        *_adaptive(rows, plan, far),
        "## How visible",
        "Pixels have a range of 1 in L2; PSNR in dB. Lower L2, higher PSNR and SSIM nearer to "
        "1 are a smaller perturbation.",
        _distortion(rows),
        *_least(report),
    ]
    return "\n\n".join(parts) + "\n"


def _what(report: TransferReport) -> str:
    """A paragraph that describes the measurements."""
    plan, lists = report.evaluation.plan, report.evaluation.faces.lists
    draws = f"{plan.num_samples} draw{'s' if plan.num_samples > 1 else ''}"
    return (
        f"{len(lists.protected)} photos of {len(report.dataset.persons)} persons "
        f"({report.dataset.name}, {report.dataset.image_size} px, 8 bits), known by "
        f"{sum(len(g) for g in lists.gallery)} other photos; protocol SHA-256 "
        f"`{report.protocol}`. Attacks took {plan.num_steps} gradient steps; what they foresee "
        f"are random changes of the photo, {draws} a step (expectation over transformation). "
        "Square brackets are the wider of two 95 % intervals. Wilson's tells how far chance in "
        "the choice of photos reaches, as if each were of another person; a bootstrap over "
        "persons, how far chance in the choice of persons does, whose photos are protected or "
        "missed together. Neither covers other recognisers. `transfer.csv` has both (`low`, "
        "`high`; `person_low`, `person_high`), and `per_image.csv` every photo, so that every "
        "rate can be checked."
    )


def show(rows: Sequence[TransferRow], plan: TransferPlan) -> None:
    """Prints the share of protected images at the first false accept rate, unprocessed.

    Recognisers are numbered, since their names may be as long as the terminal is wide.
    """
    far = plan.fars[0]
    names = list(dict.fromkeys([*plan.judges, *(name for fit in plan.fits for name in fit)]))
    numbers = {name: str(number) for number, name in enumerate(names, 1)}
    console = Console(highlight=False, markup=False)
    console.print(f"Protected at FAR {far_text(far)}, in % of photos (* fitted on)")
    for name, number in numbers.items():
        console.print(f"  recogniser {number}: {name}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _HEAD:
        table.add_column(name, overflow="fold")
    for judge in plan.judges:
        table.add_column(f"by {numbers[judge]}", justify="right", no_wrap=True)
    for run, own in _by_run(_unprocessed(rows, far)).items():
        shares = {r.judge: f"{100 * r.rates.protected:.1f}{_mark(r)}" for r in own}
        method, foreseen, fit, budget = _named(run)
        fit = "+".join(numbers.get(name, name) for name in fit.split("+"))
        table.add_row(method, foreseen, fit, budget, *(shares[name] for name in plan.judges))
    console.print(table)


def _unprocessed(
    rows: Iterable[TransferRow], far: float | None, compared: str = GALLERY
) -> list[TransferRow]:
    """Lines of unprocessed images, without opponents who adapt."""
    return [row for row in _at(rows, far, compared) if row.processing == "none"]


def _at(
    rows: Iterable[TransferRow], far: float | None, compared: str = GALLERY
) -> list[TransferRow]:
    return [
        row
        for row in rows
        if row.rates.far == far and row.rates.compared == compared and not row.opponent
    ]


def _by_run(rows: Iterable[TransferRow]) -> dict[TransferRun, list[TransferRow]]:
    groups: dict[TransferRun, list[TransferRow]] = {}
    for row in rows:
        groups.setdefault(row.run, []).append(row)
    return groups


def far_text(far: float) -> str:
    """A false accept rate as text: 1 %, 0.1 %."""
    return f"{100 * far:g} %"


def _mark(row: TransferRow) -> str:
    return " *" if row.judge in row.run.fit else ""


def _with_interval(row: TransferRow) -> str:
    rates = row.rates
    low, high = rates.low, rates.high
    if rates.person_low is not None and rates.person_high is not None:
        by_person = rates.person_low, rates.person_high
        low, high = max((low, high), by_person, key=lambda ends: ends[1] - ends[0])
    return f"{percent(rates.protected)}{_mark(row)} [{100 * low:.0f}–{100 * high:.0f}]"


def _ranks(row: TransferRow) -> str:
    return f"{percent(row.rates.rank1)}{_mark(row)} ({percent(row.rates.rank5)})"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in body])


def _clean_table(report: TransferReport) -> str:
    """A table of the recognisers' accuracy, and the share of clean images that they miss."""
    plan = report.evaluation.plan
    head = ["recogniser", "same/different accuracy", "AUC", "ranked first"]
    for far in map(far_text, plan.fars):
        head += [f"threshold at FAR {far}", f"unchanged photos missed at FAR {far}"]
    clean = [row for row in report.tables.rows if row.run.method == "none"]
    body = []
    for name in plan.judges:
        judge = report.evaluation.recognisers[name]
        (first, *_) = own = [
            row for far in plan.fars for row in _unprocessed(clean, far) if row.judge == name
        ]
        cells = [name, f"{judge.accuracy:.3f}", f"{judge.auc:.4f}", percent(first.rates.rank1)]
        for row in own:
            cells += [f"{row.rates.threshold:.3f}", percent(row.rates.protected)]
        body.append(cells)
    return markdown_table(head, body)


_HEAD = ("method", "foresees", "fitted on", "budget")


def _named(run: TransferRun) -> list[str]:
    """The cells that identify a run, in the columns of `_HEAD`."""
    if run.method == "none":
        return ["unprotected", "–", "–", "–"]
    return [
        run.method,
        "+".join(run.foreseen) or "–",
        "+".join(run.fit) or "–",
        str(run.budget),
    ]


def _classified(report: TransferReport) -> list[str]:
    """The results of classifiers, with their clean errors first."""
    names = list(report.evaluation.classifiers)
    if not names:
        return []
    return [
        "## Misclassified by classifiers",
        f"They learned these {len(report.dataset.persons)} persons from the stranger's "
        "galleries and the probes, and nobody fitted the perturbation on them. What they "
        'misclassify while it is unchanged ("unprotected") is their own error.',
        _runs_by(_unprocessed(report.tables.rows, None, BY_NAME), names, _with_interval),
    ]


def _runs_by(
    rows: Iterable[TransferRow], judges: Sequence[str], cell: Callable[[TransferRow], str]
) -> str:
    """A table with one row per run and one column per judge."""
    body = []
    for run, own in _by_run(rows).items():
        by_judge = {row.judge: cell(row) for row in own}
        body.append([*_named(run), *(by_judge[name] for name in judges)])
    return markdown_table([*_HEAD, *judges], body)


def _survival(rows: Sequence[TransferRow], plan: TransferPlan, far: float) -> list[str]:
    """One table per recogniser, with one row per run and one column per processing."""
    tables = []
    kinds = [kind for kind in plan.processing if kind != "none"]
    for judge in plan.judges if kinds else ():
        body = []
        for run, own in _by_run(row for row in _at(rows, far) if row.judge == judge).items():
            by_kind = {row.processing: row for row in own}
            cells = [f"{percent(by_kind['none'].rates.protected)}{_mark(own[0])}"]
            for rates in (by_kind[kind].rates for kind in kinds):
                kept = percent(rates.kept, 0)
                # The few images that ad-hoc methods protect are mostly missed even when clean.
                kept = f" ({kept})" if run.method in ATTACKS else ""
                cells.append(percent(rates.protected) + kept)
            body.append([*_named(run), *cells])
        tables += [
            f"### Judged by {judge}",
            markdown_table([*_HEAD, "unprocessed", *kinds], body),
        ]
    return tables or ["Not measured: no processing was asked for."]


def _adaptive(rows: Sequence[TransferRow], plan: TransferPlan, far: float) -> list[str]:
    """Results of opponents who adapt, next to the one who does not."""
    if plan.average < 2 and not plan.fine_tune:
        return []
    before = {(row.judge, row.run): row for row in _unprocessed(rows, far)}
    adapted = [
        row
        for row in rows
        if row.opponent and row.rates.far == far and row.rates.compared == GALLERY
    ]
    body = []
    for row in adapted:
        shares = [_with_interval(before[row.judge, row.run]), _with_interval(row)]
        shares += [percent(row.rates.unprotected), str(row.rates.num_images)]
        body.append([*_named(row.run), row.judge, row.opponent, *shares])
    parts = [
        f"## Opponents who adapt, at FAR {far_text(far)}",
        'What they miss of the same photos unchanged ("unprotected") is not the work of the '
        "perturbation.",
    ]
    if plan.average > 1:
        parts.append(
            f"One averages the embeddings of {plan.average} protected photos of a person and "
            "asks who that is; each such average counts as one photo."
        )
        if not any(row.opponent.startswith(AVERAGES) for row in adapted):
            parts.append(
                f"Not measured: of no person {plan.average} photos or more are protected."
            )
    if plan.fine_tune:
        parts.append(
            "One trains the recogniser on half of the protected photos, with names, and on "
            "the clean galleries, and sets a new threshold on clean photos; the other half is "
            "judged."
        )
    head = [*_HEAD, "recogniser", "opponent", "protected before", "protected"]
    head += ["unprotected", "photos"]
    return [*parts, markdown_table(head, body)] if body else parts


def _distortion(rows: Sequence[TransferRow]) -> str:
    body = []
    for run, own in _by_run(rows).items():
        if run.method == "none":
            continue
        sizes = own[0].distortion
        # If no image was perturbed, there is no finite PSNR.
        mean = "∞" if sizes.psnr_mean is None else f"{sizes.psnr_mean:.2f}"
        cells = [f"{sizes.l2:.3f}", mean, f"{sizes.psnr_min:.2f}", f"{sizes.ssim:.4f}"]
        body.append([*_named(run), *cells])
    return markdown_table([*_HEAD, "mean L2", "mean PSNR", "lowest PSNR", "mean SSIM"], body)


def _least(report: TransferReport) -> list[str]:
    """For least perturbations: the share of images both protected and within a budget."""
    plan = report.evaluation.plan
    far, least = plan.fars[0], of_kind(ATTACKS, LeastPerturbation)
    images: dict[tuple[TransferRun, str], list[tuple[float, bool]]] = {}
    for row in report.tables.images:
        if row.run.method in least and row.run.budget.psnr is None and row.judge in plan.judges:
            own = images.setdefault((row.run, row.judge), [])
            own.append((row.psnr, bool(row.protected[far])))
    if not images:
        return []
    body = []
    for (run, judge), own in images.items():
        psnrs, protected = (np.array(column) for column in zip(*own, strict=True))
        shares = [float(np.mean(protected & (psnrs >= psnr))) for psnr in (0, *plan.psnrs)]
        mark = " *" if judge in run.fit else ""
        body.append([*_named(run), f"{judge}{mark}", *map(percent, shares)])
    head = [*_HEAD, "recogniser", "protected"]
    head += [f"and at ≥ {psnr:g} dB" for psnr in plan.psnrs]
    return [
        f"### Least perturbations: protected and within a budget, at FAR {far_text(far)}",
        "A mean PSNR hides the photos that are perturbed more. These are, for "
        "least-perturbation attacks without a budget, the shares of photos that are both "
        "protected and at no less than a PSNR (* fitted on).",
        markdown_table(head, body),
    ]
