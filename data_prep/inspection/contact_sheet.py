"""The contact sheet of a data set: one HTML page that people look at before they train.

On top what is there and what is missing, how labels and divergence scores (paper section 3.4) are distributed, how many
pictures seem not to go with their text (section 1 reports more than half), whether labels leak, and how every part was
made; below posts with their entities, phrases, pictures, regions and scores. The page holds its pictures and asks for
nothing else, so it can be kept or sent as one file.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from data_prep.audit_leaks import PREDICTED, AuditRow, verdict
from data_prep.importing.release_files import words_from_elsewhere
from tmrjax import __version__
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.records import Dataset, DatasetInfo, Record, completeness
from tmrjax.records.schema import Box, Grounding
from tmrjax.tasks.report import warnings_of

THUMBNAIL = 320  # pixels, the longer side
SHOWN = (200, 260)  # pixels: the least longer side on the page, and the greatest height
FEW = 200  # held-out posts below which the leak audit says little
BINS = 20
LABELS_SHOWN = 12
HEAD_HUE, TAIL_HUE = 208, 28
PARTS = {  # a row of the page -> what `completeness` counts
    "picture": "without a picture",
    "regions": "without regions",
    "generated picture": "without a generated picture",
    "its regions": "without generated regions",
    "phrases": "without phrases",
    "scores": "without scores",
    "its scores": "without generated scores",
}


def sheet_html(
    dataset: Dataset, posts: Sequence[tuple[str, Record]], audit: Sequence[AuditRow], *, chosen: str = ""
) -> str:
    """The page of a data set.

    Args:
        dataset: all of it, for the summary.
        posts: (split, record) of those to show. audit: rows of :func:`data_prep.audit_leaks.audit`.
        chosen: how the posts were chosen, said beside their number.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    info = dataset.info
    records = [record for part in dataset.splits.values() for record in part]
    labels, other_labels = _labels(dataset)
    return environment.get_template("contact_sheet.html").render(
        info=info,
        task="named entities" if info.task == "ner" else "relations between entities",
        totals={split: len(part) for split, part in dataset.splits.items()},
        total=len(records),
        marks=[*warnings_of(info), *_renormalised(info)],
        completeness=_completeness(dataset),
        skipped=len(dataset.skipped),
        labels=labels,
        other_labels=other_labels,
        orphans=completeness(records)["orphan inside tags"],
        histograms=_histograms(records, info),
        misalignment=_misalignment(records, info),
        score_source=_score_source(info),
        audit=audit,
        predicted=PREDICTED[info.task],
        verdict=verdict(audit, info),
        label_version=dataset.label_version,
        few=_few(dataset),
        stages=[_stage(name, manifest) for name, manifest in info.stages.items()],
        posts=[_post(split, record, dataset) for split, record in posts],
        chosen=chosen,
        root=dataset.root.resolve().name,
        version=__version__,
    )


# ------------------------------------------------------------------ the summary


def _renormalised(info: DatasetInfo) -> list[str]:
    if not info.renormalised_scores:
        return []
    return ["RENORMALISED SCORES: weaken is unknown; complement and strengthen were made to sum to 1"]


def _few(dataset: Dataset) -> int:
    """How many posts the audit is scored on, where they are few; else 0."""
    count = len(dataset.splits.get("test") or dataset.splits.get("dev") or ())
    return count if count < FEW else 0


def _completeness(dataset: Dataset) -> list[dict[str, Any]]:
    counts = [completeness(records) for records in dataset.splits.values()]
    rows = []
    for name, key in PARTS.items():
        cells = [
            {"total": count["records"], "missing": count[key], "share": 1 - count[key] / max(count["records"], 1)}
            for count in counts
        ]
        rows.append({"name": name, "cells": cells})
    return rows


