"""The method as a picture, with the files that compute it in its boxes: docs/method.svg.

python docs/draw_method.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 1264, 520
BOX_WIDTH = 226
COLUMNS = (12, 265, 518, 771, 1024)
FILLS = {"given": "#fff7e0", "made": "#e9f3e6", "computed": "#e8effa", "found": "#f6e8f1"}


class Box(NamedTuple):
    """A box: column, top in pixels, height, kind (a key of FILLS), its title, lines below it, files."""

    column: int
    top: int
    height: int
    kind: str
    title: str
    lines: tuple[str, ...]
    files: tuple[str, ...]


BOXES = {
    "text": Box(0, 40, 64, "given", "text of the post", ("words, word pieces",), ("tmrjax/text/pieces.py",)),
    "phrases": Box(0, 130, 64, "made", "noun phrases", (), ("data_prep/extract_phrases.py",)),
    "picture": Box(0, 220, 48, "given", "picture of the post", (), ("tmrjax/pictures/decode.py",)),
    "regions": Box(0, 294, 48, "made", "regions of it", (), ("data_prep/ground_regions.py",)),
    "generated": Box(
        0, 368, 86, "made", "generated picture", ("the text, translated back by", "a diffusion model (§3.3)"),
        ("data_prep/back_translate.py",),
    ),
    "bert": Box(
        1, 60, 82, "computed", "text encoder (§3.2)", ("T of words, T of phrases",), ("tmrjax/encoders/text/bert.py",)
    ),
    "resnet": Box(
        1, 236, 82, "computed", "picture encoder (§3.2)", ("V of patches, V of regions",),
        ("tmrjax/encoders/picture/resnet.py",),
    ),
    "estimator": Box(
        1, 388, 82, "computed", "divergence estimator", ("§3.4, trained by Eq. 6",),
        ("tmrjax/divergence/model.py",),
    ),
    "attention": Box(
        2, 140, 100, "computed", "matching at two grains", ("Eq. 1: words with patches,", "phrases with regions"),
        ("tmrjax/attention.py",),
    ),
    "scores": Box(
        2, 388, 82, "computed", "scores", ("weaken, complement, strengthen", "of each of the two pictures"), ()
    ),
    "fusion": Box(
        3, 180, 118, "computed", "weighted sum",
        ("Eq. 2 and 4: α · G of each grain,", "Eq. 7: both pictures", "into the words"), ("tmrjax/fusion.py",),
    ),
    "crf": Box(
        4, 100, 100, "found", "entities (§3.5)", ("Eq. 8 and 9: linear-chain CRF", "over words"),
        ("tmrjax/heads/crf_head.py", "tmrjax/crf.py"),
    ),
    "relation": Box(
        4, 270, 100, "found", "relation (§3.5)", ("Eq. 10 and 11: two entity", "markers, phrases, pictures"),
        ("tmrjax/heads/relation_head.py",),
    ),
}  # fmt: skip
ARROWS = (
    ("text", "bert"), ("phrases", "bert"), ("picture", "resnet"), ("regions", "resnet"), ("generated", "resnet"),
    ("text", "estimator"), ("picture", "estimator"), ("generated", "estimator"), ("bert", "attention"),
    ("resnet", "attention"), ("estimator", "scores"), ("attention", "fusion"), ("scores", "fusion"),
    ("fusion", "crf"), ("fusion", "relation"),
)  # fmt: skip


def files() -> set[str]:
    """All files that are named."""
    return {file for box in BOXES.values() for file in box.files}


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def _box(box: Box) -> str:
    x, y = COLUMNS[box.column], box.top
    parts = [
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{box.height}" rx="6" fill="{FILLS[box.kind]}" '
        'stroke="#5a6472"/>',
        _text(x + 10, y + 20, box.title, 'font-weight="600" font-size="14"'),
    ]
    for number, line in enumerate(box.lines):
        parts.append(_text(x + 10, y + 38 + 16 * number, line, 'font-size="12"'))
    for number, file in enumerate(reversed(box.files)):
        style = 'font-size="10" font-family="monospace" fill="#2b4a7d"'
        parts.append(_text(x + 10, y + box.height - 9 - 14 * number, file, style))
    return "\n".join(parts)


def _arrow(start: Box, end: Box) -> str:
    x1, y1 = COLUMNS[start.column] + BOX_WIDTH, start.top + start.height / 2
    x2, y2 = COLUMNS[end.column] - 2, end.top + end.height / 2
    middle = (x1 + x2) / 2
    curve = f"M{x1:g},{y1:g} C{middle:g},{y1:g} {middle:g},{y2:g} {x2:g},{y2:g}"
    return f'<path d="{curve}" fill="none" stroke="#5a6472" stroke-width="1.3" marker-end="url(#arrow)"/>'


def draw() -> str:
    """The picture as SVG."""
    legend = (("given", "given"), ("made", "prepared ahead of time"), ("computed", "computed"), ("found", "found"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" fill="#1c232d">',
        "<title>TMR: from a post with a picture to entities and relations</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#5a6472"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *(_arrow(BOXES[start], BOXES[end]) for start, end in ARROWS),
        *(_box(box) for box in BOXES.values()),
    ]
    for number, (kind, words) in enumerate(legend):
        x = 12 + 190 * number
        parts.append(
            f'<rect x="{x}" y="{HEIGHT - 26}" width="14" height="14" rx="3" fill="{FILLS[kind]}" stroke="#5a6472"/>'
        )
        parts.append(_text(x + 20, HEIGHT - 14, words, 'font-size="12"'))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (HERE / "method.svg").write_text(draw(), encoding="utf-8")
