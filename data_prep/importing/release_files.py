"""Readers of the files that came with TMR's release (paper section 4.1): tagged text, scores, phrases, boxes, crops.

Each reader knows one format and its anomalies and says what it met; nothing is guessed. `.pth` files are read with
`weights_only`, so that they can hold data and no code; they need torch, which the extra `release` brings.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmrjax.files import DataError, parse_json, read_bytes
from tmrjax.records.schema import NO_RELATION, RecordChecker

GENERATED_SIZE = 768  # pixels, width and height of the pictures that the released boxes belong to
# What the release wrote for a tweet in which it found no noun phrase. It is the same for every such tweet.
NO_PHRASE = "person location organization misc"

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

Box = tuple[float, float, float, float]
Fault = Callable[[DataError, int, str | None], None]


@dataclass(frozen=True)
class Tweet:
    """A tweet of a tagged file; `line` is where it begins, counted from 1."""

    id: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    line: int


def read_text(path: Path) -> bytes:
    """The content of a text file without the byte order mark that some editors put before it."""
    return read_bytes(path).removeprefix(b"\xef\xbb\xbf")


def _empty(path: Path, what: str) -> DataError:
    return DataError(path, f"no {what}", "at least one", "The file was cut off or is another one: take it again.")


def check_rows(path: Path, rows: Collection[str], text: Path, count: int) -> None:
    """Makes sure that a file keyed by row has exactly the rows of the `count` lines of `text`.

    A line that was lost or added in one of the two would shift all rows behind it without a sign.
    """
    wanted = set(map(str, range(count)))
    for found, what in ((wanted - set(rows), "no row"), (set(rows) - wanted, "the row")):
        if found:
            some = ", ".join(sorted(found, key=lambda row: (len(row), row))[:5])
            raise DataError(
                path,
                f"{what} {some}{' and more' if len(found) > 5 else ''} ({len(rows)} rows)",
                f"exactly the rows 0 to {count - 1} of {text.name}",
                "A line is missing or added in one of the two, which shifts all behind it: take both from one release.",
            )


def read_blocks(path: Path, white: bytes = b"") -> Iterator[list[tuple[int, bytes]]]:
    """Runs of lines that empty lines part, each line with its number; bytes of `white` alone make an empty line too."""
    block: list[tuple[int, bytes]] = []
    for number, line in enumerate([*read_text(path).split(b"\n"), b""], start=1):
        if line.strip(white) if white else line:
            block.append((number, line))
        elif block:
            yield block
            block = []


def read_tweets(path: Path, tags: tuple[str, ...], renamed: dict[str, str], fault: Fault) -> Iterator[Tweet]:
    """Tweets of a file of blocks: `IMGID:<id>`, then `token<TAB>tag` lines, then an empty line.

    `renamed` maps a released tag to ours. A tweet with a fault is handed to `fault` (with its line and id) and left
    out.
    """
    if not read_text(path).strip():
        raise _empty(path, "tweet")
    for block in read_blocks(path):
        try:
            yield _tweet(path, block, tags, renamed)
        except DataError as error:
            first, head = block[0]
            known = head.removeprefix(b"IMGID:").decode("utf-8", errors="replace")
            fault(error, first, known if head.startswith(b"IMGID:") else None)


def _tweet(path: Path, block: list[tuple[int, bytes]], known: tuple[str, ...], renamed: dict[str, str]) -> Tweet:
    lines = []
    for number, raw in block:
        try:
            lines.append((f"{path}:{number}", raw.decode("utf-8")))
        except UnicodeDecodeError as error:
            found = f"bytes that are not UTF-8 ({error.reason})"
            raise DataError(f"{path}:{number}", found, "UTF-8 text", "Convert the file.") from None
    (first, head), *rest = lines
    identifier = head.removeprefix("IMGID:")
    if head == identifier or not identifier.strip() or any(part in identifier for part in "/\\\t"):
        raise DataError(first, repr(head), "'IMGID:<id>' at the start of a tweet", "Part tweets by one empty line.")
    tokens, tags = [], []
    for where, line in rest:
        token, _, tag = line.partition("\t")
        if not token or "\t" in tag or "\t" not in line:
            raise DataError(where, repr(line), "'token<TAB>tag'", "Repair it, or drop the tweet with --on-error=skip.")
        tag = renamed.get(tag, tag)
        if tag not in known:
            raise DataError(where, f"the unknown tag {tag!r}", f"one of {', '.join(known)}", "Correct the tag.")
        tokens.append(token)
        tags.append(tag)
    if not tokens:
        raise DataError(first, f"the tweet {identifier} without a token", "at least one", "Give it its words.")
    return Tweet(identifier, tuple(tokens), tuple(tags), block[0][0])


def read_scores(path: Path, fault: Fault) -> dict[str, float]:
    """Divergence scores by id from lines `<id>.jpg<TAB>number` in any order; faulty lines go to `fault`."""
    scores: dict[str, float] = {}
    faulty: set[str] = set()
    for number, identifier, value, raw in _score_lines(path):
        if value is None or identifier in scores:
            found = f"a second score of {identifier}.jpg" if value is not None else repr(raw)
            expected = "'<id>.jpg<TAB>number in [0, 1]', once per tweet"
            error = DataError(f"{path}:{number}", found, expected, "Correct the line, or use --no-scores.")
            faulty.add(identifier)
            fault(error, number, identifier)
            continue
        scores[identifier] = value
    if not scores and not faulty:
        raise _empty(path, "score")
    return {identifier: value for identifier, value in scores.items() if identifier not in faulty}


def read_score_lists(path: Path) -> dict[str, list[float]]:
    """All scores of each picture, in the order of the lines `<name>.jpg<TAB>number`: RE has one line per instance.

    Raises :class:`DataError` for a faulty line: it cannot be said which instance it belongs to.
    """
    scores: dict[str, list[float]] = {}
    for number, identifier, value, raw in _score_lines(path):
        if value is None:
            expected = "'<name>.jpg<TAB>number in [0, 1]'"
            raise DataError(f"{path}:{number}", repr(raw), expected, "Correct the line, or use --scores=none.")
        scores.setdefault(identifier, []).append(value)
    if not scores:
        raise _empty(path, "score")
    return scores


def _score_lines(path: Path) -> Iterator[tuple[int, str, float | None, str]]:
    """(line, id, score or None where it is faulty, the line itself)."""
    for number, raw in enumerate(read_text(path).decode("utf-8", errors="replace").split("\n"), start=1):
        if raw:
            key, _, text = raw.partition("\t")
            identifier = key.removesuffix(".jpg")
            # float() would take blanks, underscores and the digits of other scripts as well.
            value = float(text) if _NUMBER.fullmatch(text.removesuffix("\r")) else math.nan
            yield number, identifier, value if key != identifier and 0 <= value <= 1 else None, raw


def alpha(weak: float, strong: float, where: str) -> tuple[float, float, float]:
    """(weaken, complement, strengthen) from the two released NER numbers.

    The released `weak` weighs the coarse grain and `strong` the fine one (:mod:`tmrjax.methods.tmr_release`), as
    complement and strengthen do in Eq. 4; they are raw probabilities of a softmax over three classes, so weaken is what
    is left of 1. A remainder below zero by no more than float32 rounding (1e-6) is taken for 0.
    """
    weaken = 1 - weak - strong
    if weaken < -1e-6:
        raise DataError(where, f"weak {weak} + strong {strong} > 1", "a sum of at most 1", "Are these the NER scores?")
    return max(weaken, 0.0), weak, strong


def read_phrases(path: Path) -> dict[str, str]:
    """Phrases: one JSON object `{"<id>.jpg": "phrase words"}`; returns id -> string."""
    value = parse_json(read_text(path), str(path))
    if value == {}:
        raise _empty(path, "phrase")
    if not isinstance(value, dict) or not all(isinstance(text, str) and text for text in value.values()):
        raise DataError(
            path, "something else", 'one object {"<id>.jpg": "phrase words"}', "Use --phrases=none without it."
        )
    return {key.removesuffix(".jpg"): text for key, text in value.items()}


def words_from_elsewhere(phrase: str, tokens: tuple[str, ...]) -> list[str]:
    """Words of a phrase that the tweet does not have, not even inside a hash tag or a handle: a leak shows here."""
    text = " ".join(tokens).lower()
    return [word for word in phrase.lower().split() if word not in text]


@dataclass
class ReleasedBoxes:
    """Boxes on generated pictures as fractions, by id, and what had to be decided to read them."""

    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    phrases_instead: bool = False  # the file holds phrases where boxes should be
    tripled: bool = False  # every list stood three times in a row
    too_small: int = 0  # boxes under one pixel wide or high, dropped
    repeated: int = 0  # boxes that stood in a list before, dropped


def read_boxes(path: Path) -> ReleasedBoxes:
    """`{"IMGID:<id>.png": [tensor x1 y1 x2 y2 in pixels of 768 x 768, ...]}`; raises :class:`DataError` on anything
    else.
    """
    lists = {}
    for key, items in load_pth(path).items():
        if not key.startswith("IMGID:") or not key.endswith(".png") or not isinstance(items, list):
            raise DataError(path, f"the entry {key!r}", "'IMGID:<id>.png' with a list", "Is this the boxes' file?")
        lists[key[len("IMGID:") : -len(".png")]] = items
    kinds = {isinstance(item, str) for items in lists.values() for item in items}
    if kinds == {True}:
        return ReleasedBoxes(phrases_instead=True)
    if True in kinds:
        raise DataError(path, "phrases between boxes", "boxes", "Use --generated-boxes=none.")
    numbers = {key: [tuple(float(side) for side in item) for item in items] for key, items in lists.items()}
    result = ReleasedBoxes(tripled=bool(numbers) and all(_is_tripled(items) for items in numbers.values()))
    for identifier, items in numbers.items():
        kept = items[: len(items) // 3] if result.tripled else items
        result.boxes[identifier] = _fractions(path, identifier, kept, result)
    return result


def read_row_boxes(path: Path) -> ReleasedBoxes:
    """`{row: [tensor x1 y1 x2 y2 in pixels of 768 x 768, ...]}` of RE; the keys of the result are rows as text.

    A box that stands twice in a list is kept once. Raises :class:`DataError` on anything else.
    """
    result = ReleasedBoxes()
    for row, items in load_pth(path).items():
        if not isinstance(row, int) or not isinstance(items, list) or any(isinstance(item, str) for item in items):
            raise DataError(path, f"the entry {row!r}", "a row number with a list of boxes", "Is this the boxes' file?")
        boxes = [tuple(float(side) for side in item) for item in items]
        unique = list(dict.fromkeys(boxes))
        result.repeated += len(boxes) - len(unique)
        result.boxes[str(row)] = _fractions(path, f"row {row}", unique, result)
    return result


def _fractions(path: Path, owner: str, boxes: list[tuple[float, ...]], result: ReleasedBoxes) -> tuple[Box, ...]:
    """Boxes in pixels as fractions; those under a pixel wide or high are dropped and counted in ``result``."""
    advice = "Use --generated-boxes=none."
    kept = []
    for box in boxes:
        if len(box) != 4 or not all(math.isfinite(side) for side in box):
            raise DataError(path, f"the box {box} of {owner}", "four finite numbers", advice)
        if min(box) < 0 or max(box) > GENERATED_SIZE:
            raise DataError(path, f"the box {box} of {owner}", f"pixels in 0 to {GENERATED_SIZE}", advice)
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            result.too_small += 1
            continue
        kept.append(tuple(side / GENERATED_SIZE for side in box))
    return tuple(kept)


def _is_tripled(items: list) -> bool:
    third = len(items) // 3
    return bool(items) and items == items[:third] * 3


def read_crops(path: Path) -> dict[str, list[str]]:
    """Names of crops of the original pictures by id (RE: by row); the crops themselves were never released."""
    return {str(key).removesuffix(".jpg"): list(names) for key, names in load_pth(path).items()}


def load_pth(path: Path) -> dict[str, Any]:
    """The dict of a .pth file, read as data only; raises :class:`DataError`."""
    try:
        import torch
    except ImportError:
        raise DataError(
            path,
            "no torch to read it with",
            "the extra 'release'",
            "pip install 'tmrjax[release]', or --generated-boxes=none: then boxes are left out and crops not counted.",
        ) from None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a damaged or malicious file
        raise DataError(path, f"no plain data ({error})", "a .pth file of the release", "Download it again.") from error
    if not isinstance(value, dict):
        raise DataError(path, f"a {type(value).__name__}", "a dict", "Is this the right file?")
    if not value:
        raise _empty(path, "entry")
    return value


def is_invisible(token: str) -> bool:
    """Whether BERT's cleaning leaves nothing of a token: control and format characters, marks, U+FFFD."""
    return all(
        character == "\ufffd" or unicodedata.category(character)[0] in "CZ" or unicodedata.category(character) == "Mn"
        for character in unicodedata.normalize("NFD", token)
    )


