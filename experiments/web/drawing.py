"""Answers as HTML: entities in the text, relations, what the picture did. Everything foreign is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from experiments.web.answers import Explained
from tmrjax.explain import Attention
from tmrjax.records.schema import NO_RELATION, SCORE_CLASSES

NAMES = {"image": "Picture", "generated_image": "Generated picture"}
# Told apart by colour-blind readers too (after Okabe and Ito), light enough for dark text.
COLOURS = ("#9bd1f5", "#f7c87e", "#8fdcc0", "#eeb0d2", "#f3ec8c", "#c3b8f2", "#f2a892", "#cfd6df")
SHOWN = 480  # pixels, the longer side of a drawn picture
LAYERS = 6  # words that one can look at


def drawn(explained: Explained, labels: Sequence[str]) -> str:
    """All of an answer."""
    explanation = explained.explanation
    result, kind = explanation.result, "entities" if "entities" in explanation.result else "relations"
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    marked = result["entities"] if kind == "entities" else _ends(result["relations"])
    parts = [f'<p class="t-post">{_marked(result["text"], marked, colours)}</p>']
    table = _entity_table if kind == "entities" else _relation_table
    parts.append(table(result, explanation.without_pictures))
    figures = [_picture(name, picture, explained) for name, picture in explained.pictures.items()]
    parts += [f'<div class="t-figures">{"".join(figures)}</div>'] if figures else []
    parts += [f'<p class="t-note">{escape(note)}</p>' for note in _notes(result)]
    return f'<div class="t-answer">{"".join(parts)}</div>'


def fault(message: str) -> str:
    """What a request is told that has no answer."""
    return f'<div class="t-fault" role="alert">{escape(message)}</div>'


def percent(share: float) -> str:
    """As people read it; never 100 % for what is less."""
    text = f"{100 * share:.0f}" if share < 0.995 else f"{np.floor(1000 * share) / 10:.1f}"
    return f"{text} %"


# ---------------------------------------------------------------------- the text


def _marked(text: str, spans: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """The text with its spans in colour; of spans that overlap the first one."""
    parts, place = [], 0
    for span in sorted(spans, key=lambda one: (one["start"], -one["end"])):
        if span["start"] < place:
            continue
        parts.append(escape(text[place : span["start"]]))
        place = span["end"]
        label, told = span.get("label"), ""
        if label is not None:
            told = f'<span class="t-label">{escape(label)} <b>{percent(span["score"])}</b></span>'
        colour = colours.get(label, COLOURS[-1])
        parts.append(f'<mark style="background:{colour}">{escape(text[span["start"] : place])}{told}</mark>')
    return "".join([*parts, escape(text[place:])])


def _ends(relations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Heads and tails, each once."""
    found = {(end["start"], end["end"]): end for one in relations for end in (one["head"], one["tail"])}
    return list(found.values())


def _entity_table(result: Mapping[str, Any], without: Mapping[str, Any] | None) -> str:
    """What changes without the pictures; nothing where there is no picture."""
    if without is None:
        return "" if result["entities"] else '<p class="t-note">No entity was found.</p>'

    def by_span(found):
        return {(one["start"], one["end"], one["label"]): one for one in found["entities"]}

    seen, unseen = by_span(result), by_span(without)
    rows = []
    for key in sorted(seen.keys() | unseen.keys()):
        one = seen.get(key) or unseen[key]
        cells = [_bar(found[key]["score"]) if key in found else _absent("not found") for found in (seen, unseen)]
        rows.append([f"{escape(one['text'])} <small>{escape(one['label'])}</small>", *cells])
    return _table(["Entity", "with pictures", "without"], rows) if rows else _note_of_none("entity")


def _relation_table(result: Mapping[str, Any], without: Mapping[str, Any] | None) -> str:
    def by_pair(found):
        return {tuple(one[role][end] for role in ("head", "tail") for end in ("start", "end")): one
                for one in (found or {"relations": ()})["relations"]}  # fmt: skip

    seen, unseen = by_pair(result), by_pair(without)
    rows = []
    for key in sorted(seen.keys() | unseen.keys()):
        one = seen.get(key) or unseen[key]
        pair = f'{escape(one["head"]["text"])} <span class="t-arrow">→</span> {escape(one["tail"]["text"])}'
        sides = [seen] if without is None else [seen, unseen]
        rows.append([pair, *(_relation(found[key]) if key in found else _absent("not asked") for found in sides)])
    heads = ["Pair", "relation"] if without is None else ["Pair", "with pictures", "without"]
    return _table(heads, rows, "t-stacked") if rows else _note_of_none("relation")


def _relation(one: Mapping[str, Any]) -> str:
    if one["relation"] == NO_RELATION:
        return _absent(f"none ({percent(one['score'])})")
    return f"{escape(one['relation'])} {_bar(one['score'])}"


def _note_of_none(kind: str) -> str:
    return f'<p class="t-note">No {kind} was found, neither with the pictures nor without.</p>'


def _bar(share: float) -> str:
    width = f"{100 * share:.1f}%"
    return (
        f'<span class="t-bar"><span style="width:{width}"></span></span><span class="t-number">{percent(share)}</span>'
    )


def _absent(words: str) -> str:
    return f'<span class="t-absent">{escape(words)}</span>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """``kind`` "t-stacked": cells one below the other where the page is narrow, each with its head."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    cells = ["".join(f'<td data-head="{escape(name)}">{cell}</td>' for name, cell in zip(heads, row, strict=True))
             for row in rows]  # fmt: skip
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<table class="t-table {kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _notes(result: Mapping[str, Any]) -> list[str]:
    """What was not read."""
    notes = []
    if result["masked"]:
        notes.append(f"Not given, and so not read: {', '.join(result['masked'])}.")
    for key, what in (("unread_words", "behind the length limit, not read"), ("unknown_words", "not in the vocabulary"),
                      ("unread_pairs", "pairs too far apart for one window")):  # fmt: skip
        if result.get(key):
            notes.append(f"{result[key]} {'' if key == 'unread_pairs' else 'words '}{what}.")
    return notes


