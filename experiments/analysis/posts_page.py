"""The page of posts: gold and what each run found, beside text, pictures and scores (the cases of Figure 5, the
back-translations of Figure 6).

One HTML file that asks for nothing else. Posts stand in it as JSON, pictures as small WebP data beside it; a script
draws what is on the screen, so that thousands of posts are as quick as ten.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.analysis.errors import KINDS, MEANINGS, RIGHT, count_errors, entity_errors, relation_error
from experiments.analysis.runs import Run
from tmrjax import __version__
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.records import Dataset, Record
from tmrjax.records.schema import SCORE_CLASSES, Box, Generated, Grounding
from tmrjax.tasks.comparison import COUNTS, micro_f1
from tmrjax.tasks.report import warnings_of

QUALITY = 60  # of the thumbnails


@dataclasses.dataclass(frozen=True)
class Page:
    """The page as text, and how many posts and pictures it has; ``unreadable``: pictures that could not be read."""

    html: str
    posts: int
    pictures: int
    unreadable: tuple[str, ...]


def page_of(
    rows: Mapping[str, Sequence[Run]],
    dataset: Dataset,
    split: str,
    *,
    title: str,
    thumbnail: int = 160,
    limit: int | None = None,
    progress: Any = lambda items, total: items,
) -> Page:
    """The page of comparable runs.

    Args:
        rows: of :func:`experiments.analysis.runs.rows_of`; the first run is what the others are compared with.
        dataset: the data set of the split's posts and pictures.
        thumbnail: pixels, the longer side of a picture. limit: of posts, the first ones.
        progress: wraps the pictures that are read.

    Raises:
        DataError: the data set has other posts than the runs.
    """
    runs = [(name, run) for name, found in rows.items() for run in found]
    task = runs[0][1].task
    found = [run.predictions(split) for _, run in runs]
    records = {record.id: record for record in dataset.splits[split]}
    _require_same_posts(records, found[0], dataset, split)
    shown = found[0][:limit]
    pictures = Pictures(dataset.root, thumbnail)
    posts = [
        _post(records[row["id"]], row, [of_run[i] for of_run in found], task, pictures) for i, row in enumerate(shown)
    ]
    encoded, unreadable = pictures.encode(progress)
    content = {
        "task": task,
        "labels": list(dataset.info.labels),
        "kinds": list(KINDS[task]),
        "classes": list(SCORE_CLASSES),
        "unknown_weaken": dataset.info.renormalised_scores,
        "runs": [_run(name, run, of_run, task) for (name, run), of_run in zip(runs, found, strict=True)],
        "posts": posts,
    }
    script = _beside("posts_page.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("posts_page.html").render(
        title=title,
        name=dataset.info.name,
        split=split,
        shown=len(shown),
        total=len(found[0]),
        marks=warnings_of(dataset.info),
        label_version=dataset.label_version,
        hashes={name: value[:12] for name, value in dataset.info.files.items() if split in name},
        root=dataset.root.resolve().name,
        version=__version__,
        meanings=[(kind, MEANINGS[kind]) for kind in KINDS[task]],
        classes=SCORE_CLASSES,
        style=Markup(_beside("posts_page.css")),
        script=Markup(script),
        # The policy of the page lets no other script run, whatever a post holds.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        content=Markup(json_for_html(content)),
        pictures=encoded,
    )
    return Page(html, len(posts), len(encoded) - len(unreadable), unreadable)


def json_for_html(value: Any) -> str:
    """JSON that can stand inside of a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _require_same_posts(
    records: Mapping[str, Record], rows: Sequence[Mapping[str, Any]], dataset: Dataset, split: str
) -> None:
    other = [row["id"] for row in rows if row["id"] not in records or list(records[row["id"]].tokens) != row["tokens"]]
    if other:
        raise DataError(
            dataset.root, f"{len(other)} of {len(rows)} posts not in {split}, or with other words; {other[0]!r} first",
            "the posts that the runs were tested on", "Name the data set of the runs with --data.",
        )  # fmt: skip


def _run(name: str, run: Run, rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    return {
        "name": name,
        "seed": run.report["seed"],
        "f1": float(micro_f1(COUNTS[task](rows).sum(0))),
        "counts": count_errors(rows, task),
    }


def _post(
    record: Record, gold: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], task: str, pictures: Pictures
) -> dict[str, Any]:
    post: dict[str, Any] = {
        "id": record.id, "tokens": list(record.tokens), "gold": gold["gold"], "phrases": list(record.phrases),
        "scores": record.scores, "generated_scores": record.generated_scores,
        "picture": pictures.add(record), "generated": pictures.add(record.generated),
    }  # fmt: skip
    if record.generated is not None:
        parts = (record.generated.model, record.generated.seed is not None and f"seed {record.generated.seed}")
        post |= {"prompt": record.generated.prompt, "made_by": ", ".join(part for part in parts if part)}
    if task == "ner":
        post["found"] = [_entities(row) for row in rows]
    else:
        post |= {"head": list(record.head), "tail": list(record.tail), "found": [_relation(row) for row in rows]}
    return post


def _entities(row: Mapping[str, Any]) -> dict[str, Any]:
    kinds, missed = entity_errors(row["gold"], row["predicted"])
    spans = [
        [span["start"], span["end"], span["label"], round(span["probability"], 4), kind]
        for span, kind in zip(row["predicted"], kinds, strict=True)
    ]
    return {"spans": spans, "missed": missed}


def _relation(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = relation_error(row["gold"], row["predicted"])
    return {
        "relation": row["predicted"], "kind": kind, "probability": round(row["probability"], 4),
        "gold_probability": None if kind in (None, RIGHT) else round(row["gold_probability"], 4),
    }  # fmt: skip


class Pictures:
    """Pictures of posts, each once, whatever number of posts have it."""

    def __init__(self, root: Path, size: int):
        self.root, self.size = root, size
        self.numbers: dict[str, int] = {}

    def add(self, owner: Record | Generated | None) -> dict[str, Any] | None:
        """{"number", "boxes"} of the picture of a post, or of its generated picture; None where there is none."""
        if owner is None or owner.image is None:
            return None
        number = self.numbers.setdefault(owner.image, len(self.numbers))
        return {"number": number, "boxes": list(_boxes(owner.regions, owner.grounding))}

    def encode(self, progress: Any) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """{"data", "width", "height"} or {"error"} of each by number, and the paths of those that cannot be read."""

        def one(path: str) -> dict[str, Any]:
            try:
                picture = load_picture(self.root / path)
            except DataError as error:
                return {"error": error.found}
            picture.thumbnail((self.size, self.size))
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=QUALITY)
            data = base64.b64encode(buffer.getvalue()).decode()
            return {"data": data, "width": picture.width, "height": picture.height}

        with ThreadPoolExecutor() as pool:
            found = list(progress(pool.map(one, self.numbers), total=len(self.numbers)))
        return found, tuple(path for path, one in zip(self.numbers, found, strict=True) if "error" in one)


def _boxes(regions: Sequence[Box], grounding: Sequence[Grounding]) -> Iterable[list[Any]]:
    """[x, y, width, height, phrase] of each region, as fractions."""
    for index, (x1, y1, x2, y2) in enumerate(regions):
        yield [x1, y1, x2 - x1, y2 - y1, grounding[index].phrase if grounding else None]
