"""The statistics of a comparison: rows of `compare.csv` and `timing.csv`, and `compare.md`."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from deid_jax.evaluation.records import Row
from deid_jax.reports import trial_statistics
from deid_jax.reports.trial_statistics import Distances, PairedTest
from experiments._compare.trials import Trial

# The success rate that a peer must reach to count as the best.
_BEST_PEER_SUCCESS = 0.99


@dataclasses.dataclass(frozen=True)
class DistanceSummary:
    """A trial's success rate, L2 of its successes (NaN without any), area under the curve."""

    success_rate: float
    l2_mean: float
    l2_median: float
    auc: float

    @classmethod
    def of(cls, distances: Distances, limit: float) -> "DistanceSummary":
        """Summarises distances, with the area up to a limit."""
        return cls(
            trial_statistics.success_rate(distances),
            *trial_statistics.mean_and_median(distances),
            trial_statistics.auc(distances, limit),
        )


@dataclasses.dataclass(frozen=True)
class TrialSummary:
    """One trial: a line of `compare.csv`. Missing numbers are NaN.

    Attributes:
      model: the recogniser's name.
      trial: the trial that is summarised.
      num_already: number of originals that already meet the goal.
      float_result: summary of the float32 results.
      uint8_result: summary of the 8-bit images.
      mssim: mean over the successful 8-bit images.
      mr: misclassification rate of the 8-bit images.
      auc_limit: the L2 up to which areas are computed.
      best_peer: the best peer at this target; None without any.
      ratios: mean and median L2 of the 8-bit images, divided by the best peer's.
      reference: the method that the trial is paired with.
      pair: the paired test against the reference.
      num_gradients: mean per image.
      num_forwards: mean per image.
      num_unconfirmed: successes on a peer's twin that the recogniser denies; None for ours.
    """

    model: str
    trial: Trial
    num_already: int
    float_result: DistanceSummary
    uint8_result: DistanceSummary
    mssim: float
    mr: float
    auc_limit: float
    best_peer: str | None
    ratios: tuple[float, float]
    reference: str
    pair: PairedTest
    num_gradients: float
    num_forwards: float
    num_unconfirmed: int | None

    def to_row(self) -> Row:
        """The columns of `compare.csv`."""
        trial, floats, kept = self.trial, self.float_result, self.uint8_result
        row: Row = {
            "model": self.model,
            "target": trial.target,
            "library": trial.library,
            "method": trial.method,
            "num_steps": trial.num_steps,
            "num_images": len(trial.records),
            "num_already": self.num_already,
            "success_rate": floats.success_rate,
            "success_rate_uint8": kept.success_rate,
            "l2_mean": floats.l2_mean,
            "l2_median": floats.l2_median,
            "l2_mean_uint8": kept.l2_mean,
            "l2_median_uint8": kept.l2_median,
            "mssim_uint8": self.mssim,
            "mr_uint8": self.mr,
            "auc": floats.auc,
            "auc_uint8": kept.auc,
            "auc_limit": self.auc_limit,
            "best_peer": self.best_peer,
            "ratio_to_best_peer": self.ratios[0],
            "median_ratio_to_best_peer": self.ratios[1],
            "reference": self.reference,
            "p_value": self.pair.p_value,
            "median_difference": self.pair.median,
            "num_gradients": self.num_gradients,
            "num_forwards": self.num_forwards,
            "num_unconfirmed": self.num_unconfirmed,
        }
        return {name: "" if _is_missing(value) else value for name, value in row.items()}


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def summaries_of(trials: Sequence[Trial], model: str, reference: str) -> list[TrialSummary]:
    """One summary per trial, in their order.

    Args:
      trials: all trials, on the same images in the same order.
      model: the recogniser's name.
      reference: the method that each trial is paired with at the same target and K.
    """
    summaries = []
    for trial in trials:
        same = [other for other in trials if other.target == trial.target]
        paired = next(
            other
            for other in same
            if (other.method, other.num_steps) == (reference, trial.num_steps)
        )
        limit = auc_limit(same, reference)
        summaries.append(_summary(trial, model, limit, best_peer(same), paired))
    return summaries


def auc_limit(trials: Sequence[Trial], reference: str) -> float:
    """Twice the largest L2 of the reference's 8-bit successes at its largest K.

    With a larger limit, a peer's largest distances would make all areas look alike. If the
    reference never succeeds, the limit is the largest L2 of any trial.
    """
    of_reference = [trial for trial in trials if trial.method == reference]
    last = max(of_reference, key=lambda trial: trial.num_steps)
    largest = trial_statistics.largest_success
    return 2 * largest(last.uint8_distances) or max(
        largest(trial.uint8_distances) for trial in trials
    )


def best_peer(trials: Sequence[Trial]) -> Trial | None:
    """The peer of smallest mean L2 at the largest K, among those with at least 99 % success.

    Peers are compared by their successful float results, before any loss by rounding.
    """
    most = max(trial.num_steps for trial in trials)
    whole = [
        trial
        for trial in trials
        if trial.is_peer
        and trial.num_steps == most
        and trial_statistics.success_rate(trial.float_distances) >= _BEST_PEER_SUCCESS
    ]
    return min(
        whole,
        key=lambda trial: trial_statistics.mean_and_median(trial.float_distances)[0],
        default=None,
    )


