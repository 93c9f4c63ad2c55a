"""Texts of the page of `experiments.webapp`, as HTML."""

import html
import math
from collections.abc import Sequence

from deid_jax.photos import STRENGTHS, Verifier
from deid_jax.photos.file_records import NOT_PROTECTED, PROTECTED, UNJUDGED, worst_of
from experiments._webapp.uploads import UploadOutcome, summary_line

# What the page does, what it cannot do, and what it does not change.
ABOUT = (
    "It finds faces and perturbs their pixels, hardly visibly, so that the recognisers named "
    "below no longer match the face with the one in the original photo.",
    "Only a judge, a recogniser that the attack is not fitted on, shows whether a face is "
    "protected. Other recognisers may still match it, and people who know you will recognise "
    "you.",
    "Faces that it does not find, such as very small ones, are left unchanged. Everything else "
    "that may reveal who is in a photo is unchanged as well: clothes, places, the file's name, "
    "copies that others have.",
)


def rms_levels(psnr: float) -> float:
    """The root-mean-square perturbation, in levels of 255, for a PSNR in dB."""
    return 255 * 10 ** (-psnr / 20)


def strength_label(name: str) -> str:
    """The label that explains a strength."""
    psnr = STRENGTHS[name]
    return f"{name}: {rms_levels(psnr):.1f} levels of 255 (PSNR {psnr:g} dB)"


def verifiers_html(verifiers: Sequence[Verifier]) -> str:
    """The list of recognisers."""
    items = "".join(
        f"<li><b>{html.escape(one.embedder.name)}</b>: "
        + (
            "surrogate, which the attack is fitted on"
            if one.is_surrogate
            else "judge, which the attack is not fitted on"
        )
        + f"; match: {one.rule}</li>"
        for one in verifiers
    )
    no_judge = ""
    if all(one.is_surrogate for one in verifiers):
        no_judge = (
            "<p>The attack is fitted on all of them, so no photo can be called protected "
            "(<code>--judge</code> adds judges).</p>"
        )
    return f"<p>Recognisers:</p><ul>{items}</ul>{no_judge}"


def verdict_html(outcome: UploadOutcome) -> str:
    """A table of faces and recognisers; empty if there is no written file."""
    rows = []
    for number, face in enumerate(outcome.faces, 1):
        for place, verdict in enumerate(face.verdicts):
            kind, says, sign = "knows", "not fooled", "≥"
            if verdict.fooled:
                kind, says, sign = "fooled", "fooled", "&lt;"
            first = ""
            if place == 0:
                span = f'rowspan="{len(face.verdicts)}"'
                first = f"<td {span}>{number}</td><td {span}>{_change(face.psnr)}</td>"
            role = "" if verdict.fitted else " (judge)"
            rows.append(
                f'<tr>{first}<td class="name">{html.escape(verdict.recogniser)}{role}</td>'
                f'<td class="{kind}">{says}</td>'
                f"<td>{verdict.similarity:.3f} {sign} {verdict.threshold:g}</td></tr>"
            )
    if not rows:
        return ""
    heads = ("Face", "Perturbation", "Recogniser", "Verdict", "Similarity")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'<div class="wide"><table class="verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="small">Perturbation: root mean square, in levels of 255. Fooled: the '
        "similarity of the face in the file to the one in the original is below the "
        "recogniser's threshold.</p>"
    )


def _change(psnr: float) -> str:
    if not math.isfinite(psnr):
        return "none"
    return f"{rms_levels(psnr):.1f}<br>({psnr:.1f} dB)"


def summary_html(outcome: UploadOutcome) -> str:
    """The coloured summary line of a photo."""
    return said(summary_line(outcome), outcome.status)


# What the page's style calls them.
_KINDS = {PROTECTED: " right", UNJUDGED: " open", NOT_PROTECTED: " wrong", None: ""}


def said(text: str, status: str | None = None) -> str:
    """A message in the colour of a status, or of none, with its text escaped."""
    return f'<p class="said{_KINDS[status]}">{html.escape(text)}</p>'


def progress_html(done: int, total: int, name: str) -> str:
    """The current photo and a progress bar."""
    hint = "" if done else " The first one takes longest: programs are compiled."
    bar = f'<div class="bar"><div style="width: {100 * done / total:.0f}%"></div></div>'
    return said(f"Photo {done + 1} of {total}: {name}.{hint}") + bar


def overview_html(outcomes: Sequence[UploadOutcome]) -> str:
    """The totals of several photos, and a line for each that is not protected."""
    if len(outcomes) == 1:
        return summary_html(outcomes[0])
    found = [outcome.status for outcome in outcomes]
    of_all = f"of {len(outcomes)} photos"
    heads = []
    if PROTECTED in found or UNJUDGED not in found:
        heads.append(
            f"{found.count(PROTECTED)} {of_all} protected: no surrogate and no judge matches a "
            "face that was found."
        )
    if UNJUDGED in found:
        heads.append(
            f"{found.count(UNJUDGED)} {of_all} unjudged: the faces found fool every surrogate, "
            "and there was no judge."
        )
    wrong = [summary_html(one) for one in outcomes if one.status == NOT_PROTECTED]
    return "".join([said(" ".join(heads), worst_of(found)), *wrong])
