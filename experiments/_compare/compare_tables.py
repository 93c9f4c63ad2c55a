"""The comparison's figures: rows of `compare.csv`, and `compare.md`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deid_jax.reports import trial_statistics

# What a peer must reach to be one to beat.
_BEST_PEER_SUCCESS = 0.99

Record = dict[str, Any]
Row = dict[str, Any]


class Trial(NamedTuple):
    """One method, ours or a peer, at one number of gradients and one target.

    Attributes:
      target: a choice of `deid_jax.evaluation.batch.TARGETS`.
      library: "deid_jax", or the peer's.
      method: its name, unique among ours and the peers.
      num_steps: K, the gradients asked for.
      records: one per picture, from `scored`.
      seconds: wall time of the attack.
    """

    target: str
    library: str
    method: str
    num_steps: int
    records: list[Record]
    seconds: float

    @property
    def is_peer(self) -> bool:
        """Whether it is another library's."""
        return self.library != "deid_jax"

    def column(self, name: str) -> np.ndarray:
        """One column of the records, [N]."""
        return np.array([record[name] for record in self.records])

    def distances(self, suffix: str) -> np.ndarray:
        """L2 of float results ("") or of 8-bit pictures ("_uint8"), see `trial_statistics`."""
        return np.where(self.column("success" + suffix), self.column("l2" + suffix), np.inf)


def scored(record: Mapping[str, Any], picture: str, aim: str, already: bool) -> Record:
    """One line of `per_image.csv`.

    An original that meets the goal by itself stays as it is: success at distance 0, whatever
    the attack made of it.

    Args:
      record: columns of `deid_jax.evaluation.records`; peers' also hold `claimed`.
      picture: "person/name".
      aim: the person aimed at; empty where the attack is untargeted.
      already: whether the original meets the goal.
    """
    line: Record = {"picture": picture, "aim": aim, "already": already}
    for suffix in ("", "_uint8"):
        misnamed = record["misclassified" + suffix]
        reached = record["prediction" + suffix] == aim if aim else misnamed
        line |= {
            "success" + suffix: already or bool(reached),
            "l2" + suffix: 0.0 if already else record["l2" + suffix],
            "mssim" + suffix: 1.0 if already else record["mssim" + suffix],
            "misclassified" + suffix: already or bool(misnamed),
        }
    claimed = record.get("claimed")
    unconfirmed = "" if claimed is None else claimed and not line["success"]
    return line | {
        "unconfirmed": unconfirmed,
        "num_gradients": record["num_gradients"],
        "num_forwards": record["num_forwards"],
    }


def rows_of(trials: Sequence[Trial], model: str, reference: str) -> list[Row]:
    """The rows of `compare.csv`, one per trial, in their order.

    Args:
      trials: all of them, on the same pictures in the same order.
      model: the recogniser's name.
      reference: the method that each is paired with at the same target and K.
    """
    rows = []
    for trial in trials:
        same = [other for other in trials if other.target == trial.target]
        paired = next(
            other
            for other in same
            if (other.method, other.num_steps) == (reference, trial.num_steps)
        )
        rows.append(
            _row(trial, auc_limit(same, reference), best_peer(same), paired) | {"model": model}
        )
    order = ("model", *(name for name in rows[0] if name != "model"))
    return [{name: row[name] for name in order} for row in rows]


def auc_limit(trials: Sequence[Trial], reference: str) -> float:
    """Twice the largest change with which the reference succeeds at its largest K, in 8 bits.

    So that a peer's largest changes do not press all areas together. Where the reference has no
    such success, the largest of any.
    """
    of_reference = [trial for trial in trials if trial.method == reference]
    last = max(of_reference, key=lambda trial: trial.num_steps)
    return 2 * trial_statistics.largest_success(last.distances("_uint8")) or max(
        trial_statistics.largest_success(trial.distances("_uint8")) for trial in trials
    )


