"""The report of `experiments.transfer`: tables, and in words what they do and do not say."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from deid_jax.attacks import ATTACKS, LeastChange, of_kind
from deid_jax.data import FaceDataset
from deid_jax.transfer import Faces
from experiments._transfer import transfer_classifiers
from experiments._transfer.transfer_plan import Plan
from experiments._transfer.transfer_runs import AVERAGES, Judges, Tables

Row = dict[str, Any]

_WHO = """\
Somebody publishes photos of a person. A stranger has other, ordinary photos of that person,
with the name, and a face recogniser. The stranger shows it a published photo and asks whether
this is the same person, or who of all known people it is. Before publishing, the photos were
changed a little, so that people hardly see it and the recogniser answers wrongly.

Who changed the photos knew some recognisers and tried the change on these ("fitted on"). The
stranger's may be one of them (marked *), or one that was never looked at: that is what counts,
since nobody knows what a stranger uses.

The published photos, the stranger's (the "galleries") and those to fit with (the "probes") are
different pictures of the same people, and who changed the photos never had the stranger's. The
probes have two more uses, for want of further photos: unchanged, they set the thresholds that
the stranger goes by, and classifiers, where there are any, learned from them beside the
galleries. So what the protector had to fit with is known to the other side, too.

A recogniser gives a score to how alike two faces are, and says "the same person" from a
threshold on. The threshold is set on unchanged photos, by how often it may be wrong: at a false
accept rate (FAR) of 1 %, one of a hundred photos of other people is taken for the person; at
0.1 %, one of a thousand. A photo counts as protected where its score is below. Who changes the
photos does not know the stranger's threshold, and guesses it from the probes alone. Recognisers
miss some unchanged photos, too: the rows "unprotected" say how many, and only what lies above
them is the work of the change.

