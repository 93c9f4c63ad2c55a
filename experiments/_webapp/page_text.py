"""Texts of the page of `experiments.webapp`, as HTML."""

import html
import math
from collections.abc import Sequence

from deid_jax.photos import STRENGTHS, Verifier
from deid_jax.photos.file_records import NOT_PROTECTED, PROTECTED, UNJUDGED, worst_of
from experiments._webapp.uploads import UploadOutcome, summary_line

# What the page does, what it cannot do, and what it does not change.
ABOUT = (
    "It finds faces and changes their pixels, so little that people hardly see it, so that the "
    "recognisers named below no longer match the face with the one in the original photo.",
    "Only recognisers that the attack does not know can tell whether a face is protected. "
    "Others than these may still match it, and people who know you still recognise you.",
    "Faces that it does not find stay as they are (it misses covered and very small ones). "
    "So does everything else that tells who is in a photo: clothes, places, the file's name, "
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
    """The list of recognisers that judge."""
    items = "".join(
        f"<li><b>{html.escape(one.embedder.name)}</b>: "
        + (
            "fooled on purpose"
            if one.is_surrogate
            else "judges only, the attack does not know it"
        )
        + f"; matches faces {one.rule}</li>"
        for one in verifiers
    )
    unseen = ""
    if all(one.is_surrogate for one in verifiers):
        unseen = (
            "<p>The attack knows all of them. Recognisers that it does not know are not tested "
            "here (<code>--judge</code> adds some).</p>"
        )
    return f"<p>Recognisers that are asked:</p><ul>{items}</ul>{unseen}"


def verdict_html(outcome: UploadOutcome) -> str:
    """A table of faces and recognisers; empty if there is no protected file."""
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
            unseen = "" if verdict.fitted else " (not known to the attack)"
            rows.append(
                f'<tr>{first}<td class="name">{html.escape(verdict.recogniser)}{unseen}</td>'
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
        "similarity of the face in the file to the one in the photo is below the recogniser's "
        "threshold.</p>"
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
    """The totals of several photos, and a line about each that is not protected."""
    if len(outcomes) == 1:
        return summary_html(outcomes[0])
    found = [outcome.status for outcome in outcomes]
    of_all = f"of {len(outcomes)} photos"
    heads = []
    if PROTECTED in found or UNJUDGED not in found:
        heads.append(
            f"{found.count(PROTECTED)} {of_all} protected: no recogniser asked matches a face "
            "found any more, not even those that the attack does not know."
        )
    if UNJUDGED in found:
        heads.append(
            f"{found.count(UNJUDGED)} {of_all}: the faces found fool the recognisers that they "
            "were made to fool. Nobody else looked."
        )
    wrong = [summary_html(one) for one in outcomes if one.status == NOT_PROTECTED]
    return "".join([said(" ".join(heads), worst_of(found)), *wrong])