# ---------------------------------------------------------------------- the pictures


def _words_to_look_at(name: str, explained: Explained) -> list[tuple[str, np.ndarray]]:
    """(text, weights of the patches [rows, columns]), the strongest first.

    Of the entities, or of head and tail, and of the words that patches attend to most.
    """
    explanation = explained.explanation
    text, words, patches = explanation.result["text"], explanation.words, explanation.attention[name].patches
    spans = [(span["start"], span["end"]) for span in explanation.pair or explanation.result.get("entities", ())]
    inside = [[i for i, (first, last) in enumerate(words) if first < end and last > start] for start, end in spans]
    taken = {place for places in inside for place in places}
    others = [i for i in np.argsort(-patches.max((0, 1)), kind="stable") if i not in taken]
    chosen = list(zip(spans, inside, strict=True))[: LAYERS - min(2, len(others))]
    chosen += [(words[i], [i]) for i in others[: LAYERS - len(chosen)]]
    found = [(text[slice(*span)], patches[..., places].sum(-1)) for span, places in chosen]
    return sorted(found, key=lambda one: -one[1].max())


def _picture(name: str, picture: Image.Image, explained: Explained) -> str:
    """A picture, what its patches and boxes attended to, and its scores."""
    attention, scores = explained.explanation.attention.get(name), explained.scores.get(name)
    shown = picture.copy()
    shown.thumbnail((SHOWN, SHOWN))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    # One size of lettering for small and large pictures.
    width, height = (max(1, round(SHOWN * side / max(shown.size))) for side in shown.size)
    layers, choices, boxes = [], [], ""
    if attention is not None:
        looked = _words_to_look_at(name, explained)
        scale = max(float(weights.max()) for _, weights in looked)
        for number, (word, weights) in enumerate(looked):
            layers.append(_patches(attention, weights, scale, width, height))
            checked = " checked" if number == 0 else ""
            told = f"{escape(word)} <small>{weights.max():.2f}</small>"
            choices.append(f'<label><input type="radio" name="t-{name}"{checked}><span>{told}</span></label>')
        boxes = _boxes(attention, width, height)
    drawing = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(NAMES[name])}">'
        f'<image href="{source}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{''.join(layers)}{boxes}</svg>"
    )
    caption = f"<figcaption>{escape(NAMES[name])}"
    if choices:
        caption += f' <small>· patches that attend to</small><span class="t-choices">{"".join(choices)}</span>'
    caption += "</figcaption>"
    bars = "" if scores is None else f'<div class="t-scores">{"".join(_score_rows(scores))}</div>'
    return f'<figure class="t-figure">{caption}{drawing}{bars}</figure>'


def _patches(attention: Attention, weights: np.ndarray, scale: float, width: int, height: int) -> str:
    """The grid of patches, the more opaque the more a patch attends to a word; ``scale`` is the picture's strongest."""
    rows, columns = weights.shape
    left, top, right, bottom = attention.seen
    across, down = (right - left) * width / columns, (bottom - top) * height / rows
    cells = []
    for row, column in np.ndindex(rows, columns):
        weight = float(weights[row, column])
        cells.append(
            f'<rect x="{left * width + column * across:.1f}" y="{top * height + row * down:.1f}" '
            f'width="{across:.2f}" height="{down:.2f}" fill-opacity="{0.7 * weight / max(scale, 1e-9):.2f}">'
            f"<title>{weight:.3f}</title></rect>"
        )
    return f'<g class="t-layer">{"".join(cells)}</g>'


def _boxes(attention: Attention, width: int, height: int) -> str:
    """The regions, each with the word of the phrases that it attended to most."""
    parts = []
    for (left, top, right, bottom), weights in zip(attention.regions, attention.region_weights, strict=False):
        x, y = left * width, top * height
        parts.append(
            f'<rect class="t-box" x="{x:.1f}" y="{y:.1f}" width="{(right - left) * width:.1f}" '
            f'height="{(bottom - top) * height:.1f}"/>'
        )
        words = _phrase_words(attention.phrase_pieces, weights)
        if words:
            word, weight = max(words, key=lambda one: one[1])
            # Inside of the box and of the picture, wherever the box is.
            place = min(x + 6, width - 11 * (len(word) + 5))
            parts.append(
                f'<text class="t-boxed" x="{max(place, 4):.1f}" y="{max(bottom * height - 8, 20):.1f}">'
                f"{escape(word)} {weight:.2f}</text>"
            )
    return "".join(parts)


def _phrase_words(pieces: Sequence[str], weights: np.ndarray) -> list[tuple[str, float]]:
    """Word pieces without the special ones at both ends, joined to words with the sum of their weights."""
    words: list[tuple[str, float]] = []
    for piece, weight in list(zip(pieces, weights, strict=True))[1:-1]:
        if piece.startswith("##") and words:
            words[-1] = (words[-1][0] + piece[2:], words[-1][1] + float(weight))
        else:
            words.append((piece.lstrip("Ġ▁"), float(weight)))
    return words


def _score_rows(scores: Sequence[float]) -> list[str]:
    return [f"<span>{name}</span>{_bar(float(score))}" for name, score in zip(SCORE_CLASSES, scores, strict=True)]
