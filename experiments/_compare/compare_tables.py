"""The statistics of a comparison: rows of `compare.csv` and `timing.csv`, and `compare.md`."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from deid_jax.evaluation.records import Row
from deid_jax.reports import tables, trial_statistics
from experiments._compare.trials import Trial

# The success rate that a peer must reach to count as the best.
_BEST_PEER_SUCCESS = 0.99


@dataclasses.dataclass(frozen=True)
class TrialSummary:
    """One trial: a line of `compare.csv`. NaN or None where there is no number.

    Success, L2 and areas are those of the float results, or with `_uint8` of the 8-bit images.

    Attributes:
      num_already: number of originals that already meet the goal.
      mssim_uint8: mean over the successful 8-bit images.
      mr_uint8: misclassification rate of the 8-bit images.
      auc_limit: the L2 up to which areas are computed.
      best_peer: the best peer at this target.
      ratio_to_best_peer: mean L2 of the 8-bit images, divided by the best peer's.
      reference: the method that the trial is paired with.
      num_gradients: mean per image.
      num_forwards: mean per image.
      num_unconfirmed: successes on a peer's twin that the recogniser denies; None for ours.
    """

    model: str
    target: str
    library: str
    method: str
    num_steps: int
    num_images: int
    num_already: int
    success_rate: float
    success_rate_uint8: float
    l2_mean: float
    l2_median: float
    l2_mean_uint8: float
    l2_median_uint8: float
    mssim_uint8: float
    mr_uint8: float
    auc: float
    auc_uint8: float
    auc_limit: float
    best_peer: str | None
    ratio_to_best_peer: float
    median_ratio_to_best_peer: float
    reference: str
    p_value: float
    median_difference: float
    num_gradients: float
    num_forwards: float
    num_unconfirmed: int | None

    def to_row(self) -> Row:
        """The columns of `compare.csv`."""
        return {name: "" if _is_missing(value) else value for name, value in vars(self).items()}


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def summaries_of(trials: Sequence[Trial], model: str, reference: str) -> list[TrialSummary]:
    """One summary per trial, in their order.

    All trials are on the same images in the same order; each is paired with `reference` at the
    same target and K.
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
    floats, kept, records = trial.float_distances, trial.uint8_distances, trial.records
    rate = trial_statistics.success_rate(kept)
    means, medians = zip(*map(trial_statistics.mean_and_median, (floats, kept)), strict=True)
    kept_results = [record.uint8_result for record in records]
    mssim = [result.mssim for result in kept_results if result.success]
    ratios = [math.nan, math.nan]
    if best is not None and rate == 1:
        peers = trial_statistics.mean_and_median(best.float_distances)
        pairs = zip((means[1], medians[1]), peers, strict=True)
        ratios = [own / peer if peer > 0 else math.nan for own, peer in pairs]
    # Peers are not designed for 8 bits, so losses by rounding do not count against them here.
    paired = floats if trial.is_peer else kept
    pair = trial_statistics.compare_pairs(reference.uint8_distances, paired)
    unconfirmed = sum(bool(record.unconfirmed) for record in records)
    return TrialSummary(
        model=model,
        target=trial.target,
        library=trial.library,
        method=trial.method,
        num_steps=trial.num_steps,
        num_images=len(records),
        num_already=sum(record.already for record in records),
        success_rate=trial_statistics.success_rate(floats),
        success_rate_uint8=rate,
        l2_mean=means[0],
        l2_median=medians[0],
        l2_mean_uint8=means[1],
        l2_median_uint8=medians[1],
        mssim_uint8=float(np.mean(mssim)) if mssim else math.nan,
        mr_uint8=float(np.mean([result.misclassified for result in kept_results])),
        auc=trial_statistics.auc(floats, limit),
        auc_uint8=trial_statistics.auc(kept, limit),
        auc_limit=limit,
        best_peer=None if best is None else best.method,
        ratio_to_best_peer=ratios[0],
        median_ratio_to_best_peer=ratios[1],
        reference=reference.method,
        p_value=pair.p_value,
        median_difference=pair.median,
        num_gradients=float(np.mean([record.num_gradients for record in records])),
        num_forwards=float(np.mean([record.num_forwards for record in records])),
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
    text = tables.percent(rate)
    if (text == "100.0 %" and rate < 1) or (text == "0.0 %" and rate > 0):
        return "> 99.9 %" if rate > 0.5 else "< 0.1 %"
    return text


def _distance(rate: float, mean: float, median: float) -> str:
    success = _percent(rate)
    return success if math.isnan(mean) else f"{mean:.3f} ({median:.3f}) {success}"


def _against(row: TrialSummary) -> str:
    if row.method == row.reference:
        return "—"
    shown = "p < 0.001" if row.p_value < 0.001 else f"p = {row.p_value:.3f}"
    return f"{_number(row.median_difference, '{:+.3f}')}, {shown}"


def _ratios(row: TrialSummary) -> str:
    ratios = row.ratio_to_best_peer, row.median_ratio_to_best_peer
    mean, median = (_number(ratio, "{:.3f}") for ratio in ratios)
    return f"{mean} ({median})"


# Heading, meaning, cell.
_TABLES: tuple[tuple[str, str, Callable[[TrialSummary], str]], ...] = (
    (
        "L2 and success, 8-bit images",
        "Mean (median) L2 over the successful images, and the share of those.",
        lambda row: _distance(row.success_rate_uint8, row.l2_mean_uint8, row.l2_median_uint8),
    ),
    (
        "L2 and success, float results",
        "The same before rounding to 8 bits. Ours are finished on the 8-bit grid where "
        "`quantize` is on, so that both tables then agree.",
        lambda row: _distance(row.success_rate, row.l2_mean, row.l2_median),
    ),
    (
        "MSSIM",
        "Mean structural similarity of the successful 8-bit images; 1 = unchanged.",
        lambda row: _number(row.mssim_uint8, "{:.4f}"),
    ),
    (
        "Misclassified",
        "MR, the share of misclassified 8-bit images.",
        lambda row: _percent(row.mr_uint8),
    ),
    (
        "Area under success against distortion",
        "Of the 8-bit images, up to L2 = {auc_limit:.3f}, twice the largest success of "
        "{reference} at the largest number of gradients; 1 is best.",
        lambda row: f"{row.auc_uint8:.4f}",
    ),
    (
        "Against {reference}",
        "Median of a row's L2 (of a peer before rounding) less that of {reference}'s 8-bit "
        "image (positive: {reference} is nearer), and p of Wilcoxon's signed-rank test, "
        "two-sided. A failure is further than any success.",
        _against,
    ),
    (
        "Ratio to the best peer",
        "Mean (median) L2 of the 8-bit images over that of a peer's successful float results "
        "at the largest number of gradients: the peer with 99 % success and the least mean "
        "({best_peer}). Only where all of a row's images succeed.",
        _ratios,
    ),
    (
        "Spent",
        "Gradients + further forward passes per image: ours as reported, peers' as counted.",
        lambda row: f"{row.num_gradients:.4g} + {row.num_forwards:.4g}",
    ),
)


def compare_markdown(
    summaries: Sequence[TrialSummary], heading: str, notes: Sequence[str]
) -> str:
    """`compare.md`.

    `heading` says what was compared, `notes` what else a reader needs to know.
    """
    steps = sorted({row.num_steps for row in summaries})
    parts = ["# Least distortion at equal numbers of gradients", heading]
    parts += [f"- {note}" for note in notes]
    for target in dict.fromkeys(row.target for row in summaries):
        rows = [row for row in summaries if row.target == target]
        first = rows[0]
        parts.append(f"## {_goal(target)}")
        parts.append(
            f"{first.num_already} of {first.num_images} originals meet the goal by "
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
        return "Untargeted (none): misclassified"
    return f"Targeted ({target}): predicted as the target"


def _table(
    rows: Sequence[TrialSummary], steps: Sequence[int], cell: Callable[[TrialSummary], str]
) -> str:
    """A table with one row per method and one column per number of gradients."""
    lines = ["| method | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---" * (1 + len(steps)) + "|")
    for method in dict.fromkeys(row.method for row in rows):
        own = {row.num_steps: cell(row) for row in rows if row.method == method}
        lines.append(f"| {method} | " + " | ".join(own[number] for number in steps) + " |")
    return "\n".join(lines)
