"""BIO tags of words and the entities that they spell (§3.5, §4.1)."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tmrjax.text.splitting import Word

OUTSIDE = "O"


class Span(NamedTuple):
    """An entity as a half-open interval of words."""

    start: int
    end: int
    label: str


@dataclasses.dataclass(frozen=True)
class TagSet:
    """The BIO tags of some entity types: O first, then B-x, I-x in the order of ``labels`` (§3.5).

    >>> TagSet(("PER", "LOC")).tags
    ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')
    """

    labels: tuple[str, ...]

    def __post_init__(self):
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"entity types must be present and distinct, found {self.labels!r}")

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags in the order of their indices."""
        return (OUTSIDE, *(f"{prefix}-{label}" for label in self.labels for prefix in "BI"))

    def __len__(self) -> int:
        return 1 + 2 * len(self.labels)

    def encode(self, tags: Sequence[str]) -> list[int]:
        """Indices of ``tags``; an unknown tag raises ValueError."""
        index = {tag: i for i, tag in enumerate(self.tags)}
        unknown = sorted({tag for tag in tags if tag not in index})
        if unknown:
            raise ValueError(f"unknown tags {unknown}; expected one of {list(self.tags)}")
        return [index[tag] for tag in tags]

    def decode(self, indices: Sequence[int]) -> list[str]:
        """The tags of ``indices``."""
        tags = self.tags
        return [tags[int(i)] for i in indices]


def forbidden_transitions(tags: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """What IOB2 never allows: (tags that cannot start a post, pairs from → to that cannot follow each other).

    I-x may only follow B-x or I-x. Decoding under these constraints cannot yield an entity without a beginning.
    """
    inside = [i for i, tag in enumerate(tags) if tag.startswith("I-")]
    pairs = [
        (before, i)
        for i in inside
        for before, tag in enumerate(tags)
        if tag[:2] not in ("B-", "I-") or tag[2:] != tags[i][2:]
    ]
    return inside, pairs


def spans_from_tags(tags: Sequence[str], *, strict: bool) -> list[Span]:
    """Entities of a tag sequence.

    strict: IOB2; an entity begins with B-x and goes on over I-x of the same type; an orphan I- is no entity
    (seqeval ``mode="strict", scheme=IOB2``). lenient: an I- without a fitting predecessor opens an entity
    (seqeval's default, conlleval).
    """
    spans: list[Span] = []
    start, label = None, None
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, kind = tag.partition("-")
        if start is not None and not (prefix == "I" and kind == label):
            spans.append(Span(start, position, label))
            start, label = None, None
        if prefix == "B" or (prefix == "I" and start is None and not strict):
            start, label = position, kind
    return spans


def tags_from_spans(spans: Sequence[Span], length: int) -> list[str]:
    """The IOB2 tags of non-overlapping ``spans`` over ``length`` words; overlap or a bad range raises ValueError."""
    tags = [OUTSIDE] * length
    for start, end, label in spans:
        if not 0 <= start < end <= length:
            raise ValueError(f"span [{start}, {end}) lies outside of {length} words")
        if any(tag != OUTSIDE for tag in tags[start:end]):
            raise ValueError(f"span [{start}, {end}) overlaps another one")
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def restore_tags(predicted: Sequence[str], words: Sequence[int], length: int) -> list[str]:
    """Tags of all ``length`` words from those of the scored ``words``; what was cut or has no piece is O.

    A word without a piece inside an entity (a zero-width joiner between two names) belongs to it: otherwise the
    entity would fall apart into a beginning and an orphan. An orphan I- goes on with no entity, so the words before
    it stay O; it can occur where the decoding is not constrained to IOB2.
    """
    tags = [OUTSIDE] * length
    previous, before = -1, OUTSIDE
    for tag, word in zip(predicted, words, strict=True):
        if tag.startswith("I-") and before[:2] in ("B-", "I-") and before[2:] == tag[2:]:
            tags[previous + 1 : word] = [tag] * (word - previous - 1)
        tags[word] = tag
        previous, before = word, tag
    return tags


def scored_tags(scored: Sequence[str], words: Sequence[int], length: int, labels: Sequence[str]) -> list[str]:
    """:func:`restore_tags`; tags of the released set that are none of ``labels`` (PAD, X, [CLS], [SEP]) become O.

    They are no entities: the released code lets them become some.
    """
    known = set(TagSet(tuple(labels)).tags)
    return restore_tags([tag if tag in known else OUTSIDE for tag in scored], words, length)


def allow_only(
    span: Span, words: Sequence[int], positions: Sequence[int], tags: Sequence[str], allowed: np.ndarray
) -> None:
    """Forbid in ``allowed`` [T, K] every tag under which ``span`` is no entity, or another one.

    ``words`` are the scored words, ascending, ``positions`` where the CRF scores them.
    """
    begin, inside = tags.index(f"B-{span.label}"), tags.index(f"I-{span.label}")
    first, last = (bisect.bisect_left(words, word) for word in (span.start, span.end))
    for place in range(first, last):
        allowed[positions[place]] = False
        allowed[positions[place], begin if words[place] == span.start else inside] = True
    if last < len(positions):
        allowed[positions[last], inside] = False


def character_spans(spans: Sequence[Span], words: Sequence[Word]) -> list[tuple[int, int, str]]:
    """(start, end, label) in characters, such that ``text[start:end]`` is the entity."""
    return [(words[span.start].start, words[span.end - 1].end, span.label) for span in spans]
