"""The page of `experiments.webapp`: its layout, and what happens on it, in Gradio."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deid_jax.errors import InputError
from deid_jax.photos import STRENGTHS, Protector
from experiments._webapp.page_text import (
    ABOUT,
    overview_html,
    progress_html,
    said,
    strength_label,
    summary_html,
    verdict_html,
    verifiers_html,
)
from experiments._webapp.uploads import (
    AMPLIFICATION,
    MAX_FILES,
    MAX_PIXELS,
    Outcome,
    forget,
    outcome_of,
    refusal,
)

TITLE = "Protect photos against face recognisers"
_CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.about li, .asked li { margin: 0.2em 0; }
.html-container { padding: 0 !important; }
.asked, .small { font-size: var(--text-sm); margin-top: 0.6em; }
.caption { font-weight: 600; }
.said { padding: 0.5em 0.8em; margin: 0.3em 0; overflow-wrap: anywhere;
  background: var(--block-background-fill);
  border-left: 4px solid var(--border-color-primary); }
.said.right { border-left-color: #0f8a5f; }
.said.wrong { border-left-color: #c2410c; }
.bar { height: 0.5em; border-radius: 0.25em; background: var(--border-color-primary); }
.bar div { height: 100%; border-radius: 0.25em; background: var(--color-accent); }
.wide { overflow-x: auto; }
table.verdicts { width: 100%; border-collapse: collapse; margin: 0.6em 0; }
table.verdicts, table.verdicts tr, table.verdicts th, table.verdicts td {
  border: 0 !important; }
table.verdicts th, table.verdicts td { text-align: left; vertical-align: top;
  padding: 0.35em 0.7em; white-space: nowrap;
  border-bottom: 1px solid var(--border-color-primary) !important; }
table.verdicts td.name { white-space: normal; overflow-wrap: anywhere; }
table.verdicts td.fooled { font-weight: 600; color: #0b7a53; }
table.verdicts td.knows { font-weight: 600; color: #c2410c; }
.dark table.verdicts td.fooled { color: #4ade80; }
.dark table.verdicts td.knows { color: #fb923c; }
#before img, #after img, #difference img { width: 100% !important; height: auto !important;
  object-fit: contain !important; }
#downloads .label-clear-button { display: none; }
@media (max-width: 640px) {
  table.verdicts th, table.verdicts td { padding: 0.3em 0.25em; font-size: var(--text-sm); }
}
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
    # Letters that stand out enough from what is behind them.
    theme.set(
        background_fill_primary="*neutral_50",
        checkbox_border_color="*neutral_400",
        block_label_text_color="*neutral_700",
        block_label_background_fill="*neutral_100",
        block_label_background_fill_dark="*neutral_700",
        block_title_text_color="*neutral_700",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_background_fill_selected_dark="*primary_600",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
    return {"theme": theme, "css": _CSS}


# What the page shows of a photo, side by side; see `Outcome.previews`.
_PICTURES = {
    "before": "Before",
    "after": "After, as the file shows it",
    "difference": f"Difference, {AMPLIFICATION} times (grey: unchanged)",
}
# Said in the browser: only one photo is worked on at a time, whoever asks.
_WAITING = f"() => `{said('Waiting for its turn …')}`"


def page(protector: Protector, folder: Path, cleaning: tuple[int, int]) -> Any:
    """Gradio's `Blocks`.

    Args:
      protector: recognisers, detector and number of steps.
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
        uploads, strength, button = _inputs()
        status = gr.HTML(elem_id="status")
        results = _results()
        gr.HTML(f'<div class="asked">{verifiers_html(protector.verifiers)}</div>')

        def work(paths: list[str] | None, chosen: str, before: list[Outcome]) -> Iterator:
            forget(before)
            for text, done in worked(paths, chosen, protector, folder):
                yield {outcomes: done, status: text, **_updates(results, done)}

        quietly: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        button.click(None, None, status, js=_WAITING, **quietly)
        button.click(
            work, [uploads, strength, outcomes], [outcomes, status, *results], **quietly
        )
        results.choice.input(
            lambda done, number: _shown(results, done[number], several=True),
            [outcomes, results.choice],
            list(results),
            **quietly,
        )
        results.view.input(
            lambda done, number, view: _pictures(results, done[number], view),
            [outcomes, results.choice, results.view],
            list(results),
            **quietly,
        )
    return blocks