def _labels(dataset: Dataset) -> tuple[list[dict[str, Any]], int]:
    """Counts per split of entity types (of B- tags), in their order, or of relations, the most frequent first."""
    info = dataset.info
    counts = []
    for records in dataset.splits.values():
        if info.task == "ner":
            counts.append(Counter(tag[2:] for one in records for tag in one.tags or () if tag.startswith("B-")))
        else:
            counts.append(Counter(one.relation for one in records if one.relation is not None))
    names = list(info.labels)
    if info.task == "re":
        names = sorted(set().union(*counts), key=lambda name: (-sum(count[name] for count in counts), name))
    hues = _hues(info)
    rows = [
        {"name": name, "hue": hues.get(name), "counts": [count[name] for count in counts]}
        for name in names[:LABELS_SHOWN]
    ]
    return rows, max(len(names) - LABELS_SHOWN, 0)


def _hues(info: DatasetInfo) -> dict[str, int]:
    if info.task != "ner":
        return {}
    return {label: round(208 + 360 * number / len(info.labels)) % 360 for number, label in enumerate(info.labels)}


def _score_kinds(records: Sequence[Record]) -> dict[str, np.ndarray]:
    kinds = {
        "pictures": [one.scores for one in records if one.scores is not None],
        "generated": [one.generated_scores for one in records if one.generated_scores is not None],
    }
    return {name: np.array(values) for name, values in kinds.items() if values}


def _histograms(records: Sequence[Record], info: DatasetInfo) -> list[dict[str, Any]]:
    """Per kind and class the share of posts in each bin of [0, 1], as a part of the fullest bin."""
    rows = []
    for name, values in _score_kinds(records).items():
        bins = [np.histogram(column, BINS, (0, 1))[0] for column in values.T]
        heights = [[round(float(count / max(row.max(), 1)), 4) for count in row] for row in bins]
        if info.renormalised_scores:
            heights[0] = None
        rows.append({"name": name, "count": len(values), "bins": heights})
    return rows


def _misalignment(records: Sequence[Record], info: DatasetInfo) -> list[dict[str, Any]]:
    """Share of posts whose strongest score is weaken; unknown where weaken is."""
    return [
        {
            "name": "pictures" if name == "pictures" else "generated pictures",
            "count": len(values),
            "share": None if info.renormalised_scores else float(np.mean(values.argmax(1) == 0)),
        }
        for name, values in _score_kinds(records).items()
    ]


def _score_source(info: DatasetInfo) -> str:
    if info.synthetic:
        return "The scores are drawn by the demo, not estimated."
    if info.renormalised_scores:
        return "These scores do not say: weaken is unknown."
    made = [
        f"{name} ({manifest.get('model') or manifest.get('tool', '?')})"
        for name, manifest in info.stages.items()
        if isinstance(manifest, Mapping) and "score" in name
    ]
    if made:
        return f"The scores come from {', '.join(made)}."
    first = next(iter(info.stages), None)
    return f"The scores came with the data ({first})." if first else "Where the scores come from is not recorded."


def _stage(name: str, manifest: Any) -> dict[str, Any]:
    manifest = manifest if isinstance(manifest, Mapping) else {}
    records = manifest.get("records")
    seconds, done, failed = "", "", manifest.get("skipped", "")
    if isinstance(records, Mapping):
        done = sum(counts["done"] for counts in records.values())
        failed = sum(counts["failed"] for counts in records.values())
        seconds = f"{manifest['seconds'] / done:.4f}" if done else ""
    return {
        "name": name,
        "tool": manifest.get("tool", ""),
        "model": manifest.get("model"),
        "done": done,
        "failed": failed,
        "seconds": seconds,
        "finished": str(manifest.get("finished", "")).replace("T", " ").removesuffix("+00:00"),
    }


# ------------------------------------------------------------------ a post


@dataclass(frozen=True)
class Part:
    """A run of tokens that look alike: text, what it is (CSS class; empty for plain text), label and hue."""

    text: str
    kind: str = ""
    label: str = ""
    hue: int = 0


