"""The page of `experiments.webapp`: its words and its layout, in Gradio."""

import html
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deid_jax._validate import InputError
from deid_jax.photos.judging import Witness
from experiments.protect import STRENGTHS
from experiments.webapp_uploads import (
    AMPLIFICATION,
    MAX_FILES,
    MAX_PIXELS,
    Outcome,
    Studio,
    forget,
    outcome_of,
    refusal,
    summary,
)

TITLE = "Protect photos against face recognisers"
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
        f"{name}: {first:g} dB, if need be down to {last:g} dB (changes of "
        f"{level_change(first):.1f} to {level_change(last):.1f} levels in 255)"
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
    """A table of faces and recognisers, or the message where there is none."""
    if outcome.message is not None:
        return f'<p class="said wrong">{html.escape(outcome.message)}</p>'
    rows = []
    for number, face in enumerate(outcome.faces, 1):
        for place, verdict in enumerate(face.verdicts):
            says = (
                "does not know this face again" if verdict.fooled else "still knows this face"
            )
            kind = "fooled" if verdict.fooled else "knows"
            first = ""
            if place == 0:
                psnr = f"{face.psnr:.1f} dB" if math.isfinite(face.psnr) else "none"
                span = f'rowspan="{len(face.verdicts)}"'
                first = f"<td {span}>Face {number}</td><td {span}>{psnr}</td>"
            unseen = "" if verdict.fitted else " (not known to the attack)"
            rows.append(
                f"<tr>{first}<td>{html.escape(verdict.recogniser)}{unseen}</td>"
                f'<td class="{kind}">{says}</td>'
                f"<td>{verdict.cosine:.2f} (knows from {verdict.threshold:g} on)</td></tr>"
            )
    small = ""
    if outcome.step > 1:
        small = (
            f"<p>Shown {outcome.step} times smaller than the file; the difference is that of "
            f"every {outcome.step}th pixel, not averaged.</p>"
        )
    heads = ("Face", "Change (PSNR)", "Recogniser", "It", "Likeness")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f'{summary_html(outcome)}<table class="verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{small}"
    )


def summary_html(outcome: Outcome) -> str:
    """The line, coloured."""
    kind = "right" if outcome.protected else "wrong"
    return f'<p class="said {kind}">{html.escape(summary(outcome))}</p>'


def _progress_html(done: int, total: int, name: str) -> str:
    hint = " The first one takes longest: programs are compiled." if not done else ""
    return (
        f'<p class="said">Photo {done + 1} of {total}: {html.escape(name)}.{hint}</p>'
        f'<progress value="{done}" max="{total}"></progress>'
    )


def _overview_html(outcomes: Sequence[Outcome]) -> str:
    """Of several photos the sum, and a line on each that has no file or is still known."""
    protected = sum(outcome.protected for outcome in outcomes)
    lines = [summary_html(outcome) for outcome in outcomes if not outcome.protected]
    kind = "wrong" if lines else "right"
    head = (
        f'<p class="said {kind}">{protected} of {len(outcomes)} photos: no recogniser asked '
        "knows a face in them again.</p>"
    )
    return "".join([head, *lines])


_CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.about li, .asked li { margin: 0.2em 0; }
.asked { font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.said { padding: 0.5em 0.8em; margin: 0.3em 0; border-left: 4px solid
  var(--border-color-primary); background: var(--background-fill-secondary); }
.said.right { border-left-color: #0f8a5f; }
.said.wrong { border-left-color: #c2410c; }
progress { width: 100%; height: 0.6em; accent-color: #2563eb; }
table.verdicts { width: 100%; border-collapse: collapse; margin: 0.6em 0; }
table.verdicts th, table.verdicts td { text-align: left; vertical-align: top;
  padding: 0.35em 0.7em; border-bottom: 1px solid var(--border-color-primary); }
table.verdicts td.fooled { font-weight: 600; color: #0b7a53; }
table.verdicts td.knows { font-weight: 600; color: #c2410c; }
.dark table.verdicts td.fooled { color: #4ade80; }
.dark table.verdicts td.knows { color: #fb923c; }
"""


def style() -> dict[str, Any]:
    """Arguments of Gradio's `launch`: the machine's own fonts, none from elsewhere."""
    import gradio as gr

    theme = gr.themes.Soft(
        primary_hue="blue",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": _CSS}


_PICTURES = {
    "before": "Before",
    "after": "After, as the file shows it",
    "difference": f"Difference, amplified {AMPLIFICATION} times (grey: unchanged)",
}


def page(studio: Studio, folder: Path, cleaning: tuple[int, int]) -> Any:
    """Gradio's `Blocks`.

    Args:
      studio: what the page works with.
      folder: for temporary files, the one that Gradio itself uses.
      cleaning: see `gradio.Blocks`, delete_cache.

    Raises:
      InputError: Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError:
        raise InputError("the page needs Gradio: pip install 'deid_jax[webapp]'") from None

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=cleaning) as blocks:
        gr.Markdown(f"# {TITLE}")
        items = "".join(f"<li>{sentence}</li>" for sentence in ABOUT)
        gr.HTML(f'<ul class="about">{items}</ul>')
        outcomes = gr.State([], delete_callback=forget)
        with gr.Row():
            uploads = gr.File(
                label=f"Photos: up to {MAX_FILES}, of {MAX_PIXELS / 1e6:g} megapixels at most",
                file_count="multiple",
                height=220,
                elem_id="uploads",
            )
            with gr.Column():
                strength = gr.Radio(
                    [(strength_label(name), name) for name in STRENGTHS],
                    value="medium",
                    label="Strength, as the PSNR of the face",
                    elem_id="strength",
                )
                button = gr.Button("Protect", variant="primary", elem_id="protect")
        status = gr.HTML(elem_id="status")
        results = _results()
        gr.HTML(f'<div class="asked">{witnesses_html(studio.witnesses)}</div>')

        def work(paths: list[str] | None, chosen: str, before: list[Outcome]) -> Iterator:
            forget(before)
            for text, done in worked(paths, chosen, studio, folder):
                yield done, text, *_updates(done)

        button.click(
            work,
            [uploads, strength, outcomes],
            [outcomes, status, *results],
            show_progress="hidden",
            api_visibility="private",
        )
        results.choice.input(
            lambda done, number: _shown(done[number]),
            [outcomes, results.choice],
            [*results.pictures, results.verdict],
            show_progress="hidden",
            api_visibility="private",
        )
    return blocks


class _Results(NamedTuple):
    """What shows results; Gradio's components."""

    whole: Any
    choice: Any
    row: Any
    before: Any
    after: Any
    difference: Any
    verdict: Any
    downloads: Any

    @property
    def pictures(self) -> tuple[Any, ...]:
        return self.row, self.before, self.after, self.difference


def _results() -> _Results:
    import gradio as gr

    with gr.Column(visible=False) as whole:
        choice = gr.Dropdown(label="Photo", elem_id="choice", visible=False)
        with gr.Row() as row:
            pictures = [
                gr.Image(
                    label=label,
                    elem_id=kind,
                    type="filepath",
                    interactive=False,
                    buttons=["fullscreen"],
                    min_width=240,
                )
                for kind, label in _PICTURES.items()
            ]
        verdict = gr.HTML(elem_id="verdict")
        downloads = gr.File(
            label="Protected files, without metadata",
            file_count="multiple",
            interactive=False,
            elem_id="downloads",
        )
    before, after, difference = pictures
    return _Results(whole, choice, row, before, after, difference, verdict, downloads)


def _updates(done: Sequence[Outcome]) -> list[Any]:
    """Of all `_Results`: once a photo with pictures is shown, only the lists grow."""
    import gradio as gr

    made = [number for number, outcome in enumerate(done) if outcome.output is not None]
    number = made[0] if made else 0
    choices = [(f"{place + 1}: {own.name}", place) for place, own in enumerate(done)]
    several = len(done) > 1
    outputs = [str(done[place].output) for place in made]
    downloads = gr.update(value=outputs or None, visible=bool(outputs))
    whole = gr.update(visible=bool(done))
    if not done:
        return [whole, *[gr.skip()] * 6, downloads]
    if number < len(done) - 1:  # Shown already, and another may have been chosen since.
        choice = gr.update(choices=choices, visible=several)
        return [whole, choice, *[gr.skip()] * 5, downloads]
    choice = gr.update(choices=choices, value=number, visible=several)
    return [whole, choice, *_shown(done[number]), downloads]


def _shown(outcome: Outcome) -> list[Any]:
    """Of the row of pictures, the pictures and the verdict."""
    import gradio as gr

    pictures: list[Any] = [str(path) for path in outcome.pictures] or [None] * len(_PICTURES)
    return [gr.update(visible=outcome.output is not None), *pictures, verdict_html(outcome)]


def worked(
    paths: Sequence[str] | None, strength: str, studio: Studio, folder: Path
) -> Iterator[tuple[str, list[Outcome]]]:
    """Protects uploads one by one.

    Yields:
      After each, and before the first: what to say (HTML), and what is done.
    """
    refused = refusal(paths)
    if refused is not None or paths is None:
        yield f'<p class="said wrong">{refused}</p>', []
        return
    done: list[Outcome] = []
    for path in paths:
        yield _progress_html(len(done), len(paths), Path(path).name), list(done)
        done.append(outcome_of(path, strength, studio, folder))
    yield _overview_html(done), done
