"""The page of `experiments.webapp`: its layout and its behaviour, in Gradio."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from deid_jax.errors import InputError
from deid_jax.photos import STRENGTHS, Protector
from deid_jax.photos.file_records import NOT_PROTECTED
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
    UploadOutcome,
    forget,
    outcome_of,
    refusal,
)

if TYPE_CHECKING:
    import gradio as gr
    from gradio.components import Component
    from gradio.themes import ThemeClass

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
.said.open { border-left-color: #b7950b; }
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
  table.verdicts th { white-space: normal; overflow-wrap: anywhere; }
}
"""


class Style(TypedDict):
    """Arguments of Gradio's `launch`."""

    theme: "ThemeClass"
    css: str


# Gradio's updates of components.
Updates = dict[object, object]


def style() -> Style:
    """The page's style, which uses only fonts installed on the machine."""
    import gradio as gr

    theme = gr.themes.Soft(
        primary_hue="blue",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    # Gives text enough contrast.
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


# The previews of a photo, side by side; see `UploadOutcome.previews`.
_PREVIEWS = {
    "before": "Before",
    "after": "After, as the file shows it",
    "difference": f"Perturbation, {AMPLIFICATION} times (grey: unchanged)",
}
# Shown by the browser: only one photo is processed at a time, across all tabs.
_WAITING = f"() => `{said('Waiting for its turn …')}`"


def page(protector: Protector, folder: Path, cleaning: tuple[int, int]) -> "gr.Blocks":
    """The page; `folder` is Gradio's own for temporary files, `cleaning` its delete_cache.

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

        def work(
            paths: list[str] | None, chosen: str, before: list[UploadOutcome]
        ) -> Iterator[Updates]:
            forget(before)
            for text, done in worked(paths or (), chosen, protector, folder):
                yield {outcomes: done, status: text, **_updates(results, done)}

        def choose(done: list[UploadOutcome], number: int) -> Updates:
            return _shown(results, done[number], several=True)

        def zoom(done: list[UploadOutcome], number: int, view: int) -> Updates:
            return _previews(results, done[number], view)

        shown = list(results)
        button.click(
            None, None, status, js=_WAITING, show_progress="hidden", api_visibility="private"
        )
        for event, function, given, changed in (
            (button.click, work, [uploads, strength, outcomes], [outcomes, status, *shown]),
            (results.choice.input, choose, [outcomes, results.choice], shown),
            (results.view.input, zoom, [outcomes, results.choice, results.view], shown),
        ):
            event(function, given, changed, show_progress="hidden", api_visibility="private")
    return blocks


def _inputs() -> tuple["gr.File", "gr.Radio", "gr.Button"]:
    """The upload area, the strength, and the button."""
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
    """The components that show results."""

    whole: "gr.Column"
    choice: "gr.Dropdown"
    said: "Component"
    shown: "gr.Column"
    view: "gr.Radio"
    before: "Component"
    after: "Component"
    difference: "Component"
    verdict: "Component"
    downloads: "Component"


def _results() -> _Results:
    import gradio as gr

    with gr.Column(visible=False) as whole:
        choice = gr.Dropdown(label="Photo", elem_id="choice", visible=False)
        told = gr.HTML(elem_id="said")
        with gr.Column() as shown:
            view = gr.Radio(show_label=False, container=False, elem_id="view")
            with gr.Row():
                before, after, difference = (_preview(*one) for one in _PREVIEWS.items())
            verdict = gr.HTML(elem_id="verdict")
        downloads = gr.File(
            label="Written files, without the photos' metadata",
            file_count="multiple",
            interactive=False,
            elem_id="downloads",
        )
    return _Results(
        whole, choice, told, shown, view, before, after, difference, verdict, downloads
    )


def _preview(kind: str, caption: str) -> "gr.Image":
    """An image below its caption; a label would cover the image."""
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


def _updates(results: _Results, done: Sequence[UploadOutcome]) -> Updates:
    """The updates after each photo; once one with previews is shown, only lists grow."""
    import gradio as gr

    made = [number for number, outcome in enumerate(done) if outcome.output is not None]
    outputs = [str(done[number].output) for number in made]
    found: Updates = {
        results.whole: gr.update(visible=bool(done)),
        results.downloads: gr.update(value=outputs or None, visible=bool(outputs)),
    }
    if not done:
        return found
    several = len(done) > 1
    names = [(f"{place + 1}: {own.name}", place) for place, own in enumerate(done)]
    number = made[0] if made else 0
    if number == len(done) - 1 or not made:
        found |= _shown(results, done[number], several=several)
        found[results.choice] = gr.update(choices=names, visible=several, value=number)
    else:  # One is shown already, and the user may have chosen another.
        found[results.choice] = gr.update(choices=names, visible=several)
    return found


def _shown(results: _Results, outcome: UploadOutcome, *, several: bool) -> Updates:
    """The updates to show one photo; if there are several, its line is shown as well."""
    import gradio as gr

    views = ["Whole photo", *(f"Face {n + 1}" for n in range(len(outcome.faces)))]
    choices = [(text, place) for place, text in enumerate(views)]
    return {
        results.said: gr.update(value=summary_html(outcome), visible=several),
        results.shown: gr.update(visible=outcome.output is not None),
        results.view: gr.update(choices=choices, value=0),
        results.verdict: verdict_html(outcome),
        **_previews(results, outcome, 0),
    }


def _previews(results: _Results, outcome: UploadOutcome, view: int) -> Updates:
    """The three previews of the whole photo (0), or of one of its faces."""
    shown: Sequence[Path | None] = outcome.previews[view] if outcome.previews else [None] * 3
    places = (results.before, results.after, results.difference)
    return {
        place: None if path is None else str(path)
        for place, path in zip(places, shown, strict=True)
    }


def worked(
    paths: Sequence[str], strength: str, protector: Protector, folder: Path
) -> Iterator[tuple[str, list[UploadOutcome]]]:
    """Protects uploads; before the first and after each: the status (HTML), the outcomes."""
    refused = refusal(paths)
    if refused is not None:
        yield said(refused, NOT_PROTECTED), []
        return
    done: list[UploadOutcome] = []
    for path in paths:
        yield progress_html(len(done), len(paths), Path(path).name), list(done)
        done.append(outcome_of(path, strength, protector, folder))
    yield overview_html(done), done
