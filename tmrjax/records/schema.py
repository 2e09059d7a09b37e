"""One record of prepared data: its fields, its JSON form and the rules it must keep. Read through
:mod:`tmrjax.records`.

A line of ``train.jsonl`` of a NER set is one object with these keys; RE has the other label keys; spaces are free::

    {"id": "17_06_4705",                        unique in its split
     "tokens": ["Jordan", "at", "sea"],         the post's words, at least one
     "tags": ["B-PER", "O", "O"],               NER: one a token, IOB2 over the labels of dataset.json
     "head": [0, 1], "tail": [2, 3],            RE: half-open ranges of tokens
     "relation": "/per/loc/place_of_residence",
                                                RE: one of the labels; "None" is the relation that stands for none
     "image": "images/a.jpg",                   a path inside the data set's folder; null: the post has no picture
     "regions": [[0.1, 0.2, 0.5, 0.9]],         boxes (x1, y1, x2, y2) as fractions of the picture's width and height
     "grounding": [{"phrase": "sea", "score": 0.7}],
                                                may be absent: of each region its phrase and score, null where unknown
     "phrases": ["sea"],                        noun phrases
     "generated": {"image": "generated/a.png", "regions": [], "prompt": "...", "seed": 0, "model": "..."},
                                                the back-translated picture (paper section 3.3); null: none was drawn.
                                                prompt, seed, model may be null, and it may have a grounding too
     "scores": [0.2, 0.3, 0.5],                 weaken, complement, strengthen of text and picture, the softmax of the
                                                divergence estimator (paper section 3.4); null: unknown
     "generated_scores": null,                  the same of text and generated picture
     "sides": {"objects": {"labels": []}}}      may be absent: what some methods ask for besides, by name; each is
                                                checked by the input that reads it (tmrjax.inputs)

Every key stands there (null or [] for what is absent), save ``grounding`` and ``sides``. A side with the key "rows",
[start, end), has these rows of a table of arrays/ (:mod:`tmrjax.records.arrays`). The folder around the record and
``dataset.json`` are described in :mod:`tmrjax.records` and :class:`DatasetInfo`. Whatever breaks a rule is one
:class:`DataError` that says file, line, what was found, what was expected and what to do; nothing is repaired in
silence. Needs only the standard library.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmrjax.files import DataError, FolderOfFiles
from tmrjax.records.arrays import with_rows

Box = tuple[float, float, float, float]
Scores = tuple[float, float, float]
Span = tuple[int, int]

TASKS = ("ner", "re")
NO_RELATION = "None"  # the relation of RE that stands for none: no score counts it
DATASET_FILE = "dataset.json"
NUM_REGIONS = 3  # of a picture that a model reads (paper section 3.2): the first ones of a record
NEUTRAL_SCORES = (0.0, 1.0, 1.0)  # turn Eq. 4 into Eq. 2: of a post without divergence scores, and "w/o MDE"
SCORE_CLASSES = ("weaken", "complement", "strengthen")  # the order of scores everywhere
SCORE_TOLERANCE = 1e-3  # released scores are float32 prints; a softmax written with four digits still passes

MAX_WORD = 10_000  # characters of a token, a phrase, a label, an id, a path: a longer one is a file read wrongly
# What ends a line or a string for other programs. Other invisible characters stand in real posts.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_SHARED_KEYS = ("id", "tokens", "image", "regions", "phrases", "generated", "scores", "generated_scores")
_LABEL_KEYS = {"ner": ("tags",), "re": ("head", "tail", "relation")}
_GENERATED_KEYS = ("image", "regions", "prompt", "seed", "model")
_GROUNDING = "grounding"  # may be absent, beside regions: sets made without it stay as they are
_SIDES = "sides"  # may be absent


@dataclass(frozen=True)
class Grounding:
    """Where a region comes from: the phrase that it answers (None: of no phrase) and how sure its finder was."""

    phrase: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Generated:
    """The back-translated picture of a post (paper section 3.3): where it lies and how it was made.

    `grounding` has one entry per region, or none at all where it is unknown.
    """

    image: str
    regions: tuple[Box, ...] = ()
    prompt: str | None = None
    seed: int | None = None
    model: str | None = None
    grounding: tuple[Grounding, ...] = ()


@dataclass(frozen=True)
class Record:
    """One post. `tags` belong to NER; `head`, `tail` (half-open token ranges), `relation` to RE; None = not there.

    `grounding` has one entry per region, or none at all where it is unknown.
    """

    id: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    head: Span | None = None
    tail: Span | None = None
    relation: str | None = None
    image: str | None = None
    regions: tuple[Box, ...] = ()
    phrases: tuple[str, ...] = ()
    generated: Generated | None = None
    scores: Scores | None = None
    generated_scores: Scores | None = None
    grounding: tuple[Grounding, ...] = ()
    sides: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says.

    `labels` are entity types in order (NER) or relations (RE). `stages` says of each stage its tool, version, options
    and counts; `files` maps each JSONL file to its SHA-256, `labels_sha256` each split to that of its labels
    (:mod:`tmrjax.records.label_versions`); both are filled in by `write_dataset`. `leaky_phrases`: the phrases hold
    words that the text does not have. `leaky_regions`: regions come from files that were made with the labels, so how
    many there are tells them. `renormalised_scores`: weaken is unknown and stored as 0. `synthetic`: a generated world,
    not real posts.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    leaky_phrases: bool = False
    leaky_regions: bool = False
    renormalised_scores: bool = False
    synthetic: bool = False
    stages: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    labels_sha256: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def tag_set(self) -> tuple[str, ...]:
        """The tags of a NER set: O, then B-x, I-x for each entity type in order; empty for RE."""
        if self.task != "ner":
            return ()
        return ("O", *(f"{prefix}-{label}" for label in self.labels for prefix in "BI"))


def record_to_json(record: Record, task: str) -> dict[str, Any]:
    """The JSON object of a record, with the label keys of `task` only; the inverse of :func:`record_from_json`."""
    generated = record.generated
    labels: dict[str, Any]
    if task == "ner":
        labels = {"tags": None if record.tags is None else list(record.tags)}
    else:
        labels = {
            "head": None if record.head is None else list(record.head),
            "tail": None if record.tail is None else list(record.tail),
            "relation": record.relation,
        }
    return {
        "id": record.id,
        "tokens": list(record.tokens),
        **labels,
        "image": record.image,
        **_regions_to_json(record),
        "phrases": list(record.phrases),
        "generated": None
        if generated is None
        else {
            "image": generated.image,
            **_regions_to_json(generated),
            "prompt": generated.prompt,
            "seed": generated.seed,
            "model": generated.model,
        },
        "scores": None if record.scores is None else list(record.scores),
        "generated_scores": None if record.generated_scores is None else list(record.generated_scores),
        **({_SIDES: record.sides} if record.sides else {}),
    }


def _regions_to_json(picture: Record | Generated) -> dict[str, Any]:
    grounding = {_GROUNDING: [dataclasses.asdict(item) for item in picture.grounding]} if picture.grounding else {}
    return {"regions": [list(box) for box in picture.regions], **grounding}


def record_from_json(
    value: Any, info: DatasetInfo, *, where: str, root: Path | FolderOfFiles | None = None, require_labels: bool = True
) -> Record:
    """Checks one JSON object against the format and makes a :class:`Record` of it.

    `where` (usually "file:line") opens every message. With `root`, the pictures named must exist inside that folder.
    Without `require_labels` (posts to predict) only `id` and `tokens` must be there. Raises :class:`DataError` on the
    first broken rule.
    """
    check = RecordChecker(where)
    label_keys = _LABEL_KEYS[info.task]
    required = (*_SHARED_KEYS, *label_keys) if require_labels else ("id", "tokens")
    check.keys(value, required, (*_SHARED_KEYS, _GROUNDING, _SIDES, *label_keys), "record")
    identifier = check.word(value["id"], "id")
    tokens = check.texts(value["tokens"], "tokens")
    if not tokens:
        check.fail("no token", "at least one token in 'tokens'", "Drop the post or give it its words.")
    labels: dict[str, Any] = {}
    if info.task == "ner" and (require_labels or value.get("tags") is not None):
        labels["tags"] = check.tags(value["tags"], tokens, info)
    if info.task == "re":
        for key in ("head", "tail"):
            if require_labels or value.get(key) is not None:
                labels[key] = check.span(value[key], key, len(tokens))
        if "head" in labels and "tail" in labels:
            check.pair(labels["head"], labels["tail"])
        if require_labels or value.get("relation") is not None:
            labels["relation"] = check.member(value["relation"], "relation", info.labels)
    generated = value.get("generated")
    if generated is not None:
        check.keys(generated, _GENERATED_KEYS, (*_GENERATED_KEYS, _GROUNDING), "'generated'")
        seed = generated["seed"]
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            check.fail(f"{seed!r} in 'generated.seed'", "an integer or null", "Write the seed of the picture, or null.")
        generated = Generated(
            image=check.picture(generated["image"], "generated.image", root),
            **check.regions(generated, "generated."),
            prompt=check.optional_text(generated["prompt"], "generated.prompt"),
            seed=seed,
            model=check.optional_text(generated["model"], "generated.model"),
        )
    image = value.get("image")
    return Record(
        id=identifier,
        tokens=tokens,
        image=None if image is None else check.picture(image, "image", root),
        **check.regions(value),
        phrases=check.texts(value.get("phrases", []), "phrases"),
        generated=generated,
        scores=check.scores(value.get("scores"), "scores", info),
        generated_scores=check.scores(value.get("generated_scores"), "generated_scores", info),
        sides=check.sides(value.get(_SIDES, {}), root),
        **labels,
    )


class RecordChecker:
    """The rules of the format; each method returns the checked value or raises a DataError that begins with `where`."""

    def __init__(self, where: str):
        self.where = where

    def fail(self, found: str, expected: str, advice: str) -> None:
        """Raises the error."""
        raise DataError(self.where, found, expected, advice)

    def keys(self, value: Any, required: Sequence[str], known: Sequence[str], name: str) -> None:
        """An object that has all of `required` and nothing beside `known`."""
        if not isinstance(value, dict):
            self.fail(f"{_short(value)} as the {name}", "a JSON object", "Write one object per line.")
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(str(key)[:100], known, n=1)
                advice = f"Did you mean {close[0]!r}?" if close else "Remove it, or put it into another file."
                self.fail(f"the unknown key {_short(key)} in the {name}", f"only the keys {', '.join(known)}", advice)
        missing = [key for key in required if key not in value]
        if missing:
            self.fail(
                f"no {', '.join(map(repr, missing))} in the {name}",
                f"the keys {', '.join(required)}",
                "Write null or [] for what is absent; an absent key is taken for a mistake.",
            )

    def text(self, value: Any, name: str) -> str:
        """A non-empty string that UTF-8 can hold."""
        if not isinstance(value, str) or not value:
            self.fail(f"{_short(value)} in {name!r}", "a non-empty string", "Give the text itself.")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                advice = "Repair the escape in the source file."
                self.fail(f"a lone surrogate in {name!r}", "text that is valid UTF-8", advice)
        return value

    def word(self, value: Any, name: str) -> str:
        """A text without control characters (line breaks, NUL, ...) and of at most MAX_WORD characters."""
        value = self.text(value, name)
        if len(value) > MAX_WORD:
            advice = "Split it into words; is it a whole file?"
            self.fail(f"{len(value):,} characters in {name!r}", f"at most {MAX_WORD:,}", advice)
        if not value.isprintable() and _CONTROL.search(value):
            self.fail(f"a control character in {name!r}, {_short(value)}", "printable text", "Remove or replace it.")
        return value

    def optional_text(self, value: Any, name: str) -> str | None:
        """A string or None."""
        return None if value is None else self.text(value, name)

    def texts(self, value: Any, name: str) -> tuple[str, ...]:
        """A list of words, see :meth:`word`."""
        if not isinstance(value, list):
            self.fail(f"{_short(value)} in {name!r}", "a list of strings", "Write [] where there are none.")
        for index, item in enumerate(value):
            # Nearly all are: the name of an error costs more than the check.
            if not (isinstance(item, str) and item.isascii() and item.isprintable() and 0 < len(item) <= MAX_WORD):
                self.word(item, f"{name}[{index}]")
        return tuple(value)

    def member(self, value: Any, name: str, known: Sequence[str]) -> str:
        """One of `known`."""
        if value not in known:
            self.fail(
                f"the unknown {name} {_short(value)}",
                f"one of {', '.join(known)}",
                f"Correct it, or add it to the labels of {DATASET_FILE}.",
            )
        return value

    def tags(self, value: Any, tokens: Sequence[str], info: DatasetInfo) -> tuple[str, ...]:
        """One known tag per token."""
        tags = self.texts(value, "tags")
        if len(tags) != len(tokens):
            self.fail(f"{len(tags)} tags for {len(tokens)} tokens", "one tag per token", "Align 'tags' with 'tokens'.")
        known = info.tag_set
        return tuple(tag if tag in known else self.member(tag, "tag", known) for tag in tags)

    def span(self, value: Any, name: str, length: int) -> Span:
        """A half-open range of tokens."""
        whole = isinstance(value, list) and len(value) == 2
        if not whole or any(isinstance(part, bool) or not isinstance(part, int) for part in value):
            self.fail(
                f"{_short(value)} in {name!r}", "[start, end) as two integers", "Count tokens from 0; end excluded."
            )
        if not 0 <= value[0] < value[1] <= length:
            self.fail(
                f"{_short(value)} in {name!r}", f"0 <= start < end <= {length}", "Count tokens from 0; end is excluded."
            )
        return value[0], value[1]

    def pair(self, head: Span, tail: Span) -> None:
        """Two entities that are not the same words; they may overlap."""
        if head == tail:
            self.fail(f"'head' and 'tail' equal, {list(head)}", "two different entities", "Correct one of them.")

    def numbers(self, value: Any, name: str, count: int) -> tuple[float, ...]:
        """Exactly `count` finite numbers."""
        if not isinstance(value, list) or len(value) != count:
            self.fail(f"{_short(value)} in {name!r}", f"a list of {count} numbers", "See the format of a record.")
        for number in value:
            # By comparison: math.isfinite raises for an int beyond the range of a double.
            if isinstance(number, bool) or not isinstance(number, int | float) or not -1e300 < number < 1e300:
                self.fail(f"{_short(number)} in {name!r}", f"{count} finite numbers", "Write null if they are unknown.")
        return tuple(float(number) for number in value)

    def regions(self, value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        """The fields `regions` and `grounding` of a record or of its generated picture."""
        boxes = self.boxes(value.get("regions", []), f"{prefix}regions")
        name, items = f"{prefix}{_GROUNDING}", value.get(_GROUNDING, [])
        if not isinstance(items, list) or len(items) not in (0, len(boxes)):
            found = f"{len(items)} entries in {name!r}" if isinstance(items, list) else f"{_short(items)} in {name!r}"
            self.fail(found, f"a list of {len(boxes)}, one per region", "Leave the key out where it is unknown.")
        return {"regions": boxes, _GROUNDING: tuple(self.grounding(item, name) for item in items)}

    def grounding(self, value: Any, name: str) -> Grounding:
        """A phrase and a score, or null for either."""
        self.keys(value, ("phrase", "score"), ("phrase", "score"), repr(name))
        phrase, score = value["phrase"], value["score"]
        return Grounding(
            self.optional_text(phrase, f"{name}.phrase"),
            None if score is None else self.numbers([score], f"{name}.score", 1)[0],
        )

    def boxes(self, value: Any, name: str) -> tuple[Box, ...]:
        """A list of boxes."""
        if not isinstance(value, list):
            self.fail(f"{_short(value)} in {name!r}", "a list of boxes", "Write [] where there are none.")
        return tuple(self.box(box, f"{name}[{index}]") for index, box in enumerate(value))

    def box(self, value: Any, name: str) -> Box:
        """A box inside the picture, with an area."""
        x1, y1, x2, y2 = self.numbers(value, name, 4)
        expected = "x1, y1, x2, y2 with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 (fractions of width and height)"
        if min(x1, y1, x2, y2) < 0 or max(x1, y1, x2, y2) > 1:
            self.fail(
                f"the box {value} outside the picture in {name!r}", expected, "Divide pixels by width and height."
            )
        if not (x1 < x2 and y1 < y2):
            self.fail(f"the box {value} without area in {name!r}", expected, "Drop it, or correct the order.")
        return x1, y1, x2, y2

    def sides(self, value: Any, root: Path | FolderOfFiles | None) -> dict[str, Any]:
        """An object; rows of tables become :class:`tmrjax.records.arrays.ArrayRows`."""
        if not isinstance(value, dict):
            self.fail(
                f"{_short(value)} in 'sides'", "an object, by name of the side", "Leave 'sides' out, or write {}."
            )
        folder = root.root if isinstance(root, FolderOfFiles) else root
        return {name: with_rows(name, side, folder, self.fail) for name, side in value.items()}

    def scores(self, value: Any, name: str, info: DatasetInfo) -> Scores | None:
        """Three scores that sum to 1, or None."""
        if value is None:
            return None
        weaken, complement, strengthen = self.numbers(value, name, 3)
        total = weaken + complement + strengthen
        if min(weaken, complement, strengthen) < 0 or abs(total - 1) > SCORE_TOLERANCE:
            self.fail(
                f"{name!r} {value} with the sum {total:.6g}",
                f"weaken, complement, strengthen >= 0 that sum to 1 within {SCORE_TOLERANCE}",
                "Write the softmax, not logits; null if they are unknown.",
            )
        if info.renormalised_scores and weaken != 0:
            self.fail(
                f"weaken = {weaken} in {name!r}",
                "weaken = 0, because dataset.json says that the scores are renormalised (weaken unknown)",
                "Set renormalised_scores to false if weaken is known.",
            )
        return weaken, complement, strengthen

    def picture(self, value: Any, name: str, root: Path | FolderOfFiles | None) -> str:
        """A relative path that stays inside `root` and exists there; not looked up without `root`."""
        path = self.word(value, name)
        if os.path.isabs(path) or "\\" in path or ".." in path.split("/"):
            self.fail(
                f"the path {_short(path)} in {name!r}", "a path inside the data set's folder", "Copy the picture there."
            )
        if root is None:
            return path
        folder = root if isinstance(root, FolderOfFiles) else FolderOfFiles(root)
        found = folder.look(path)
        if found == "outside":
            found = f"{_short(path)} in {name!r}, which leads out of {folder.root}"
            self.fail(found, "a file inside it", "Copy the picture there.")
        if found == "missing":
            found = f"no file {_short(path)} under {folder.root}"
            self.fail(found, f"the picture of {name!r}", "Add it, or write null.")
        return path


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
