"""The report of `experiments.transfer`: tables, and in words what they do and do not say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from deid_jax.data import FaceDataset
from deid_jax.transfer import Faces, Judge
from experiments.transfer_runs import Plan

Row = dict[str, Any]

_WHO = """\
Somebody publishes photos of a person. A stranger has other, ordinary photos of that person,
with the name, and a face recogniser. He shows it a published photo and asks whether this is the
same person, or who of all whom he knows it is. Before publishing, the photos were changed a
little, so that people hardly see it and the recogniser answers wrongly.

The person who changed the photos knew some recognisers and tried the change on these
("fitted on"). The stranger's may be one of them (marked *), or one that was never looked at:
that is what counts, since nobody knows what a stranger uses. Neither of the two knows the
other's photos: galleries, photos to fit with, and protected photos are different pictures.

A photo counts as protected where the recogniser scores it below its threshold. The threshold is
set on unchanged photos so that of strangers' photos the stated share is wrongly accepted (FAR).
These are measurements on the recognisers and the people named here. Other recognisers, larger
ones above all, later ones, and other photos of the same person give other figures; what is
published stays published, and tomorrow's recogniser may read what today's cannot. A person
who looks at the photo still knows who it is.
"""


class Report(NamedTuple):
    """What the report is made of."""

    rows: Sequence[Row]
    plan: Plan
    judges: Mapping[str, Judge]
    faces: Faces
    dataset: FaceDataset
    protocol: str


def markdown(report: Report) -> str:
    """`transfer.md`."""
    plan, rows = report.plan, report.rows
    lists = report.faces.lists
    parts = [
        "# How protection carries over to other recognisers",
        f"{len(lists.protected)} photos of {len(report.dataset.persons)} persons "
        f"({report.dataset.name}, {report.dataset.image_size} px, 8 bits), known by "
        f"{sum(len(g) for g in lists.gallery)} other photos. Protocol SHA-256 "
        f"`{report.protocol}`. Intervals are Wilson's, 95 %.",
        "## Against whom",
        _WHO.strip(),
        "## The recognisers on clean photos",
        _clean_table(report),
    ]
    for far in plan.fars:
        parts += [f"## Protected, at FAR {far:.1%}", _protection(rows, plan, far, "gallery")]
    far = plan.fars[0]
    parts += [
        f"## Compared with other protected photos, at FAR {far:.1%}",
        "The stranger has no clean photo, only other protected ones of the same person, and "
        "asks whether they show one person.",
        _protection(rows, plan, far, "protected"),
        "## Named among all",
        "Share of photos whose person comes first (is among the first five) of all galleries.",
        _by_run(rows, plan, lambda row: f"{row['rank1']:.1%} ({row['rank5']:.1%})"),
        f"## What survives, at FAR {far:.1%}",
        "Protected after the photo was processed; in brackets the share kept of what was "
        "protected before.",
        *_survival(rows, plan, far),
    ]
    if any(row["opponent"] for row in rows):
        parts += [
            f"## Opponents who adapt, at FAR {far:.1%}",
            "One averages the embeddings of several protected photos of a person. The other "
            "trains his recogniser on half of the protected photos, with names, and on the "
            "clean galleries, and sets a new threshold on clean photos; the other half is "
            "judged.",
            _opponents(rows, far),
        ]
    parts += ["## How visible", _distortion(rows)]
    return "\n\n".join(parts) + "\n"


def show(rows: Sequence[Row], plan: Plan) -> None:
    """Prints what is protected at the first false accept rate, as photos are."""
    far = plan.fars[0]
    chosen = _chosen(rows, far=far, compared="gallery", transformation="none", opponent="")
    table = Table(title=f"protected at FAR {far:.1%} (* fitted on)", title_justify="left")
    for name in ("method", "foresees", "fitted on", "budget"):
        table.add_column(name)
    for test in plan.tests:
        table.add_column(test, justify="right")
    for key, own in _grouped(chosen, ("method", "foreseen", "fit", "psnr", "epsilon")).items():
        by_test = {row["test"]: row for row in own}
        table.add_row(
            key[0],
            key[1],
            key[2],
            _budget(own[0]),
            *(_share(by_test[test]) for test in plan.tests),
        )
    Console().print(table)


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
    return "none" if row["method"] == "none" else "least"


def _share(row: Row) -> str:
    """A rate with a mark where the recogniser was fitted on."""
    known = row["test"] in row["fit"].split("+")
    return f"{row['protected']:.1%}{' *' if known else ''}"


def _with_interval(row: Row) -> str:
    return f"{_share(row)} [{100 * row['low']:.0f}–{100 * row['high']:.0f}]"


def _lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in body])


def _clean_table(report: Report) -> str:
    """What the recognisers are worth, and which clean photos they miss by themselves."""
    body = []
    for name in report.plan.tests:
        judge = report.judges[name]
        clean = _chosen(
            report.rows, method="none", test=name, transformation="none", compared="gallery"
        )
        missed = ", ".join(f"{row['protected']:.1%} at {row['far']:.1%}" for row in clean)
        thresholds = ", ".join(f"{t:.3f} at {far:.1%}" for far, t in judge.thresholds.items())
        body.append(
            [
                name,
                f"{judge.pairs.accuracy:.3f}",
                f"{judge.pairs.auc:.4f}",
                thresholds,
                missed,
                f"{clean[0]['rank1']:.1%}",
            ]
        )
    head = ["recogniser", "same/different accuracy", "AUC", "threshold at FAR"]
    return _lines([*head, "clean photos not known, at FAR", "rank 1"], body)


def _protection(rows: Sequence[Row], plan: Plan, far: float, compared: str) -> str:
    chosen = _chosen(rows, far=far, compared=compared, transformation="none", opponent="")
    return _runs_by_test(chosen, plan, _with_interval)


def _by_run(rows: Sequence[Row], plan: Plan, cell: Callable[[Row], str]) -> str:
    chosen = _chosen(
        rows, far=plan.fars[0], compared="gallery", transformation="none", opponent=""
    )
    return _runs_by_test(chosen, plan, cell)


_RUN = ("method", "foreseen", "fit", "psnr", "epsilon")


def _named(row: Row) -> list[str]:
    return [row["method"], row["foreseen"] or "–", row["fit"] or "–", _budget(row)]


_HEAD = ("method", "foresees", "fitted on", "budget")


def _runs_by_test(rows: Sequence[Row], plan: Plan, cell: Callable[[Row], str]) -> str:
    body = []
    for own in _grouped(rows, _RUN).values():
        by_test = {row["test"]: cell(row) for row in own}
        body.append([*_named(own[0]), *(by_test.get(test, "–") for test in plan.tests)])
    return _lines([*_HEAD, *plan.tests], body)


def _survival(rows: Sequence[Row], plan: Plan, far: float) -> list[str]:
    """A table for each recogniser: runs down, processing across."""
    tables = []
    for test in plan.tests:
        chosen = _chosen(rows, far=far, compared="gallery", test=test, opponent="")
        body = []
        for own in _grouped(chosen, _RUN).values():
            by_kind = {row["transformation"]: row["protected"] for row in own}
            before = by_kind.get("none")
            cells = []
            for kind in plan.processing:
                share = by_kind[kind]
                kept = f" ({share / before:.0%})" if before and kind != "none" else ""
                cells.append(f"{share:.1%}{kept}")
            body.append([*_named(own[0]), *cells])
        tables += [f"### {test}", _lines([*_HEAD, *plan.processing], body)]
    return tables


def _opponents(rows: Sequence[Row], far: float) -> str:
    chosen = [row for row in rows if row["opponent"] and row["far"] == far]
    chosen = [row for row in chosen if row["compared"] == "gallery"]
    body = [[*_named(row), row["test"], row["opponent"], _with_interval(row)] for row in chosen]
    return _lines([*_HEAD, "recogniser", "opponent", "protected"], body)


def _distortion(rows: Sequence[Row]) -> str:
    body = []
    for own in _grouped(rows, _RUN).values():
        row = own[0]
        if row["method"] == "none":
            continue
        body.append(
            [
                *_named(row),
                f"{row['l2']:.3f}",
                f"{row['psnr_mean']:.2f}",
                f"{row['psnr_min']:.2f}",
                f"{row['ssim']:.4f}",
            ]
        )
    return _lines([*_HEAD, "mean L2", "mean PSNR", "lowest PSNR", "mean SSIM"], body)