def _summary(
    trial: Trial, model: str, limit: float, best: Trial | None, reference: Trial
) -> TrialSummary:
    floats, kept = trial.float_distances, trial.uint8_distances
    uint8_result = DistanceSummary.of(kept, limit)
    results = [record.uint8_result for record in trial.records]
    mssim = [result.mssim for result in results if result.success]
    mean_ratio = median_ratio = math.nan
    if best is not None and uint8_result.success_rate == 1:
        mean, median = trial_statistics.mean_and_median(best.float_distances)
        mean_ratio = uint8_result.l2_mean / mean if mean > 0 else math.nan
        median_ratio = uint8_result.l2_median / median if median > 0 else math.nan
    # Peers are not designed for 8 bits, so losses by rounding do not count against them here.
    paired = floats if trial.is_peer else kept
    unconfirmed = sum(bool(record.unconfirmed) for record in trial.records)
    return TrialSummary(
        model=model,
        trial=trial,
        num_already=sum(record.already for record in trial.records),
        float_result=DistanceSummary.of(floats, limit),
        uint8_result=uint8_result,
        mssim=float(np.mean(mssim)) if mssim else math.nan,
        mr=float(np.mean([result.misclassified for result in results])),
        auc_limit=limit,
        best_peer=None if best is None else best.method,
        ratios=(mean_ratio, median_ratio),
        reference=reference.method,
        pair=trial_statistics.compare_pairs(reference.uint8_distances, paired),
        num_gradients=float(np.mean([record.num_gradients for record in trial.records])),
        num_forwards=float(np.mean([record.num_forwards for record in trial.records])),
        num_unconfirmed=unconfirmed if trial.is_peer else None,
    )


def timing_of(trials: Sequence[Trial]) -> list[Row]:
    """The rows of `timing.csv`; our times include judging the results, the peers' do not."""
    rows: list[Row] = []
    for trial in trials:
        spent = sum(record.num_gradients for record in trial.records)
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


def _number(value: float, form: str) -> str:
    return "—" if math.isnan(value) else form.format(value)


def _percent(rate: float) -> str:
    """A rate as text, which is never 100 % for less than all or 0 % for some."""
    text = f"{100 * rate:.1f}".removesuffix(".0")
    if (text == "100" and rate < 1) or (text == "0" and rate > 0):
        text = "> 99.9" if rate > 0.5 else "< 0.1"
    return f"{text} %"


def _distance(summary: DistanceSummary) -> str:
    success = _percent(summary.success_rate)
    if math.isnan(summary.l2_mean):
        return success
    return f"{summary.l2_mean:.3f} ({summary.l2_median:.3f}) {success}"


def _against(row: TrialSummary) -> str:
    if row.trial.method == row.reference:
        return "—"
    p_value = row.pair.p_value
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    return f"{_number(row.pair.median, '{:+.3f}')}, {shown}"


def _ratios(row: TrialSummary) -> str:
    mean, median = (_number(ratio, "{:.3f}") for ratio in row.ratios)
    return f"{mean} ({median})"


# Heading, meaning, cell.
_TABLES: tuple[tuple[str, str, Callable[[TrialSummary], str]], ...] = (
    (
        "L2 and success, 8-bit pictures",
        "Mean (median) L2 over the successful pictures, and the share of those.",
        lambda row: _distance(row.uint8_result),
    ),
    (
        "L2 and success, float results",
        "The same before rounding to 8 bits. Ours are finished on the 8-bit grid where "
        "`quantize` is on, so that both tables then agree.",
        lambda row: _distance(row.float_result),
    ),
    (
        "MSSIM",
        "Mean structural similarity of the successful 8-bit pictures; 1 = unchanged.",
        lambda row: _number(row.mssim, "{:.4f}"),
    ),
    (
        "Misclassified",
        "MR, the share of 8-bit pictures that the recogniser misnames.",
        lambda row: _percent(row.mr),
    ),
    (
        "Area under success against distortion",
        "Of the 8-bit pictures, up to L2 = {auc_limit:.3f}, twice the largest success of "
        "{reference} at the largest number of gradients; 1 is best.",
        lambda row: f"{row.uint8_result.auc:.4f}",
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
        lambda row: f"{row.num_gradients:.4g} + {row.num_forwards:.4g}",
    ),
)


def compare_markdown(
    summaries: Sequence[TrialSummary], heading: str, notes: Sequence[str]
) -> str:
    """`compare.md`.

    Args:
      summaries: from `summaries_of`.
      heading: what was compared, in a sentence or two.
      notes: what else a reader needs to know.
    """
    steps = sorted({row.trial.num_steps for row in summaries})
    parts = ["# Least distortion at equal numbers of gradients", heading]
    parts += [f"- {note}" for note in notes]
    for target in dict.fromkeys(row.trial.target for row in summaries):
        rows = [row for row in summaries if row.trial.target == target]
        first = rows[0]
        parts.append(f"## {_goal(target)}")
        parts.append(
            f"{first.num_already} of {len(first.trial.records)} originals meet the goal by "
            "themselves: success at distance 0 for all."
        )
        words = {
            "auc_limit": first.auc_limit,
            "reference": first.reference,
            "best_peer": first.best_peer or "here none",
        }
        for title, meaning, cell in _TABLES:
            parts += [f"### {title.format(**words)}", meaning.format(**words)]
            parts.append(_table(rows, steps, cell))
    text = "\n\n".join(parts) + "\n"
    return text.replace("\n\n- ", "\n- ").replace("\n- ", "\n\n- ", 1)


def _goal(target: str) -> str:
    if target == "none":
        return "Untargeted (none): misnamed, as whomever"
    return f"Targeted ({target}): named as the target"


def _table(
    rows: Sequence[TrialSummary], steps: Sequence[int], cell: Callable[[TrialSummary], str]
) -> str:
    """A table with one row per method and one column per number of gradients."""
    lines = ["| method | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---" * (1 + len(steps)) + "|")
    for method in dict.fromkeys(row.trial.method for row in rows):
        own = {row.trial.num_steps: cell(row) for row in rows if row.trial.method == method}
        lines.append(f"| {method} | " + " | ".join(own[number] for number in steps) + " |")
    return "\n".join(lines)