These are measurements on the recognisers and the people named here. Other recognisers, larger
ones above all, later ones, and other photos of the same person give other figures. Where nine
of ten photos are protected, the tenth still tells who it is. What is published stays published,
and tomorrow's recogniser may read what today's cannot. A person who looks at the photo still
knows who it is.
"""


class Report(NamedTuple):
    """What the report is made of."""

    tables: Tables
    plan: Plan
    judges: Judges
    faces: Faces
    dataset: FaceDataset
    protocol: str


def markdown(report: Report) -> str:
    """`transfer.md`."""
    plan, rows = report.plan, report.tables.rows
    parts = [
        "# How protection carries over to other recognisers",
        _what(report),
        "## Against whom",
        _WHO.strip(),
        "## The recognisers on clean photos",
        _clean_table(report),
    ]
    for far in plan.fars:
        title = f"## Protected, at FAR {_rate(far)}"
        parts += [title, _protection(rows, plan, far, "gallery")]
    far = plan.fars[0]
    parts += [
        f"## Compared with other protected photos, at FAR {_rate(far)}",
        "The stranger has no clean photo, only other protected ones of the same person, and "
        "asks whether they show one person. The threshold is the one of clean photos.",
        _protection(rows, plan, far, "protected")
        or "Not measured: of at least one person only one photo is protected.",
        "## Named among all",
        "Share of photos whose person comes first (in brackets: is among the first five) of "
        f"the {len(report.dataset.persons)} persons whom the stranger knows.",
        _ranks(rows, plan),
        *_classified(report),
        f"## What survives, at FAR {_rate(far)}",
        "Protected after the photo was processed. In brackets, for attacks: of the photos that "
        "were protected unprocessed, how many still are. Processing hides photos by itself, "
        'too: the rows "unprotected" tell how many unchanged photos are missed after it.',
        *_survival(rows, plan, far),
        *_adaptive(rows, plan, far),
        "## How visible",
        "Pixels have a range of 1 in L2; PSNR in dB. Lower L2, higher PSNR and SSIM nearer to "
        "1 are less change.",
        _distortion(rows),
        *_least(report),
    ]
    return "\n\n".join(parts) + "\n"


def _what(report: Report) -> str:
    """What was measured, in a paragraph."""
    plan, lists = report.plan, report.faces.lists
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


def show(rows: Sequence[Row], plan: Plan) -> None:
    """Prints what is protected at the first false accept rate, as photos are.

    Recognisers go by numbers, since their names may be as long as the terminal is wide.
    """
    far = plan.fars[0]
    names = list(dict.fromkeys([*plan.tests, *(name for fit in plan.fits for name in fit)]))
    numbers = {name: str(number) for number, name in enumerate(names, 1)}
    console = Console(highlight=False, markup=False)
    console.print(f"Protected at FAR {_rate(far)}, in % of photos (* fitted on)")
    for name, number in numbers.items():
        console.print(f"  recogniser {number}: {name}", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _HEAD:
        table.add_column(name, overflow="fold")
    for test in plan.tests:
        table.add_column(f"by {numbers[test]}", justify="right", no_wrap=True)
    chosen = _chosen(rows, far=far, compared="gallery", transformation="none", opponent="")
    for own in _grouped(chosen, _RUN).values():
        shares = {row["test"]: f"{100 * row['protected']:.1f}{_mark(row)}" for row in own}
        method, foreseen, fit, budget = _named(own[0])
        fit = "+".join(numbers.get(name, name) for name in fit.split("+"))
        table.add_row(method, foreseen, fit, budget, *(shares[test] for test in plan.tests))
    console.print(table)


def _chosen(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _budget(row: Row) -> str:
    if row["psnr"] != "":
        return f"{row['psnr']:g} dB"
    if row["epsilon"] != "":
        return f"ε = {255 * row['epsilon']:.3g}/255"
    return "least change"


def _rate(far: float) -> str:
    """A false accept rate: 1 %, 0.1 %."""
    return f"{100 * far:g} %"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _mark(row: Row) -> str:
    """Tells recognisers that were fitted on."""
    return " *" if row["test"] in row["fit"].split("+") else ""


def _with_interval(row: Row) -> str:
    bounds = [(row["low"], row["high"])]
    if row["person_low"] != "":
        bounds.append((row["person_low"], row["person_high"]))
    low, high = max(bounds, key=lambda ends: ends[1] - ends[0])
    return f"{_percent(row['protected'])}{_mark(row)} [{100 * low:.0f}–{100 * high:.0f}]"


def _lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in body])


def _clean_table(report: Report) -> str:
    """What the recognisers are worth, and which clean photos they miss by themselves."""
    rows = report.tables.rows
    head = ["recogniser", "same/different accuracy", "AUC", "named first"]
    for far in map(_rate, report.plan.fars):
        head += [f"threshold at FAR {far}", f"unchanged photos missed at FAR {far}"]
    body = []
    for name in report.plan.tests:
        clean = _chosen(
            rows, method="none", test=name, transformation="none", compared="gallery"
        )
        first = clean[0]
        cells = [name, f"{first['accuracy']:.3f}", f"{first['auc']:.4f}"]
        cells.append(_percent(first["rank1"]))
        for row in clean:
            cells += [f"{row['threshold']:.3f}", _percent(row["protected"])]
        body.append(cells)
    return _lines(head, body)


_RUN = ("method", "foreseen", "fit", "psnr", "epsilon")
_HEAD = ("method", "foresees", "fitted on", "budget")


def _named(row: Row) -> list[str]:
    """The cells that name a run, below `_HEAD`."""
    if row["method"] == "none":
        return ["unprotected", "–", "–", "–"]
    return [row["method"], row["foreseen"] or "–", row["fit"] or "–", _budget(row)]


def _protection(rows: Sequence[Row], plan: Plan, far: float, compared: str) -> str:
    chosen = _chosen(rows, far=far, compared=compared, transformation="none", opponent="")
    return _runs_by(chosen, plan.tests, _with_interval) if chosen else ""


def _ranks(rows: Sequence[Row], plan: Plan) -> str:
    chosen = _chosen(
        rows, far=plan.fars[0], compared="gallery", transformation="none", opponent=""
    )
    return _runs_by(
        chosen,
        plan.tests,
        lambda row: f"{_percent(row['rank1'])}{_mark(row)} ({_percent(row['rank5'])})",
    )


def _classified(report: Report) -> list[str]:
    """What classifiers of the persons make of it, their own errors first."""
    names = list(report.judges.naming)
    if not names:
        return []
    own = transfer_classifiers.COMPARED
    chosen = _chosen(report.tables.rows, compared=own, transformation="none")
    return [
        "## Named wrongly by classifiers",
        f"They learned these {len(report.dataset.persons)} persons from the stranger's "
        "galleries and the probes, and nobody fitted the change on them. What they name "
        'wrongly while it is unchanged ("unprotected") is their own error.',
        _runs_by(chosen, names, _with_interval),
    ]


def _runs_by(rows: Sequence[Row], tests: Sequence[str], cell: Callable[[Row], str]) -> str:
    body = []
    for own in _grouped(rows, _RUN).values():
        by_test = {row["test"]: cell(row) for row in own}
        body.append([*_named(own[0]), *(by_test[test] for test in tests)])
    return _lines([*_HEAD, *tests], body)


def _survival(rows: Sequence[Row], plan: Plan, far: float) -> list[str]:
    """A table for each recogniser: runs down, processing across."""
    tables = []
    kinds = [kind for kind in plan.processing if kind != "none"]
    for test in plan.tests if kinds else ():
        chosen = _chosen(rows, far=far, compared="gallery", test=test, opponent="")
        body = []
        for own in _grouped(chosen, _RUN).values():
            by_kind = {row["transformation"]: row for row in own}
            cells = [f"{_percent(by_kind['none']['protected'])}{_mark(own[0])}"]
            for row in map(by_kind.__getitem__, kinds):
                kept = "–" if row["kept"] == "" else f"{100 * row['kept']:.0f} %"
                # Ad-hoc methods' few protected photos are mostly missed unprotected, too.
                kept = f" ({kept})" if row["method"] in ATTACKS else ""
                cells.append(_percent(row["protected"]) + kept)
            body.append([*_named(own[0]), *cells])
        tables += [f"### Judged by {test}", _lines([*_HEAD, "unprocessed", *kinds], body)]
    return tables or ["Not measured: no processing was asked for."]


def _adaptive(rows: Sequence[Row], plan: Plan, far: float) -> list[str]:
    """The opponents who adapt, beside the one who does not."""
    if plan.average < 2 and not plan.fine_tune:
        return []
    gallery = _chosen(rows, far=far, compared="gallery", transformation="none")
    before = {
        (row["test"], *(row[name] for name in _RUN)): row
        for row in gallery
        if not row["opponent"]
    }
    body = []
    for row in (row for row in gallery if row["opponent"]):
        single = before[row["test"], *(row[name] for name in _RUN)]
        shares = [_with_interval(single), _with_interval(row), _percent(row["unprotected"])]
        opponent = [row["test"], row["opponent"]]
        body.append([*_named(row), *opponent, *shares, str(row["num_images"])])
    parts = [
        f"## Opponents who adapt, at FAR {_rate(far)}",
        'What they miss of the same photos unchanged ("unprotected") is not the work of the '
        "change.",
    ]
    if plan.average > 1:
        parts.append(
            f"One averages the embeddings of {plan.average} protected photos of a person and "
            "asks who that is; each such average counts as one photo."
        )
        if not any(row["opponent"].startswith(AVERAGES) for row in gallery):
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
    return [*parts, _lines(head, body)] if body else parts


def _distortion(rows: Sequence[Row]) -> str:
    body = []
    for own in _grouped(rows, _RUN).values():
        row = own[0]
        if row["method"] == "none":
            continue
        # Where no photo was changed there is no finite PSNR.
        mean = "∞" if row["psnr_mean"] == "" else f"{row['psnr_mean']:.2f}"
        figures = [f"{row['l2']:.3f}", mean, f"{row['psnr_min']:.2f}", f"{row['ssim']:.4f}"]
        body.append([*_named(row), *figures])
    return _lines([*_HEAD, "mean L2", "mean PSNR", "lowest PSNR", "mean SSIM"], body)


def _least(report: Report) -> list[str]:
    """Of least changes, how many photos are protected and within a budget, both at once."""
    far, psnrs = report.plan.fars[0], report.plan.psnrs
    least = of_kind(ATTACKS, LeastChange)
    chosen = [
        row
        for row in report.tables.images
        if row["method"] in least and row["psnr"] == "" and row["test"] in report.plan.tests
    ]
    if not chosen:
        return []
    body = []
    for own in _grouped(chosen, (*_RUN, "test")).values():
        ratios = np.array([row["psnr_image"] for row in own])
        protected = np.array([row[f"protected_at_{far}"] for row in own])
        shares = [float(np.mean(protected & (ratios >= least))) for least in (0, *psnrs)]
        cells = [f"{own[0]['test']}{_mark(own[0])}", *map(_percent, shares)]
        body.append([*_named(own[0]), *cells])
    head = [*_HEAD, "recogniser", "protected", *(f"and at ≥ {psnr:g} dB" for psnr in psnrs)]
    return [
        f"### Least changes: protected and within a budget, at FAR {_rate(far)}",
        "A mean PSNR hides the photos that changed more. So these, of least changes without a "
        "budget, are the shares of photos that are protected and at no less "
        "than a PSNR, both at once (* fitted on).",
        _lines(head, body),
    ]