def _inputs() -> tuple[Any, Any, Any]:
    """Where photos are dropped, the strength, and the button."""
    import gradio as gr

    with gr.Row():
        uploads = gr.File(
            label=f"Up to {MAX_FILES} photos of up to {MAX_PIXELS / 1e6:g} MP",
            file_count="multiple",
            height=240,
            elem_id="uploads",
        )
        with gr.Column():
            strength = gr.Radio(
                [(strength_label(name), name) for name in STRENGTHS],
                value="medium",
                label="How much a face may be changed",
                elem_id="strength",
            )
            button = gr.Button("Protect", variant="primary", elem_id="protect")
    return uploads, strength, button


class _Results(NamedTuple):
    """What shows results; Gradio's components."""

    whole: Any
    choice: Any
    said: Any
    shown: Any
    view: Any
    before: Any
    after: Any
    difference: Any
    verdict: Any
    downloads: Any


def _results() -> _Results:
    import gradio as gr

    with gr.Column(visible=False) as whole:
        choice = gr.Dropdown(label="Photo", elem_id="choice", visible=False)
        told = gr.HTML(elem_id="said")
        with gr.Column() as shown:
            view = gr.Radio(show_label=False, container=False, elem_id="view")
            with gr.Row():
                before, after, difference = (_picture(*one) for one in _PICTURES.items())
            verdict = gr.HTML(elem_id="verdict")
        downloads = gr.File(
            label="Protected files, without metadata",
            file_count="multiple",
            interactive=False,
            elem_id="downloads",
        )
    return _Results(
        whole, choice, told, shown, view, before, after, difference, verdict, downloads
    )


def _picture(kind: str, caption: str) -> Any:
    """A picture below its caption: a label would lie upon it."""
    import gradio as gr

    with gr.Column(min_width=240):
        gr.HTML(f'<div class="caption">{caption}</div>')
        return gr.Image(
            show_label=False,
            elem_id=kind,
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
        )


def _updates(results: _Results, done: Sequence[Outcome]) -> dict[Any, Any]:
    """Of components: once a photo with pictures is shown, only the lists grow."""
    import gradio as gr

    made = [number for number, outcome in enumerate(done) if outcome.output is not None]
    outputs = [str(done[number].output) for number in made]
    found = {
        results.whole: gr.update(visible=bool(done)),
        results.downloads: gr.update(value=outputs or None, visible=bool(outputs)),
    }
    if not done:
        return found
    several = len(done) > 1
    lists: dict[str, Any] = {
        "choices": [(f"{place + 1}: {own.name}", place) for place, own in enumerate(done)],
        "visible": several,
    }
    number = made[0] if made else 0
    if number == len(done) - 1 or not made:
        found |= _shown(results, done[number], several=several)
        lists["value"] = number
    # Else it is shown already, and another may have been chosen since.
    return found | {results.choice: gr.update(**lists)}


def _shown(results: _Results, outcome: Outcome, *, several: bool) -> dict[Any, Any]:
    """Of components, for one photo: of several its own line is not yet said above."""
    import gradio as gr

    views = ["Whole photo", *(f"Face {n + 1}" for n in range(len(outcome.faces)))]
    choices = [(text, place) for place, text in enumerate(views)]
    return {
        results.said: gr.update(value=summary_html(outcome), visible=several),
        results.shown: gr.update(visible=outcome.output is not None),
        results.view: gr.update(choices=choices, value=0),
        results.verdict: verdict_html(outcome),
        **_pictures(results, outcome, 0),
    }


def _pictures(results: _Results, outcome: Outcome, view: int) -> dict[Any, Any]:
    """Of the three pictures: of the whole photo, or of its view-th face."""
    shown: Sequence[Path | None] = outcome.previews[view] if outcome.previews else [None] * 3
    places = (results.before, results.after, results.difference)
    return {
        place: None if path is None else str(path)
        for place, path in zip(places, shown, strict=True)
    }


def worked(
    paths: Sequence[str] | None, strength: str, protector: Protector, folder: Path
) -> Iterator[tuple[str, list[Outcome]]]:
    """Protects uploads one by one.

    Yields:
      After each, and before the first: what to say (HTML), and what is done.
    """
    refused = refusal(paths)
    if refused is not None or paths is None:
        yield said(refused or "", False), []
        return
    done: list[Outcome] = []
    for path in paths:
        yield progress_html(len(done), len(paths), Path(path).name), list(done)
        done.append(outcome_of(path, strength, protector, folder))
    yield overview_html(done), done