def read_relations(path: Path) -> dict[str, int]:
    """The released numbering of relations, one JSON object {relation: id}; ids are 0, 1, 2, ..., ``None`` has 0.

    Returns it in the order of the ids. Raises :class:`DataError`.
    """
    value = parse_json(read_text(path), str(path))
    numbers = sorted(value.values()) if isinstance(value, dict) and all(type(n) is int for n in value.values()) else []
    if not numbers or numbers != list(range(len(numbers))) or value.get(NO_RELATION) != 0:
        raise DataError(
            path, "something else", f"one object {{relation: id}} with ids 0, 1, 2, ... and {NO_RELATION!r}: 0",
            "Is this ours_rel2id.json?",
        )  # fmt: skip
    return dict(sorted(value.items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class Instance:
    """One line of an MNRE file: two entities of a sentence and their relation; `line` counts from 1, `row` from 0."""

    row: int
    line: int
    tokens: tuple[str, ...]
    head: tuple[int, int]
    tail: tuple[int, int]
    image: str  # without suffix
    relation: str


def instance_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of an MNRE file that hold something, with their numbers from 1; a row is a position in this list."""
    return [(number, raw) for number, raw in enumerate(read_text(path).split(b"\n"), start=1) if raw.strip()]


def read_instances(path: Path, relations: Collection[str], fault: Fault) -> Iterator[Instance]:
    """Instances of MNRE, one Python dict literal per line: {'token', 'h': {'name', 'pos'}, 't', 'img_id', 'relation'}.

    Only literals are read; nothing is ever evaluated. A faulty line is handed to `fault` and left out.
    """
    lines = instance_lines(path)
    if not lines:
        raise _empty(path, "instance")
    for row, (number, raw) in enumerate(lines):
        try:
            yield _instance(f"{path}:{number}", raw, row, number, relations)
        except DataError as error:
            fault(error, number, None)


def _instance(where: str, raw: bytes, row: int, line: int, relations: Collection[str]) -> Instance:
    check = RecordChecker(where)
    drop = "Repair the line, or drop it with --on-error=skip."
    try:
        value = ast.literal_eval(raw.decode("utf-8").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        check.fail(f"no Python literal ({type(error).__name__})", "a dict literal", drop)
    if not isinstance(value, dict):
        check.fail(f"a {type(value).__name__}", "a dict literal", drop)
    keys = ("token", "h", "t", "img_id", "relation")
    check.keys(value, keys, keys, "instance")
    tokens = check.texts(value["token"], "token")
    if not tokens:
        check.fail("no token", "at least one token", drop)
    spans = []
    for key in ("h", "t"):
        check.keys(value[key], ("name", "pos"), ("name", "pos"), f"{key!r}")
        start, end = check.span(value[key]["pos"], f"{key}.pos", len(tokens))
        name = " ".join(tokens[start:end])
        if value[key]["name"] != name:
            check.fail(f"the name {value[key]['name']!r} in {key!r}", f"{name!r}, as its position says", drop)
        spans.append((start, end))
    check.pair(*spans)
    relation = check.member(value["relation"], "relation", tuple(relations))
    image = check.text(value["img_id"], "img_id")
    return Instance(row, line, tokens, *spans, Path(image).stem, relation)
