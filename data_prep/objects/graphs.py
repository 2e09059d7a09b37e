"""The graphs of a text and of a picture, whose structures MEGA aligns (:mod:`data_prep.objects.structure`).

Text: the dependency parse by stanza, or, without its models, a chain in which every word has an edge to the next.
Picture: the paper takes relations of a scene graph; here two objects are related that overlap or lie near each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.objects.structure import Edge
from data_prep.phrases.constituency import open_pipeline, sentences
from tmrjax.records.schema import Box

PROCESSORS = "tokenize,pos,lemma,depparse"
NEAR = 0.1  # gap between two boxes, as a share of the picture's sides, up to which they are near


def chain_edges(number: int) -> list[Edge]:
    """Every word and the next one."""
    return list(itertools.pairwise(range(number)))


def box_edges(boxes: Sequence[Box], near: float = NEAR) -> list[Edge]:
    """Pairs of boxes whose gap, sqrt(dx² + dy²) in shares of width and height, is at most `near`; overlap has none."""
    return [
        (first, second)
        for first, second in itertools.combinations(range(len(boxes)), 2)
        if _gap(boxes[first], boxes[second]) <= near
    ]


def _gap(first: Box, second: Box) -> float:
    gaps = [max(first[axis], second[axis]) - min(first[axis + 2], second[axis + 2]) for axis in (0, 1)]
    return math.hypot(*(max(gap, 0.0) for gap in gaps))


class DependencyParser:
    """A loaded pipeline of stanza: the edges between a governor and its dependents, without those of the root.

    folder: the models, as `stanza.download(..., model_dir=folder)` leaves them. Raises :class:`DataError` where stanza
    or the models are missing.
    """

    def __init__(self, folder: Path, *, use_gpu: bool | None = None):
        self.pipeline, self.version = open_pipeline(folder, PROCESSORS, use_gpu)

    def __call__(self, posts: Sequence[Sequence[str]]) -> list[list[Edge]]:
        """The edges of posts over their tokens; each sentence of a post is parsed alone."""
        spans = [(number, start, end) for number, tokens in enumerate(posts) for start, end in sentences(tokens)]
        document = self.pipeline([list(posts[number][start:end]) for number, start, end in spans])
        edges: list[list[Edge]] = [[] for _ in posts]
        for (number, start, end), sentence in zip(spans, document.sentences, strict=True):
            found = dependency_edges(posts[number][start:end], sentence.words)
            edges[number].extend((start + first, start + second) for first, second in found)
        return edges


def dependency_edges(tokens: Sequence[str], words: Sequence[Any]) -> list[Edge]:
    """(governor, dependent) of a parsed sentence; words have `head`, the governor's number from 1, 0 for the root's.

    Raises ValueError where the parser's words are not the tokens in number.
    """
    if len(words) != len(tokens):
        raise ValueError(f"the parser made {len(words)} words out of {len(tokens)} tokens: {' '.join(tokens)!r}")
    return [(word.head - 1, number) for number, word in enumerate(words) if word.head]