def best_peer(trials: Sequence[Trial]) -> Trial | None:
    """Of the peers with success of 99 % and more at the largest K the one of least mean L2.

    Judged by its successful float results, before rounding costs it anything.
    """
    most = max(trial.num_steps for trial in trials)
    whole = [
        trial
        for trial in trials
        if trial.is_peer
        and trial.num_steps == most
        and trial_statistics.success_rate(trial.distances("")) >= _BEST_PEER_SUCCESS
    ]
    return min(
        whole,
        key=lambda trial: trial_statistics.mean_and_median(trial.distances(""))[0],
        default=None,
    )


def _row(trial: Trial, limit: float, best: Trial | None, reference: Trial) -> Row:
    floats, kept = trial.distances(""), trial.distances("_uint8")
    (mean, median), (mean_kept, median_kept) = map(
        trial_statistics.mean_and_median, (floats, kept)
    )
    succeeded = np.isfinite(kept)
    mssim = trial.column("mssim_uint8")[succeeded]
    ratios = [math.nan, math.nan]
    if best is not None and succeeded.all():
        of_best = trial_statistics.mean_and_median(best.distances(""))
        ratios = [
            own / theirs if theirs > 0 else math.nan
            for own, theirs in zip((mean_kept, median_kept), of_best, strict=True)
        ]
    # Peers did not ask to be rounded: what they lose by it is not held against them here.
    theirs = floats if trial.is_peer else kept
    pair = trial_statistics.compare_pairs(reference.distances("_uint8"), theirs)
    row = {
        "target": trial.target,
        "library": trial.library,
        "method": trial.method,
        "num_steps": trial.num_steps,
        "num_images": len(trial.records),
        "num_already": int(trial.column("already").sum()),
        "success_rate": trial_statistics.success_rate(floats),
        "success_rate_uint8": trial_statistics.success_rate(kept),
        "l2_mean": mean,
        "l2_median": median,
        "l2_mean_uint8": mean_kept,
        "l2_median_uint8": median_kept,
        "mssim_uint8": float(np.mean(mssim)) if mssim.size else math.nan,
        "mr_uint8": float(trial.column("misclassified_uint8").mean()),
        "auc": trial_statistics.auc(floats, limit),
        "auc_uint8": trial_statistics.auc(kept, limit),
        "auc_limit": limit,
        "best_peer": "" if best is None else best.method,
        "ratio_to_best_peer": ratios[0],
        "median_ratio_to_best_peer": ratios[1],
        "reference": reference.method,
        "p_value": pair.p_value,
        "median_difference": pair.median,
        "num_gradients": float(trial.column("num_gradients").mean()),
        "num_forwards": float(trial.column("num_forwards").mean()),
        "num_unconfirmed": int(trial.column("unconfirmed").sum()) if trial.is_peer else "",
    }
    return {name: "" if _is_nan(value) else value for name, value in row.items()}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def timing_of(trials: Sequence[Trial]) -> list[Row]:
    """The rows of `timing.csv`: ours with the verdict on the results, peers' without."""
    rows = []
    for trial in trials:
        spent = trial.column("num_gradients").sum()
        rows.append(
            {
                "target": trial.target,
                "method": trial.method,
                "num_steps": trial.num_steps,
                "seconds": trial.seconds,
                "ms_per_gradient": 1000 * trial.seconds / spent if spent else "",
            }
        )
    return rows


def _number(value: Any, form: str) -> str:
    return "—" if value == "" else form.format(value)


def _percent(rate: float) -> str:
    """Never 100 % of less than all, nor 0 % of some."""
    text = f"{100 * rate:.1f}".removesuffix(".0")
    if (text == "100" and rate < 1) or (text == "0" and rate > 0):
        text = "> 99.9" if rate > 0.5 else "< 0.1"
    return f"{text} %"


