"""A post of the demo world, its two pictures, their scores and the entities that were found: docs/post.svg.

make demo && python docs/draw_post.py
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT, SIDE = 880, 250, 150
COLOURS = {"PER": "#c9dcff", "LOC": "#cdebc8", "ORG": "#ffe2b8", "MISC": "#f3cfe4"}
SCORES = (("weakens", "#c56a5b"), ("complements", "#4f7cc4"), ("strengthens", "#5c9e5a"))
MONOSPACE = 'font-family="monospace"'


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def _picture(path: Path, x: int, y: int, title: str, scores: list[float]) -> list[str]:
    """A picture, what it is, and its three scores as bars."""
    stream = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").resize((SIDE, SIDE)).save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    parts = [
        f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="data:image/jpeg;base64,{data}"/>',
        _text(x + SIDE + 14, y + 14, title, 'font-size="14" font-weight="600"'),
    ]
    for number, ((name, colour), score) in enumerate(zip(SCORES, scores, strict=True)):
        top = y + 30 + 38 * number
        bar = f'x="{x + SIDE + 14}" y="{top + 20}" height="9" rx="2"'
        parts += [
            _text(x + SIDE + 14, top + 13, f"{name} the text: {score:.2f}", 'font-size="12"'),
            f'<rect {bar} width="170" fill="#eceff3"/><rect {bar} width="{max(170 * score, 1):.0f}" fill="{colour}"/>',
        ]
    return parts


def draw(post: dict[str, Any], result: dict[str, Any], root: Path) -> str:
    """The picture as SVG."""
    step, x, y = 9.6, 12.0, 38
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" fill="#1c232d">',
        "<title>A post of the demo world with what was found, its two pictures and their scores</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    text = post["text"]
    for entity in result["entities"]:
        left, width = x + step * entity["start"], step * (entity["end"] - entity["start"])
        fill = COLOURS.get(entity["label"], "#e2e2e2")
        parts.append(f'<rect x="{left - 3:g}" y="{y - 18}" width="{width + 6:g}" height="25" rx="4" fill="{fill}"/>')
        label = f"{entity['label']} {entity['score']:.2f}"
        parts.append(_text(left, y + 24, label, 'font-size="12" font-weight="600"'))
    parts.append(_text(x, y, text, f'font-size="16" {MONOSPACE} textLength="{step * len(text):g}"'))
    parts += _picture(root / post["image"], 12, 84, "its picture", post["scores"])
    parts += _picture(root / post["generated_image"], 452, 84, "drawn from its text", post["generated_scores"])
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=HERE.parent / "runs" / "demo", help="what make demo has left")
    parser.add_argument("--line", type=int, default=1, help="of the posts")
    parser.add_argument("--out", type=Path, default=HERE / "post.svg")
    options = parser.parse_args()
    post, result = (
        json.loads((options.run / name).read_text(encoding="utf-8").splitlines()[options.line - 1])
        for name in ("data/posts.jsonl", "entities.jsonl")
    )
    options.out.write_text(draw(post, result, options.run / "data"), encoding="utf-8")


if __name__ == "__main__":
    main()
