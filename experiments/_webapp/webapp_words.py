"""What the page of `experiments.webapp` says, as HTML."""

import html
import math
from collections.abc import Sequence

from deid_jax.photos.judging import Witness
from experiments._webapp.webapp_uploads import Outcome, summary
from experiments.protect import STRENGTHS

# What it does, what it cannot do, and what it does not touch.
ABOUT = (
    "It finds faces and changes their pixels, so little that people hardly see it, until the "
    "recognisers named below no longer take the face for the one in the original photo.",
    "It cannot speak for recognisers that were not asked, and people who know you still "
    "recognise you.",
    "Faces that it does not find stay as they are (it misses turned, tilted and small ones), "
    "and so does all else that tells who is in a photo: clothes, places, the file's name, "
    "copies that others have.",
)


def level_change(psnr: float) -> float:
    """The root-mean-square change, in levels of 255, that a PSNR in dB means."""
    return 255 * 10 ** (-psnr / 20)


def strength_label(name: str) -> str:
    """A strength and what it means."""
    first, *_, last = STRENGTHS[name]
    return (
        f"{name}: {level_change(first):.1f} levels of 255, if need be up to "
        f"{level_change(last):.1f} (PSNR {first:g} to {last:g} dB)"
    )


def witnesses_html(witnesses: Sequence[Witness]) -> str:
    """Who is asked."""
    items = "".join(
        f"<li><b>{html.escape(witness.embedder.name)}</b>: "
        + (
            "fooled on purpose"
            if witness.fitted
            else "judges only, the attack does not know it"
        )
        + f"; takes two faces for one person from a likeness of {witness.threshold:g} on</li>"
        for witness in witnesses
    )
    unseen = ""
    if all(witness.fitted for witness in witnesses):
        unseen = (
            "<p>The attack knows all of them. How recognisers that it does not know judge is "
            "not tested here (<code>--judge</code> asks some).</p>"
        )
    return f"<p>Recognisers that are asked:</p><ul>{items}</ul>{unseen}"


def verdict_html(outcome: Outcome) -> str:
    """A table of faces and recognisers; nothing of a photo that was not protected at all."""
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
                f"<td>{verdict.cosine:.3f} {sign} {verdict.threshold:g}</td></tr>"
            )
    if not rows:
        return ""
    heads = ("Face", "Change", "Recogniser", "Verdict", "Likeness")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'<div class="wide"><table class="verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="small">Change: root mean square, in levels of 255. Fooled: the likeness of '
        "the face in the file to the one in the photo is below the limit from which on the "
        "recogniser takes two faces for one person.</p>"
    )


def _change(psnr: float) -> str:
    if not math.isfinite(psnr):
        return "none"
    return f"{level_change(psnr):.1f}<br>({psnr:.1f} dB)"


def summary_html(outcome: Outcome) -> str:
    """The line on a photo, coloured."""
    return said(summary(outcome), outcome.protected)


def said(text: str, right: bool | None = None) -> str:
    """A message, of success, of failure, or (None) of neither; any text is shown as it is."""
    kind = {True: " right", False: " wrong", None: ""}[right]
    return f'<p class="said{kind}">{html.escape(text)}</p>'


def progress_html(done: int, total: int, name: str) -> str:
    """The photo that is worked on, and a bar."""
    hint = "" if done else " The first one takes longest: programs are compiled."
    bar = f'<div class="bar"><div style="width: {100 * done / total:.0f}%"></div></div>'
    return said(f"Photo {done + 1} of {total}: {name}.{hint}") + bar


def overview_html(outcomes: Sequence[Outcome]) -> str:
    """Of several photos the sum, and a line on each that has no file or is still known."""
    if len(outcomes) == 1:
        return summary_html(outcomes[0])
    wrong = [summary_html(outcome) for outcome in outcomes if not outcome.protected]
    number = len(outcomes) - len(wrong)
    head = f"{number} of {len(outcomes)} photos: all faces found fool all recognisers asked."
    return "".join([said(head, not wrong), *wrong])