def _distance(suffix: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        success = _percent(row["success_rate" + suffix])
        if row["l2_mean" + suffix] == "":
            return success
        mean, median = row["l2_mean" + suffix], row["l2_median" + suffix]
        return f"{mean:.3f} ({median:.3f}) {success}"

    return cell


def _against(row: Row) -> str:
    if row["method"] == row["reference"]:
        return "—"
    p_value = "p < 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.3f}"
    return f"{_number(row['median_difference'], '{:+.3f}')}, {p_value}"


def _spent(row: Row) -> str:
    return f"{row['num_gradients']:.4g} + {row['num_forwards']:.4g}"


def _ratios(row: Row) -> str:
    mean, median = (
        _number(row[f"{kind}ratio_to_best_peer"], "{:.3f}") for kind in ("", "median_")
    )
    return f"{mean} ({median})"


# Heading, what it means, cell.
_TABLES: tuple[tuple[str, str, Callable[[Row], str]], ...] = (
    (
        "L2 and success, 8-bit pictures",
        "Mean (median) L2 over the successful pictures, and the share of those.",
        _distance("_uint8"),
    ),
    (
        "L2 and success, float results",
        "The same before rounding to 8 bits. Ours are finished on the 8-bit grid where "
        "`quantize` is on, so that both tables then agree.",
        _distance(""),
    ),
    (
        "MSSIM",
        "Mean structural similarity of the successful 8-bit pictures; 1 = unchanged.",
        lambda row: _number(row["mssim_uint8"], "{:.4f}"),
    ),
    (
        "Misclassified",
        "MR, the share of 8-bit pictures that the recogniser misnames.",
        lambda row: _percent(row["mr_uint8"]),
    ),
    (
        "Area under success against distortion",
        "Of the 8-bit pictures, up to L2 = {auc_limit:.3f}, twice the largest success of "
        "{reference} at the largest number of gradients; 1 is best.",
        lambda row: f"{row['auc_uint8']:.4f}",
    ),
    (
        "Against {reference}",
        "Median of a row's L2 (of a peer before rounding) less that of {reference}'s 8-bit "
        "picture (positive: {reference} is nearer), and p of Wilcoxon's signed-rank test, "
        "two-sided. A failure is further than any success.",
        _against,
    ),
    (
        "Ratio to the best peer",
        "Mean (median) L2 of the 8-bit pictures over that of a peer's successful float results "
        "at the largest number of gradients: the peer with 99 % success and the least mean "
        "({best_peer}). Only where all of a row's pictures succeed.",
        _ratios,
    ),
    (
        "Spent",
        "Gradients + further forward passes per picture: ours as reported, peers' as counted.",
        _spent,
    ),
)


def markdown(rows: Sequence[Row], heading: str, notes: Sequence[str]) -> str:
    """`compare.md`.

    Args:
      rows: from `rows_of`.
      heading: what was compared: a sentence or two.
      notes: what else a reader must know.
    """
    steps = sorted({row["num_steps"] for row in rows})
    parts = ["# Least distortion at equal numbers of gradients", heading]
    parts += [f"- {note}" for note in notes]
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        parts.append(f"## {_goal(target)}")
        already = own[0]["num_already"]
        parts.append(
            f"{already} of {own[0]['num_images']} originals meet the goal by themselves: "
            "success at distance 0 for all."
        )
        words = own[0] | {"best_peer": own[0]["best_peer"] or "here none"}
        for title, meaning, cell in _TABLES:
            parts += [f"### {title.format(**words)}", meaning.format(**words)]
            parts.append(_table(own, steps, cell))
    text = "\n\n".join(parts) + "\n"
    return text.replace("\n\n- ", "\n- ").replace("\n- ", "\n\n- ", 1)


def _goal(target: str) -> str:
    if target == "none":
        return "Untargeted (none): misnamed, as whomever"
    return f"Targeted ({target}): named as the target"


def _table(rows: Sequence[Row], steps: Sequence[int], cell: Callable[[Row], str]) -> str:
    """Methods down, numbers of gradients across."""
    lines = ["| method | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---" * (1 + len(steps)) + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["num_steps"]: cell(row) for row in rows if row["method"] == method}
        lines.append(f"| {method} | " + " | ".join(own[number] for number in steps) + " |")
    return "\n".join(lines)
