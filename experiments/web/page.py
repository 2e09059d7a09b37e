"""The page to try a model on, in Gradio: a form, and beside it the answer as HTML.

Gradio would write uploads and pictures that it shows into a folder. So pictures come in as data URLs of a field of our
own, go out inside of the HTML, and its upload is closed (:class:`experiments.web.service.Gate`).
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

# Before Gradio is imported, which asks them then: no figures of use go to anybody, nothing is asked for on the net.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio
from fastapi import FastAPI

from experiments.web.answers import PICTURES, Answers, RefusedError
from experiments.web.drawing import NAMES, drawn, fault
from experiments.web.service import Gate
from tmrjax.files import DataError, open_regular, parse_json

FOLDER = Path(__file__).parent
# What a form has no field for.
FURTHER = ("phrases", "regions", "scores", "generated_regions", "generated_scores")
logger = logging.getLogger(__name__)
SYSTEM_FONTS = ("system-ui", "sans-serif")


def read_examples(path: Path, posts: int, limit: int) -> list[dict[str, Any]]:
    """The first posts of a JSONL file with pictures as data URLs, as a form has them; paths are relative to the file.

    Raises DataError for a line that is no post, or a picture that is not there.
    """
    examples = []
    with open_regular(path) as stream:
        for number, line in enumerate(stream, 1):
            if len(examples) == posts:
                break
            post = parse_json(line, f"{path}:{number}") if line.strip() else None
            if not isinstance(post, dict) or not isinstance(post.get("text"), str):
                raise DataError(f"{path}:{number}", "no post with 'text'", '{"text": ...}', "Correct the line.")
            kept = {key: post[key] for key in ("text", "head", "tail", *FURTHER) if post.get(key) is not None}
            for name in PICTURES:
                if post.get(name):
                    content = (path.parent / post[name]).read_bytes()
                    if len(content) <= limit:
                        kept[name] = f"data:;base64,{base64.b64encode(content).decode()}"
            examples.append(kept)
    return examples


def with_page(
    service: FastAPI, answers: Answers, about: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> Gate:
    """The interface with the page at its root, behind the gate."""
    blocks = make_page(answers, about, examples)
    # Requests wait in one queue, that of the answers; Gradio's lets as many through as may stand in it.
    places = 1 + answers.limits.waiting
    blocks.queue(max_size=2 * places, default_concurrency_limit=places, api_open=False)
    theme = gradio.themes.Default(font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace"))
    head = f"<style>{(FOLDER / 'page.css').read_text(encoding='utf-8')}</style>"
    mounted = gradio.mount_gradio_app(
        service, blocks, path="/", theme=theme, head=head, footer_links=[], show_error=False, ssr_mode=False,
        allowed_paths=[], enable_monitoring=False, pwa=False, mcp_server=False,
    )  # fmt: skip
    return Gate(mounted, answers.limits)


class Blocks(gradio.Blocks):
    """Gradio's blocks, without its tracebacks of requests that are not the page's: they would tell what was sent."""

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """See gradio.Blocks."""
        try:
            return await super().process_api(*arguments, **options)
        except Exception as error:
            logger.error("%s in the page", type(error).__name__)
            raise gradio.Error("the request is none of this page; load it again", print_exception=False) from None


def make_page(answers: Answers, about: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> gradio.Blocks:
    """The form and what happens when it is sent."""
    system = answers.predictor.system
    marks_pairs = system.task == "re"
    pictures = system.method.pictures is not None
    generated = pictures and system.method.pictures.generated

    def read(text, image, generated_image, further, pair) -> str:
        try:
            post = assembled(text, (image, generated_image), further, pair if marks_pairs else None)
            return drawn(answers.explain(post), system.labels)
        except RefusedError as error:
            return fault(error.message)

    with Blocks(title=f"tmrjax: {about['model']}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## {about['model']}\n{', '.join(about['labels'])} · {about['note']}")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                names = [_name_of(example, number) for number, example in enumerate(examples, 1)]
                chosen = gradio.Dropdown(
                    list(zip(names, range(len(names)), strict=True)), value=None, label="Examples", visible=bool(names)
                )
                text = gradio.Textbox(label="Text", lines=4, max_length=answers.limits.characters, elem_id="text")
                pair = gradio.State({})
                told = _html(_told({}), visible=marks_pairs)
                with gradio.Row(visible=marks_pairs):
                    ends = {name: gradio.Button(f"Selection is the {name}", size="sm") for name in ("head", "tail")}
                fields = [
                    _picture_field(name, answers.limits.picture_bytes, visible=shown)
                    for name, shown in zip(PICTURES, (pictures, generated), strict=True)
                ]
                with gradio.Accordion("More of the post", open=False, visible=pictures):
                    further = gradio.Textbox(
                        label="JSON", info=f"an object with some of {', '.join(FURTHER)}", lines=3, elem_id="further"
                    )
                button = gradio.Button("Read", variant="primary", elem_id="read")
            with gradio.Column(scale=3, min_width=300):
                answer = _html('<p class="t-note">The answer comes here.</p>', elem_id="answer")
        _html('<p class="t-note"><a href="docs">JSON interface</a>. Nothing that you send is kept.</p>')

        form = [text, *fields, further, pair]
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        asked = {"fn": read, "inputs": form, "outputs": answer, "api_visibility": "private"}
        button.click(**asked)

        def filled(number):
            example = examples[number]
            spans = {name: _span(example["text"], *example[name]) for name in ("head", "tail") if name in example}
            rest = {key: example[key] for key in FURTHER if key in example}
            images = [example.get(name) for name in PICTURES]
            return [example["text"], *images, json.dumps(rest) if rest else "", spans, _told(spans)]

        if names:
            chosen.input(filled, chosen, [*form, told], **quiet).then(**asked)
        if marks_pairs:
            selection = gradio.State(None)
            text.select(_selected, text, selection, **quiet)
            for name, one in ends.items():
                one.click(_put(name), [selection, pair], [pair, told], **quiet)
    return blocks


def assembled(text: Any, images: Sequence[Any], further: Any, pair: Mapping[str, Any] | None) -> dict[str, Any]:
    """The post of a form. Raises RefusedError for JSON that is none, or for a head or tail of another text."""
    post: dict[str, Any] = {"text": text or ""}
    if isinstance(further, str) and further.strip():
        try:
            found = parse_json(further.encode(), "more of the post")
        except DataError as error:
            raise RefusedError(422, str(error)) from None
        if not isinstance(found, dict) or not found.keys() <= set(FURTHER):
            raise RefusedError(422, f"more of the post: expected an object with some of {', '.join(FURTHER)}")
        post |= found
    post |= {name: image for name, image in zip(PICTURES, images, strict=True) if image}
    for name, span in (pair or {}).items():
        if post["text"][span["start"] : span["end"]] != span["text"]:
            raise RefusedError(422, f"the {name} {span['text'][:40]!r} stands elsewhere now: select it again")
        post[name] = [span["start"], span["end"]]
    return post


def from_utf16(text: str, *places: int) -> list[int]:
    """Places of a browser, which counts an emoji as two, as places of Python."""
    units = text.encode("utf-16-le")
    return [len(units[: 2 * place].decode("utf-16-le", "ignore")) for place in places]


def _selected(text: str, event: gradio.SelectData) -> dict[str, Any]:
    return _span(text, *from_utf16(text, *event.index))


def _span(text: str, start: int, end: int) -> dict[str, Any]:
    return {"start": start, "end": end, "text": text[start:end]}


def _put(name: str) -> Any:
    def put(selection, pair):
        if selection and selection["text"].strip():
            pair = {**pair, name: selection}
        return pair, _told(pair)

    return put


def _told(pair: Mapping[str, Any]) -> str:
    """Which head and tail were chosen."""
    told = [f"{name}: <b>{escape(pair[name]['text'])}</b>" for name in ("head", "tail") if name in pair]
    return f'<p class="t-note">{" · ".join(told) or "Select words in the text, then say which they are."}</p>'


def _html(content: str, **options: Any) -> gradio.HTML:
    """HTML that nothing else draws lines around."""
    return gradio.HTML(content, apply_default_css=False, js_on_load=None, **options)


def _picture_field(name: str, limit: int, *, visible: bool) -> gradio.HTML:
    return gradio.HTML(
        None,
        html_template=(FOLDER / "picture_field.html").read_text(encoding="utf-8"),
        js_on_load=(FOLDER / "picture_field.js").read_text(encoding="utf-8"),
        elem_id=name, visible=visible, apply_default_css=False, name=NAMES[name], bytes=limit, problem="",
    )  # fmt: skip


def _name_of(example: Mapping[str, Any], number: int) -> str:
    text = example["text"]
    return f"{number}. {text[:60]}{'…' if len(text) > 60 else ''}"