@dataclass(frozen=True)
class Picture:
    """A picture scaled down, as a data URL, with its regions; or why it can't be shown."""

    what: str
    path: str
    source: str = ""
    width: int = 0
    height: int = 0
    regions: tuple[dict[str, Any], ...] = ()
    error: str = ""

    @property
    def shown(self) -> int:
        """The width on the page: small pictures are enlarged, tall ones reduced."""
        scale = max(1.0, SHOWN[0] / max(self.width, self.height))
        return round(min(self.width * scale, SHOWN[1] * self.width / self.height))


def _post(split: str, record: Record, dataset: Dataset) -> dict[str, Any]:
    generated = record.generated
    made_by = []
    if generated is not None:
        made_by = [text for text in (generated.model, generated.seed is not None and f"seed {generated.seed}") if text]
    return {
        "split": split,
        "id": record.id,
        "relation": record.relation,
        "parts": entity_parts(record, _hues(dataset.info)) if dataset.info.task == "ner" else pair_parts(record),
        "phrases": [
            {"text": phrase, "foreign": bool(words_from_elsewhere(phrase, record.tokens))} for phrase in record.phrases
        ],
        "image": _picture("picture", record.image, record.regions, record.grounding, dataset.root),
        "generated": generated
        and _picture("generated", generated.image, generated.regions, generated.grounding, dataset.root),
        "scores": record.scores,
        "generated_scores": record.generated_scores,
        "prompt": generated and generated.prompt,
        "made_by": ", ".join(made_by),
    }


def entity_parts(record: Record, hues: Mapping[str, int]) -> list[Part]:
    """The text in runs: entities with their type; an inside tag without its beginning as an "orphan"."""
    tags = record.tags or ("O",) * len(record.tokens)
    parts: list[Part] = []
    before = "O"
    for token, tag in zip(record.tokens, tags, strict=True):
        goes_on = tag == before == "O" or (tag.startswith("I-") and before[2:] == tag[2:])
        if goes_on and parts:
            last = parts[-1]
            parts[-1] = Part(f"{last.text} {token}", last.kind, last.label, last.hue)
        elif tag == "O":
            parts.append(Part(token))
        else:
            kind = "entity" if tag.startswith("B-") else "orphan"
            parts.append(Part(token, kind, tag[2:], hues[tag[2:]]))
        before = tag
    return parts


def pair_parts(record: Record) -> list[Part]:
    """The text in runs: head and tail; tokens of both are marked as such."""

    def role(index: int) -> str:
        roles = [name for name in ("head", "tail") if (span := getattr(record, name)) and span[0] <= index < span[1]]
        return " ".join(roles)

    parts: list[Part] = []
    for index, token in enumerate(record.tokens):
        name = role(index)
        if parts and parts[-1].label == name:
            parts[-1] = Part(f"{parts[-1].text} {token}", *_role_style(name))
        else:
            parts.append(Part(token, *_role_style(name)))
    return parts


def _role_style(name: str) -> tuple[str, str, int]:
    if not name:
        return "", "", 0
    return ("both" if " " in name else name), name, (TAIL_HUE if name == "tail" else HEAD_HUE)


def _picture(
    what: str, path: str | None, regions: Sequence[Box], grounding: Sequence[Grounding], root: Path
) -> Picture | None:
    if path is None:
        return None
    try:
        picture = load_picture(root / path)
    except DataError as error:
        return Picture(what, path, error=error.found)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    views = tuple(_regions(regions, grounding))
    return Picture(what, path, source, picture.width, picture.height, views)


def _regions(regions: Sequence[Box], grounding: Sequence[Grounding]) -> Iterable[dict[str, Any]]:
    for index, (x1, y1, x2, y2) in enumerate(regions):
        known = grounding[index] if grounding else None
        yield {
            "x": x1,
            "y": y1,
            "width": x2 - x1,
            "height": y2 - y1,
            "known": known is not None,
            "phrase": known and known.phrase,
            "score": known and known.score,
        }
